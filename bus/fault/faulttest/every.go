package faulttest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/internal/runlabel"
)

// Scenario is a part of a driver's life that is lived again and again, each time on a fresh
// device of which something else goes wrong.
type Scenario struct {
	Name      string // of the subtest
	Driver    string // the name that the driver's errors say after the address
	Registers []bus.Register
	// Open makes a fresh device. It may register cleanups with t, which is that of one run, and end it
	// with t.Fatal; it must not use NoLeaks.
	Open func(t testing.TB) bus.Device
	// Run brings the driver up on dev, uses it and closes it; the device is closed by the
	// caller. It returns what the driver returned first, or Wrong. ctx ends some time after
	// the fault was made.
	Run func(ctx context.Context, dev bus.Device) error
	// Notices says whether the driver must notice a fault: then Wrong fails the test. nil: it must
	// notice that the link is dead.
	Notices func(fault.Fault) bool
}

// Options limit what is tried. The zero value tries everything once, without pairs.
type Options struct {
	Kinds []fault.Kind // nil: all
	Bits  int          // how many bits of a register flip and are stuck, one at a time; 0: 1
	// Pairs has a second fault at every access after the first, as that run had them. PairKinds are
	// the kinds of both, nil: Kinds.
	Pairs     bool
	PairKinds []fault.Kind
	// Max limits the runs with one fault, MaxPairs those with two; 0: no limit. Those that are run
	// are spread evenly. Always are kinds whose runs with one fault are made all the same, and do not
	// count.
	Max, MaxPairs int
	Always        []fault.Kind
	// Parallel is how many are run at the same time; 0: 16. Most of their time is waiting.
	Parallel int
	// Patience is how long ctx lives after a fault was made; 0: 200 ms.
	Patience time.Duration
}

// hangTime is how long a run may go on once its ctx ended.
var hangTime = 60 * time.Second

// Env is the environment variable with the specification of a run that is to be repeated.
const Env = "RING3_FAULT"

// Times. None decides whether a run passes.
const (
	cleanTime  = 60 * time.Second // for a run without fault
	wholeTime  = 60 * time.Second // for one whose fault is never reached
	settleTime = 2 * time.Second  // for goroutines that are ending
)

// Every runs a scenario as a subtest: once as it should be, then once for each access of that
// run and each way in which the access can go wrong, and with Pairs once for each two. Where
// the environment variable RING3_FAULT holds a specification it runs that alone, and logs what
// the driver did.
func Every(t *testing.T, s Scenario, o Options) {
	t.Helper()
	t.Run(s.Name, func(t *testing.T) {
		bustest.NoLeaks(t)
		t.Cleanup(runlabel.InTracebacks())
		c := newCampaign(t, s, o)
		if spec, ok := os.LookupEnv(Env); ok {
			c.replay(spec)
			return
		}
		clean := c.clean()
		if t.Failed() {
			return
		}
		first := c.run(c.few(singles(clean, c.kinds, c.Options.bits())))
		if o.Pairs && !t.Failed() {
			if o.PairKinds != nil {
				first = c.without(clean, o.PairKinds)
			}
			c.run(sample(pairs(first, c.pairKinds()), o.MaxPairs))
		}
		c.report(clean)
	})
}

// without is what the first halves of pairs do, where they are of other kinds than the
// singles: those are run again, for their accesses.
func (c *campaign) without(clean []fault.Access, kinds []fault.Kind) []result {
	quiet := *c
	quiet.counted = false
	return quiet.run(singles(clean, kinds, 1))
}

func (o Options) bits() int { return max(o.Bits, 1) }

func (c *campaign) pairKinds() []fault.Kind {
	if c.Options.PairKinds != nil {
		return c.Options.PairKinds
	}
	return c.kinds
}

// singles are the plans with one fault, for accesses as a run had them.
func singles(log []fault.Access, kinds []fault.Kind, bits int) [][]fault.Fault {
	var plans [][]fault.Fault
	memory := len(log) > 0 && log[0].N > 1 // as a window that begins later has it
	for i, a := range log {
		memory = memory || a.Op == fault.Alloc || a.Op == fault.Map
		for _, k := range kinds {
			if k.NeedsMemory() && !memory {
				continue
			}
			for _, f := range faultsAt(a, i, k, bits) {
				plans = append(plans, []fault.Fault{f})
			}
		}
	}
	return plans
}

