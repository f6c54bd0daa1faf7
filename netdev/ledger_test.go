package netdev

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestLedger runs several senders against several receivers: nothing is ever lost, whatever
// queue a frame lands in and however the receivers lag, no sender is ever stuck, and a
// silent one keeps no more than its share from the others.
func TestLedger(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		size := uint64(64) << rnd.IntN(5)
		senders, fars := 1+rnd.IntN(3), 1+rnd.IntN(3)
		now := time.Unix(0, 0)
		l := newLedger(senders)
		l.now = func() time.Time { return now }
		far := make([]*far, fars)
		for i := range far {
			far[i] = newFar(size)
			l.far = append(l.far, farQueue{rx: far[i]})
		}
		sent := make([]uint64, senders)
		silent := rnd.IntN(senders + 1) // one of them sends nothing after its first question
		total, stuck := uint64(0), 0
		for total < 50*size {
			now = now.Add(time.Duration(rnd.IntN(50)) * time.Microsecond)
			q := rnd.IntN(senders)
			if q == silent && senders > 1 && total > 0 {
				continue
			}
			n := l.avail(q, sent[q])
			if n < 0 || uint64(n) > size-1 {
				t.Fatalf("seed %d: avail = %d with rings of %d", seed, n, size)
			}
			n = min(n, 1+rnd.IntN(64))
			if q == silent && senders > 1 {
				n = min(n, 1)
			}
			for range n {
				if rnd.IntN(4) != 0 { // else filtered
					far[rnd.IntN(1+rnd.IntN(fars))].deliver()
				}
			}
			sent[q] += uint64(n)
			total += uint64(n)
			for _, f := range far {
				f.take(rnd)
			}
			if stuck++; n > 0 {
				stuck = 0
			}
			if stuck > 10000 {
				t.Fatalf("seed %d: stuck after %d frames", seed, total)
			}
		}
		for i, f := range far {
			if f.lost > 0 {
				t.Errorf("seed %d: %d frames lost at queue %d", seed, f.lost, i)
			}
		}
	}
}

// TestCreditAgain: who asks again without having sent needs more, and the far end is looked at.
func TestCreditAgain(t *testing.T) {
	f := newFar(64)
	now := time.Unix(0, 0)
	clock := func() time.Time { return now }
	c := newCredit(f)
	c.now = clock
	l := newLedger(1)
	l.now, l.far = clock, []farQueue{{rx: f}}
	for name, avail := range map[string]func(uint64) int{"credit": c.avail, "ledger": func(s uint64) int { return l.avail(0, s) }} {
		now = now.Add(time.Second)
		if got := avail(0); got != 63 {
			t.Errorf("%s: avail(0) = %d, want 63", name, got)
		}
		now = now.Add(time.Second)
		// All sent so far was filtered.
		if got := avail(60); got != 3 {
			t.Errorf("%s: avail(60) = %d, want 3", name, got)
		}
		if got := avail(60); got != 63 {
			t.Errorf("%s: avail(60) again = %d, want 63", name, got)
		}
	}
}

// stoppable is a far end that may be stopped for a while.
type stoppable struct {
	*far
	stopped bool
}

func (s *stoppable) Stopped() bool { return s.stopped }

// TestStoppedFar: a sender gets nothing while a far queue is stopped, whatever it was promised, and what there is afterwards.
func TestStoppedFar(t *testing.T) {
	f := &stoppable{far: newFar(64)}
	now := time.Unix(0, 0)
	clock := func() time.Time { now = now.Add(time.Millisecond); return now }
	c := newCredit(f)
	c.now = clock
	l := newLedger(1)
	l.now = clock
	l.far = append(l.far, farQueue{rx: newFar(64)}, farQueue{rx: f, stop: f})
	for i, s := range []struct {
		stopped bool
		want    int
	}{{false, 63}, {true, 0}, {true, 0}, {false, 63}} {
		f.stopped = s.stopped
		if got := c.avail(0); got != s.want {
			t.Errorf("step %d: avail of a credit = %d, want %d", i, got, s.want)
		}
		if got := l.avail(0, 0); got != s.want {
			t.Errorf("step %d: avail of a ledger = %d, want %d", i, got, s.want)
		}
	}
}
