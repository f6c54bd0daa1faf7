package campaign

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus/fault"
)

// The backend "up" is a real `ring3 up`: drivers in workers, and nobody but the supervisor to replace them.

// The backends' names: with the devices that fail on bus/sim, in the worker, or on QEMU, which the supervisor holds. The pair beside is on bus/sim.
const (
	upBackend = "up"
	upQEMU    = "up-qemu"
)

// supervised says whether a supervisor replaces drivers.
func (b Backend) supervised() bool { return b.Name == upBackend || b.Name == upQEMU }

// Bounds of a run. None decides what becomes of a group that is well.
const (
	upBound  = 90 * time.Second      // for one use of a file or the socket: beyond it hangs
	upMute   = 30 * time.Second      // for a group to be of use again by itself, or to be noticed
	upWait   = 120 * time.Second     // for a group that recovers to be in service
	upRest   = 60 * time.Second      // for an instance to use no more than before
	upRetry  = 20 * time.Millisecond // between two looks
	upTries  = 3                     // of setting an instance up, which a machine with too much to do may be late with
	upBatch  = 700                   // runs between two looks at what they left
	upSignal = 12                    // ms from the begin of a use within which a worker is killed or stopped
)

// A signal from outside is written as a fault without a place: SIGKILL:3 kills the worker 3 ms after the device's use began.
const (
	sigKill = "SIGKILL"
	sigStop = "SIGSTOP"
)

// upFaults is what goes wrong in one run.
type upFaults struct {
	signal string // sigKill, sigStop; "": none
	after  time.Duration
	faults []fault.Fault
}

func (f upFaults) String() string {
	var all []string
	if f.signal != "" {
		all = append(all, f.signal+":"+strconv.Itoa(int(f.after.Milliseconds())))
	}
	if len(f.faults) > 0 {
		all = append(all, fault.Plan{Faults: f.faults}.String())
	}
	return strings.Join(all, "+")
}

// parseUp reads what String gives.
func parseUp(s string) (f upFaults, err error) {
	for _, name := range []string{sigKill, sigStop} {
		rest, ok := strings.CutPrefix(s, name+":")
		if !ok {
			continue
		}
		n, more, _ := strings.Cut(rest, "+")
		ms, err := strconv.ParseUint(n, 10, 16)
		if err != nil {
			return f, fmt.Errorf("%s:%s: want milliseconds", name, n)
		}
		f.signal, f.after, s = name, time.Duration(ms)*time.Millisecond, more
	}
	if s == "" {
		return f, nil
	}
	p, err := fault.Parse(s)
	f.faults = p.Faults
	return f, err
}

// kind is what the run is counted under.
func (f upFaults) kind() string {
	switch {
	case f.signal != "" && len(f.faults) == 0:
		return f.signal
	case f.signal == "" && len(f.faults) == 1:
		return f.faults[0].Kind.String()
	}
	return "several"
}

// lasting says whether something of it may be there still, or come yet, where the worker lives: the next run wants another worker.
func (f upFaults) lasting() bool {
	return f.signal != "" || slices.ContainsFunc(f.faults, func(x fault.Fault) bool { return x.Kind.ToProcess() || x.Kind == fault.Gone })
}

// upShare is how often a kind is taken, in parts of the sum of all: a hang is noticed after 8 s, and memory takes its time to be used up.
var upShare = map[fault.Kind]int{fault.Hang: 1, fault.Lock: 1, fault.Spin: 1, fault.Stop: 1, fault.LeakMemory: 2, fault.LeakRoutine: 2, fault.NoMemory: 2}

const upUsual = 16

// upKinds are all kinds, each as often as its share.
func upKinds() (all []fault.Kind) {
	for _, k := range append(fault.Kinds(), fault.ProcessKinds()...) {
		n := upShare[k]
		if n == 0 {
			n = upUsual
		}
		all = append(all, slices.Repeat([]fault.Kind{k}, n)...)
	}
	return all
}

