package netdevtest

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
)

func (r *rig) basics(t *testing.T) {
	for _, d := range []netdev.Device{r.pair.A, r.pair.B} {
		i, mac := d.Info(), d.MAC()
		if i.Name == "" || i.Driver == "" || i.Model == "" || (i.Bus == nil) != r.pair.NoBus || i.TxQueues < 1 || i.RxQueues < 1 || i.TxRing != r.ring || i.RxRing != r.ring {
			t.Errorf("Info = %+v, want all of it, and rings of %d", i, r.ring)
		}
		if len(mac) != 6 || mac[0]&1 != 0 {
			t.Errorf("MAC = %s, want a unicast address", mac)
		}
		if d.MTU() < 1500 {
			t.Errorf("MTU = %d, want at least 1500", d.MTU())
		}
		if l := d.Link(); !l.Up || l.Speed <= 0 {
			t.Errorf("Link = %+v, want up, with a speed", l)
		}
		if d.Tx(i.TxQueues) != nil || d.Rx(i.RxQueues) != nil || d.Tx(-1) != nil || d.Rx(-1) != nil {
			t.Error("there are queues beyond those that Info tells of")
		}
		if err := d.Err(); err != nil {
			t.Errorf("Err = %v, want nil", err)
		}
		select {
		case <-d.Done():
			t.Error("Done is closed")
		default:
		}
		if p, err := d.Tx(0).NewPool(0); err == nil {
			t.Errorf("NewPool(0) = %v, want an error", p)
		}
	}
	// Small buffers hold small frames, padded ones too.
	small, err := netdev.NewTxPool(r.pair.A.Tx(0), 4, headerLen)
	if err != nil {
		t.Fatal(err)
	}
	for n := headerLen; n <= min(small.BufSize(), minFrame); n++ {
		x := get(t, r.pair.A.Tx(0), small)
		fill(x, r.pair.A, r.pair.B, r.seq, n)
		sendAll(t, r.pair.A.Tx(0), []*dma.Buf{x})
		receive(t, r.pair.B, 1, func(f []byte) { r.check(t, f, r.pair.A, r.pair.B, r.seq, n) })
		r.seq++
	}
	drain(t, r.pair.A)
	small.Close()
	if r.pair.A.MAC().String() == r.pair.B.MAC().String() {
		t.Errorf("both have the address %s", r.pair.A.MAC())
	}
}

// sizes sends a frame of every size and compares all its bytes.
func (r *rig) sizes(t *testing.T) {
	a, b := r.pair.A, r.pair.B
	next := minFrame
	for next <= maxFrame {
		k := min(32, maxFrame-next+1)
		first := r.seq
		bufs := make([]*dma.Buf, k)
		for i := range bufs {
			bufs[i] = get(t, a.Tx(0), r.pool)
			fill(bufs[i], a, b, r.seq, next+i)
			r.seq++
		}
		sendAll(t, a.Tx(0), bufs)
		i := 0
		receive(t, b, k, func(f []byte) {
			r.check(t, f, a, b, first+uint64(i), next+i)
			i++
		})
		next += k
	}
	drain(t, a)
	silence(t, b)
}

// short sends frames that need padding.
func (r *rig) short(t *testing.T) {
	a, b := r.pair.A, r.pair.B
	for n := headerLen; n < minFrame; n++ {
		x := get(t, a.Tx(0), r.pool)
		for i := range x.Mem[:minFrame] {
			x.Mem[i] = 0xee // must not be sent
		}
		fill(x, a, b, r.seq, n)
		sendAll(t, a.Tx(0), []*dma.Buf{x})
		receive(t, b, 1, func(f []byte) { r.check(t, f, a, b, r.seq, n) })
		r.seq++
	}
	// What cannot be a frame is taken, freed and counted.
	drain(t, a)
	free, errs := r.pool.Free(), a.Stats().TxErrors
	for _, n := range []int{0, headerLen - 1, a.MTU() + headerLen + 5} {
		x := r.pool.Get()
		x.Data = x.Mem[:n]
		if k := a.Tx(0).Burst([]*dma.Buf{x}); k != 1 {
			t.Errorf("Burst of a frame of %d bytes = %d, want 1", n, k)
		}
	}
	drain(t, a)
	if got := r.pool.Free(); got != free {
		t.Errorf("%d buffers free, want %d", got, free)
	}
	if got := a.Stats().TxErrors - errs; got != 3 {
		t.Errorf("%d errors counted, want 3", got)
	}
	silence(t, b)
}

