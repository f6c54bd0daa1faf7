package e1000_test

import (
	"context"
	"errors"
	"strconv"
	"testing"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/netdev/netdevtest"
)

// simMachine makes a machine of two wired devices of a model.
func simMachine(t testing.TB, model string) *sim.Machine {
	t.Helper()
	m, err := sim.Start(context.Background(), sim.Config{
		Devices: []sim.DeviceSpec{{Name: "eth0", Model: model}, {Name: "eth1", Model: model}},
		Wires:   [][2]string{{"eth0", "eth1"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Machine.Close = %v", err)
		}
		if n, err := m.StrayDMA(); n != 0 {
			t.Errorf("%d times stray DMA, the first: %v", n, err)
		}
	})
	return m
}

// simBind brings a device of it into service.
func simBind(t testing.TB, m *sim.Machine, name string, options map[string]string) pci.Instance {
	t.Helper()
	dev, err := m.Device(name)
	if err != nil {
		t.Fatal(err)
	}
	r := pci.Bind(context.Background(), dev, pci.Env{Name: name, Options: options}, []*pci.Driver{e1000.Driver})
	if r.Outcome != pci.Bound {
		t.Fatalf("Bind of %s = %s, %v", name, r.Outcome, r.Err)
	}
	t.Cleanup(func() {
		if err := r.Instance.Close(); err != nil {
			t.Errorf("Close of %s = %v", name, err)
		}
	})
	return r.Instance
}

// simOpener makes pairs on a machine each. irq is the option bus, "" being the best.
func simOpener(model, irq string, queues int) netdevtest.Opener {
	return func(t *testing.T, ring int) netdevtest.Pair {
		m := simMachine(t, model)
		o := map[string]string{"ring": strconv.Itoa(ring), "queues": strconv.Itoa(queues)}
		if irq != "" {
			o["bus"] = irq
		}
		a, b := simBind(t, m, "eth0", o), simBind(t, m, "eth1", o)
		return netdevtest.Pair{
			A: a.(netdev.Device), B: b.(netdev.Device),
			CloseA: a.Close,
			Close:  func() error { return errors.Join(a.Close(), b.Close(), m.Close()) },
		}
	}
}

// TestSimConformance is TestConformance on models in this process.
func TestSimConformance(t *testing.T) {
	rings := []int{64, 256, 4096}
	if testing.Short() {
		rings = rings[:1]
	}
	for _, c := range []struct {
		name, model, irq string
		queues           int
		rings            []int
	}{
		{"e1000e", "e1000e", "", 1, rings},
		{"e1000e-2queues", "e1000e", "", 2, rings},
		{"e1000e-MSI", "e1000e", "msi", 1, rings[:1]},
		{"e1000e-MSI-2queues", "e1000e", "msi", 2, rings[:1]},
		{"e1000e-INTx", "e1000e", "intx", 1, rings[:1]},
		{"e1000", "e1000", "", 1, rings},
		{"e1000-82545em", "e1000-82545em", "", 1, rings[:1]},
	} {
		t.Run(c.name, func(t *testing.T) { netdevtest.All(t, c.rings, simOpener(c.model, c.irq, c.queues)) })
	}
}
