package e1000_test

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/netdev/netdevtest"
)

// TestThrottled: with a limit far below what frames would cause, a real model interrupts no more often,
// no frame is left lying, and closing with a timer running does no harm.
func TestThrottled(t *testing.T) {
	for _, c := range []struct{ model, irq string }{{"e1000e", "msix"}, {"e1000e", "msi"}, {"e1000e", "intx"}, {"e1000", "intx"}} {
		t.Run(c.model+"-"+c.irq, func(t *testing.T) {
			m := machine(t, c.model, 2)
			o := map[string]string{"ring": "64", "bus": c.irq, "itr": "100"}
			a, b := bind(t, m, "eth0", o, nil), bind(t, m, "eth1", o, nil)
			da, db := a.(netdev.Device), b.(netdev.Device)
			if err := netdev.Wire(da, db); err != nil {
				t.Fatal(err)
			}
			sink, err := netdev.NewSink(db)
			if err != nil {
				t.Fatal(err)
			}
			pool, err := da.Tx(0).NewPool(64)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			// A frame now and then: each finds the receiver asleep, and would interrupt.
			sent, start := uint64(0), time.Now()
			for sent == 0 || time.Since(start) < 300*time.Millisecond {
				if buf := pool.Get(); buf != nil {
					buf.Data = buf.Mem[:60]
					clear(buf.Data)
					copy(buf.Data, db.MAC())
					copy(buf.Data[6:], da.MAC())
					buf.Data[12], buf.Data[13] = 0x88, 0xb5
					if n := da.Tx(0).Burst([]*dma.Buf{buf}); n == 1 {
						if sent++; sent == 1 {
							start = time.Now() // QEMU's 82540EM is deaf for a second
						}
					} else {
						buf.Free()
					}
				}
				time.Sleep(500 * time.Microsecond)
				if ctx.Err() != nil {
					t.Fatalf("nothing could be sent in 30 s")
				}
			}
			took := time.Since(start)
			for sink.Frames() < sent && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
			if got := sink.Frames(); got != sent {
				t.Errorf("%d of %d frames arrived", got, sent)
			}
			var irqs uint64
			for _, k := range b.(pci.IRQUser).IRQHandlers()[0].Counts() {
				irqs += k
			}
			// QEMU's MSI-X fires at the end of an interval without beginning a new one: twice as often.
			if most := 2*uint64(took/(10*time.Millisecond)) + 20; irqs > most || irqs == 0 {
				t.Errorf("%d interrupts for %d frames in %s, want 1 to %d", irqs, sent, took, most)
			}
			t.Logf("%d frames, %d interrupts in %s", sent, irqs, took)
			if err := netdevClose(sink, a, b, db); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestThrottledModes changes the interrupt mode again and again, by closing and binding anew, while
// throttle timers run: QEMU 7.2 would end itself if the device were not reset before.
func TestThrottledModes(t *testing.T) {
	m := machine(t, "e1000e", 2)
	modes := []string{"msix", "msi", "intx", "msix", "intx", "msi"}
	defer func() {
		if err := m.Err(); err != nil {
			t.Errorf("QEMU: %v", err)
		}
	}()
	for i, irq := range modes {
		t.Log(i, irq)
		o := map[string]string{"ring": "64", "bus": irq, "itr": "100"}
		a, b := bind(t, m, "eth0", o, nil), bind(t, m, "eth1", o, nil)
		q := a.(netdev.Device).Tx(0)
		pool, err := q.NewPool(8)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		rx := b.(netdev.Device).Rx(0)
		for range 4 { // each wakes the receiver, and begins an interval
			buf := pool.Get()
			buf.Data = buf.Mem[:60]
			clear(buf.Data)
			copy(buf.Data, b.(netdev.Device).MAC())
			buf.Data[12], buf.Data[13] = 0x88, 0xb5
			if n := q.Burst([]*dma.Buf{buf}); n != 1 {
				t.Fatalf("%d, %s: Burst = %d", i, irq, n)
			}
			var got [4]*dma.Buf
			n := 0
			for n == 0 {
				if err := rx.Wait(ctx); err != nil {
					t.Fatalf("%d, %s: Wait = %v", i, irq, err)
				}
				n = rx.Burst(got[:])
			}
			for _, b := range got[:n] {
				b.Free()
			}
		}
		rx.Burst(nil)
		if err := q.Drain(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		pool.Close()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAdaptiveConformance: the suite passes, and nothing waits for ever, where the limit follows the traffic.
func TestAdaptiveConformance(t *testing.T) {
	for _, c := range []struct{ model, irq string }{{"e1000e", "msix"}, {"e1000e", "intx"}, {"e1000", "intx"}} {
		t.Run("sim-"+c.model+"-"+c.irq, func(t *testing.T) {
			netdevtest.All(t, []int{64}, func(t *testing.T, ring int) netdevtest.Pair {
				m := simMachine(t, c.model)
				o := map[string]string{"ring": strconv.Itoa(ring), "bus": c.irq, "itr": "1"}
				a, b := simBind(t, m, "eth0", o), simBind(t, m, "eth1", o)
				return netdevtest.Pair{
					A: a.(netdev.Device), B: b.(netdev.Device),
					CloseA: a.Close,
					Close:  func() error { return errors.Join(a.Close(), b.Close(), m.Close()) },
				}
			})
		})
	}
}

// netdevClose closes in the order a program does.
func netdevClose(sink *netdev.Sink, a, b pci.Instance, db netdev.Device) error {
	if err := sink.Close(); err != nil {
		return err
	}
	db.Rx(0).Burst(nil)
	if err := a.Close(); err != nil {
		return err
	}
	return b.Close()
}
