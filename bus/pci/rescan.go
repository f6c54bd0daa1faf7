package pci

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/ring3dev/ring3/bus"
)

// Rescan looks for functions that were plugged in since Enumerate: behind a bridge and all that is known behind that, or
// for a nil port in the whole domain, the root bus included. It returns the new ones, which are in Functions then, after those
// that were. They are brought up in what nobody has of the bus numbers and windows of the bridge that they stand behind:
// what is known keeps its numbers and addresses, and is not written to. What found no room says so in Function.Err.
//
// What is gone is not noticed: the caller removes it with Forget before.
func (t *Topology) Rescan(port *Function) ([]*Function, error) {
	switch {
	case t.acc == nil:
		return nil, fmt.Errorf("rescanning domain %04x: this is a snapshot of it: %w", t.Domain, bus.ErrNotSupported)
	case port == nil:
	case !port.IsBridge():
		return nil, fmt.Errorf("%s: rescanning: not a bridge: %w", port.Addr, bus.ErrNotSupported)
	case !slices.Contains(t.Functions, port):
		return nil, fmt.Errorf("%s: rescanning: it was removed: %w", port.Addr, bus.ErrGone)
	}
	n := len(t.Functions)
	if port == nil {
		t.scan(0, nil)
	} else {
		t.scan(port.Secondary, port)
	}
	found := slices.Clone(t.Functions[n:])
	// New functions behind one bridge that was there are placed together, with all that is behind them.
	var anchors []*Function
	groups := map[*Function][]*Function{}
	under := map[*Function]*Function{} // the known bridge above a new function
	for _, f := range found {
		up, isNew := under[f.Parent]
		if !isNew {
			up = f.Parent
		}
		under[f] = up
		if groups[up] == nil {
			anchors = append(anchors, up)
		}
		groups[up] = append(groups[up], f)
	}
	for _, up := range anchors {
		t.place(up, groups[up])
	}
	for _, f := range found {
		f.program()
	}
	return found, nil
}

// Forget removes f and all that stands behind it, after it was unplugged. Its addresses and bus numbers are free again. Nothing
// is written to it.
func (t *Topology) Forget(f *Function) {
	gone := map[*Function]bool{f: true}
	for _, g := range t.Behind(f) {
		gone[g] = true
	}
	t.Functions = slices.DeleteFunc(slices.Clone(t.Functions), func(g *Function) bool { return gone[g] })
}

// Behind lists all that is known behind a bridge, parents before what is behind them; for nil all there is.
func (t *Topology) Behind(port *Function) []*Function {
	behind := map[*Function]bool{port: true}
	var out []*Function
	for _, g := range t.Functions {
		if behind[g.Parent] {
			behind[g] = true
			out = append(out, g)
		}
	}
	return out
}

// Snapshot is the topology as it is now, for reading while somebody else changes it. The functions are the same.
func (t *Topology) Snapshot() *Topology {
	return &Topology{Domain: t.Domain, Functions: slices.Clone(t.Functions)}
}

// windowsOf are those of a bridge, or of the root bus.
func (t *Topology) windowsOf(bridge *Function) Windows {
	if bridge == nil {
		return t.windows
	}
	return bridge.Windows
}

// freeBuses is the longest run of bus numbers behind a bridge that no bridge there has; first above last if there is none.
func (t *Topology) freeBuses(bridge *Function) (first, last int) {
	lo, hi := 1, maxBus
	if bridge != nil {
		lo, hi = int(bridge.Secondary)+1, int(bridge.Subordinate)
	}
	var taken []*Function
	for _, f := range t.Functions {
		if f.Parent == bridge && f.IsBridge() {
			taken = append(taken, f)
		}
	}
	slices.SortFunc(taken, func(a, b *Function) int { return cmp.Compare(a.Secondary, b.Secondary) })
	first, last = hi+1, hi
	run := func(from, to int) {
		if to-from > last-first {
			first, last = from, to
		}
	}
	for _, f := range taken {
		run(lo, int(f.Secondary)-1)
		lo = max(lo, int(f.Subordinate)+1)
	}
	run(lo, hi)
	return first, last
}

// free are the addresses behind a bridge that nobody has who stands there; those of except are going to be placed.
func (t *Topology) free(bridge *Function, except []*Function) (spans [classes][]Range) {
	w := t.windowsOf(bridge)
	for cl, r := range [classes]Range{w.IO, w.Mem, w.Mem64} {
		if r.Size != 0 {
			spans[cl] = []Range{r}
		}
	}
	placing := make(map[*Function]bool, len(except))
	for _, f := range except {
		placing[f] = true
	}
	take := func(r Range, kinds ...class) {
		for _, cl := range kinds {
			spans[cl] = without(spans[cl], r)
		}
	}
	for _, f := range t.Functions {
		if f.Parent != bridge || placing[f] {
			continue
		}
		for _, b := range append(slices.Clone(f.BARs), f.ROM) {
			switch {
			case b.Addr == 0:
			case b.Kind == bus.RegionIO:
				take(Range{b.Addr, b.Size}, classIO)
			default:
				take(Range{b.Addr, b.Size}, classMem, classPref)
			}
		}
		take(f.Windows.IO, classIO)
		take(f.Windows.Mem, classMem, classPref)
		take(f.Windows.Mem64, classMem, classPref)
	}
	return spans
}

// without cuts a range out of spans. No range here ends above 1<<63.
func without(spans []Range, r Range) []Range {
	if r.Size == 0 {
		return spans
	}
	var out []Range
	for _, s := range spans {
		if r.Base >= s.Base+s.Size || s.Base >= r.Base+r.Size {
			out = append(out, s)
			continue
		}
		if r.Base > s.Base {
			out = append(out, Range{s.Base, r.Base - s.Base})
		}
		if end, rend := s.Base+s.Size, r.Base+r.Size; rend < end {
			out = append(out, Range{rend, end - rend})
		}
	}
	return out
}
