package campaign

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/internal/cpuset"
	"github.com/ring3dev/ring3/internal/runlabel"
)

// Options say what to run.
type Options struct {
	Scenarios []*Scenario
	Backend   Backend
	N         int    // runs of the whole campaign
	Seed      uint64 // which faults
	Slice     Slice  // the part that is run here; the zero value is all
	Parallel  int    // runs at a time, besides those that wait for something; 0: 64 on sim, 16 on up, 4 where devices are dear
	// Progress gets a line now and then; nil: nothing.
	Progress io.Writer
	// Failed is told of each failed run, shrunk, as it is found; nil: nobody.
	Failed func(Outcome)
}

// Slice is part I of K of a campaign. Its runs are those whose number is I-1 modulo K.
type Slice struct{ I, K int }

// ParseSlice reads I/K.
func ParseSlice(s string) (Slice, error) {
	var p Slice
	if s == "" {
		return Slice{1, 1}, nil
	}
	if n, err := fmt.Sscanf(s, "%d/%d", &p.I, &p.K); n != 2 || err != nil || p.String() != s || p.I < 1 || p.I > p.K {
		return Slice{}, fmt.Errorf("slice %q: want I/K, I from 1 to K", s)
	}
	return p, nil
}

func (s Slice) String() string { return fmt.Sprintf("%d/%d", s.I, s.K) }

// batch is how many runs are made between two looks at what they left, for which all have to be over; waitsAfter after how long a run is taken to
// wait for something.
const (
	batch      = 1 << 16
	waitsAfter = 200 * time.Millisecond
	maxTold    = 200 // failures of which all is kept
)

// Run makes the runs of a slice. An error says that the campaign could not be made, or that ctx ended; the result is then what was made.
func Run(ctx context.Context, o Options) (*Result, error) {
	if o.Slice.K == 0 {
		o.Slice = Slice{1, 1}
	}
	if o.Parallel == 0 {
		if o.Parallel = 64; !o.Backend.fresh() {
			o.Parallel = 4
		}
		if o.Backend.supervised() {
			o.Parallel = upParallel
		}
	}
	if o.Backend.single() {
		o.Parallel = 1
	}
	for _, s := range o.Scenarios {
		if !s.On(o.Backend) {
			return nil, fmt.Errorf("fault: %s does not run on %s", s.Name, o.Backend)
		}
		if len(s.accesses) == 0 {
			var err error
			if s.accesses, err = record(ctx, s, o.Backend); err != nil {
				return nil, err
			}
		}
	}
	if o.Backend.supervised() {
		return runUp(ctx, o)
	}
	beside, err := startBystander(ctx)
	if err != nil {
		return nil, err
	}
	c := &campaign{
		Options: o, beside: beside, choice: newChoice(o.Seed, o.Scenarios, fault.Kinds()),
		result: newResult(o), begin: time.Now(), rigs: map[string][]*rig{},
	}
	runlabel.InTracebacks()
	if online, err := cpuset.Online(); err == nil {
		cpuset.Tell(online, cpuset.Nodes()) // each driver that comes up asks, and reads files for it
	}
	// Machines come and go by the thousand: collecting less often is twice as fast, for some 100 MB.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	err = c.all(ctx)
	c.closeRigs()
	rounds, e := beside.close()
	c.result.Beside = rounds
	if e != nil {
		c.failed(Outcome{Scenario: "beside", Verdict: Failed, Class: "beside", Why: e.Error()})
	}
	c.result.Seconds = time.Since(c.begin).Seconds()
	return c.result, err
}

// campaign is one that is being run.
type campaign struct {
	Options
	*choice
	beside *bystander
	begin  time.Time
	base   leftovers // what there is while nothing runs

	mu     sync.Mutex // guards what follows
	result *Result
	rigs   map[string][]*rig // those that wait to be used again, by scenario
	told   time.Time
}

// all makes all runs, batch by batch.
func (c *campaign) all(ctx context.Context) error {
	// What is only made once, is made before anything is counted.
	for _, s := range c.Scenarios {
		if _, err := clean(ctx, s, c.Backend); err != nil {
			return err
		}
	}
	c.base = c.still()
	mine := make([]int, 0, batch)
	for i := c.Slice.I - 1; i < c.N; i += c.Slice.K {
		mine = append(mine, i)
		if len(mine) < batch && i+c.Slice.K < c.N {
			continue
		}
		if err := c.batch(ctx, mine); err != nil {
			return err
		}
		mine = mine[:0]
	}
	return ctx.Err()
}

