package campaign

import (
	"context"
	"sync"
	"time"
)

// Limits here count the time that this process was given, not the wall clock's: a machine with too much to do makes nothing late. A limit is
// waited for in steps, and a step that came late counts as what it was to be.

// steps is how many a limit has, stepLeast how long one is at least.
const (
	steps     = 8
	stepLeast = 5 * time.Millisecond
)

// limit calls f once, when the process was given some time. Safe for concurrent use.
type limit struct {
	f func()

	mu    sync.Mutex // guards what follows
	left  time.Duration
	step  time.Duration
	timer *time.Timer // nil: it came, or was stopped
	era   int         // of the last reset: a step that is on its way from before counts for nothing
}

// after makes a limit.
func after(d time.Duration, f func()) *limit {
	l := &limit{f: f}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begin(d)
	return l
}

// begin starts anew. Called with mu held.
func (l *limit) begin(d time.Duration) {
	l.left, l.step = d, max(d/steps, stepLeast)
	l.era++
	l.next()
}

// next waits for a step. Called with mu held.
func (l *limit) next() {
	if l.timer != nil {
		l.timer.Stop()
	}
	era := l.era
	l.timer = time.AfterFunc(min(l.step, l.left), func() { l.came(era) })
}

func (l *limit) came(era int) {
	l.mu.Lock()
	if era != l.era || l.timer == nil {
		l.mu.Unlock()
		return
	}
	if l.left -= l.step; l.left > 0 {
		l.next()
		l.mu.Unlock()
		return
	}
	l.timer = nil
	l.mu.Unlock()
	l.f()
}

// reset has it come later, or earlier; nothing where it came, or was stopped.
func (l *limit) reset(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.begin(d)
	}
}

// stop has it never come.
func (l *limit) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
}

// within is a context that ends when the process was given some time.
func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	l := after(d, cancel)
	return ctx, func() {
		l.stop()
		cancel()
	}
}

// awhile is a context for what comes after a fault: it outlives the one that the fault ended.
func awhile(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return within(context.WithoutCancel(ctx), d)
}
