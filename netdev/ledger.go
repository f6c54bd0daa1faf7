package netdev

import (
	"sync"
	"time"
)

// ledger is one direction of a wire where either end has several queues: what the sender's queues
// may send in all, and who was promised how much of it.
//
// With S for what all queues had sent, as far as they told, at the last look at the far
// end, they may send up to
//
//	L = S + the least, over the far queues, of Free(sync) + (Posted(now) - Posted(sync))
//
// in all. That is as in [Wire], and safe too while other queues send meanwhile: what arrived
// beyond S before the look is missing in Free.
//
// A queue that asks is promised a share of what L leaves, and the promise stands until it asks again
// and tells what it sent: what it does with it is not known before. The promises never add up
// to more than L. A share is an equal part of a far ring, so a queue that fell silent keeps
// no more than that from the others.
type ledger struct {
	now func() time.Time

	mu       sync.Mutex // guards all below
	far      []farQueue
	sent     []uint64 // by queue: as it told last
	promised []uint64 // by queue: it may send until it has sent that much
	synced   time.Time
	share    int
}

// farQueue is a receive queue at the far end.
type farQueue struct {
	rx     RxQueue
	stop   stopper // the same, nil: it never is stopped
	limit  uint64  // S(sync) + Free(sync)
	posted uint64  // Posted(sync)
}

func newLedger(queues int) *ledger {
	return &ledger{now: time.Now, sent: make([]uint64, queues), promised: make([]uint64, queues)}
}

// avail is how many frames queue q may send after the sent so far.
func (l *ledger) avail(q int, sent uint64) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	again := sent == l.sent[q]
	l.sent[q], l.promised[q] = sent, sent
	for i := range l.far {
		if s := l.far[i].stop; s != nil && s.Stopped() {
			return 0
		}
	}
	n := l.left()
	// A register read takes long: only when nothing is left, or less than the queue needs.
	if n == 0 || again {
		if t := l.now(); l.synced.IsZero() || t.Sub(l.synced) >= resyncEvery {
			l.sync(t)
			n = l.left()
		}
	}
	n = min(n, l.share)
	l.promised[q] = sent + uint64(n)
	return n
}

// left is what nobody was promised yet.
func (l *ledger) left() int {
	if l.synced.IsZero() {
		return 0
	}
	var promised uint64
	for _, p := range l.promised {
		promised += p
	}
	left := int64(1<<62 - 1)
	for i := range l.far {
		f := &l.far[i]
		left = min(left, int64(f.limit+(f.rx.Posted()-f.posted)-promised))
	}
	return int(max(left, 0))
}

// sync asks the far end's device.
func (l *ledger) sync(t time.Time) {
	var sent uint64
	for _, s := range l.sent {
		sent += s
	}
	for i := range l.far {
		f := &l.far[i]
		free := uint64(max(f.rx.Free(), 0))
		f.posted = f.rx.Posted() // after Free: see Wire
		f.limit = sent + free
		l.share = max(l.share, int(free)/len(l.sent), 1)
	}
	l.synced = t
}
