package e1000_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/internal/rt"
	"github.com/ring3dev/ring3/internal/rt/rttest"
	"github.com/ring3dev/ring3/netdev"
)

// realTime is a device whose interrupts are under a policy, as a host makes it.
type realTime struct {
	bus.Device
	p *rt.Policy
}

func (d realTime) EnableIRQs(mode bus.IRQMode, n int) ([]*bus.IRQ, error) {
	qs, err := d.Device.EnableIRQs(mode, n)
	for _, q := range qs {
		q.SetPolicy(d.p)
	}
	return qs, err
}

// The chain from the device to the receiver runs on real-time threads: handler, queue. Frames go one by one, so
// that each wakes both.
func TestRealTime(t *testing.T) {
	p := rttest.Policy(t, 6)
	for _, c := range []struct {
		model, irq string
		threads    []string
	}{
		{"e1000e", "", []string{"irq/eth1", "irq/eth1-rx-0", "irq/eth1-tx-0", "napi/eth1-0"}},
		{"e1000e", "msi", []string{"irq/eth1", "napi/eth1-0"}},
		{"e1000", "", []string{"irq/eth1", "napi/eth1-0"}},
	} {
		t.Run(c.model+c.irq, func(t *testing.T) {
			bustest.NoLeaks(t)
			m := simMachine(t, c.model)
			options := map[string]string{}
			if c.irq != "" {
				options["bus"] = c.irq
			}
			from := simBind(t, m, "eth0", options).(netdev.Device)
			dev, err := m.Device("eth1")
			if err != nil {
				t.Fatal(err)
			}
			r := pci.Bind(t.Context(), realTime{dev, p}, pci.Env{Name: "eth1", Options: options}, []*pci.Driver{e1000.Driver})
			if r.Outcome != pci.Bound {
				t.Fatal(r.Err)
			}
			sink, err := netdev.NewSinkOn(r.Instance.(netdev.Device), p)
			if err != nil {
				t.Fatal(err)
			}
			rttest.Wait(t, 6, c.threads...)
			pool, err := from.Tx(0).NewPool(1)
			if err != nil {
				t.Fatal(err)
			}
			const frames = 50
			for i := range frames {
				b := pool.Get()
				b.Data = b.Mem[:60]
				clear(b.Data)
				copy(b.Data, r.Instance.(netdev.Device).MAC())
				if n := from.Tx(0).Burst([]*dma.Buf{b}); n != 1 {
					t.Fatalf("Burst took %d frames, want 1", n)
				}
				for deadline := time.Now().Add(20 * time.Second); sink.Frames() != uint64(i+1); time.Sleep(100 * time.Microsecond) {
					if time.Now().After(deadline) {
						t.Fatalf("%d frames arrived, want %d", sink.Frames(), i+1)
					}
				}
				if err := from.Tx(0).Drain(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			pool.Close()
			// The device goes first: whoever waits for it is woken.
			if err := r.Instance.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
			<-sink.Done()
			if err := sink.Close(); err != nil && !errors.Is(err, bus.ErrClosed) {
				t.Errorf("Close of the sink = %v", err)
			}
			rttest.Wait(t, 6)
		})
	}
}

// A thread that waits for a queue is woken by Wake, and by the device's end.
func TestWaitThread(t *testing.T) {
	m := simMachine(t, "e1000e")
	inst := simBind(t, m, "eth0", nil)
	q := inst.(netdev.Device).Rx(0)
	w := q.(netdev.ThreadWaiter)
	ended := make(chan error)
	go func() { ended <- w.WaitThread() }()
	time.Sleep(5 * time.Millisecond)
	w.Wake()
	if err := <-ended; err != nil {
		t.Errorf("WaitThread after Wake = %v, want nil", err)
	}
	go func() { ended <- w.WaitThread() }()
	time.Sleep(5 * time.Millisecond)
	if err := inst.Close(); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{<-ended, w.WaitThread(), q.Wait(context.Background())} {
		if !errors.Is(err, bus.ErrClosed) {
			t.Errorf("waiting for a closed device = %v, want %v", err, bus.ErrClosed)
		}
	}
}
