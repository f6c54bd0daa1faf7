package porttest

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long something may take that a test waits for. It decides nothing but how long a failing test takes.
const patience = 10 * time.Second

// Line is a message, and when it came.
type Line struct {
	At   time.Duration // by the machine's clock; 0 where it has none
	Text string
}

func (l Line) String() string { return fmt.Sprintf("[%12.6f] %s", l.At.Seconds(), l.Text) }

// recorder records messages and events; slog.Handler.
type recorder struct {
	now  func() time.Duration
	also *slog.Logger

	mu     sync.Mutex // guards what follows
	lines  []Line
	events []string
	news   chan struct{} // closed when something is recorded
}

func (c *recorder) init(m Machine, also *slog.Logger) {
	c.also, c.news = also, make(chan struct{})
	if x, ok := m.(interface{ Now() time.Duration }); ok {
		c.now = x.Now
	}
}

// Enabled is a slog.Handler's.
func (c *recorder) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs is a slog.Handler's.
func (c *recorder) WithAttrs([]slog.Attr) slog.Handler { return c }

// WithGroup is a slog.Handler's.
func (c *recorder) WithGroup(string) slog.Handler { return c }

// Handle is a slog.Handler's.
func (c *recorder) Handle(ctx context.Context, r slog.Record) error {
	c.line("%s", r.Message)
	if c.also != nil {
		return c.also.Handler().Handle(ctx, r)
	}
	return nil
}

func (c *recorder) line(format string, args ...any) {
	l := Line{Text: fmt.Sprintf(format, args...)}
	if c.now != nil {
		l.At = c.now()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = append(c.lines, l)
	c.wake()
}

func (c *recorder) event(action, path, subsystem string, env []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, strings.Join(append([]string{action + "@" + path, subsystem}, env...), " "))
	c.wake()
}

// wake wakes who waits. mu is held.
func (c *recorder) wake() {
	close(c.news)
	c.news = make(chan struct{})
}

// Lines are the messages so far.
func (r *Rig) Lines() []Line {
	r.rec.mu.Lock()
	defer r.rec.mu.Unlock()
	return slices.Clone(r.rec.lines)
}

// Texts are the messages so far that begin with a prefix, without it and without their times.
func (r *Rig) Texts(prefix string) []string {
	var texts []string
	for _, l := range r.Lines() {
		if t, ok := strings.CutPrefix(l.Text, prefix); ok {
			texts = append(texts, t)
		}
	}
	return texts
}

// Events are the uevents so far: "add@/devices/... pci KEY=VALUE ...".
func (r *Rig) Events() []string {
	r.rec.mu.Lock()
	defer r.rec.mu.Unlock()
	return slices.Clone(r.rec.events)
}

// ForgetRecords empties what was recorded.
func (r *Rig) ForgetRecords() {
	r.rec.mu.Lock()
	defer r.rec.mu.Unlock()
	r.rec.lines, r.rec.events = nil, nil
}

// Await waits until cond holds, which it asks whenever something was recorded, and now and then.
func (r *Rig) Await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		r.rec.mu.Lock()
		news := r.rec.news
		r.rec.mu.Unlock()
		if cond() {
			return
		}
		select {
		case <-news:
		case <-tick.C:
		case <-late.C:
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// AwaitLine waits for a message that contains a text, and gives it.
func (r *Rig) AwaitLine(t testing.TB, text string) (found Line) {
	t.Helper()
	r.Await(t, "a message with "+text, func() bool {
		for _, l := range r.Lines() {
			if strings.Contains(l.Text, text) {
				found = l
				return true
			}
		}
		return false
	})
	return found
}

// AwaitNames waits until Names are these.
func (r *Rig) AwaitNames(t testing.TB, names ...string) {
	t.Helper()
	r.Await(t, "devices "+strings.Join(names, ", "), func() bool { return slices.Equal(r.Names(), names) })
}
