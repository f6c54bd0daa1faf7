package faulttest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/runlabel"
)

// campaign is a scenario under test.
type campaign struct {
	Scenario
	Options
	t       *testing.T
	kinds   []fault.Kind
	counted bool // runs are judged
	logs    bool // runs with faults keep what the driver did

	mu     *sync.Mutex
	counts *counts
}

// counts are what came out of all runs.
type counts struct {
	runs, missed, errors, wrong, failures int
	stop                                  bool // a run hangs, or enough have failed
}

// maxFailures is how many failing runs are told of.
const maxFailures = 10

func newCampaign(t *testing.T, s Scenario, o Options) *campaign {
	if o.Parallel == 0 {
		o.Parallel = 16
	}
	if o.Patience == 0 {
		o.Patience = 200 * time.Millisecond
	}
	if s.Notices == nil {
		s.Notices = func(f fault.Fault) bool { return f.Kind == fault.Gone }
	}
	c := &campaign{Scenario: s, Options: o, t: t, kinds: o.Kinds, counted: true, logs: o.Pairs, mu: &sync.Mutex{}, counts: &counts{}}
	if c.kinds == nil {
		c.kinds = fault.Kinds()
	}
	return c
}

// result is what came out of one run.
type result struct {
	plan     []fault.Fault
	log      []fault.Access
	outcomes []fault.Outcome
	err      error  // of Run
	address  string // of the device
	held     []string
	first    int    // accesses from it on are of interest; 0: all
	last     int    // and up to it; 0: all
	broken   string // a panic, a hang, a device that could not be opened
	skipped  string
}

// wrongError is a result that is not what it should be.
type wrongError struct{ error }

// Wrong is for Run: the driver gave a result as good that is not.
func Wrong(format string, args ...any) error { return wrongError{fmt.Errorf(format, args...)} }

// run makes a run for each plan, several at a time.
func (c *campaign) run(plans [][]fault.Fault) []result {
	results := make([]result, len(plans))
	next := make(chan int)
	var wg sync.WaitGroup
	for range c.Parallel {
		wg.Go(func() {
			for i := range next {
				results[i] = c.one(plans[i])
				if c.counted {
					c.judge(results[i])
				}
			}
		})
	}
	done := 0
	for i := range plans {
		if c.stopped() {
			break
		}
		next <- i
		done++
	}
	close(next)
	wg.Wait()
	c.leaks()
	return results[:done]
}

func (c *campaign) stopped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts.stop
}

