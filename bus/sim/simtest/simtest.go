// Package simtest opens the device models of package sim in a Go test, as the bus.Device that a
// driver is handed elsewhere:
//
//	func TestReset(t *testing.T) {
//		dev := simtest.Open(t, "edu")
//		inst := simtest.Bind(t, dev, mydriver.Driver, nil)
//		...
//	}
//
// Nothing needs to be installed, and it takes no time. Package qemutest opens QEMU's models in
// the same way; a driver's tests should run on both.
//
// Time is sim.Eager for what Open and Pair make: a driver's waits for its device take none. For
// another clock, or other devices, there is [Machine].
//
// # What is checked in the end
//
// The test fails if the instance or the machine cannot be closed in order, which includes DMA
// memory that was not freed, and if a device touched memory that was not its own
// (sim.Machine.StrayDMA). Run it with -race: DMA is seen like any other access. A test that
// provokes stray DMA starts its machine with sim.Start. [bustest.NoLeaks], called first, adds
// descriptors and goroutines.
package simtest

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
)

// Open makes one device of a model ("edu", "e1000e") with properties, "key=value".
func Open(t testing.TB, model string, props ...string) bus.Device {
	t.Helper()
	m := Machine(t, sim.Config{Devices: []sim.DeviceSpec{{Name: "dev0", Model: model, Props: props}}, Clock: sim.Eager})
	return Device(t, m, "dev0")
}

// Pair makes two network adapters of a model, wired to each other. A driver's netdev.Device must
// still be told of the wire, with netdev.Wire, for nothing to be lost on it.
func Pair(t testing.TB, model string, props ...string) (a, b bus.Device) {
	t.Helper()
	m := Machine(t, sim.Config{
		Devices: []sim.DeviceSpec{{Name: "eth0", Model: model, Props: props}, {Name: "eth1", Model: model, Props: props}},
		Wires:   [][2]string{{"eth0", "eth1"}},
		Clock:   sim.Eager,
	})
	return Device(t, m, "eth0"), Device(t, m, "eth1")
}

// Machine starts a machine with any devices. It is closed at the end of the test. A c.Log that
// is nil becomes the test's log.
func Machine(t testing.TB, c sim.Config) *sim.Machine {
	t.Helper()
	if c.Log == nil {
		c.Log = bustest.Log(t)
	}
	m, err := sim.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil && !errors.Is(err, bus.ErrGone) {
			t.Errorf("closing the machine: %v", err)
		}
		if n, err := m.StrayDMA(); n != 0 {
			t.Errorf("%d times DMA to memory that was not the device's, the first: %v", n, err)
		}
	})
	return m
}

// Device opens a device of a machine by its name.
func Device(t testing.TB, m *sim.Machine, name string) bus.Device {
	t.Helper()
	dev, err := m.Device(name)
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

// Bind brings a device into service with a driver, or fails the test with the driver's error.
// The instance is closed at the end of the test, before the device. Its name is "dut".
func Bind(t testing.TB, dev bus.Device, d *pci.Driver, options map[string]string) pci.Instance {
	t.Helper()
	return bustest.Bind(t, dev, d, options)
}

// Log is a logger that writes to the test's log, until the test ends.
func Log(t testing.TB) *slog.Logger { return bustest.Log(t) }
