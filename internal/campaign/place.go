package campaign

import (
	"cmp"
	"context"
	"embed"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/ring3dev/ring3/bus/fault"
)

// place is where a driver makes accesses in a life without fault, and how many.
type place struct {
	name  string
	op    fault.Op
	width int // bytes
	first int // the number there of the first of this op
	count int
}

// The accesses of each scenario are files, so that a seed means the same faults on every machine and on every day: what a driver does
// differs a little from run to run. `go test ./internal/campaign -update` writes them.
//
//go:embed universe
var universes embed.FS

var opNames = map[fault.Op]string{
	fault.Read: "read", fault.Write: "write", fault.ConfigRead: "cfgread", fault.ConfigWrite: "cfgwrite", fault.OpenRegion: "region",
	fault.Alloc: "alloc", fault.Map: "map", fault.EnableIRQs: "enable", fault.DisableIRQs: "disable", fault.Reset: "reset", fault.Interrupt: "irq",
}

// universe reads the accesses of a scenario; none where nobody wrote them down.
func universe(scenario string) []place {
	text, err := universes.ReadFile("universe/" + scenario + ".txt")
	if err != nil {
		return nil
	}
	var out []place
	for line := range strings.Lines(string(text)) {
		var p place
		var op string
		if _, err := fmt.Sscan(line, &p.name, &op, &p.width, &p.first, &p.count); err != nil {
			continue
		}
		for o, n := range opNames {
			if n == op {
				p.op = o
				out = append(out, p)
			}
		}
	}
	return out
}

// places sums a log up. What is at one place both read and written has two entries, whose numbers mingle.
func places(log []fault.Access) []place {
	type key struct {
		name  string
		op    fault.Op
		width int
	}
	at := map[key]int{}
	var out []place
	for _, a := range log {
		k := key{a.Place, a.Op, a.Width}
		i, ok := at[k]
		if !ok {
			i = len(out)
			at[k] = i
			out = append(out, place{name: a.Place, op: a.Op, width: a.Width, first: a.Nth})
		}
		out[i].count = a.Nth - out[i].first + 1
	}
	slices.SortStableFunc(out, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.op, b.op), cmp.Compare(a.width, b.width))
	})
	return out
}

func (p place) String() string {
	return fmt.Sprintf("%s %s %d %d %d", p.name, opNames[p.op], p.width, p.first, p.count)
}

// record lives a scenario's life some times without fault, and gives the accesses that all of them had.
func record(ctx context.Context, s *Scenario, b Backend) ([]place, error) {
	if s.up != nil {
		return recordUp(ctx, s, b)
	}
	var out []place
	for i := range 3 {
		log, err := clean(ctx, s, b)
		if err != nil {
			return nil, err
		}
		out = common(out, places(log), i == 0)
	}
	return out, nil
}

// common are the accesses that two lives have; all of now where it is the first.
func common(out, now []place, first bool) []place {
	if first {
		return now
	}
	for k := range out {
		j := slices.IndexFunc(now, func(p place) bool { return p.name == out[k].name && p.op == out[k].op && p.width == out[k].width })
		if j < 0 {
			out[k].count = 0
		} else {
			out[k].count = min(out[k].count, now[j].count)
		}
	}
	return slices.DeleteFunc(out, func(p place) bool { return p.count == 0 })
}

// clean is what a driver does where nothing fails.
func clean(ctx context.Context, s *Scenario, b Backend) (log []fault.Access, err error) {
	r, err := s.open(ctx, b)
	if err != nil {
		return nil, err
	}
	dev := fault.Wrap(r.dev, fault.Plan{Registers: s.Registers})
	err = r.live(ctx, dev)
	log = dev.Log()
	if e := dev.Release(); err == nil {
		err = e
	}
	if e := r.close(); err == nil {
		err = e
	}
	if err != nil {
		return nil, fmt.Errorf("%s without any fault: %w", s.Name, err)
	}
	return log, nil
}