// batch makes some runs side by side, and looks what they left behind all together.
func (c *campaign) batch(ctx context.Context, mine []int) error {
	late := mine
	for try := range tries {
		now := late
		late = nil
		c.inFlight(ctx, c.parallel(try), now, func(i int) {
			if o := c.one(ctx, i, try); ctx.Err() == nil && !c.count(o) {
				c.mu.Lock()
				late = append(late, i)
				c.mu.Unlock()
			}
		})
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	c.closeRigs()
	c.leaks(ctx, mine)
	return nil
}

// inFlight calls do for all runs, for so many at a time, and for more where these wait: whoever is at it for some time gives its place to the next.
func (c *campaign) inFlight(ctx context.Context, parallel int, mine []int, do func(i int)) {
	places, all := make(chan struct{}, parallel), make(chan struct{}, parallel*c.Backend.waiting())
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, i := range mine {
		all <- struct{}{}
		places <- struct{}{}
		if ctx.Err() != nil {
			return
		}
		wg.Go(func() {
			leave := sync.OnceFunc(func() { <-places })
			waits := after(waitsAfter, leave)
			do(i)
			waits.stop()
			leave()
			<-all
		})
	}
}

// tries is how often a run is made that was late: devices and drivers have limits in real time, and a machine with too much to do breaks them by itself.
const tries = 4

// parallel is how many runs are at work at a time, fewer where those are made again that were late.
func (c *campaign) parallel(try int) int {
	if try == 0 {
		return c.Parallel
	}
	return min(c.Parallel, 2)
}

// one makes run i. Where the outcome says that it was late, it is to be made again.
func (c *campaign) one(ctx context.Context, i, try int) Outcome {
	s, faults := c.run(i)
	o := c.make(ctx, s, faults)
	o.Number = i
	if o.late = o.late && try < tries-1; o.late || ctx.Err() != nil {
		return o
	}
	if o.Verdict != Failed {
		o.repeated = try > 0
		return o
	}
	return c.shrink(ctx, s, faults, o)
}

// make makes one run, on a device that others had before where a new one is dear.
func (c *campaign) make(ctx context.Context, s *Scenario, faults []fault.Fault) Outcome {
	if c.Backend.fresh() {
		return once(ctx, s, c.Backend, nil, faults, false)
	}
	r, err := c.rig(ctx, s)
	if err != nil {
		o := Outcome{Scenario: s.Name, Faults: fault.Plan{Faults: faults}.String()}
		o.fail("set-up", "opening the device: %v", err)
		o.late = lateError(err) // a QEMU that does not come up in time, where many do at once
		return o
	}
	o := once(ctx, s, c.Backend, r, faults, false)
	if c.Backend.single() {
		if err := r.close(); err != nil && o.Verdict != Failed {
			o.fail("leak", "closing the device: %v", err)
		}
		return o
	}
	if o.Verdict == Failed || r.dev.Err() != nil {
		go func() { _ = r.close() }() // it may hang, with what hangs
		return o
	}
	c.mu.Lock()
	c.rigs[s.Name] = append(c.rigs[s.Name], r)
	c.mu.Unlock()
	return o
}

// rig is one that waits, or a new one.
func (c *campaign) rig(ctx context.Context, s *Scenario) (*rig, error) {
	c.mu.Lock()
	if have := c.rigs[s.Name]; len(have) > 0 {
		r := have[len(have)-1]
		c.rigs[s.Name] = have[:len(have)-1]
		c.mu.Unlock()
		return r, nil
	}
	c.mu.Unlock()
	return s.open(context.WithoutCancel(ctx), c.Backend)
}

func (c *campaign) closeRigs() {
	c.mu.Lock()
	rigs := c.rigs
	c.rigs = map[string][]*rig{}
	c.mu.Unlock()
	for name, have := range rigs {
		for _, r := range have {
			if err := r.close(); err != nil {
				c.failed(Outcome{Scenario: name, Verdict: Failed, Class: "leak", Why: fmt.Sprintf("closing the machine after a batch: %v", err)})
			}
		}
	}
}

// count adds a run to the result, or says that it is to be made again.
func (c *campaign) count(o Outcome) bool {
	if o.late {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.result.add(o)
	if o.Verdict == Failed && c.Failed != nil {
		c.Failed(o)
	}
	if c.Progress != nil && time.Since(c.told) > 2*time.Second {
		c.told = time.Now()
		r := c.result
		all := (c.N - c.Slice.I + c.Slice.K) / c.Slice.K
		fmt.Fprintf(c.Progress, "%d of %d runs, %.0f a second: %d failed, %d mute, %d wrong\n",
			r.Runs, all, float64(r.Runs)/time.Since(c.begin).Seconds(), r.Total(Failed), r.Total(Mute), r.Total(Wrong))
	}
	return true
}

// failed adds what failed beside the runs.
func (c *campaign) failed(o Outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.result.beside(o)
	if c.Failed != nil {
		c.Failed(o)
	}
}

// errFailed is what a campaign with failures ends with.
var errFailed = errors.New("runs failed")
