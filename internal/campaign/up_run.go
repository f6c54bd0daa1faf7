package campaign

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/host"
)

// upOutcome is one run, and what the supervisor did.
type upOutcome struct {
	Outcome
	figures  upFigures
	bad      error // the first wrong datum that was given as good; nil: none was
	outcomes []host.FaultOutcome
	told     []string // what was seen, in order, for who wants all
}

func (o *upOutcome) tell(format string, args ...any) {
	o.told = append(o.told, fmt.Sprintf(format, args...))
}

// upState is a group as `ring3 ls` has it.
type upState struct {
	up       bool
	gone     string // the device whose hardware is gone, and why
	failed   string // why it was given up
	worker   int
	restarts int
	recovery float64
	cause    string
	text     string
}

// run makes one run in a lane: a use in which something goes wrong, and then uses until one is in full.
func (l *upLane) run(ctx context.Context, s *Scenario, f upFaults) (o upOutcome) {
	o.Outcome = Outcome{Scenario: s.Name, Faults: f.String(), Kind: f.kind()}
	device := l.name(s.up.fails)
	defer func() {
		if o.Verdict == Failed && len(l.in.lanes) > 1 {
			o.Why = device + ": " + o.Why
		}
	}()
	var before upState
	for tries := 3; ; tries-- { // its watchdog may come to a late end with what the run before did
		var err error
		if before, err = l.awaitUp(ctx); err != nil {
			o.fail("set-up", "before the run: %v", err)
			return o
		}
		if _, err = l.arm(ctx, device, fault.Plan{Faults: f.faults}.String(), false, 0); err == nil {
			break
		}
		if tries == 0 || !errors.Is(err, syscall.EIO) {
			o.fail("set-up", "arming: %v", err)
			return o
		}
	}
	signalled := make(chan error, 1)
	if f.signal != "" {
		sig := map[string]syscall.Signal{sigKill: syscall.SIGKILL, sigStop: syscall.SIGSTOP}[f.signal]
		time.AfterFunc(f.after, func() { signalled <- syscall.Kill(before.worker, sig) })
	}
	first := l.use(ctx)
	o.tell("first use: %v", first)
	made := false
	if f.signal != "" {
		err := <-signalled
		if made = err == nil; made { // it is a death, whatever became of the use
			if st, err := l.awaitState(ctx, before.restarts+1); err != nil && st.gone == "" { // which await sees
				o.fail("not in service", "after %s: %v", f.signal, err)
				return o
			}
		}
	}
	l.pending(first)
	if o.ends(first) {
		return o
	}
	// What became of the faults is known of a worker that lives.
	if r, err := l.arm(ctx, device, "", true, 0); err == nil {
		for _, x := range r.Outcomes {
			made = made || x.Made
		}
		o.outcomes = r.Outcomes
	}
	l.await(ctx, &o, first, before)
	if o.Verdict == Failed || ctx.Err() != nil {
		return o
	}
	after, err := l.awaitUp(ctx)
	switch {
	case err == nil || o.Verdict == Gone:
	case after.gone != "": // a link that dies after the use that was in full
		o.Verdict, o.Class, o.Why = Gone, "gone", after.gone
	default:
		o.fail("not in service", "after %s: %v", o.Verdict, err)
		return o
	}
	deaths := after.restarts - before.restarts
	o.figures.Deaths = deaths
	if deaths > 0 {
		o.figures.Recovery = append(o.figures.Recovery, after.recovery)
		o.tell("%d deaths, the last of %s, in service after %.1f ms", deaths, after.cause, after.recovery)
	}
	made = made || deaths > 0
	o.judgeUp(first, made, deaths, after)
	if o.Verdict == Failed {
		return o
	}
	l.tidy(ctx, &o, device, f, deaths)
	return o
}

// await uses the group until that is in full, or for too long.
func (l *upLane) await(ctx context.Context, o *upOutcome, first error, before upState) {
	var last error
	end := time.Now().Add(upMute)
	restarts := before.restarts
	for ctx.Err() == nil {
		if l.waits() { // it was in the way of every other use for long enough
			last = errors.New("a use is not done")
		} else if last = l.full(ctx); last == nil {
			o.tell("used in full")
			return
		}
		l.pending(last)
		if o.ends(last) {
			return
		}
		st, err := l.state(ctx)
		switch {
		case err != nil:
			o.fail(class(err), "%v", err)
			return
		case st.failed != "":
			o.fail("given up", "%s", st.failed)
			return
		case st.gone != "":
			o.Verdict, o.Class, o.Why = Gone, "gone", st.gone
			return
		case !st.up || st.restarts != restarts: // it is being seen to
			restarts, end = st.restarts, time.Now().Add(upMute)
			if _, err := l.awaitUp(ctx); err != nil {
				o.fail("not in service", "%v", err)
				return
			}
		case time.Now().After(end), restarts == before.restarts && l.waits():
			o.Verdict, o.Class = Mute, "mute"
			if errors.As(last, new(silentError)) {
				o.Verdict, o.Class = Wrong, "wrong data"
			}
			o.Why = fmt.Sprintf("%v later: %v (at first: %v)", upMute, last, first)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(upRetry):
		}
	}
}

