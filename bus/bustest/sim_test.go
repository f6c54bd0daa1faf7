package bustest_test

import (
	"errors"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/sim"
)

// model makes a machine of models for each test, with the last of these devices under test.
func model(hooks func(*testing.T, bus.Device) bustest.Subject, specs ...sim.DeviceSpec) func(*testing.T) bustest.Subject {
	return func(t *testing.T) bustest.Subject {
		t.Helper()
		m, err := sim.Start(t.Context(), sim.Config{Devices: specs, Clock: sim.Eager})
		if err != nil {
			t.Fatal(err)
		}
		name := specs[len(specs)-1].Name
		t.Cleanup(func() {
			if err := m.Close(); err != nil && !errors.Is(err, bus.ErrGone) {
				t.Errorf("closing the machine: %v", err)
			}
			if n, err := m.StrayDMA(); n != 0 {
				t.Errorf("%d times stray DMA, first %v", n, err)
			}
		})
		d, err := m.Device(name)
		if err != nil {
			t.Fatal(err)
		}
		s := hooks(t, d)
		s.Kill = func() {
			if err := m.Unplug(name); err != nil {
				t.Error(err)
			}
		}
		return s
	}
}

func TestSimEdu(t *testing.T) {
	bustest.All(t, model(bustest.Edu, sim.DeviceSpec{Name: "edu0", Model: "edu"}))
}

func TestSimTestdev(t *testing.T) {
	for _, h := range testdevs {
		t.Run(h.name, func(t *testing.T) {
			bustest.All(t, model(h.hooks, sim.DeviceSpec{Name: "t0", Model: "pci-testdev"}))
		})
	}
}

func TestSimNull(t *testing.T) {
	bustest.All(t, model(bustest.E1000e, sim.DeviceSpec{Name: "eth0", Model: "null"}))
}

func TestSimNICs(t *testing.T) {
	for _, c := range []struct {
		model string
		hooks func(*testing.T, bus.Device) bustest.Subject
	}{{"e1000e", bustest.E1000e}, {"e1000", bustest.E1000}, {"e1000-82545em", bustest.E1000}} {
		t.Run(c.model, func(t *testing.T) {
			bustest.All(t, model(c.hooks, sim.DeviceSpec{Name: "eth0", Model: c.model}))
		})
	}
}

func TestSimTPM(t *testing.T) {
	for _, c := range []struct {
		name  string
		hooks func(*testing.T, bus.Device) bustest.Subject
		specs []sim.DeviceSpec
	}{
		{"tis", bustest.TIS, []sim.DeviceSpec{{Name: "tpm0", Model: "tpm-tis"}}},
		{"tis 1.2", bustest.TIS, []sim.DeviceSpec{{Name: "tpm0", Model: "tpm-tis", Props: []string{"family=1.2"}}}},
		{"crb", bustest.CRB, []sim.DeviceSpec{{Name: "tpm0", Model: "tpm-crb"}}},
		{"beside functions", bustest.TIS, []sim.DeviceSpec{
			{Name: "edu0", Model: "edu"}, {Name: "tpm0", Model: "tpm-crb"}, {Name: "edu1", Model: "edu"}, {Name: "tpm1", Model: "tpm-tis"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) { bustest.All(t, model(c.hooks, c.specs...)) })
	}
}

// Behind ports a device is reset by its bus, and its line is swizzled.
func TestSimBehindPorts(t *testing.T) {
	port := sim.DeviceSpec{Name: "p0", Model: "root-port"}
	for _, c := range []struct {
		name  string
		hooks func(*testing.T, bus.Device) bustest.Subject
		specs []sim.DeviceSpec
	}{
		{"edu", bustest.Edu, []sim.DeviceSpec{port, {Name: "edu0", Model: "edu", Bus: "p0"}}},
		{"io", testdevs[1].hooks, []sim.DeviceSpec{port, {Name: "t0", Model: "pci-testdev", Bus: "p0"}}},
		{"e1000e below a switch", bustest.E1000e, []sim.DeviceSpec{port, {Name: "u0", Model: "upstream", Bus: "p0"},
			{Name: "d0", Model: "downstream", Bus: "u0"}, {Name: "d1", Model: "downstream", Bus: "u0"}, {Name: "eth0", Model: "e1000e", Bus: "d1", Props: []string{"aer=on"}}}},
	} {
		t.Run(c.name, func(t *testing.T) { bustest.All(t, model(c.hooks, c.specs...)) })
	}
}

// A port is a device too.
func TestSimPort(t *testing.T) {
	plain := func(_ *testing.T, d bus.Device) bustest.Subject { return bustest.Plain(d) }
	bustest.All(t, model(plain, sim.DeviceSpec{Name: "p0", Model: "root-port"}))
	bustest.All(t, model(plain, sim.DeviceSpec{Name: "p0", Model: "ioh3420"}))
}