// most bounds how many accesses of one place count: a register that is polled a thousand times is no thousand places.
const most = 64

// singles are all accesses with all kinds that apply, one fault each.
func (s *Scenario) singles(kinds []fault.Kind) []fault.Fault {
	var out []fault.Fault
	memory := slices.ContainsFunc(s.accesses, func(p place) bool { return p.op == fault.Alloc || p.op == fault.Map })
	for _, p := range s.accesses {
		for n := range min(p.count, most) {
			for _, k := range kinds {
				if !k.Applies(p.op) || k.NeedsMemory() && !memory {
					continue
				}
				f := fault.Fault{At: fault.Point{Place: p.name, Nth: p.first + n}, Kind: k}
				switch {
				case k.NeedsBit():
					f.Arg = (11*(n+len(out)) + int(k)) % (8 * p.width)
				case k.Seeded():
					f.Arg = 1 + len(out)%1000
				}
				out = append(out, f)
			}
		}
	}
	return out
}

// random is one fault somewhere.
func (s *Scenario) random(kinds []fault.Kind, rnd *rand.Rand) fault.Fault {
	sum, memory := 0, s.up != nil && s.up.group.sends
	for _, p := range s.accesses {
		sum += min(p.count, most)
		memory = memory || p.op == fault.Alloc || p.op == fault.Map
	}
	for {
		i := rnd.IntN(sum)
		var p place
		for _, p = range s.accesses {
			if i -= min(p.count, most); i < 0 {
				break
			}
		}
		k := kinds[rnd.IntN(len(kinds))]
		n := rnd.IntN(p.count)
		arg := 1 + rnd.IntN(1<<20)
		if !k.Applies(p.op) || k.NeedsMemory() && !memory {
			continue
		}
		f := fault.Fault{At: fault.Point{Place: p.name, Nth: p.first + n}, Kind: k}
		switch {
		case k.NeedsBit():
			f.Arg = arg % (8 * p.width)
		case k.Seeded():
			f.Arg = arg
		}
		return f
	}
}

// choice is what a campaign does in its order: run i of n, whoever makes it.
type choice struct {
	seed      uint64
	scenarios []*Scenario
	kinds     []fault.Kind
	turn      []int   // scenarios, by weight, one turn after the other
	nth       []int   // for each entry of turn, which of its scenario's it is
	per       []int   // runs of each scenario in one turn
	single    [][]int // orders of singles of short scenarios
	singles   [][]fault.Fault
}

func newChoice(seed uint64, scenarios []*Scenario, kinds []fault.Kind) *choice {
	c := &choice{seed: seed, scenarios: scenarios, kinds: kinds, per: make([]int, len(scenarios))}
	for i, s := range scenarios {
		for range s.Weight {
			c.turn, c.nth = append(c.turn, i), append(c.nth, c.per[i])
			c.per[i]++
		}
		var all []fault.Fault
		if s.Short {
			all = s.singles(kinds)
		}
		c.singles = append(c.singles, all)
		c.single = append(c.single, rand.New(rand.NewPCG(seed, uint64(i))).Perm(len(all)))
	}
	return c
}

// run is the scenario of run i, and its faults.
func (c *choice) run(i int) (*Scenario, []fault.Fault) {
	t := i % len(c.turn)
	k := c.turn[t]
	s := c.scenarios[k]
	n := i/len(c.turn)*c.per[k] + c.nth[t] // which run of the scenario it is
	if n < len(c.single[k]) {
		return s, []fault.Fault{c.singles[k][c.single[k][n]]}
	}
	rnd := rand.New(rand.NewPCG(c.seed, uint64(i)))
	many := 1
	switch rnd.IntN(8) {
	case 0:
		many = 3
	case 1, 2:
		many = 2
	}
	if s.Short {
		many = max(many, 2) // single ones were all tried
	}
	var fs []fault.Fault
	for range many {
		fs = append(fs, s.random(c.kinds, rnd))
	}
	return s, fs
}
