package e1000

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/dma"
)

func TestRctlOf(t *testing.T) {
	for _, c := range []struct {
		mtu, size int
		rctl      rctl
	}{
		{68, 2048, 0}, {1500, 2048, 0}, {1501, 2048, rctlLPE}, {2026, 2048, rctlLPE}, {2027, 4096, rctlLPE | rctlBSEX | 3<<16}, {4074, 4096, rctlLPE | rctlBSEX | 3<<16},
		{4075, 8192, rctlLPE | rctlBSEX | 2<<16}, {8170, 8192, rctlLPE | rctlBSEX | 2<<16}, {8171, 16384, rctlLPE | rctlBSEX | 1<<16}, {16110, 16384, rctlLPE | rctlBSEX | 1<<16},
	} {
		if size, v := rxBufSize(c.mtu), rctlOf(c.mtu); size != c.size || v != c.rctl {
			t.Errorf("MTU %d: buffers of %d, RCTL %s: want %d, %s", c.mtu, size, v, c.size, c.rctl)
		}
	}
}

// TestSetMTU: credit and memory are right whatever the program holds, however often.
func TestSetMTU(t *testing.T) {
	for _, queues := range []string{"1", "2"} {
		m := newModel(device82574)
		n := probeModel(t, m, map[string]string{"ring": "64", "queues": queues})
		if err := n.SetMTU(t.Context(), 9001); !errors.Is(err, unix.EINVAL) {
			t.Errorf("SetMTU(9001) = %v, want %v", err, unix.EINVAL)
		}
		var held []*dma.Buf
		var bufs [1]*dma.Buf
		f := make([]byte, 60)
		for i := range 12 {
			q := &n.rx[0]
			f[20] = byte(i)
			if queues == "1" {
				// Two arrive, one is taken.
				m.receive(f)
				m.receive(f)
				held = append(held, bufs[:q.Burst(bufs[:])]...)
			}
			posted, free := q.Posted(), q.Free()
			if err := n.SetMTU(t.Context(), []int{9000, 1500, 3000}[i%3]); err != nil {
				t.Fatal(err)
			}
			if got := q.Free(); got != 63 {
				t.Errorf("change %d: Free = %d, want 63", i, got)
			}
			if got, want := q.Posted()-posted, uint64(63-free); got != want {
				t.Errorf("change %d: Posted grew by %d, want %d", i, got, want)
			}
		}
		for i, b := range held {
			if b.Data[20] != byte(i) {
				t.Errorf("held frame %d has %d", i, b.Data[20])
			}
			b.Free()
		}
		n.rx[0].Burst(nil)
		if got := len(n.rx[0].old); got != 0 {
			t.Errorf("%d old pools after all was freed", got)
		}
	}
}

// TestHeldOverMTU: frames of an old pool are held over Close too.
func TestHeldOverMTU(t *testing.T) {
	m := newModel(device82574)
	n := probeModel(t, m, map[string]string{"ring": "64"})
	var bufs [1]*dma.Buf
	m.receive(make([]byte, 60))
	if k := n.rx[0].Burst(bufs[:]); k != 1 {
		t.Fatalf("Burst = %d, want 1", k)
	}
	if err := n.SetMTU(t.Context(), 4000); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.SetMTU(t.Context(), 1500); err == nil {
		t.Error("SetMTU after Close = nil")
	}
	bufs[0].Data[0] = 1 // still there
	bufs[0].Free()
	n.rx[0].Burst(nil)
}

// TestLongFrame: a frame that goes on in further descriptors is one error, and what comes
// after it is received.
func TestLongFrame(t *testing.T) {
	m := newModel(device82574)
	n := probeModel(t, m, map[string]string{"ring": "64"})
	parts := []uint64{uint64(rxDD) | 2048, uint64(rxDD) | 2048, uint64(rxDD|rxEOP) | 100, uint64(rxDD|rxEOP) | 70}
	i := 0
	m.onStatus = func(uint64) uint64 { i++; return parts[i-1] }
	for range parts {
		m.receive(make([]byte, 60))
	}
	var bufs [8]*dma.Buf
	k := n.rx[0].Burst(bufs[:])
	if k != 1 || len(bufs[0].Data) != 70 {
		t.Errorf("%d frames, want one of 70 bytes", k)
	}
	for _, b := range bufs[:k] {
		b.Free()
	}
	n.rx[0].Burst(nil)
	if got := n.Stats().RxLengthErrors; got != 1 {
		t.Errorf("RxLengthErrors = %d, want 1", got)
	}
}
