package fault_test

import (
	"errors"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/sim"
)

// openSim is an edu in this process.
func openSim(t testing.TB) (*sim.Machine, bus.Device) {
	t.Helper()
	m, err := sim.Start(t.Context(), sim.Config{Devices: []sim.DeviceSpec{{Name: "edu0", Model: "edu"}}, Clock: sim.Eager})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("closing the machine: %v", err)
		}
	})
	d, err := m.Device("edu0")
	if err != nil {
		t.Fatal(err)
	}
	return m, d
}

// A device around which nothing is planned is a device like any other. It dies by itself, or
// inside.
func TestConformsOnSim(t *testing.T) {
	t.Run("Kill", func(t *testing.T) {
		bustest.All(t, func(t *testing.T) bustest.Subject {
			_, in := openSim(t)
			d := fault.Wrap(in, fault.Plan{})
			s := bustest.Edu(t, d)
			s.Kill = d.Kill
			return s
		})
	})
	t.Run("Unplug", func(t *testing.T) {
		bustest.All(t, func(t *testing.T) bustest.Subject {
			m, in := openSim(t)
			s := bustest.Edu(t, fault.Wrap(in, fault.Plan{}))
			s.Kill = func() {
				if err := m.Unplug("edu0"); err != nil {
					t.Error(err)
				}
			}
			return s
		})
	})
}

func TestConformsOnQEMU(t *testing.T) {
	bustest.NeedQEMU(t)
	if testing.Short() {
		t.Skip("starts a QEMU for each test of the suite")
	}
	bustest.All(t, func(t *testing.T) bustest.Subject {
		m, err := qemu.Start(t.Context(), qemu.Config{Devices: []qemu.DeviceSpec{{Name: "edu0", Model: "edu"}}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.Close(); err != nil && !errors.Is(err, bus.ErrGone) {
				t.Errorf("closing QEMU: %v", err)
			}
		})
		in, err := m.Device("edu0")
		if err != nil {
			t.Fatal(err)
		}
		d := fault.Wrap(in, fault.Plan{})
		s := bustest.Edu(t, d)
		s.Kill = d.Kill
		return s
	})
}

// keeper is a device that has state to keep.
type keeper struct {
	bus.Device
	restored int
}

func (k *keeper) SaveState() (restore func() error) {
	return func() error { k.restored++; return nil }
}

// State is kept through the wrapper, until the link's death.
func TestSaveState(t *testing.T) {
	_, in := openSim(t)
	k := &keeper{Device: in}
	d := fault.Wrap(k, fault.Plan{})
	before := d.Accesses()
	restore := bus.SaveState(d)
	if err := restore(); err != nil || k.restored != 1 {
		t.Errorf("restore = %v, and the device was restored %d times, want once", err, k.restored)
	}
	if n := d.Accesses(); n != before {
		t.Errorf("%d accesses counted, want none", n-before)
	}
	d.Kill()
	if err := restore(); !errors.Is(err, bus.ErrGone) || k.restored != 1 {
		t.Errorf("restore of a dead device = %v, want ErrGone", err)
	}
}
