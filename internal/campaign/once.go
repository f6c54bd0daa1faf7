package campaign

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/internal/runlabel"
)

// Verdict is what came of a run.
type Verdict string

// The verdicts.
const (
	NotMade   Verdict = "not made"  // the access never came
	Harmless  Verdict = "harmless"  // nobody noticed, and nothing was wrong
	Recovered Verdict = "recovered" // noticed; the driver went on by itself, or was closed, and one anew works in full
	Corrupt   Verdict = "corrupt"   // some of what it gave as good is not, and it went on right by itself, or said so later and one anew works in full
	Mute      Verdict = "mute"      // the driver said nothing, and did nothing any more: who waited noticed; a driver anew works in full
	Wrong     Verdict = "wrong"     // it goes on giving as good what is not, until who compares has it restarted; a driver anew works in full
	Failed    Verdict = "failed"    // anything else
	// Gone is for the backend up only: the device's link died, which `ring3 ls` says; `ring3 reload` has it back.
	Gone Verdict = "gone"
)

// Verdicts are all, in order.
var Verdicts = []Verdict{NotMade, Harmless, Recovered, Corrupt, Mute, Wrong, Failed}

// Outcome is one run.
type Outcome struct {
	Scenario string  `json:"scenario"`
	Faults   string  `json:"faults"`
	Kind     string  `json:"kind"` // of the one fault, or "several"
	Verdict  Verdict `json:"verdict"`
	Class    string  `json:"class,omitempty"` // a few words: why silent or failed, how recovered
	Why      string  `json:"why,omitempty"`
	Number   int     `json:"number"`             // in the campaign
	BadData  bool    `json:"bad_data,omitempty"` // it gave as good what is not, whatever the verdict

	late     bool // failed by a time limit, as on a machine that has too much to do
	repeated bool // made once more for that reason, and well then
	log      []fault.Access
	outcomes []fault.Outcome
}

// tellVerdict prints what became of a scenario.
func (o *Outcome) tellVerdict(w io.Writer, s *Scenario) {
	fmt.Fprintf(w, "%s: %s", s.Name, o.Verdict)
	if o.Class != "" {
		fmt.Fprintf(w, ", %s: %s", o.Class, o.Why)
	}
	fmt.Fprintln(w)
}

// failure is the error of a command that made one run; nil where it did not fail.
func (o *Outcome) failure(s *Scenario) error {
	if o.Verdict != Failed {
		return nil
	}
	return fmt.Errorf("fault: %s: %s", s.Name, o.Class)
}

// Times. None decides the verdict of a driver that is well.
const (
	wholeLife = 60 * time.Second
	hangTime  = 60 * time.Second // how long a run may go on once its context ended
)

