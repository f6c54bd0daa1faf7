package e1000_test

import (
	"context"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/netdev"
)

// pauseFrame asks for the longest pause, IEEE 802.3 annex 31B.
func pauseFrame() []byte {
	f := make([]byte, 60)
	copy(f, []byte{1, 0x80, 0xc2, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x88, 0x08, 0, 1, 0xff, 0xff})
	return f
}

// TestRecoveryDropsTransmits: frames that wait in the transmit ring, here because the far end asked for a pause and time stands still, are
// lost with a reset, and counted; who drains has nothing to wait for any more, and the next frames go out.
func TestRecoveryDropsTransmits(t *testing.T) {
	for _, suspend := range []bool{false, true} {
		bustest.NoLeaks(t)
		m, err := sim.Start(t.Context(), sim.Config{
			Devices: []sim.DeviceSpec{{Name: "eth0", Model: "e1000e"}, {Name: "eth1", Model: "e1000e"}},
			Wires:   [][2]string{{"eth0", "eth1"}}, Clock: sim.Stepped,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.Close(); err != nil {
				t.Errorf("Machine.Close = %v", err)
			}
		})
		n := simBind(t, m, "eth0", map[string]string{"ring": "64", "flow": "rx", "bus": "intx"}).(recoverable)
		far := simBind(t, m, "eth1", map[string]string{"ring": "64"}).(netdev.Device)
		send := func(d netdev.Device, pool *dma.Pool, data []byte, times int) {
			t.Helper()
			for range times {
				b := pool.Get()
				if b == nil {
					t.Fatal("no buffer left")
				}
				b.Data = b.Mem[:copy(b.Mem, data)]
				if d.Tx(0).Burst([]*dma.Buf{b}) != 1 {
					t.Fatal("the ring is full")
				}
			}
		}
		pools := [2]*dma.Pool{}
		for i, d := range []netdev.Device{n, far} {
			if pools[i], err = d.Tx(0).NewPool(50); err != nil {
				t.Fatal(err)
			}
		}
		got := func() (k int) {
			var bufs [64]*dma.Buf
			k = far.Rx(0).Burst(bufs[:])
			dma.FreeAll(bufs[:k])
			far.Rx(0).Burst(nil)
			return k
		}
		var dropped uint64
		for round := range 20 {
			send(n, pools[0], frame(far, 1), 3)
			if k := got(); k != 3 {
				t.Fatalf("round %d: %d frames came, want 3", round, k)
			}
			send(far, pools[1], pauseFrame(), 1)
			send(n, pools[0], frame(far, 2), 3+round)
			if k := got(); k != 0 {
				t.Fatalf("round %d: %d frames came in a pause", round, k)
			}
			drained := make(chan error, 1)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			go func() { drained <- n.Tx(0).Drain(ctx) }()
			if suspend {
				if err := n.Suspend(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := n.Resume(t.Context()); err != nil {
					t.Fatal(err)
				}
			} else {
				n.ErrorDetected(true)
				if err := m.Reset(t.Context(), "eth0"); err != nil {
					t.Fatal(err)
				}
				if v := n.SlotReset(t.Context()); v != bus.Recovered {
					t.Fatalf("SlotReset = %s: %v", v, n.Err())
				}
				n.ErrorResume()
			}
			if err := <-drained; err != nil {
				t.Errorf("Drain over a recovery = %v", err)
			}
			cancel()
			dropped += 3 + uint64(round)
			if st := n.Stats(); st.TxDropped != dropped || st.TxPackets != 3*uint64(round+1) {
				t.Errorf("round %d: %d frames sent and %d dropped, want %d and %d", round, st.TxPackets, st.TxDropped, 3*(round+1), dropped)
			}
			if pools[0].Free() != pools[0].Len() {
				t.Errorf("round %d: %d of %d buffers came back", round, pools[0].Free(), pools[0].Len())
			}
			if k := got(); k != 0 {
				t.Errorf("round %d: %d frames came that were dropped", round, k)
			}
		}
		far.Tx(0).Reap()
		for _, p := range pools {
			p.Close()
		}
	}
}
