package rionet

import (
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

const (
	// lostErrors is after how many errors in a row a peer is taken to be gone. A lossy link's lost messages are errors too: one
	// that loses one in a hundred does not lose so many in a row.
	lostErrors = 8
	// retryFor is how long a peer that has no room, and takes nothing meanwhile, is sent to again. What waited for it is dropped then, and
	// its next messages have one attempt each until it takes one. On a machine with ten times more to do than it has processors for, one that would receive waits its turn for 200 ms and more.
	retryFor = time.Second
	// retryEvery is how often, at most.
	retryEvery = 50 * time.Microsecond
	// firstWindow is how many messages a peer had under way as its first refusal is counted: half as many are sent next.
	firstWindow = 32
	// tickEvery is how often results are taken and messages sent again while the owner does nothing.
	tickEvery = time.Millisecond
)

// work takes results, and sends what waits. Called with mu held.
func (q *txQueue) work() {
	q.collect()
	if q.waiting > 0 {
		q.sendAgain(time.Now())
		q.collect()
	}
	if q.many.buf != nil {
		q.spreadOut()
		q.flush()
		q.collect()
	}
}

// sendAgain sends what waits and may go. What may not stays in its place, and all behind it to the same peer does, too: a hold may end meanwhile.
func (q *txQueue) sendAgain(now time.Time) {
	left := 0 // not taken by the box: it is full
	q.pass++
	for n := q.waiting; n > 0; n-- {
		s := q.again[q.first]
		q.again[q.first] = slot{}
		q.first = (q.first + 1) & (len(q.again) - 1)
		q.waiting--
		s.to.waiting--
		switch {
		case q.skip(s):
		case left > 0 || s.to.stayed == q.pass || q.holds(s.to, now) || !s.to.ready(now):
			s.to.stayed = q.pass
			q.push(s)
		default:
			if s.refused {
				q.c.retries++
			}
			if q.stage(s); q.staged == len(q.msgs) {
				left = q.give()
			}
		}
	}
	if left == 0 {
		left = q.give()
	}
	q.takeBack(left)
}

// ready tells whether the first message that waits for a peer may be sent. After a refusal that is when all that was behind has come back.
func (p *peer) ready(now time.Time) bool {
	if p.again && (p.inBox > 0 || now.Before(p.retryAt)) {
		return false
	}
	return p.window == 0 || p.inBox < p.window
}

// skip drops a message to a peer that went meanwhile, or that is congested and has an attempt without a result.
func (q *txQueue) skip(s slot) bool {
	p := s.to
	behind := p.congested && p.again && p.inBox > 0
	if p.active.Load() && !behind {
		return false
	}
	if behind {
		q.c.congested++
	}
	q.c.dropped++
	q.done = append(q.done, s.buf)
	return true
}

// push lets a message wait behind all others.
func (q *txQueue) push(s slot) {
	q.again[(q.first+q.waiting)&(len(q.again)-1)] = s
	q.waiting++
	s.to.waiting++
}

// wait lets a message wait in its place.
func (q *txQueue) wait(s slot) {
	mask, at := len(q.again)-1, q.first+q.waiting
	for ; at > q.first && q.again[(at-1)&mask].seq > s.seq; at-- {
		q.again[at&mask] = q.again[(at-1)&mask]
	}
	q.again[at&mask] = s
	q.waiting++
	s.to.waiting++
}

// collect takes the results that there are.
func (q *txQueue) collect() {
	for q.head != q.tail {
		n := q.box.Results(q.results[:])
		if n <= 0 {
			return
		}
		for _, st := range q.results[:min(n, len(q.results))] {
			if q.head == q.tail { // more than was sent
				return
			}
			i := q.head & uint64(len(q.slots)-1)
			s := q.slots[i]
			q.slots[i] = slot{}
			q.head++
			q.result(s, st)
		}
	}
}

// result is one message's.
func (q *txQueue) result(s slot, st rapidio.Status) {
	p := s.to
	p.inBox--
	switch st {
	case rapidio.Done:
		p.errors, p.congested, p.fullSince = 0, false, time.Time{}
		if p.window > 0 {
			p.window++
			if p.window >= len(q.slots) {
				p.window = 0
			}
		}
		if !p.heard.Load() {
			p.heard.Store(true)
		}
		q.sent(len(s.buf.Data))
	case rapidio.Retry:
		p.errors = 0
		now := time.Now()
		if p.fullSince.IsZero() {
			p.fullSince = now
		}
		p.slow(now)
		if !p.congested && now.Sub(p.fullSince) < retryFor {
			s.refused = true
			q.wait(s)
			return
		}
		p.congested = true
		q.c.dropped++
		q.c.congested++
	default:
		q.c.errors++
		if p.errors++; p.errors >= lostErrors {
			p.errors = 0
			q.dev.lost(p)
		}
	}
	q.done = append(q.done, s.buf)
}

// slow makes of the first refusal of several the end of a window, and the beginning of one of half the size.
func (p *peer) slow(now time.Time) {
	if p.again {
		return
	}
	p.again, p.retryAt = true, now.Add(retryEvery)
	if p.window == 0 {
		p.window = firstWindow
	}
	p.window = max(p.window/2, 1)
}

// arm starts the timer if there is something to wait for.
func (q *txQueue) arm() {
	if !q.armed && q.inFlight() > 0 {
		q.armed = true
		q.timer.Reset(tickEvery)
	}
}

// tick does the queue's work while its owner does nothing.
func (q *txQueue) tick() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.armed = false
	if q.closed {
		return
	}
	q.work()
	q.arm()
}

// close ends the queue. What is in flight is lost, and freed by the owner.
func (q *txQueue) close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil
	}
	q.collect()
	q.closed = true
	q.timer.Stop()
	lose := func(s slot) {
		q.c.dropped++
		q.done = append(q.done, s.buf)
	}
	for ; q.head != q.tail; q.head++ {
		lose(q.slots[q.head&uint64(len(q.slots)-1)])
	}
	for ; q.waiting > 0; q.waiting-- {
		lose(q.again[q.first])
		q.first = (q.first + 1) & (len(q.again) - 1)
	}
	for range q.many.to {
		lose(slot{buf: q.many.buf})
	}
	q.many = spread{}
	clear(q.slots)
	clear(q.again)
	return q.box.Close()
}

// ordinary is memory for frames: no device reads it.
type ordinary struct{}

// Alloc makes it Go's own.
func (ordinary) Alloc(r bus.DMARequest) (*bus.Memory, error) {
	return bus.NewMemory(make([]byte, r.Size), 0, func() {}), nil
}

// Map is refused.
func (ordinary) Map([]byte, bus.DMARequest) (*bus.Memory, error) { return nil, bus.ErrNotSupported }