// once makes one run: a life with faults, and one without after it. It returns even if the run does not.
func once(ctx context.Context, s *Scenario, b Backend, r *rig, faults []fault.Fault, keepLog bool) Outcome {
	spec := fault.Plan{Faults: faults}.String()
	out := make(chan Outcome, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	expire := after(wholeLife, cancel)
	defer expire.stop()
	go runlabel.Do(ctx, s.Name+" "+spec, func(ctx context.Context) {
		o := Outcome{Scenario: s.Name, Faults: spec, Kind: "several"}
		if len(faults) == 1 {
			o.Kind = faults[0].Kind.String()
		}
		defer func() {
			if v := recover(); v != nil {
				o.fail("panic", "panic: %v\n%s", v, debug.Stack())
			}
			out <- o
		}()
		o.live(ctx, s, b, r, faults, expire, keepLog)
	})
	select {
	case o := <-out:
		return o
	case <-ctx.Done():
	}
	hangs, over := awhile(ctx, hangTime)
	defer over()
	select {
	case o := <-out:
		return o
	case <-hangs.Done():
	}
	o := Outcome{Scenario: s.Name, Faults: spec}
	o.fail("hang", "hangs %s after its time was over; goroutines:\n%s", hangTime, runlabel.Left())
	return o
}

func (o *Outcome) fail(class, format string, args ...any) {
	o.Verdict, o.Class, o.Why = Failed, class, fmt.Sprintf(format, args...)
}

// live is both lives. A nil rig is one of its own.
func (o *Outcome) live(ctx context.Context, s *Scenario, b Backend, r *rig, faults []fault.Fault, expire *limit, keepLog bool) {
	if r == nil {
		var err error
		if r, err = s.open(ctx, b); err != nil {
			o.fail("set-up", "opening the device: %v", err)
			return
		}
		defer func() {
			if err := r.close(); err != nil && o.Verdict != Failed {
				o.fail("leak", "closing the machine: %v", err)
			}
		}()
	}
	plan := fault.Plan{Faults: faults, Registers: s.Registers, Reset: r.selfReset, NoLog: !keepLog}
	plan.OnHit = func(fault.Fault, fault.Access) { expire.reset(b.afterFault()) }
	dev := fault.Wrap(r.dev, plan)
	died, err := guard(func() error { return r.live(ctx, dev) })
	held := dev.Held()
	o.outcomes = dev.Outcomes()
	if keepLog {
		o.log = dev.Log()
	}
	if e := dev.Release(); e != nil && r.dev.Err() == nil {
		o.fail("leak", "taking interrupts away: %v", e)
		return
	}
	if o.judge(err, died, held); o.Verdict == Failed {
		return
	}
	// The fault is over: the device is reset, and the next driver must find nothing amiss.
	ctx, cancel := awhile(ctx, wholeLife)
	defer cancel()
	expire.stop()
	if r.dev.Err() != nil && !b.fresh() {
		// The emulator did not survive what the device did (QEMU's edu aborts it): a supervisor starts another.
		other, err := s.open(ctx, b)
		if err != nil {
			o.fail("set-up", "opening another device: %v", err)
			return
		}
		defer func() { _ = other.close() }()
		r = other
	}
	for _, pause := range anew {
		time.Sleep(pause)
		was := *o
		if o.again(ctx, r); o.Verdict != Failed || o.Class != "not recovered" {
			return
		}
		if pause != anew[len(anew)-1] {
			*o = was
		}
	}
}

// anew is when a driver is started anew, and again where that fails, as the supervisor does: a device may be at work on what the one before began.
var anew = []time.Duration{0, 100 * time.Millisecond, 500 * time.Millisecond}

// again is the life after the fault.
func (o *Outcome) again(ctx context.Context, r *rig) {
	if err := r.reset(ctx); err != nil {
		o.fail("reset", "resetting the device after %s: %v", o.Verdict, err)
		return
	}
	next := fault.Wrap(r.dev, fault.Plan{NoLog: true})
	died, err := guard(func() error { return r.live(ctx, next) })
	held := next.Held()
	e := next.Release()
	switch {
	case died != "":
		o.fail("panic anew", "the driver anew: %s", died)
	case err != nil || e != nil:
		o.late = lateError(err)
		o.fail("not recovered", "%s (%s), and the driver anew: %v", o.Verdict, o.Why, errors.Join(err, e))
	case len(held) > 0:
		o.fail("leak", "the driver anew left %s", strings.Join(held, ", "))
	}
}

// lateError says whether an error is that something did not come in time.
func lateError(err error) bool {
	var away lostError
	var mute silentError
	return errors.Is(err, bus.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.As(err, &away) || errors.As(err, &mute)
}

// guard calls f, and tells of its panic.
func guard(f func() error) (died string, err error) {
	defer func() {
		if v := recover(); v != nil {
			died = fmt.Sprintf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	return "", f()
}

// judge says what the first life was.
func (o *Outcome) judge(err error, died string, held []string) {
	only := func(k fault.Kind) bool {
		return !slices.ContainsFunc(o.outcomes, func(x fault.Outcome) bool { return x.Made && x.Fault.Kind != k })
	}
	any := slices.ContainsFunc(o.outcomes, func(x fault.Outcome) bool { return x.Made })
	denied := slices.ContainsFunc(o.outcomes, func(x fault.Outcome) bool {
		return x.Made && x.Fault.Kind == fault.Deny && x.Access.Op == fault.DisableIRQs
	})
	held = slices.DeleteFunc(held, func(s string) bool { return denied && strings.HasSuffix(s, "interrupt vectors") })
	var away lostError
	var bad silentError
	var data dataError
	var other foreignError
	o.BadData = errors.As(err, &data)
	switch {
	case died != "":
		o.fail("panic", "%s", died)
	case len(held) > 0:
		o.fail("leak", "left behind: %s (%v)", strings.Join(held, ", "), err)
	case errors.As(err, &other):
		o.fail("beside", "%v", err)
	case !any && err != nil:
		o.late = lateError(err)
		o.fail("no fault", "no fault was made, but: %v", err)
	case !any:
		o.Verdict = NotMade
	case err == nil:
		o.Verdict = Harmless
	case errors.As(err, &bad) && only(fault.Gone):
		o.late = true
		o.fail("unnoticed", "a dead link was not noticed: %v", err)
	case errors.As(err, &bad):
		o.Verdict, o.Class, o.Why = Wrong, "wrong data", err.Error()
		if strings.HasPrefix(bad.Error(), "mute") {
			o.Verdict, o.Class = Mute, "mute"
		}
	case o.BadData && data.right:
		o.Verdict, o.Class, o.Why = Corrupt, "then right", err.Error()
	case o.BadData:
		o.Verdict, o.Class, o.Why = Corrupt, "then restarted", err.Error()
	case errors.As(err, &away):
		o.Verdict, o.Class, o.Why = Recovered, "went on", err.Error()
	default:
		o.Verdict, o.Class, o.Why = Recovered, "restarted", err.Error()
	}
}
