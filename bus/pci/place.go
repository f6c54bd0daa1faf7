package pci

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/ring3dev/ring3/bus"
)

// Granularity of bridge windows (PCI-to-PCI Bridge 1.2, 3.2.5).
const (
	ioGran  = 4 << 10
	memGran = 1 << 20
)

// class is a kind of window.
type class uint8

const (
	classIO class = iota
	classMem
	classPref
	classes
)

// item is something that wants addresses: a BAR, a ROM, or a bridge's window.
type item struct {
	size, align uint64
	class       class
	low         bool // must lie below 4 GiB

	fn     *Function
	bar    *bus.RegionInfo // nil for a bridge's window
	window *Range          // of a bridge
	inside []*item         // of a bridge's window
	at     uint64          // where layout put it
}

// place gives addresses to all BARs of these functions, and windows to the bridges among
// them. They stand, at the top, behind root (nil for the root bus), in what nobody there has yet.
func (t *Topology) place(root *Function, fns []*Function) {
	dropped := map[*bus.RegionInfo]bool{}
	spare := [classes]uint64{t.reserve.IO, t.reserve.Mem, t.reserve.Pref} // what hot-plug ports keep
	high := true                                                          // 64-bit memory may lie high
	w := t.windowsOf(root)
	free := t.free(root, fns)
	behind := map[*Function][]*Function{}
	for _, f := range fns {
		behind[f.Parent] = append(behind[f.Parent], f)
	}
	prefLow := root != nil && w.Mem64.Base+w.Mem64.Size <= 1<<32
	for {
		b := builder{behind: behind, dropped: dropped, spare: spare}
		for _, f := range fns {
			f.Windows = Windows{}
		}
		var tops [classes][]*item
		for _, it := range b.items(root) {
			cl := it.class
			switch {
			case cl == classPref && (w.Mem64.Size == 0 || it.low && !prefLow || !high):
				cl = classMem
			case cl == classMem && root == nil && high && !it.low && it.size > w.Mem.Size/4 && w.Mem64.Size != 0:
				cl = classPref // no bridge above it that could prefetch
			}
			tops[cl] = append(tops[cl], it)
		}
		full := class(classes)
		for cl, spans := range free {
			if !fit(tops[cl], spans) {
				full = class(cl)
				break
			}
		}
		if full == classes {
			for _, top := range tops {
				settle(top, 0)
			}
			break
		}
		// Something must give: first what was only kept for later, then the high window,
		// then the largest. Each turn drops something, so this ends.
		switch {
		case spare[full] != 0:
			spare[full] = less(full, spare[full])
		case full == classMem && spare[classPref] != 0:
			spare[classPref] = less(classPref, spare[classPref]) // may stand in the memory window too
		case full == classPref && high && fit(tops[classPref], free[classMem]):
			high = false
		default:
			room := uint64(0)
			for _, r := range free[full] {
				room += r.Size
			}
			drop(tops[full], room, dropped)
		}
	}
	for _, f := range fns {
		f.failDropped(dropped)
	}
}

// failDropped says which BARs found no room.
func (f *Function) failDropped(dropped map[*bus.RegionInfo]bool) {
	for i := range f.BARs {
		if r := &f.BARs[i]; dropped[r] {
			f.fail("placing BAR %d: no room for %#x bytes of %s space: %w", r.Index, r.Size, r.Kind, bus.ErrBusy)
		}
	}
}

// less is half of what is kept for later, in whole windows, and in the end nothing.
func less(cl class, v uint64) uint64 {
	gran := uint64(memGran)
	if cl == classIO {
		gran = ioGran
	}
	return v / 2 &^ (gran - 1)
}

// fit puts items into spans, the most aligned first, each where there is the first room for it; not ok where one has none.
func fit(items []*item, spans []Range) bool {
	sortItems(items)
	spans = slices.Clone(spans)
	for _, it := range items {
		found := false
		for i, r := range spans {
			at, ok := alignUp(r.Base, it.align)
			if !ok || !r.contains(at, it.size) {
				continue
			}
			it.at, found = at, true
			rest := []Range{{r.Base, at - r.Base}, {at + it.size, r.Base + r.Size - at - it.size}}
			spans = slices.Replace(spans, i, i+1, slices.DeleteFunc(rest, func(r Range) bool { return r.Size == 0 })...)
			break
		}
		if !found {
			return false
		}
	}
	return true
}

// builder makes the tree of items.
type builder struct {
	behind  map[*Function][]*Function
	dropped map[*bus.RegionInfo]bool
	spare   [classes]uint64
}