// faultsAt are the faults of a kind at an access. Which bits of a register are tried depends on
// its number in the log, so that all have their turn.
func faultsAt(a fault.Access, i int, k fault.Kind, bits int) []fault.Fault {
	if !k.Applies(a.Op) {
		return nil
	}
	if !k.NeedsBit() {
		return []fault.Fault{{At: a.At(), Kind: k}}
	}
	width := 8 * a.Width
	var out []fault.Fault
	for b := range min(bits, width) {
		// 11 has no factor in common with a width: every bit comes once.
		out = append(out, fault.Fault{At: a.At(), Kind: k, Arg: (11*(i+b) + int(k)) % width})
	}
	return out
}

// pairs are the plans with two faults: each of the first, with each at an access after it in its
// own run.
func pairs(first []result, kinds []fault.Kind) [][]fault.Fault {
	var plans [][]fault.Fault
	for _, r := range first {
		out := r.outcomes[0]
		if !out.Made || r.plan[0].Kind == fault.Gone {
			continue
		}
		for i, a := range r.log {
			if a.N <= out.Access.N {
				continue
			}
			for _, k := range kinds {
				for _, f := range faultsAt(a, i, k, 1) {
					plans = append(plans, []fault.Fault{r.plan[0], f})
				}
			}
		}
	}
	return plans
}

// few are the runs with one fault that are made.
func (c *campaign) few(plans [][]fault.Fault) [][]fault.Fault {
	if c.Max == 0 {
		return plans
	}
	var always, rest [][]fault.Fault
	for _, p := range plans {
		if slices.Contains(c.Always, p[0].Kind) {
			always = append(always, p)
		} else {
			rest = append(rest, p)
		}
	}
	return append(always, sample(rest, c.Max)...)
}

// sample takes n of the plans, evenly.
func sample(plans [][]fault.Fault, n int) [][]fault.Fault {
	if n <= 0 || n >= len(plans) {
		return plans
	}
	out := make([][]fault.Fault, n)
	for i := range out {
		out[i] = plans[i*len(plans)/n]
	}
	return out
}

// replay runs one specification.
func (c *campaign) replay(spec string) {
	var plan fault.Plan
	if spec != "" {
		var err error
		if plan, err = fault.Parse(spec); err != nil {
			c.t.Fatalf("%s: %v", Env, err)
		}
	}
	plan.Registers = c.Registers
	if err := plan.Check(); err != nil {
		c.t.Fatalf("%s: %v", Env, err)
	}
	c.logs = true
	r := c.one(plan.Faults)
	var b strings.Builder
	for _, a := range r.log {
		fmt.Fprintf(&b, "%5d %-24s %s\n", a.N, a.At(), a)
	}
	c.t.Logf("%d accesses: number, name, what\n%s", len(r.log), b.String())
	for _, o := range r.outcomes {
		c.t.Log(o)
	}
	c.t.Logf("Run = %v", r.err)
	c.judge(r)
	c.leaks()
}

// window is the part of a run that is of interest.
type window struct {
	dev         *fault.Device
	first, last int
}

type windowKey struct{}

// From is for Run: no access up to here is made to fail, since another scenario does that.
func From(ctx context.Context) {
	if w, ok := ctx.Value(windowKey{}).(*window); ok {
		w.first = w.dev.Accesses() + 1
	}
}

// Until is for Run: no access from here on is made to fail, except as the second of a pair.
func Until(ctx context.Context) {
	if w, ok := ctx.Value(windowKey{}).(*window); ok {
		w.last = w.dev.Accesses()
	}
}

// As finds a device of type T inside a wrapped one: what Open gave, with all that it knows.
func As[T any](dev bus.Device) (T, bool) {
	for {
		if d, ok := dev.(T); ok {
			return d, true
		}
		w, ok := dev.(interface{ Unwrap() bus.Device })
		if !ok {
			var none T
			return none, false
		}
		dev = w.Unwrap()
	}
}

// clean runs the scenario without a fault, and gives the accesses that are of interest.
func (c *campaign) clean() []fault.Access {
	r := c.one(nil)
	switch {
	case r.skipped != "":
		c.t.Skip(r.skipped)
	case r.broken != "":
		c.t.Errorf("without any fault: %s", r.broken)
	case r.err != nil:
		c.t.Errorf("without any fault: %v", r.err)
	}
	return slices.DeleteFunc(r.log, func(a fault.Access) bool { return a.N < r.first || r.last > 0 && a.N > r.last })
}
