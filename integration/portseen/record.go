package portseen

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// MinGap is how long something must take for its time to be written down.
const MinGap = 500 * time.Millisecond

// Recorder plays the scenario and writes down what it sees.
type Recorder struct {
	Roots  Roots
	Player Player
	Log    Log
	Events Events
	// Once has files read once after an event, where that takes so long that twice is too much: what changes without a line of the log or a
	// uevent, later than Quiet, is found after the next one then.
	Once bool

	names  *names
	dirs   map[string]*os.Root // open while it looks
	b      strings.Builder
	state  state
	unsaid string // lines of the log with this text are not written down for an event, as its action is done in another way than the kernel's
}

// Record plays the events and returns the recording. An error is one of the recorder, or a Player that cannot: then what is
// returned is as far as it came.
func (r *Recorder) Record(ctx context.Context, events []Event) (string, error) {
	var err error
	if r.names, err = newNames(r.Roots, r.Player.Address); err != nil {
		return "", err
	}
	if r.state, err = r.look(); err != nil {
		return "", err
	}
	// What came before does not count.
	if _, _, err = r.news(); err != nil {
		return "", err
	}
	r.b.WriteString("== state\n")
	for _, k := range slices.Sorted(maps.Keys(r.state)) {
		fmt.Fprintf(&r.b, "     %s: %s\n", k, r.state[k])
	}
	for i, e := range events {
		fmt.Fprintf(&r.b, "== %d %s\n", i+1, e.Name)
		if err := r.play(ctx, &e); err != nil {
			return r.b.String(), fmt.Errorf("event %d, %s: %w", i+1, e.Name, err)
		}
	}
	return r.b.String(), nil
}

// play does an event and writes down what came of it.
func (r *Recorder) play(ctx context.Context, e *Event) error {
	began := time.Now()
	r.unsaid = ""
	for _, a := range e.Do {
		start := time.Now()
		err := a.do(r)
		took := time.Since(start)
		result := "ok"
		if err != nil {
			if !isErrno(err) {
				return fmt.Errorf("%s: %w", a, err)
			}
			result = errno(err)
		}
		r.line("do", a.String()+": "+result, took)
	}
	lines, uevents, now, err := r.settle(ctx, e)
	lines = slices.DeleteFunc(lines, func(l Line) bool { return r.unsaid != "" && strings.Contains(l.Text, r.unsaid) })
	for i, l := range lines {
		gap := time.Duration(0)
		if i > 0 {
			gap = l.At - lines[i-1].At
		}
		r.line("log", r.names.normal(l.Text), gap)
	}
	last := began
	for _, u := range uevents {
		r.line("uev", r.uevent(&u), u.At.Sub(last))
		last = u.At
	}
	if now == nil {
		return err
	}
	for _, d := range difference(r.state, now) {
		r.b.WriteString(d + "\n")
	}
	r.state = now
	return err
}

// line adds a line, with how long it took.
func (r *Recorder) line(mark, text string, took time.Duration) {
	fmt.Fprintf(&r.b, "%-4s %s", mark, text)
	if took > MinGap {
		fmt.Fprintf(&r.b, " ~%.2fs", took.Seconds())
	}
	r.b.WriteByte('\n')
}

// settle waits until what an event waits for has come and nothing changes any more.
func (r *Recorder) settle(ctx context.Context, e *Event) (lines []Line, uevents []Uevent, now state, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, Limit, fmt.Errorf("not over after %v", Limit))
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	changed, since := time.Now(), time.Now() // since when there is now
	missing := "anything"
	for {
		l, u, err := r.news()
		if err != nil {
			return lines, uevents, now, err
		}
		lines, uevents = append(lines, l...), append(uevents, u...)
		was := missing
		if missing, err = r.missing(e, lines); err != nil {
			return lines, uevents, now, err
		}
		if len(l) > 0 || len(u) > 0 || missing != was {
			changed = time.Now()
		}
		// All the files take a while, so they are read when the rest is quiet.
		if missing == "" && time.Since(changed) > Quiet {
			s, err := r.look()
			if err != nil {
				return lines, uevents, now, err
			}
			same := maps.Equal(s, now)
			if r.Once || same && time.Since(since) >= e.between() {
				return lines, uevents, s, nil
			}
			if !same {
				now, since = s, time.Now()
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return lines, uevents, now, fmt.Errorf("waiting for %q: %w", missing, context.Cause(ctx))
		}
	}
}

// missing is what an event waits for that has not come, "" if all has.
func (r *Recorder) missing(e *Event, lines []Line) (string, error) {
	for _, until := range e.Until {
		what, of, _ := strings.Cut(until, " ")
		dir := r.Roots.device(r.names.address[of])
		_, there := os.Lstat(dir)
		_, bound := os.Readlink(filepath.Join(dir, "driver"))
		ok := false
		switch what {
		case "log":
			ok = slices.ContainsFunc(lines, func(l Line) bool { return strings.Contains(l.Text, of) })
		case "there":
			ok = there == nil
		case "gone":
			ok = there != nil
		case "bound":
			ok = bound == nil
		case "unplugged":
			var err error
			if ok, err = r.Player.Unplugged(of); err != nil {
				return until, err
			}
		default:
			return until, fmt.Errorf("the scenario waits for %q: want log, there, gone, bound or unplugged", until)
		}
		if !ok {
			return until, nil
		}
	}
	return "", nil
}

// about is what lines of the log must have to be of interest, and core what the PCI core says of windows and addresses beside that.
var (
	about = regexp.MustCompile(`pcieport|pciehp|AER|aer_inject|pci_hotplug|PCIe Bus Error|error status/mask=|:    \[[ 0-9]\d\] |recover`)
	core  = regexp.MustCompile(`bridge window|PCI bridge to|busn_res|enabling device|: resource \d+ `)
)

// news are the lines of the log and the uevents of interest that have come.
func (r *Recorder) news() ([]Line, []Uevent, error) {
	all, err := r.Log.Lines()
	if err != nil {
		return nil, nil, err
	}
	lines := slices.DeleteFunc(all, func(l Line) bool { return !about.MatchString(l.Text) || core.MatchString(l.Text) })
	uevents, err := r.Events.Uevents()
	if err != nil {
		return nil, nil, err
	}
	return lines, slices.DeleteFunc(uevents, func(u Uevent) bool {
		return !slices.Contains([]string{"pci", "pci_express", "slots"}, u.value("SUBSYSTEM"))
	}), nil
}

// uevent is a uevent's line.
func (r *Recorder) uevent(u *Uevent) string {
	s := u.value("ACTION") + " " + u.value("DEVPATH")
	for _, e := range u.Env {
		switch key, _, _ := strings.Cut(e, "="); key {
		case "ACTION", "DEVPATH", "SEQNUM":
		default:
			s += " " + e
		}
	}
	return r.names.normal(s)
}
