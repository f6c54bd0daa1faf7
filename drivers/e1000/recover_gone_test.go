package e1000_test

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
)

// TestGoneInRecovery: the device is pulled out, or closed, at each step of a recovery under load.
func TestGoneInRecovery(t *testing.T) {
	for step := range 8 {
		bustest.NoLeaks(t)
		m := recoveryMachine(t, "e1000e")
		a, b := simBind(t, m, "eth0", map[string]string{"ring": "64"}), simBind(t, m, "eth1", map[string]string{"ring": "64"})
		x := startTraffic(t, a, b)
		x.flows(50)
		n := x.nic[0]
		var wg sync.WaitGroup
		end := func(at int) {
			switch step {
			case at:
				if err := m.Unplug("eth0"); err != nil {
					t.Error(err)
				}
			case at + 4:
				wg.Go(func() {
					if err := a.Close(); err != nil {
						t.Errorf("Close = %v", err)
					}
				})
			}
		}
		restore := keepState(t, n.Info().Bus)
		end(0)
		n.ErrorDetected(true)
		end(1)
		if err := m.Reset(t.Context(), "eth0"); err == nil {
			restore()
		}
		v := n.SlotReset(t.Context())
		if step < 2 && v != bus.Disconnect {
			t.Errorf("step %d: SlotReset = %s, want disconnect", step, v)
		}
		end(2)
		n.ErrorResume()
		end(3)
		wg.Wait()
		<-n.Done()
		if v := n.ErrorDetected(true); v != bus.Disconnect {
			t.Errorf("step %d: ErrorDetected of a dead device = %s, want disconnect", step, v)
		}
		if v := n.SlotReset(t.Context()); v != bus.Disconnect {
			t.Errorf("step %d: SlotReset of a dead device = %s, want disconnect", step, v)
		}
		if err := n.Suspend(t.Context()); err == nil {
			t.Errorf("step %d: Suspend of a dead device = nil", step)
		}
		// The order in which its host takes it away: its users end, then it is closed, and they free what it held.
		if err := a.Close(); err != nil {
			t.Errorf("step %d: Close = %v", step, err)
		}
		for i, s := range x.send {
			s.end(t)
			_ = x.sinks[i].Close()
		}
		n.Rx(0).Burst(nil)
	}
}

// vanishing is a device whose registers can be out of reach without a word from the bus.
type vanishing struct {
	bus.Device
	away atomic.Bool
	met  chan struct{} // of capacity 1: somebody met that
}

func (v *vanishing) Region(i int) (bus.Region, error) {
	r, err := v.Device.Region(i)
	return vanishingRegion{r, v}, err
}

type vanishingRegion struct {
	bus.Region
	v *vanishing
}

func (r vanishingRegion) Read32(off bus.Off) uint32 {
	if !r.v.away.Load() {
		return r.Region.Read32(off)
	}
	select {
	case r.v.met <- struct{}{}:
	default:
	}
	return math.MaxUint32
}

func (r vanishingRegion) Write32(off bus.Off, x uint32) {
	if !r.v.away.Load() {
		r.Region.Write32(off, x)
	}
}

// TestReportIsLate: registers are out of reach before anybody tells of the error, and the driver meets that.
func TestReportIsLate(t *testing.T) {
	bustest.NoLeaks(t)
	m := recoveryMachine(t, "e1000e")
	dev, err := m.Device("eth0")
	if err != nil {
		t.Fatal(err)
	}
	v := &vanishing{Device: dev, met: make(chan struct{}, 1)}
	inst, err := e1000.Driver.Probe(t.Context(), v, pci.Env{Name: "eth0", Options: map[string]string{"ring": "64", "bus": "intx"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inst.Close() })
	n := inst.(recoverable)
	set := func(ctx context.Context) error {
		return n.(netdev.RxModer).SetRxMode(ctx, netdev.RxMode{Promisc: true})
	}
	v.away.Store(true)
	done := make(chan error, 1)
	go func() { done <- set(context.Background()) }()
	<-v.met
	n.ErrorDetected(true)
	if err := <-done; err == nil {
		t.Error("SetRxMode without registers = nil")
	}
	if err := m.Reset(t.Context(), "eth0"); err != nil {
		t.Fatal(err)
	}
	v.away.Store(false)
	if v := n.SlotReset(t.Context()); v != bus.Recovered {
		t.Fatalf("SlotReset = %s: %v", v, n.Err())
	}
	n.ErrorResume()
	if l := n.Link(); !l.Up || n.Err() != nil {
		t.Errorf("Link = %+v, Err = %v", l, n.Err())
	}
	if err := set(t.Context()); err != nil {
		t.Errorf("SetRxMode after recovery = %v", err)
	}
	v.away.Store(true) // and nobody tells of an error
	if err := set(t.Context()); !errors.Is(err, bus.ErrGone) || !errors.Is(n.Err(), bus.ErrGone) {
		t.Errorf("SetRxMode of a device that vanished = %v, and its end %v, want %v", err, n.Err(), bus.ErrGone)
	}
}