// upRun is the scenario of run i, and what goes wrong.
func (c *choice) upRun(i int) (*Scenario, upFaults) {
	s, faults := c.run(i)
	rnd := rand.New(rand.NewPCG(c.seed, ^uint64(i)))
	f := upFaults{faults: faults}
	switch n := rnd.IntN(1000); {
	case n < 30:
		f = upFaults{signal: sigKill}
	case n < 40:
		f.signal = sigKill
	case n < 43:
		f = upFaults{signal: sigStop}
	}
	f.after = time.Duration(rnd.IntN(upSignal+1)) * time.Millisecond
	return s, f
}

// upFigures are what supervisors did, beside verdicts.
type upFigures struct {
	Deaths   int       `json:"deaths"`
	Recovery []float64 `json:"recovery_ms"`         // of each death that was the last of its run
	Killed   int       `json:"killed,omitempty"`    // workers that were taken away after a run, as something of it might have come yet
	Reloaded int       `json:"reloaded,omitempty"`  // groups that somebody had to exchange
	Rest     []upRests `json:"instances,omitempty"` // what instances used at first and in the end
	Again    []string  `json:"again,omitempty"`     // why instances were set up once more
}

func (f *upFigures) add(o *upFigures) {
	if o == nil {
		return
	}
	f.Deaths, f.Killed, f.Reloaded = f.Deaths+o.Deaths, f.Killed+o.Killed, f.Reloaded+o.Reloaded
	f.Recovery, f.Rest, f.Again = append(f.Recovery, o.Recovery...), append(f.Rest, o.Rest...), append(f.Again, o.Again...)
}

func (f *upFigures) String() string {
	times := slices.Sorted(slices.Values(f.Recovery))
	text := fmt.Sprintf("%d deaths", f.Deaths)
	if n := len(times); n > 0 {
		text += fmt.Sprintf(", in service again after p50 %.1f ms, p99 %.1f ms, %.1f ms at most; %d workers were taken away and %d groups exchanged by hand",
			times[n/2], times[n*99/100], times[n-1], f.Killed, f.Reloaded)
	}
	for _, why := range f.Again {
		text += "\nset up once more: " + why
	}
	return text
}

// upCampaign is a campaign on the backend "up": an instance for each kind of group, and runs one after the other in each of its lanes.
type upCampaign struct {
	*campaign
	turn  chan struct{} // as many as there may be runs at a time
	start func(context.Context, *upGroup, Backend) (*upInstance, error)
}

// runUp is Run on this backend.
func runUp(ctx context.Context, o Options) (*Result, error) {
	c := &campaign{Options: o, choice: newChoice(o.Seed, o.Scenarios, upKinds()), result: newResult(o), begin: time.Now()}
	err := c.up(ctx)
	c.result.Seconds = time.Since(c.begin).Seconds()
	return c.result, err
}

// up makes all runs of a slice.
func (c *campaign) up(ctx context.Context) error {
	return (&upCampaign{campaign: c, turn: make(chan struct{}, c.Parallel), start: startUp}).all(ctx)
}

func (u *upCampaign) all(ctx context.Context) error {
	c := u.campaign
	c.result.Up = &upFigures{}
	groups := map[*upGroup][]*Scenario{}
	var order []*upGroup
	for _, s := range c.Scenarios {
		if groups[s.up.group] == nil {
			order = append(order, s.up.group)
		}
		groups[s.up.group] = append(groups[s.up.group], s)
	}
	work := make([]chan []int, len(order)) // batches, to the goroutine of each group
	var wg sync.WaitGroup
	for k, g := range order {
		work[k] = make(chan []int)
		wg.Go(func() { u.serve(ctx, g, work[k]) })
	}
	mine := make([]int, 0, upBatch)
	send := func() {
		for k, g := range order {
			var part []int
			for _, i := range mine {
				if s, _ := c.upRun(i); s.up.group == g {
					part = append(part, i)
				}
			}
			select {
			case work[k] <- part:
			case <-ctx.Done():
			}
		}
		mine = mine[:0]
	}
	for i := c.Slice.I - 1; i < c.N && ctx.Err() == nil; i += c.Slice.K {
		if mine = append(mine, i); len(mine) == upBatch {
			send()
		}
	}
	send()
	for _, w := range work {
		close(w)
	}
	wg.Wait()
	return ctx.Err()
}

