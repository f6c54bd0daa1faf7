// Package netdevtest is the conformance suite of network drivers. [All] runs a driver's
// device against another one that it is wired to: every frame size, order, loss, full
// rings, interrupts, counters, closing under load, and what is left afterwards. What a device
// offers beyond that (netdev.Offloader, netdev.MTUSetter, several queues) is tried too, where
// both have it.
//
// The frames it sends have the Ethernet type 0x88b5 (IEEE 802 local experimental), the
// far end's station address, a sequence number and bytes that depend on it, so each one is
// compared whole.
package netdevtest

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
)

// Pair is two devices in service that are wired to each other and idle. The suite calls
// netdev.Wire.
type Pair struct {
	A, B netdev.Device
	// CloseA takes A out of service, as its driver's Instance.Close.
	CloseA func() error
	// Knows of the device's limits, which a model may have beyond the chip's: "" or a reason
	// for leaving the matter out.
	NoCsumGood string // the receiver never says that a checksum is right
	NoTSO      string // segmentation makes something else
	NoBus      bool   // they are on no bus.Device
	Unpadded   bool   // frames of less than 60 bytes arrive as they were sent
	// EmptySegments: a frame whose last segment is full is followed by an empty one.
	EmptySegments bool
	// Close takes both out of service and ends what carries them. It comes after CloseA
	// or without it.
	Close func() error
}

// Opener makes a pair with this many descriptors in each ring. It fails the test where it
// cannot.
type Opener func(t *testing.T, ring int) Pair

// All runs the suite. Rings lists the ring sizes to try, smallest first.
func All(t *testing.T, rings []int, open Opener) {
	for _, ring := range rings {
		t.Run(fmt.Sprintf("ring=%d", ring), func(t *testing.T) {
			leaks(t)
			r := start(t, open, ring)
			t.Run("Basics", r.basics)
			t.Run("Sizes", r.sizes)
			t.Run("Short", r.short)
			t.Run("Order", r.order)
			t.Run("BothWays", r.bothWays)
			t.Run("FullRing", r.fullRing)
			t.Run("Interrupts", r.interrupts)
			t.Run("Filtered", r.filtered)
			t.Run("Allocs", r.allocs)
			t.Run("Stats", r.stats)
			r.stop()
		})
	}
	t.Run("Offloads", func(t *testing.T) {
		leaks(t)
		r := start(t, open, rings[0])
		t.Run("Queues", r.queues)
		t.Run("Checksums", r.checksums)
		t.Run("Segments", r.segments)
		t.Run("VLAN", r.vlan)
		t.Run("BadMeta", r.badMeta)
		t.Run("Jumbo", r.jumbo)
		t.Run("JumboSending", r.jumboSending)
		r.stop()
	})
	for _, c := range []struct {
		name string
		f    func(*testing.T, *rig)
	}{{"CloseSending", closeSending}, {"CloseIdle", closeIdle}} {
		t.Run(c.name, func(t *testing.T) {
			leaks(t)
			r := start(t, open, rings[0])
			c.f(t, r)
			r.stop()
		})
	}
}

// patience bounds every wait of the suite.
const patience = 30 * time.Second

// etherType is IEEE 802's "local experimental 1".
const etherType = 0x88b5

// Lengths of frames, without frame check sequence.
const (
	minFrame  = 60
	maxFrame  = 1514
	headerLen = 14
	seqAt     = headerLen // 8 bytes
)

// rig is a pair with one direction's ends ready.
type rig struct {
	t    *testing.T
	pair Pair
	ring int
	pool *dma.Pool // of A
	seq  uint64    // frames sent from A to B
}

func start(t *testing.T, open Opener, ring int) *rig {
	t.Helper()
	p := open(t, ring)
	r := &rig{t: t, pair: p, ring: ring}
	if err := netdev.Wire(p.A, p.B); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.pool, err = p.A.Tx(0).NewPool(2 * ring); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) stop() {
	r.pool.Close()
	for _, d := range []netdev.Device{r.pair.A, r.pair.B} {
		for q := range d.Info().RxQueues {
			d.Rx(q).Burst(nil) // no frame is held any more
		}
	}
	if err := r.pair.Close(); err != nil {
		r.t.Errorf("Close = %v, want nil", err)
	}
}

// fill makes b the frame seq of n bytes from a to b.
func fill(b *dma.Buf, from, to netdev.Device, seq uint64, n int) {
	b.Data = b.Mem[:n]
	copy(b.Data[0:6], to.MAC())
	copy(b.Data[6:12], from.MAC())
	binary.BigEndian.PutUint16(b.Data[12:14], etherType)
	payload(b.Data[seqAt:], seq)
}

