package qemutest

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
)

// Option changes the device that is opened.
type Option func(*settings)

type settings struct {
	spec  qemu.DeviceSpec
	under []string
}

// Props sets properties of QEMU's model, as "key=value".
func Props(kv ...string) Option {
	return func(s *settings) { s.spec.Props = append(s.spec.Props, kv...) }
}

// IOMMU lets the device reach only the memory that was allocated for it.
func IOMMU() Option { return func(s *settings) { s.spec.IOMMU = true } }

// Under puts the device below ports or bridges, given from the root down:
// Under("pcie-root-port"), or Under("pcie-root-port", "x3130-upstream",
// "xio3130-downstream"). Alone below a port, a model without a reset of its own has one.
func Under(models ...string) Option {
	return func(s *settings) { s.under = append(s.under, models...) }
}

// specs are the device, named name, and before it the ports it stands below.
func specs(name, model string, opts []Option) []qemu.DeviceSpec {
	s := settings{spec: qemu.DeviceSpec{Name: name, Model: model}}
	for _, o := range opts {
		o(&s)
	}
	var all []qemu.DeviceSpec
	for i, m := range s.under {
		port := qemu.DeviceSpec{Name: fmt.Sprintf("%s-port%d", name, i), Model: m, Bus: s.spec.Bus}
		s.spec.Bus = port.Name
		all = append(all, port)
	}
	return append(all, s.spec)
}

// Open starts a QEMU with one device of a model ("edu", "e1000e") and opens it.
func Open(t testing.TB, model string, opts ...Option) bus.Device {
	t.Helper()
	return Device(t, Machine(t, qemu.Config{Devices: specs("dev0", model, opts)}), "dev0")
}

// Pair starts a QEMU with two network adapters of a model, wired to each other, and opens
// them. A driver's netdev.Device must still be told of the wire, with netdev.Wire, for
// nothing to be lost on it.
func Pair(t testing.TB, model string, opts ...Option) (a, b bus.Device) {
	t.Helper()
	m := Machine(t, qemu.Config{
		Devices: append(specs("eth0", model, opts), specs("eth1", model, opts)...),
		Wires:   [][2]string{{"eth0", "eth1"}},
	})
	return Device(t, m, "eth0"), Device(t, m, "eth1")
}

// Machine starts a QEMU with any devices. It is closed at the end of the test. A c.Log that
// is nil becomes the test's log.
func Machine(t testing.TB, c qemu.Config) *qemu.Machine {
	t.Helper()
	bustest.NeedQEMU(t)
	if c.Log == nil {
		c.Log = Log(t)
	}
	m, err := qemu.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil && !errors.Is(err, bus.ErrGone) {
			t.Errorf("closing QEMU: %v", err)
		}
	})
	return m
}

// Device opens a device of a machine by its name. Why it died, if it did, is logged at the
// end of the test.
func Device(t testing.TB, m *qemu.Machine, name string) bus.Device {
	t.Helper()
	dev, err := m.Device(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dev.Err(); err != nil && !errors.Is(err, bus.ErrClosed) {
			t.Logf("at the end: %v", err)
		}
	})
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