// items lists what wants addresses on the bus behind a bridge, or on the root bus.
func (b *builder) items(bridge *Function) []*item {
	var out []*item
	for _, f := range b.behind[bridge] {
		for i := range f.BARs {
			r := &f.BARs[i]
			r.Addr = 0
			if b.dropped[r] {
				continue
			}
			it := &item{size: r.Size, align: r.Size, class: classMem, low: !r.Is64, fn: f, bar: r}
			switch {
			case r.Kind == bus.RegionIO:
				it.class = classIO
			case r.Prefetch:
				it.class = classPref
			}
			out = append(out, it)
		}
		if r := &f.ROM; r.Size != 0 {
			if r.Addr = 0; !b.dropped[r] {
				out = append(out, &item{size: r.Size, align: r.Size, class: classMem, low: true, fn: f, bar: r})
			}
		}
		if f.IsBridge() {
			out = append(out, b.windows(f)...)
		}
	}
	return out
}

// windows lists the windows that a bridge needs for what is behind it.
func (b *builder) windows(f *Function) []*item {
	var in [classes][]*item
	for _, it := range b.items(f) {
		cl := it.class
		// A prefetchable window may not hold what is not; the other way round is fine.
		if cl == classPref && (!f.pref || it.low && f.pref64) {
			cl = classMem
		}
		in[cl] = append(in[cl], it)
	}
	var out []*item
	for _, w := range []struct {
		class    class
		gran     uint64
		window   *Range
		has, low bool
	}{
		{classIO, ioGran, &f.Windows.IO, f.io, true},
		{classMem, memGran, &f.Windows.Mem, true, true},
		{classPref, memGran, &f.Windows.Mem64, f.pref, !f.pref64},
	} {
		if !w.has {
			for _, it := range in[w.class] {
				b.dropAll(it)
			}
			continue
		}
		size, ok := layout(in[w.class], 0)
		align := w.gran
		if f.hot && ok && b.spare[w.class] > size {
			// The largest BAR that it has room for fits into it.
			size = b.spare[w.class]
			align = max(align, 1<<(bits.Len64(size)-1))
		}
		if size == 0 && ok {
			continue
		}
		if ok {
			size, ok = alignUp(size, w.gran)
		}
		if !ok {
			size = 1 << 63 // fits nowhere, so that something is dropped
		}
		it := &item{size: size, class: w.class, low: w.low, fn: f, window: w.window, inside: in[w.class], align: align}
		for _, x := range it.inside {
			it.align = max(it.align, x.align)
		}
		out = append(out, it)
	}
	return out
}

// dropAll gives up an item and all inside it.
func (b *builder) dropAll(it *item) {
	if it.bar != nil {
		b.dropped[it.bar] = true
	}
	for _, x := range it.inside {
		b.dropAll(x)
	}
}

// layout puts items one after another from base on, the most aligned first, and says
// where the last one ends; not ok where that exceeds 64 bits.
func layout(items []*item, base uint64) (end uint64, ok bool) {
	sortItems(items)
	end = base
	for _, it := range items {
		if it.at, ok = alignUp(end, it.align); !ok || it.at+it.size < it.at {
			return 0, false
		}
		end = it.at + it.size
	}
	return end, true
}

func sortItems(items []*item) {
	slices.SortStableFunc(items, func(a, b *item) int {
		return cmp.Or(cmp.Compare(b.align, a.align), cmp.Compare(b.size, a.size))
	})
}

// alignUp rounds up to a power of two; not ok where that exceeds 64 bits.
func alignUp(v, align uint64) (uint64, bool) {
	r := (v + align - 1) &^ (align - 1)
	return r, r >= v
}

// settle turns offsets into addresses, from the top down.
func settle(items []*item, base uint64) {
	for _, it := range items {
		at := base + it.at
		if it.bar != nil {
			it.bar.Addr = at
		} else {
			*it.window = Range{Base: at, Size: it.size}
		}
		settle(it.inside, at)
	}
}

// drop gives up the largest BARs below these items: one, and more until the rest is not
// larger than room.
func drop(items []*item, room uint64, dropped map[*bus.RegionInfo]bool) {
	var bars []*item
	var walk func([]*item)
	walk = func(items []*item) {
		for _, it := range items {
			if it.bar != nil {
				bars = append(bars, it)
			}
			walk(it.inside)
		}
	}
	walk(items)
	slices.SortStableFunc(bars, func(a, b *item) int {
		rom := func(it *item) int { return it.bar.Index / 6 } // nobody needs ROMs: they go first
		return cmp.Or(cmp.Compare(rom(a), rom(b)), cmp.Compare(a.size, b.size))
	})
	keep, sum := 0, uint64(0)
	for keep < len(bars)-1 && bars[keep].size <= room-sum {
		sum += bars[keep].size
		keep++
	}
	for _, it := range bars[keep:] {
		dropped[it.bar] = true
	}
}