// payload is the sequence number and then bytes that depend on it and on their place.
func payload(p []byte, seq uint64) {
	var s [8]byte
	binary.BigEndian.PutUint64(s[:], seq)
	for i := copy(p, s[:]); i < len(p); i++ {
		p[i] = byte(seq) + byte(i*31) ^ byte(i>>8)
	}
}

// check compares a received frame with what was sent as seq with n bytes.
func (r *rig) check(t testing.TB, f []byte, from, to netdev.Device, seq uint64, n int) {
	t.Helper()
	size := max(n, minFrame)
	if r.pair.Unpadded {
		size = n
	}
	if len(f) != size {
		t.Fatalf("frame %d has %d bytes, want %d", seq, len(f), size)
	}
	want := make([]byte, size)
	copy(want[0:6], to.MAC())
	copy(want[6:12], from.MAC())
	binary.BigEndian.PutUint16(want[12:14], etherType)
	payload(want[seqAt:n], seq)
	for i := range want {
		if f[i] != want[i] {
			t.Fatalf("frame %d of %d bytes: byte %d is %#x, want %#x", seq, n, i, f[i], want[i])
		}
	}
}

// sendAll gives all bufs to the queue; it waits while the queue takes none.
func sendAll(t testing.TB, q netdev.TxQueue, bufs []*dma.Buf) {
	t.Helper()
	end := time.Now().Add(patience)
	for len(bufs) > 0 {
		n := q.Burst(bufs)
		if n < 0 || n > len(bufs) {
			t.Fatalf("Burst of %d = %d", len(bufs), n)
		}
		if bufs = bufs[n:]; n == 0 {
			if time.Now().After(end) {
				t.Fatalf("%d frames not taken after %s", len(bufs), patience)
			}
			runtime.Gosched()
		}
	}
}

// get takes a buffer from the pool, reaping until there is one.
func get(t testing.TB, q netdev.TxQueue, pool *dma.Pool) *dma.Buf {
	t.Helper()
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		if b := pool.Get(); b != nil {
			return b
		}
		q.Reap()
		if time.Now().After(end) {
			t.Fatalf("no transmit buffer came back within %s", patience)
		}
	}
}

// receive calls f for each of n frames; it polls.
func receive(t testing.TB, d netdev.Device, n int, f func(frame []byte)) {
	t.Helper()
	bufs := make([]*dma.Buf, netdev.Budget)
	q, end := d.Rx(0), time.Now().Add(patience)
	for n > 0 {
		k := q.Burst(bufs[:min(n, len(bufs))])
		for _, b := range bufs[:k] {
			f(b.Data)
			b.Free()
		}
		if n -= k; k == 0 {
			if time.Now().After(end) {
				t.Fatalf("%d frames did not arrive within %s", n, patience)
			}
			runtime.Gosched()
		}
	}
}

// silence checks that nothing more is received.
func silence(t testing.TB, d netdev.Device) {
	t.Helper()
	var bufs [4]*dma.Buf
	if k := d.Rx(0).Burst(bufs[:]); k != 0 {
		t.Errorf("%d frames too many, the first of %d bytes: % x", k, len(bufs[0].Data), bufs[0].Data[:min(32, len(bufs[0].Data))])
		for _, b := range bufs[:k] {
			b.Free()
		}
	}
}

func drain(t testing.TB, d netdev.Device) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := d.Tx(0).Drain(ctx); err != nil {
		t.Fatalf("Drain = %v", err)
	}
	if n := d.Tx(0).Reap(); n != 0 {
		t.Fatalf("Reap after Drain = %d, want 0", n)
	}
}

// leaks fails the test if descriptors or goroutines are left when it ends.
func leaks(t *testing.T) {
	t.Helper()
	if r, w, err := os.Pipe(); err == nil { // the runtime's poller has descriptors of its own, from its first use on
		r.Close()
		w.Close()
	}
	fds, gos := openFiles(), runtime.NumGoroutine()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			f, g := openFiles(), runtime.NumGoroutine()
			if f <= fds && g <= gos {
				return
			}
			if time.Now().After(end) {
				buf := make([]byte, 1<<16)
				t.Errorf("left behind: %d descriptors (%d before), %d goroutines (%d before)\n%s", f, fds, g, gos, buf[:runtime.Stack(buf, true)])
				return
			}
		}
	})
}

func openFiles() int {
	l, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(l)
}
