package netdev

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/rt/rttest"
)

// threadQueue is a receive queue that a thread can wait for.
type threadQueue struct {
	pool  *dma.Pool
	wake  *bus.Waker
	ready atomic.Int64 // frames there are
	waits atomic.Int64 // WaitThread was called
	err   atomic.Pointer[error]
}

func (q *threadQueue) Burst(bufs []*dma.Buf) (n int) {
	for ; n < len(bufs) && q.ready.Load() > 0; n++ {
		q.ready.Add(-1)
		b := q.pool.Get()
		b.Data = b.Mem[:60]
		bufs[n] = b
	}
	return n
}

func (q *threadQueue) Wait(context.Context) error { return errors.New("Wait on a real-time thread") }
func (q *threadQueue) Posted() uint64             { return 0 }
func (q *threadQueue) Free() int                  { return 0 }
func (q *threadQueue) Wake()                      { q.wake.Wake() }

func (q *threadQueue) WaitThread() error {
	q.waits.Add(1)
	q.wake.WaitThread(0)
	if err := q.err.Load(); err != nil {
		return *err
	}
	return nil
}

// arrive makes n frames arrive, with an interrupt.
func (q *threadQueue) arrive(n int64) {
	q.ready.Add(n)
	q.Wake()
}

// A poll on a real-time thread waits in the kernel, and ends with its context, or with the device.
func TestPollThread(t *testing.T) {
	p := rttest.Policy(t, 4)
	pool, err := dma.NewPool(heap{}, 2*Budget, dma.BufSize, bus.FromDevice)
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("pulled out")
	for _, end := range []struct {
		name string
		how  func(q *threadQueue, cancel func())
		want error
	}{
		{"context", func(_ *threadQueue, cancel func()) { cancel() }, nil},
		{"device", func(q *threadQueue, _ func()) { q.err.Store(&why); q.Wake() }, why},
	} {
		q := &threadQueue{pool: pool, wake: bus.NewWaker()}
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan int64, 1)
		ended := make(chan error)
		var frames int64
		p.Go("poll", func() {
			ended <- PollThread(ctx, q, func(bufs []*dma.Buf) {
				for _, b := range bufs {
					b.Free()
				}
				frames += int64(len(bufs))
				if q.ready.Load() == 0 {
					got <- frames
				}
			})
		})
		rttest.Wait(t, 4, "poll")
		want := int64(0)
		for _, n := range []int64{1, 2, Budget, 1000} {
			time.Sleep(2 * time.Millisecond) // it waits
			q.arrive(n)
			if want += n; <-got != want {
				t.Errorf("%s: %d frames arrived, want %d", end.name, frames, want)
			}
		}
		if q.waits.Load() < 4 {
			t.Errorf("%s: the thread waited %d times, want 4 at least", end.name, q.waits.Load())
		}
		end.how(q, cancel)
		if err := <-ended; !errors.Is(err, end.want) || end.want == nil && err != nil {
			t.Errorf("%s: PollThread = %v, want %v", end.name, err, end.want)
		}
		cancel()
	}
	rttest.Wait(t, 4)
}