// order sends bursts of random sizes, the same buffer several times among them, with a
// receiver that does nothing now and then.
func (r *rig) order(t *testing.T) {
	a, b := r.pair.A, r.pair.B
	const total = 20000
	first := r.seq
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		rnd := rand.New(rand.NewPCG(1, 2))
		var bufs []*dma.Buf
		for sent := 0; sent < total; {
			bufs = bufs[:0]
			for range min(1+rnd.IntN(2*r.ring), total-sent, r.ring) {
				x := get(t, a.Tx(0), r.pool)
				fill(x, a, b, first+uint64(sent), minFrame+sent%64)
				bufs = append(bufs, x)
				sent++
			}
			sendAll(t, a.Tx(0), bufs)
		}
	})
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := 0; i < total; i++ {
		if rnd.IntN(2000) == 0 {
			time.Sleep(time.Millisecond)
		}
		receive(t, b, 1, func(f []byte) { r.check(t, f, a, b, first+uint64(i), minFrame+i%64) })
	}
	wg.Wait()
	r.seq += total
	drain(t, a)
	silence(t, b)
}

// bothWays sends in both directions at once.
func (r *rig) bothWays(t *testing.T) {
	const total = 5000
	back, err := r.pair.B.Tx(0).NewPool(r.ring)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	send := func(from, to netdev.Device, pool *dma.Pool) {
		for i := range total {
			x := get(t, from.Tx(0), pool)
			fill(x, from, to, uint64(i), minFrame)
			sendAll(t, from.Tx(0), []*dma.Buf{x})
		}
		drain(t, from)
	}
	take := func(from, to netdev.Device) {
		i := uint64(0)
		receive(t, to, total, func(f []byte) {
			r.check(t, f, from, to, i, minFrame)
			i++
		})
	}
	a, b := r.pair.A, r.pair.B
	wg.Go(func() { send(a, b, r.pool) })
	wg.Go(func() { send(b, a, back) })
	wg.Go(func() { take(a, b) })
	take(b, a)
	wg.Wait()
	back.Close()
	silence(t, a)
	silence(t, b)
}

// fullRing sends more than the far end has room for while that does nothing: the
// sender is stopped, and nothing is lost.
func (r *rig) fullRing(t *testing.T) {
	a, b := r.pair.A, r.pair.B
	first, sent := r.seq, 0
	var rest []*dma.Buf
	end := time.Now().Add(patience)
	for stalled := 0; stalled < 1000; {
		if len(rest) == 0 {
			for range min(32, r.ring) {
				x := get(t, a.Tx(0), r.pool)
				fill(x, a, b, r.seq, minFrame)
				r.seq++
				rest = append(rest, x)
			}
		}
		k := a.Tx(0).Burst(rest)
		rest = rest[k:]
		sent += k
		if stalled++; k > 0 || sent == 0 && time.Now().Before(end) {
			stalled = 0 // the far end may not listen yet
		}
		if sent > r.ring {
			t.Fatalf("%d frames taken while the far end has %d descriptors", sent, r.ring)
		}
	}
	drain(t, a)
	if sent == 0 {
		t.Error("no frame was taken")
	}
	i := 0
	receive(t, b, sent, func(f []byte) {
		r.check(t, f, a, b, first+uint64(i), minFrame)
		i++
	})
	sendAll(t, a.Tx(0), rest)
	receive(t, b, len(rest), func(f []byte) {
		r.check(t, f, a, b, first+uint64(i), minFrame)
		i++
	})
	drain(t, a)
	silence(t, b)
	if got := a.Stats().TxBusies; got == 0 {
		t.Error("TxBusies = 0 after bursts that were cut short")
	}
}

