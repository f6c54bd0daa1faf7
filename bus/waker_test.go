package bus_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// Each wake-up is answered by another: none is lost, whichever way is waited.
func TestWaker(t *testing.T) {
	for _, c := range []struct {
		name string
		wait func(w *bus.Waker)
	}{
		{"channel", func(w *bus.Waker) { <-w.C() }},
		{"thread", func(w *bus.Waker) {
			if !w.WaitThread(0) {
				t.Error("WaitThread(0) = false, want a wake-up")
			}
		}},
		{"thread, bounded", func(w *bus.Waker) {
			for !w.WaitThread(10 * time.Millisecond) {
			}
		}},
	} {
		there, back := bus.NewWaker(), bus.NewWaker()
		const turns = 2000
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			for range turns {
				c.wait(there)
				back.Wake()
			}
		}()
		for range turns {
			there.Wake()
			c.wait(back)
		}
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: a wake-up was lost", c.name)
		}
	}
}

func TestWakerRemembers(t *testing.T) {
	w := bus.NewWaker()
	if w.WaitThread(time.Millisecond) {
		t.Error("WaitThread = true, want false: nobody woke")
	}
	w.Wake()
	w.Wake() // counts as one
	if !w.WaitThread(0) || w.WaitThread(time.Millisecond) {
		t.Error("two wake-ups before the wait, want one of them remembered")
	}
	<-w.C() // which may be for no reason
	(*bus.Waker)(nil).Wake()
}
