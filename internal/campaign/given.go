package campaign

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// Limits here count the time that this process was given, not the wall clock's, so that a machine with too much to do, or a campaign with too many runs
// in flight, makes nothing late. Time goes on in ticks: one that comes late, since others had the CPU, counts for little more than one in time.

// tick is how long one is, tickMost what one counts for at most.
const (
	tick     = 2 * time.Millisecond
	tickMost = 3 * time.Millisecond
)

// pace is the time that was given since the start, and who waits for some of it. It ticks while there is somebody.
var pace struct {
	sync.Mutex // guards what follows
	given      time.Duration
	last       time.Time // when the last tick was
	ticks      bool
	waits      limits
}

// limit calls f once, when the process was given some time. Safe for concurrent use.
type limit struct {
	f     func()
	at    time.Duration
	index int // among those that wait; -1 for none: it came, or was stopped
}

// limits is a heap; heap.Interface.
type limits []*limit

func (l limits) Len() int           { return len(l) }
func (l limits) Less(i, k int) bool { return l[i].at < l[k].at }

func (l limits) Swap(i, k int) {
	l[i], l[k] = l[k], l[i]
	l[i].index, l[k].index = i, k
}

// Push is heap.Interface's.
func (l *limits) Push(x any) {
	x.(*limit).index = len(*l)
	*l = append(*l, x.(*limit))
}

// Pop is heap.Interface's.
func (l *limits) Pop() any {
	n := len(*l) - 1
	x := (*l)[n]
	(*l)[n], *l = nil, (*l)[:n]
	x.index = -1
	return x
}

// after makes a limit. f must not wait.
func after(d time.Duration, f func()) *limit {
	pace.Lock()
	defer pace.Unlock()
	if !pace.ticks {
		pace.ticks, pace.last = true, time.Now()
		time.AfterFunc(tick, ticked)
	}
	l := &limit{f: f, at: pace.given + d}
	heap.Push(&pace.waits, l)
	return l
}

// ticked calls those whose time has come.
func ticked() {
	pace.Lock()
	now := time.Now()
	pace.given += min(now.Sub(pace.last), tickMost)
	pace.last = now
	var come []*limit
	for len(pace.waits) > 0 && pace.waits[0].at <= pace.given {
		come = append(come, heap.Pop(&pace.waits).(*limit))
	}
	if pace.ticks = len(pace.waits) > 0; pace.ticks {
		time.AfterFunc(tick, ticked)
	}
	pace.Unlock()
	for _, l := range come {
		l.f()
	}
}

// reset has it come later, or earlier; nothing where it came, or was stopped.
func (l *limit) reset(d time.Duration) {
	pace.Lock()
	defer pace.Unlock()
	if l.index >= 0 {
		l.at = pace.given + d
		heap.Fix(&pace.waits, l.index)
	}
}

// stop has it never come.
func (l *limit) stop() {
	pace.Lock()
	defer pace.Unlock()
	if l.index >= 0 {
		heap.Remove(&pace.waits, l.index)
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