// one makes one run. It returns even if the run does not.
func (c *campaign) one(plan []fault.Fault) result {
	tb := &runTB{TB: c.t}
	out := make(chan result, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	whole := wholeTime
	if plan == nil {
		whole = cleanTime
	}
	expire := time.AfterFunc(whole, cancel)
	defer expire.Stop()
	spec := fault.Plan{Faults: plan}.String()
	var dev atomic.Pointer[fault.Device] // once it is open
	go runlabel.Do(ctx, c.t.Name()+" "+spec, func(ctx context.Context) {
		r := result{plan: plan}
		defer func() { out <- r }()
		tb.run(&r, func() { c.live(ctx, tb, expire, &dev, &r) })
	})
	select {
	case r := <-out:
		return r
	case <-ctx.Done():
	}
	select {
	case r := <-out:
		return r
	case <-time.After(hangTime):
	}
	r := result{plan: plan}
	last := "it is not open yet"
	if d := dev.Load(); d != nil {
		r.log, r.outcomes = d.Log(), d.Outcomes()
		if n := len(r.log); n > 0 {
			last = fmt.Sprintf("the last access is %d, %s", n, r.log[n-1])
		}
	}
	r.broken = fmt.Sprintf("hangs %s after its ctx ended; %s; all goroutines:\n%s", hangTime, last, stacks())
	return r
}

// live opens a device and lives the scenario.
func (c *campaign) live(ctx context.Context, tb *runTB, expire *time.Timer, open *atomic.Pointer[fault.Device], r *result) {
	plan := fault.Plan{Faults: r.plan, Registers: c.Registers}
	plan.OnHit = func(fault.Fault, fault.Access) { expire.Reset(c.Patience) }
	in := c.Open(tb)
	if raceEnabled {
		in = unwatched{in}
	}
	dev := fault.Wrap(in, plan)
	open.Store(dev)
	tb.Cleanup(func() {
		r.outcomes = dev.Outcomes()
		if c.logs || len(r.plan) == 0 {
			r.log = dev.Log()
		}
		if err := dev.Close(); err != nil && dev.Err() == nil {
			r.broken += fmt.Sprintf("closing the device: %v", err)
		}
	})
	r.address = dev.Address()
	w := &window{dev: dev}
	r.err = c.Run(context.WithValue(ctx, windowKey{}, w), dev)
	r.first, r.last = w.first, w.last
	r.held = dev.Held()
}

// stacks are the stacks of all goroutines.
func stacks() string {
	buf := make([]byte, 8<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// judge counts a run, and fails the test where the driver did not behave.
func (c *campaign) judge(r result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.runs++
	var wrong wrongError
	switch {
	case errors.As(r.err, &wrong):
		c.counts.wrong++
	case r.err != nil:
		c.counts.errors++
	}
	made := false
	for _, o := range r.outcomes {
		made = made || o.Made
	}
	if !made {
		c.counts.missed++
	}
	why := c.verdict(r)
	if why == "" || c.counts.stop {
		return
	}
	c.t.Errorf("%s\n%s", why, c.command(r.plan))
	c.counts.failures++
	c.counts.stop = c.counts.failures >= maxFailures || strings.HasPrefix(r.broken, "hangs")
	if c.counts.stop {
		c.t.Error("the rest is not run")
	}
}

// sentinels are what a driver's error wraps.
var sentinels = []error{
	bus.ErrTimeout, bus.ErrGone, bus.ErrClosed, bus.ErrNotSupported, bus.ErrNoIOMMU, bus.ErrBusy, bus.ErrProtocol,
	context.Canceled, context.DeadlineExceeded, pci.ErrSkip,
}

// verdict is what is wrong with a driver that does so; "" for nothing.
func (c *campaign) verdict(r result) string {
	if r.broken != "" {
		return r.broken
	}
	if r.skipped != "" {
		return "skipped, though it was not without a fault: " + r.skipped
	}
	if held := c.kept(r); len(held) > 0 {
		return fmt.Sprintf("left behind: %s (Run = %v)", strings.Join(held, ", "), r.err)
	}
	if r.err == nil {
		return ""
	}
	if !slices.ContainsFunc(r.outcomes, func(o fault.Outcome) bool { return o.Made }) {
		return fmt.Sprintf("no fault was made, but: %v", r.err)
	}
	var wrong wrongError
	if errors.As(r.err, &wrong) {
		if slices.ContainsFunc(r.outcomes, func(o fault.Outcome) bool { return o.Made && !c.Notices(o.Fault) }) {
			return "" // one that it need not notice explains it
		}
		return fmt.Sprintf("not noticed: %v", r.err)
	}
	want := r.address + " " + c.Driver + ": "
	for line := range strings.Lines(r.err.Error()) {
		if !strings.HasPrefix(line, want) || len(strings.TrimSpace(line)) <= len(want) {
			return fmt.Sprintf("error %q, want each line to begin with %q and to name the step", r.err, want)
		}
	}
	if !slices.ContainsFunc(sentinels, func(s error) bool { return errors.Is(r.err, s) }) {
		return fmt.Sprintf("error %q wraps no error of package bus or context, and is no pci.ErrSkip", r.err)
	}
	return ""
}

// kept is what the driver holds at its end, and has not been kept from giving back.
func (c *campaign) kept(r result) []string {
	denied := slices.ContainsFunc(r.outcomes, func(o fault.Outcome) bool {
		return o.Made && o.Fault.Kind == fault.Deny && o.Access.Op == fault.DisableIRQs
	})
	return slices.DeleteFunc(slices.Clone(r.held), func(s string) bool {
		return denied && strings.HasSuffix(s, "interrupt vectors")
	})
}

// command repeats a run.
func (c *campaign) command(plan []fault.Fault) string {
	names := strings.Split(c.t.Name(), "/")
	for i, n := range names {
		names[i] = "^" + regexp.QuoteMeta(n) + "$"
	}
	return fmt.Sprintf("%s='%s' go test %s -run '%s'", Env, fault.Plan{Faults: plan}, packageDir(), strings.Join(names, "/"))
}

// packageDir is the package under test as the go command takes it at the module's root. Tests
// run in their package's directory.
func packageDir() string {
	dir, err := os.Getwd()
	if err != nil {
		return "."
	}
	for root := dir; ; root = filepath.Dir(root) {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			if rel, err := filepath.Rel(root, dir); err == nil && rel != "." {
				return "./" + filepath.ToSlash(rel)
			}
			return "."
		}
		if root == filepath.Dir(root) {
			return "."
		}
	}
}

// leaks fails the test where runs have left goroutines, which bear their label.
func (c *campaign) leaks() {
	if c.stopped() {
		return // what hangs is still there
	}
	var left []string
	for until := time.Now().Add(settleTime); ; {
		if left = labelled(c.t.Name()); len(left) == 0 {
			return
		}
		if time.Now().After(until) {
			break
		}
		time.Sleep(5 * time.Millisecond) // nothing signals that a goroutine is gone
	}
	for _, l := range left[:min(len(left), maxFailures)] {
		spec, stack, _ := strings.Cut(l, "\n")
		p, err := fault.Parse(spec)
		if err != nil {
			p = fault.Plan{} // the run without fault
		}
		c.t.Errorf("goroutines left behind:\n%s\n%s", stack, c.command(p.Faults))
	}
}

// labelled are the runs of a test whose goroutines are there: a specification, and a stack
// below it.
func labelled(test string) (out []string) {
	for _, l := range runlabel.Left() {
		if l, ok := strings.CutPrefix(l, test+" "); ok {
			out = append(out, l)
		}
	}
	return out
}

// report tells what was tried.
func (c *campaign) report(clean []fault.Access) {
	n := c.counts
	c.t.Logf("%d accesses, %d runs: %d errors, %d wrong results, %d unharmed; in %d the fault never came to be",
		len(clean), n.runs, n.errors, n.wrong, n.runs-n.errors-n.wrong, n.missed)
}

// recovered is what a panic was, with where.
func recovered(v any) string { return fmt.Sprintf("panic: %v\n%s", v, debug.Stack()) }