// interrupts lets the receiver sleep before each frame.
func (r *rig) interrupts(t *testing.T) {
	a, b := r.pair.A, r.pair.B
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var bufs [4]*dma.Buf
	for i := range 200 {
		x := get(t, a.Tx(0), r.pool)
		fill(x, a, b, r.seq, minFrame)
		var wg sync.WaitGroup
		wg.Go(func() {
			if i%3 != 0 {
				time.Sleep(time.Duration(i%5) * 20 * time.Microsecond)
			}
			sendAll(t, a.Tx(0), []*dma.Buf{x})
		})
		k := 0
		for k == 0 {
			if err := b.Rx(0).Wait(ctx); err != nil {
				t.Fatalf("Wait for frame %d = %v", r.seq, err)
			}
			k = b.Rx(0).Burst(bufs[:])
		}
		wg.Wait()
		if k != 1 {
			t.Fatalf("%d frames at once, want 1", k)
		}
		r.check(t, bufs[0].Data, a, b, r.seq, minFrame)
		bufs[0].Free()
		r.seq++
	}
	// With nothing to receive, Wait ends with its context, and the next one still works.
	short, stop := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer stop()
	for {
		err := b.Rx(0).Wait(short)
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatalf("Wait with a context that ends = %v, want %v", err, context.DeadlineExceeded)
		}
	}
	drain(t, a)
	silence(t, b)
}

// filtered sends frames that the far end does not take, many times as many as it has
// descriptors: the credit they cost must come back.
func (r *rig) filtered(t *testing.T) {
	a, b := r.pair.A, r.pair.B
	for sent := 0; sent < 5*r.ring; {
		var bufs [16]*dma.Buf
		for i := range bufs {
			bufs[i] = get(t, a.Tx(0), r.pool)
			fill(bufs[i], a, b, 0, minFrame)
			copy(bufs[i].Data, "\x02\xfe\xdc\xba\x98\x76") // somebody else
		}
		sendAll(t, a.Tx(0), bufs[:])
		sent += len(bufs)
	}
	x := get(t, a.Tx(0), r.pool)
	fill(x, a, b, r.seq, minFrame)
	copy(x.Data, "\xff\xff\xff\xff\xff\xff")
	sendAll(t, a.Tx(0), []*dma.Buf{x})
	receive(t, b, 1, func(f []byte) {
		if f[0] != 0xff || f[5] != 0xff {
			t.Errorf("frame to %x, want the broadcast", f[:6])
		}
	})
	r.seq++
	drain(t, a)
	silence(t, b)
}

// allocs checks that a burst and its reception allocate nothing.
func (r *rig) allocs(t *testing.T) {
	a, b := r.pair.A, r.pair.B
	var out, in [16]*dma.Buf
	got := testing.AllocsPerRun(200, func() {
		for i := range out {
			x := r.pool.Get()
			if x == nil {
				t.Fatal("the pool is empty")
			}
			fill(x, a, b, r.seq, minFrame)
			r.seq++
			out[i] = x
		}
		for k := 0; k < len(out); {
			k += a.Tx(0).Burst(out[k:])
		}
		for k := 0; k < len(out); {
			n := b.Rx(0).Burst(in[:])
			for _, x := range in[:n] {
				x.Free()
			}
			k += n
		}
		a.Tx(0).Reap()
	})
	if got != 0 {
		t.Errorf("%v allocations in a burst of %d, want 0", got, len(out))
	}
	drain(t, a)
}