// pending remembers a use that is not done.
func (l *upLane) pending(err error) {
	var m muteError
	if errors.As(err, &m) {
		l.undone = m.done
	}
}

// stuck is closed when no use is pending.
func (l *upLane) stuck() <-chan struct{} {
	if l.undone == nil {
		none := make(chan struct{})
		close(none)
		return none
	}
	return l.undone
}

// waits says whether one is.
func (l *upLane) waits() bool {
	select {
	case <-l.stuck():
		l.undone = nil
		return false
	default:
		return true
	}
}

// ends says whether an error of a use is one that no driver may cause. It remembers wrong data.
func (o *upOutcome) ends(err error) bool {
	if o.bad == nil && errors.As(err, new(silentError)) {
		o.bad, o.BadData = err, true
	}
	switch {
	case errors.As(err, new(hangError)):
		o.fail("hang", "%v", err)
	case errors.As(err, new(foreignError)):
		o.fail("beside", "%v", err)
	}
	return o.Verdict == Failed
}

// exchange says whether somebody has to exchange the group's driver.
func (o *upOutcome) exchange() bool {
	return o.Verdict == Mute || o.Verdict == Wrong || o.Verdict == Gone
}

// judgeUp says what a run was whose group was of use in full in the end, or whose trouble is told.
func (o *upOutcome) judgeUp(first error, made bool, deaths int, after upState) {
	switch {
	case o.exchange():
	case !made && first == nil && o.bad == nil:
		o.Verdict = NotMade
	case !made:
		o.fail("no fault", "no fault was made, but: %v", errors.Join(first, o.bad))
	case o.bad != nil && deaths > 0:
		o.Verdict, o.Class, o.Why = Corrupt, "then another worker", o.bad.Error()
	case o.bad != nil:
		o.Verdict, o.Class, o.Why = Corrupt, "then right", o.bad.Error()
	case deaths > 0:
		o.Verdict, o.Class, o.Why = Recovered, "another worker", after.cause
	case first != nil:
		o.Verdict, o.Class, o.Why = Recovered, "went on", first.Error()
	default:
		o.Verdict = Harmless
	}
}

// tidy makes the group good for the next run.
func (l *upLane) tidy(ctx context.Context, o *upOutcome, device string, f upFaults, deaths int) {
	switch {
	case o.exchange():
		o.figures.Reloaded++
		if err := l.call(ctx, opReload, map[string]string{"device": device}, nil); err != nil {
			o.fail("reload", "after %s (%s): %v", o.Verdict, o.Why, err)
			return
		}
		select {
		case <-l.stuck():
		case <-ctx.Done():
		case <-time.After(upBound):
			o.fail("hang", "after %s (%s) and a reload a use is still not done", o.Verdict, o.Why)
			return
		}
	case deaths == 0 && f.lasting() && o.Verdict != NotMade:
		if st, _ := l.state(ctx); st.gone != "" { // since then
			o.Verdict, o.Class, o.Why = Gone, "gone", st.gone
			l.tidy(ctx, o, device, f, deaths)
			return
		}
		o.figures.Killed++
		if err := l.renew(ctx); err != nil {
			o.fail("not in service", "taking its worker away: %v", err)
			return
		}
	case deaths == 0:
		if _, err := l.arm(ctx, device, "", false, 0); err != nil {
			o.fail("supervisor", "disarming: %v", err)
		}
		return
	default:
		return
	}
	was, why := o.Verdict, o.Why
	end := time.Now().Add(upMute)
	for {
		err := l.full(ctx)
		if err == nil {
			return
		}
		if time.Now().After(end) || ctx.Err() != nil {
			o.fail("not recovered", "%s (%s), and the worker after it: %v", was, why, err)
			return
		}
		time.Sleep(upRetry) // nothing tells when
	}
}

