package e1000_test

import (
	"context"
	"errors"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/netdev/netdevtest"

	"strconv"
)

// models are QEMU's names of what is driven.
var models = []string{"e1000e", "e1000"}

// without hides interrupt modes of a device.
type without struct {
	bus.Device
	msix, msi bool
}

func (d without) IRQVectors(m bus.IRQMode) int {
	if m == bus.MSIX && d.msix || m == bus.MSI && d.msi {
		return 0
	}
	return d.Device.IRQVectors(m)
}

// machine starts QEMU with devices eth0, eth1, ... of a model, the first two wired.
func machine(t testing.TB, model string, n int) *qemu.Machine {
	t.Helper()
	c := qemu.Config{}
	for i := range n {
		c.Devices = append(c.Devices, qemu.DeviceSpec{Name: "eth" + strconv.Itoa(i), Model: model})
	}
	if n > 1 {
		c.Wires = [][2]string{{"eth0", "eth1"}}
	}
	return machineOf(t, c)
}

func machineOf(t testing.TB, c qemu.Config) *qemu.Machine {
	t.Helper()
	m, err := qemu.Start(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Machine.Close = %v", err)
		}
	})
	return m
}

// bind brings a device into service. hide may be nil.
func bind(t testing.TB, m *qemu.Machine, name string, options map[string]string, hide func(bus.Device) bus.Device) pci.Instance {
	t.Helper()
	dev, err := m.Device(name)
	if err != nil {
		t.Fatal(err)
	}
	if hide != nil {
		dev = hide(dev)
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

// opener makes pairs on a machine each.
func opener(model, irq string, queues int, hide func(bus.Device) bus.Device) netdevtest.Opener {
	return func(t *testing.T, ring int) netdevtest.Pair {
		m := machine(t, model, 2)
		o := map[string]string{"ring": strconv.Itoa(ring), "queues": strconv.Itoa(queues)}
		if irq != "" {
			o["bus"] = irq
		}
		return pair(t, m, model, o, hide)
	}
}

// pair brings a machine's eth0 and eth1 into service, with what there is to know of the model.
func pair(t *testing.T, m *qemu.Machine, model string, o map[string]string, hide func(bus.Device) bus.Device) netdevtest.Pair {
	t.Helper()
	a, b := bind(t, m, "eth0", o, hide), bind(t, m, "eth1", o, hide)
	p := netdevtest.Pair{
		A: a.(netdev.Device), B: b.(netdev.Device),
		CloseA: a.Close,
		Close:  func() error { return errors.Join(a.Close(), b.Close(), m.Close()) },
	}
	if model == "e1000e" {
		p.NoTSO = "QEMU's e1000e before 8.1 cuts frames into IP fragments" // see TestFragments
	} else {
		p.NoCsumGood, p.EmptySegments = "QEMU's e1000 looks at no checksum", true
	}
	return p
}

func TestConformance(t *testing.T) {
	rings := []int{64, 256, 4096}
	if testing.Short() {
		rings = rings[:1]
	}
	for _, c := range []struct {
		name, model, irq string
		queues           int
		hide             func(bus.Device) bus.Device
		rings            []int
	}{
		{"e1000e", "e1000e", "", 1, nil, rings},
		{"e1000e-2queues", "e1000e", "", 2, nil, rings[:1]},
		{"e1000e-MSI", "e1000e", "", 1, func(d bus.Device) bus.Device { return without{d, true, false} }, rings[:1]},
		{"e1000e-INTx", "e1000e", "intx", 2, nil, rings[:1]},
		{"e1000", "e1000", "", 1, nil, rings},
		{"e1000-82545em", "e1000-82545em", "intx", 1, nil, rings[:1]},
	} {
		t.Run(c.name, func(t *testing.T) { netdevtest.All(t, c.rings, opener(c.model, c.irq, c.queues, c.hide)) })
	}
}
