package netdevtest

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
)

// setters are both ends; it skips the test where their MTU cannot change.
func (r *rig) setters(t *testing.T) (s [2]netdev.MTUSetter) {
	t.Helper()
	for i, d := range []netdev.Device{r.pair.A, r.pair.B} {
		m, ok := d.(netdev.MTUSetter)
		if !ok {
			t.Skip("the MTU cannot change")
		}
		s[i] = m
	}
	return s
}

func setMTU(t testing.TB, s [2]netdev.MTUSetter, mtu int) {
	t.Helper()
	for _, m := range s {
		if err := m.SetMTU(context.Background(), mtu); err != nil {
			t.Fatalf("SetMTU(%d) = %v", mtu, err)
		}
		if got := m.(netdev.Device).MTU(); got != mtu {
			t.Errorf("MTU after SetMTU(%d) = %d", mtu, got)
		}
	}
}

// jumbo changes the MTU and sends frames of all lengths up to it.
func (r *rig) jumbo(t *testing.T) {
	s := r.setters(t)
	a, b := r.pair.A, r.pair.B
	before := a.MTU()
	low, high := s[0].MTURange()
	for _, mtu := range []int{low - 1, high + 1, 0, -1, 1 << 30} {
		if err := s[0].SetMTU(context.Background(), mtu); !errors.Is(err, syscall.EINVAL) || a.MTU() != before {
			t.Errorf("SetMTU(%d) = %v, MTU %d: want %v, %d", mtu, err, a.MTU(), syscall.EINVAL, before)
		}
	}
	// A frame that the program holds stays what it is.
	x := get(t, a.Tx(0), r.pool)
	fill(x, a, b, r.seq, 100)
	sendAll(t, a.Tx(0), []*dma.Buf{x})
	held := hold(t, b)
	for _, mtu := range []int{high, 3000, low, before} {
		setMTU(t, s, mtu)
		pool, err := netdev.NewTxPool(a.Tx(0), 8, mtu+headerLen+5)
		if err != nil {
			t.Fatal(err)
		}
		longest := mtu + headerLen
		for _, n := range []int{minFrame, 61, longest - 1000, longest / 2, longest - 1, longest} {
			if n < minFrame {
				continue
			}
			r.seq++
			x := get(t, a.Tx(0), pool)
			fill(x, a, b, r.seq, n)
			sendAll(t, a.Tx(0), []*dma.Buf{x})
			receive(t, b, 1, func(f []byte) { r.check(t, f, a, b, r.seq, n) })
		}
		drain(t, a)
		errs := a.Stats().TxErrors
		x := get(t, a.Tx(0), pool)
		fill(x, a, b, 0, longest+5)
		sendAll(t, a.Tx(0), []*dma.Buf{x})
		drain(t, a)
		if got := a.Stats().TxErrors - errs; got != 1 {
			t.Errorf("%d errors for a frame that is too long, want 1", got)
		}
		silence(t, b)
		pool.Close()
	}
	r.check(t, held.Data, a, b, r.seq-r.since(t, held, a, b), 100)
	held.Free()
	b.Rx(0).Burst(nil)
}

// since is how many frames ago a frame was sent.
func (r *rig) since(t testing.TB, f *dma.Buf, from, to netdev.Device) uint64 {
	t.Helper()
	for n := range uint64(100) {
		if got := f.Data[seqAt+7]; got == byte(r.seq-n) {
			return n
		}
	}
	t.Fatal("the held frame is no frame of this test")
	return 0
}

// hold receives a frame and keeps it.
func hold(t testing.TB, d netdev.Device) *dma.Buf {
	t.Helper()
	var bufs [1]*dma.Buf
	for end := time.Now().Add(patience); d.Rx(0).Burst(bufs[:]) == 0; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("no frame within %s", patience)
		}
	}
	return bufs[0]
}

// jumboSending changes the MTU under a sender and a receiver. Frames may be lost then, and none
// afterwards.
func (r *rig) jumboSending(t *testing.T) {
	s := r.setters(t)
	a, b := r.pair.A, r.pair.B
	before := a.MTU()
	_, high := s[1].MTURange()
	sink, err := netdev.NewSink(b)
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			x := get(t, a.Tx(0), r.pool)
			fill(x, a, b, 0, minFrame)
			if a.Tx(0).Burst([]*dma.Buf{x}) == 0 {
				x.Free()
				runtime.Gosched()
			}
		}
	})
	more := func(n uint64) {
		t.Helper()
		n += sink.Frames()
		for end := time.Now().Add(patience); sink.Frames() < n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d frames received, want %d", sink.Frames(), n)
			}
		}
	}
	more(500)
	for _, mtu := range []int{high, before} {
		setMTU(t, s, mtu)
		more(2 * uint64(r.ring))
	}
	stop.Store(true)
	wg.Wait()
	drain(t, a)
	if err := sink.Close(); err != nil {
		t.Errorf("Sink.Close = %v", err)
	}
	missed := b.Stats()
	for k, bufs := 1, [8]*dma.Buf{}; k > 0; { // what the sink left
		k = b.Rx(0).Burst(bufs[:])
		for _, x := range bufs[:k] {
			x.Free()
		}
	}
	t.Run("FullRing", r.fullRing)
	if after := b.Stats(); after.RxMissedErrors != missed.RxMissedErrors {
		t.Errorf("%d frames missed after the MTU changed", after.RxMissedErrors-missed.RxMissedErrors)
	}
}
