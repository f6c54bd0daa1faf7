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
	bustest.All(t, model(e1000e, sim.DeviceSpec{Name: "eth0", Model: "null"}))
}

// e1000 is an 82540EM or 82545EM, which has INTx only. Registers are the family's (SDM 13.4).
func e1000(t *testing.T, d bus.Device) bustest.Subject {
	t.Helper()
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	const (
		regICR   bus.Off = 0x00c0 // Interrupt Cause Read, RC and W1C
		regICS   bus.Off = 0x00c8 // Interrupt Cause Set, WO
		regIMS   bus.Off = 0x00d0 // Interrupt Mask Set, RW
		regIMC   bus.Off = 0x00d8 // Interrupt Mask Clear, WO
		regRDBAH bus.Off = 0x2804 // Receive Descriptor Base Address High, RW

		lsc = 1 << 2 // the cause "link status change"
	)
	return bustest.Subject{
		Device:  d,
		Scratch: &bustest.Scratch{Region: 0, Off: regRDBAH, Reads: func(v uint32) uint32 { return v }},
		Raise: func() {
			r.Write32(regIMS, lsc)
			r.Write32(regICS, lsc)
		},
		Lower: func() {
			r.Write32(regIMC, lsc)
			r.Write32(regICR, lsc)
		},
	}
}

func TestSimNICs(t *testing.T) {
	for _, c := range []struct {
		model string
		hooks func(*testing.T, bus.Device) bustest.Subject
	}{{"e1000e", e1000e}, {"e1000", e1000}, {"e1000-82545em", e1000}} {
		t.Run(c.model, func(t *testing.T) {
			bustest.All(t, model(c.hooks, sim.DeviceSpec{Name: "eth0", Model: c.model}))
		})
	}
}
