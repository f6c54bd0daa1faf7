package campaign

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus/fault"
)

// Options say what to run.
type Options struct {
	Scenarios []*Scenario
	Backend   Backend
	N         int    // runs of the whole campaign
	Seed      uint64 // which faults
	Slice     Slice  // the part that is run here; the zero value is all
	Parallel  int    // runs at a time; 0: 64 on sim, 16 on up, where most wait for something, 4 where devices are dear
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

// batch is how many runs are made between two looks at what they left; shrinkTries how many tries one failure is worth.
const (
	batch      = 2048
	settleTime = 5 * time.Second // for goroutines that are ending
	maxTold    = 200             // failures of which all is kept
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
		if o.Backend.Name == upBackend {
			o.Parallel = upParallel
		}
	}
	if o.Backend.single() {
		o.Parallel = 1
	}
	for _, s := range o.Scenarios {
		if len(s.accesses) == 0 {
			var err error
			if s.accesses, err = record(ctx, s, o.Backend); err != nil {
				return nil, err
			}
		}
	}
	if o.Backend.Name == upBackend {
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
	labelTracebacks()
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
	before := c.leftovers()
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(c.Parallel, len(mine)) {
		wg.Go(func() {
			for i := range next {
				if o := c.one(ctx, i); ctx.Err() == nil {
					c.count(o)
				}
			}
		})
	}
	for _, i := range mine {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	c.closeRigs()
	c.leaks(ctx, mine, before)
	if _, err := c.beside.state(); err != nil {
		return nil // told at the end
	}
	return nil
}

// one makes run i.
func (c *campaign) one(ctx context.Context, i int) Outcome {
	s, faults := c.run(i)
	o := c.make(ctx, s, faults)
	for range 3 {
		if !o.late || ctx.Err() != nil {
			break
		}
		// Devices have limits in real time; a machine with too much to do breaks them by itself.
		if o = c.make(ctx, s, faults); o.Verdict != Failed {
			o.repeated = true
		}
	}
	o.Number = i
	if o.Verdict == Failed && ctx.Err() == nil {
		o = c.shrink(ctx, s, faults, o)
	}
	return o
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

// count adds a run to the result.
func (c *campaign) count(o Outcome) {
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

// leftovers are what a run must not leave.
type leftovers struct{ goroutines, files int }

func (c *campaign) leftovers() leftovers {
	return leftovers{runtime.NumGoroutine(), openFiles()}
}

// openFiles counts this process's descriptors.
func openFiles() int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(d)
}

// leaks looks what a batch left, and whose it is.
func (c *campaign) leaks(ctx context.Context, mine []int, before leftovers) {
	if c.settled(before) {
		return
	}
	now := c.leftovers()
	if left := labelled(); len(left) > 0 {
		for _, l := range left {
			name, stack, _ := strings.Cut(l, "\n")
			scenario, spec, _ := strings.Cut(name, " ")
			c.failed(Outcome{Scenario: scenario, Faults: spec, Verdict: Failed, Class: "leak", Why: "goroutines left behind:\n" + stack})
		}
		return
	}
	if now.files <= before.files {
		return // goroutines that nobody here began
	}
	for _, i := range mine { // one after the other, to find whose they are
		s, faults := c.run(i)
		at := c.leftovers()
		c.make(ctx, s, faults)
		c.closeRigs()
		if !c.settled(at) {
			o := Outcome{Scenario: s.Name, Faults: fault.Plan{Faults: faults}.String(), Number: i}
			o.fail("leak", "%d descriptors left behind", openFiles()-at.files)
			c.failed(o)
			return
		}
	}
	c.failed(Outcome{Scenario: "all", Verdict: Failed, Class: "leak", Why: fmt.Sprintf("%d descriptors left behind by runs %d to %d, by none of them alone",
		now.files-before.files, mine[0], mine[len(mine)-1])})
}

// settled waits until there is no more than there was.
func (c *campaign) settled(was leftovers) bool {
	for until := time.Now().Add(settleTime); ; {
		now := c.leftovers()
		// The driver beside comes and goes.
		const coming = 24
		if now.files <= was.files+coming && (now.goroutines <= was.goroutines+coming || len(labelled()) == 0) {
			return true
		}
		if time.Now().After(until) {
			return false
		}
		time.Sleep(5 * time.Millisecond) // nothing signals that a goroutine is gone
	}
}

// labelEntry is a group of goroutines with a label in a profile.
var labelEntry = regexp.MustCompile(`^[0-9]+ @.*\n# labels: \{.*"` + label + `":"([^"]*)"`)

// labelled are the runs whose goroutines are there: scenario and specification, and a stack below.
func labelled() []string {
	var b bytes.Buffer
	_ = pprof.Lookup("goroutine").WriteTo(&b, 1)
	var out []string
	for _, g := range strings.Split(b.String(), "\n\n") {
		if _, rest, ok := strings.Cut(g, "goroutine profile:"); ok {
			_, g, _ = strings.Cut(rest, "\n")
		}
		if m := labelEntry.FindStringSubmatch(g); m != nil {
			out = append(out, m[1]+"\n"+g)
		}
	}
	return out
}

// labelTracebacks has the runtime name the run in a traceback, should a goroutine that nobody here can guard panic.
func labelTracebacks() {
	old := os.Getenv("GODEBUG")
	if !strings.Contains(old, "tracebacklabels") {
		_ = os.Setenv("GODEBUG", strings.TrimPrefix(old+",tracebacklabels=1", ","))
	}
}

// errFailed is what a campaign with failures ends with.
var errFailed = errors.New("runs failed")