// serve makes the runs of one kind of group, batch by batch, in an instance that goes on until something in it is not as it should be.
func (u *upCampaign) serve(ctx context.Context, g *upGroup, batches <-chan []int) {
	var in *upInstance
	end := func() {
		if in == nil {
			return
		}
		rounds, rest, err := in.finish(ctx)
		u.mu.Lock()
		u.result.Beside += rounds
		u.result.Up.Rest = append(u.result.Up.Rest, rest...)
		u.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			u.failed(Outcome{Scenario: g.name, Verdict: Failed, Class: "ending", Why: err.Error()})
		}
		in = nil
	}
	defer end()
	for batch := range batches {
		next := make(chan int)
		go func() {
			defer close(next)
			for _, i := range batch {
				select {
				case next <- i:
				case <-ctx.Done():
					return
				}
			}
		}()
		for more := true; more && ctx.Err() == nil; {
			if in == nil {
				if in = u.setUp(ctx, g); in == nil { // nobody makes these runs, nor others: who gives them must not wait
					for range next {
					}
					for range batches {
					}
					return
				}
			}
			var wg sync.WaitGroup
			lanes := make([]bool, len(in.lanes)) // there may be more
			for k, l := range in.lanes {
				wg.Go(func() { lanes[k] = u.lane(ctx, in, l, next) })
			}
			wg.Wait()
			more = slices.Contains(lanes, true)
			if err := in.resting(ctx); err != nil && ctx.Err() == nil {
				u.failed(Outcome{Scenario: g.name, Faults: fmt.Sprintf("runs %v", ends(batch)), Verdict: Failed, Class: class(err), Why: err.Error()})
				in.broken.Store(true)
			}
			if in.broken.Load() {
				end()
			}
		}
		for range next {
		}
	}
}

// setUp starts an instance, if need be by several tries; nil: none came up, which is told.
func (u *upCampaign) setUp(ctx context.Context, g *upGroup) *upInstance {
	for try := 1; ; try++ {
		in, err := u.start(ctx, g, u.Backend)
		switch {
		case err == nil:
			return in
		case ctx.Err() != nil:
			return nil
		case try == upTries:
			u.failed(Outcome{Scenario: g.name, Verdict: Failed, Class: "set-up", Why: err.Error()})
			return nil
		}
		u.mu.Lock()
		u.result.Up.Again = append(u.result.Up.Again, err.Error())
		u.mu.Unlock()
	}
}

// ends are the first and the last of some runs.
func ends(batch []int) []int {
	if len(batch) < 2 {
		return batch
	}
	return []int{batch[0], batch[len(batch)-1]}
}

// lane makes runs one after the other. It says whether there may be more: where the instance is no good any more.
func (u *upCampaign) lane(ctx context.Context, in *upInstance, l *upLane, next <-chan int) bool {
	for !in.broken.Load() {
		i, ok := <-next
		if !ok {
			return false
		}
		u.turn <- struct{}{}
		s, f := u.upRun(i)
		o := l.run(ctx, s, f)
		o.Number = i
		<-u.turn
		if ctx.Err() != nil {
			return false
		}
		u.countUp(o)
		if o.Verdict == Failed {
			in.broken.Store(true)
		}
	}
	return true
}

// countUp adds a run to the result.
func (u *upCampaign) countUp(o upOutcome) {
	u.mu.Lock()
	u.result.Up.add(&o.figures)
	u.mu.Unlock()
	u.count(o.Outcome)
}

// classError is an error with a few words that say of what sort it is.
type classError struct {
	class string
	error
}

func (e classError) Unwrap() error { return e.error }

// class is those words.
func class(err error) string {
	var c classError
	if errors.As(err, &c) {
		return c.class
	}
	return "supervisor"
}
