package bus

import (
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/internal/ioctl"
)

// Waker is how a handler wakes the one goroutine that serves a queue. A wake-up is remembered until somebody
// waits; several count as one; one may come for no reason, so who is woken looks. A nil Waker wakes nobody.
//
// The goroutine waits at C, or in WaitThread if it has a thread of its own: then the kernel wakes that
// thread at once, where at C a thread of Go's scheduler passes the wake-up on.
type Waker struct {
	c     chan struct{} // of capacity 1
	state atomic.Uint32 // of WaitThread
}

// States of a Waker for WaitThread.
const (
	wakerIdle uint32 = iota
	wakerAsleep
	wakerWoken
)

// NewWaker makes a Waker.
func NewWaker() *Waker { return &Waker{c: make(chan struct{}, 1)} }

// Wake wakes who waits, or the next one. It never blocks and may be called by anybody.
func (w *Waker) Wake() {
	if w == nil {
		return
	}
	if w.state.Swap(wakerWoken) == wakerAsleep {
		ioctl.FutexWake(&w.state)
	}
	select {
	case w.c <- struct{}{}:
	default:
	}
}

// C is where to wait for a wake-up.
func (w *Waker) C() <-chan struct{} { return w.c }

// WaitThread blocks the calling thread, which must be the goroutine's own, until a wake-up or for d; 0 means without
// end. It says whether it was a wake-up.
func (w *Waker) WaitThread(d time.Duration) bool {
	var end time.Time
	if d > 0 {
		end = time.Now().Add(d)
	}
	for !w.state.CompareAndSwap(wakerWoken, wakerIdle) {
		if d > 0 {
			if d = time.Until(end); d <= 0 {
				w.state.CompareAndSwap(wakerAsleep, wakerIdle)
				return w.state.CompareAndSwap(wakerWoken, wakerIdle)
			}
		}
		if w.state.CompareAndSwap(wakerIdle, wakerAsleep) || w.state.Load() == wakerAsleep {
			ioctl.FutexWait(&w.state, wakerAsleep, d)
		}
	}
	return true
}
