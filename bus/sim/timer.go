package sim

import "time"

// timer is a call that is to come. Its methods may be called where those of slot may; a nil
// timer is one that is stopped. A chip keeps its timers and resets them, which allocates
// nothing.
type timer struct {
	q   *queue
	f   func()
	at  time.Duration
	seq uint64
	pos int // in the heap; -1: not there

	driver bool // a driver waits for it, no chip

	gone *bool // where it is set, the timer's device is no more, and nothing is called
}

// pending says whether the call is still to come.
func (t *timer) pending() bool { return t != nil && t.pos >= 0 }

// stop takes the call back.
func (t *timer) stop() {
	if t.pending() {
		t.q.remove(t)
	}
}

// reset makes the call come d from now, whether it was still to come or not, after all that
// are due at the same moment already.
func (t *timer) reset(d time.Duration) {
	t.stop()
	t.q.add(t, d)
}

// queue is virtual time and what happens in it: a heap of timers, ordered by when they are due
// and then by when they were made.
type queue struct {
	time  time.Duration
	seq   uint64
	heap  []*timer
	dirty bool // there may be a new first timer
}

// after makes a timer.
func (q *queue) after(d time.Duration, f func()) *timer {
	t := &timer{q: q, f: f, pos: -1}
	q.add(t, d)
	return t
}

func (q *queue) add(t *timer, d time.Duration) {
	q.seq++
	t.at, t.seq, t.pos = q.time+max(d, 0), q.seq, len(q.heap)
	q.heap = append(q.heap, t)
	q.up(t.pos)
	q.dirty = q.dirty || t.pos == 0
}

func (q *queue) remove(t *timer) {
	i, last := t.pos, len(q.heap)-1
	q.swap(i, last)
	q.heap[last], q.heap = nil, q.heap[:last]
	t.pos = -1
	if i < last {
		q.up(i)
		q.down(i)
	}
}

func (q *queue) less(i, j int) bool {
	a, b := q.heap[i], q.heap[j]
	return a.at < b.at || a.at == b.at && a.seq < b.seq
}

func (q *queue) swap(i, j int) {
	h := q.heap
	h[i], h[j] = h[j], h[i]
	h[i].pos, h[j].pos = i, j
}

func (q *queue) up(i int) {
	for i > 0 && q.less(i, (i-1)/2) {
		q.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
}

func (q *queue) down(i int) {
	for {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(q.heap); c++ {
			if q.less(c, least) {
				least = c
			}
		}
		if least == i {
			return
		}
		q.swap(i, least)
		i = least
	}
}

// next is when the first timer is due.
func (q *queue) next() (time.Duration, bool) {
	if len(q.heap) == 0 {
		return 0, false
	}
	return q.heap[0].at, true
}

// step runs the first timer that is due by until, at its time, or says that there is none.
func (q *queue) step(until time.Duration) bool {
	at, ok := q.next()
	if !ok || at > until {
		return false
	}
	q.time = max(q.time, at)
	t := q.heap[0]
	q.remove(t)
	if t.gone == nil || !*t.gone {
		t.f()
	}
	return true
}

// advance moves time on by d, running what is due on the way.
func (q *queue) advance(d time.Duration) {
	until := q.time + max(d, 0)
	for q.step(until) {
	}
	q.time = max(q.time, until)
}