// state is the lane's group now.
func (l *upLane) state(ctx context.Context) (st upState, err error) {
	var all []host.DeviceInfo
	if err := l.call(ctx, opDevices, nil, &all); err != nil {
		return st, err
	}
	st.up = true
	seen := 0
	for _, d := range all {
		if (d.Name == besideTx || d.Name == besideRx) && (d.Worker != l.in.beside || d.Restarts != 0 || d.State != "up") {
			return st, classError{"beside", fmt.Errorf("%s has worker %d (before: %d), %s, after %d restarts: %s", d.Name, d.Worker, l.in.beside, d.State, d.Restarts, d.LastCause)}
		}
		if !slices.Contains(l.devices, d.Name) {
			continue
		}
		seen++
		st.worker, st.restarts, st.recovery, st.cause = d.Worker, d.Restarts, d.Recovery, d.LastCause
		st.text += fmt.Sprintf("%s %s %s; ", d.Name, d.State, d.Cause)
		switch d.State {
		case "up":
		case "gone":
			st.up, st.gone = false, d.Name+": "+d.Cause
		case "failed":
			st.up, st.failed = false, d.Name+": "+d.Cause
		default:
			st.up = false
		}
	}
	if seen < len(l.devices) {
		st.up = false
		st.text += fmt.Sprintf("%d of %v are listed", seen, l.devices)
	}
	return st, nil
}

// awaitUp waits until the group is in service.
func (l *upLane) awaitUp(ctx context.Context) (upState, error) { return l.awaitState(ctx, 0) }

func (l *upLane) awaitRestart(ctx context.Context, n int) error {
	_, err := l.awaitState(ctx, n)
	return err
}

func (l *upLane) awaitState(ctx context.Context, restarts int) (upState, error) {
	for end := time.Now().Add(upWait); ; {
		st, err := l.state(ctx)
		switch {
		case err != nil:
			return st, err
		case st.up && st.worker > 0 && st.restarts >= restarts:
			return st, nil
		case st.failed != "", st.gone != "", time.Now().After(end), ctx.Err() != nil:
			return st, fmt.Errorf("it is not in service: %s%w", st.text, os.ErrDeadlineExceeded)
		}
		time.Sleep(upRetry / 4)
	}
}

// arm arms faults, or says with keep what became of those that are armed.
func (l *upLane) arm(ctx context.Context, device, spec string, keep bool, log int) (r host.FaultArmed, err error) {
	err = l.call(ctx, opFault, map[string]any{"device": device, "spec": spec, "keep": keep, "log": log}, &r)
	return r, err
}

// recordUp uses a group some times without fault, and gives the accesses that all of them had.
func recordUp(ctx context.Context, s *Scenario, b Backend) (out []place, err error) {
	in, err := startUp(ctx, s.up.group, b)
	if err != nil {
		return nil, err
	}
	defer func() {
		_, _, e := in.close()
		err = errors.Join(err, e)
	}()
	l := in.lanes[0]
	device := l.name(s.up.fails)
	for i := range 3 {
		if _, err := l.arm(ctx, device, "", false, 0); err != nil {
			return nil, err
		}
		if err := l.use(ctx); err != nil {
			return nil, err
		}
		r, err := l.arm(ctx, device, "", true, maxUpLog)
		if err != nil {
			return nil, err
		}
		out = common(out, places(r.Log), i == 0)
	}
	return out, nil
}

// maxUpLog is how many accesses of a use are looked at.
const maxUpLog = 1 << 13

// runUpOnce makes one run in an instance of its own, and tells all of it.
func runUpOnce(ctx context.Context, o host.FaultOptions, b Backend, s *Scenario) error {
	f, err := parseUp(strings.Join(o.Faults, "+"))
	if err != nil {
		return host.Usage(err)
	}
	in, err := startUp(ctx, s.up.group, b)
	if err != nil {
		return err
	}
	out := in.lanes[0].run(ctx, s, f)
	rest := in.resting(ctx)
	if rest != nil && out.Verdict != Failed {
		out.fail(class(rest), "%v", rest)
	}
	if out.Verdict == Failed {
		in.broken.Store(true)
	}
	if _, _, err := in.finish(ctx); err != nil && out.Verdict != Failed {
		out.fail("ending", "%v", err)
	}
	if o.JSON {
		err = host.PrintJSON(o.Stdout, out.Outcome)
	} else {
		for _, x := range out.outcomes {
			fmt.Fprintln(o.Stdout, x.Text)
		}
		for _, t := range out.told {
			fmt.Fprintln(o.Stdout, t)
		}
		out.tellVerdict(o.Stdout, s)
	}
	if err == nil {
		err = out.failure(s)
	}
	return err
}