// stats compares the counters of both ends with what was sent.
func (r *rig) stats(t *testing.T) {
	a, b := r.pair.A, r.pair.B
	a0, b0 := a.Stats(), b.Stats()
	if a0.RxErrors != 0 || b0.RxErrors != 0 || b0.RxMissedErrors != 0 || a0.RxMissedErrors != 0 || b0.RxDropped != 0 {
		t.Errorf("errors were counted: %+v and %+v", a0, b0)
	}
	const frames = 100
	bytes := 0
	for i := range frames {
		x := get(t, a.Tx(0), r.pool)
		fill(x, a, b, r.seq, minFrame+i)
		bytes += minFrame + i
		r.seq++
		sendAll(t, a.Tx(0), []*dma.Buf{x})
		receive(t, b, 1, func([]byte) {})
	}
	drain(t, a)
	a1, b1 := a.Stats(), b.Stats()
	for _, c := range []struct {
		what      string
		got, want uint64
	}{
		{"TxPackets", a1.TxPackets - a0.TxPackets, frames}, {"TxBytes", a1.TxBytes - a0.TxBytes, uint64(bytes)},
		{"RxPackets", b1.RxPackets - b0.RxPackets, frames}, {"RxBytes", b1.RxBytes - b0.RxBytes, uint64(bytes)},
		{"the sender's RxPackets", a1.RxPackets - a0.RxPackets, 0}, {"the receiver's TxPackets", b1.TxPackets - b0.TxPackets, 0},
	} {
		if c.got != c.want {
			t.Errorf("%s grew by %d, want %d", c.what, c.got, c.want)
		}
	}
}

// closeSending closes a device under a sender and a receiver.
func closeSending(t *testing.T, r *rig) {
	a, b := r.pair.A, r.pair.B
	sink, err := netdev.NewSink(b)
	if err != nil {
		t.Fatal(err)
	}
	back, err := netdev.NewSink(a)
	if err != nil {
		t.Fatal(err)
	}
	var closed atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !closed.Load() {
			x := r.pool.Get()
			if x == nil {
				a.Tx(0).Reap()
				runtime.Gosched()
				continue
			}
			fill(x, a, b, 0, minFrame)
			if a.Tx(0).Burst([]*dma.Buf{x}) == 0 {
				x.Free()
				runtime.Gosched()
			}
		}
	})
	for end := time.Now().Add(patience); sink.Frames() < 1000; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d frames received after %s", sink.Frames(), patience)
		}
	}
	if err := r.pair.CloseA(); err != nil {
		t.Errorf("Close with traffic = %v", err)
	}
	if err := a.Err(); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Err after Close = %v, want %v", err, bus.ErrClosed)
	}
	select {
	case <-back.Done():
	case <-time.After(patience):
		t.Error("the closed device's receiver did not end")
	}
	closed.Store(true)
	wg.Wait()
	if n := a.Tx(0).Reap(); n != 0 || r.pool.Free() != r.pool.Len() {
		t.Errorf("after Close: %d in flight, %d of %d buffers back", n, r.pool.Free(), r.pool.Len())
	}
	for _, s := range []*netdev.Sink{sink, back} {
		if err := s.Close(); err != nil {
			t.Errorf("Sink.Close = %v, want nil", err)
		}
	}
	if err := r.pair.CloseA(); err != nil {
		t.Errorf("second Close = %v", err)
	}
}

// closeIdle uses a device after Close.
func closeIdle(t *testing.T, r *rig) {
	a := r.pair.A
	if err := r.pair.CloseA(); err != nil {
		t.Errorf("Close = %v", err)
	}
	select {
	case <-a.Done():
	default:
		t.Error("Done is not closed")
	}
	x := r.pool.Get()
	fill(x, a, r.pair.B, 0, minFrame)
	if n := a.Tx(0).Burst([]*dma.Buf{x}); n != 0 {
		t.Errorf("Burst after Close = %d, want 0", n)
	}
	x.Free()
	var bufs [1]*dma.Buf
	if n := a.Rx(0).Burst(bufs[:]); n != 0 {
		t.Errorf("Rx Burst after Close = %d, want 0", n)
	}
	if err := a.Rx(0).Wait(context.Background()); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Wait after Close = %v, want %v", err, bus.ErrClosed)
	}
	if err := a.Tx(0).Drain(context.Background()); err != nil {
		t.Errorf("Drain after Close = %v, want nil", err)
	}
	if n := a.Rx(0).Free(); n != 0 {
		t.Errorf("Free after Close = %d, want 0", n)
	}
	a.Stats()
	a.Link()
}
