package qemutest

import (
	"errors"
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
)

// A plugged device keeps every promise of the bus, and dies as others do when it is forgotten.
func TestPluggedConforms(t *testing.T) {
	bustest.All(t, func(t *testing.T) bustest.Subject {
		m, _ := hot(t, qemu.Config{Devices: switchPorts})
		f, dev := plug(t, m, "dn1", qemu.DeviceSpec{Name: "hot", Model: "edu"})
		s := bustest.Edu(t, dev)
		s.Kill = func() { m.Forget(f) }
		return s
	})
}

// A slot is powered off under somebody who uses its device, and has not been told.
func TestRemovedInUse(t *testing.T) {
	bustest.NoLeaks(t)
	m, ejected := hot(t, qemu.Config{Devices: switchPorts})
	f, dev := plug(t, m, "dn1", qemu.DeviceSpec{Name: "hot", Model: "edu"})
	r, err := dev.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := dev.DMA().Alloc(bus.DMARequest{Size: 4096, Mask: 1<<28 - 1})
	if err != nil {
		t.Fatal(err)
	}
	q, err := dev.EnableIRQs(bus.MSI, 1)
	if err != nil {
		t.Fatal(err)
	}
	pci.SetCommand(dev.Config(), pci.CmdMaster, 0)
	var users sync.WaitGroup
	users.Go(func() { // waits for an interrupt that never comes
		if _, err := q[0].Wait(t.Context()); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("waiting for an interrupt of a removed device = %v, want ErrClosed", err)
		}
	})
	users.Go(func() {
		for dev.Err() == nil {
			r.Write32(4, 1)
			r.Read32(4)
			dev.Config().Read32(0)
		}
		if v := r.Read32(0); v != ^uint32(0) {
			t.Errorf("a register of a removed device = %#x, want all-ones", v)
		}
		if _, err := dev.EnableIRQs(bus.MSI, 1); !errors.Is(err, bus.ErrNotSupported) {
			t.Errorf("EnableIRQs of a removed device = %v, want ErrNotSupported", err)
		}
		if err := dev.Reset(t.Context()); !errors.Is(err, bus.ErrGone) {
			t.Errorf("Reset of a removed device = %v, want ErrGone", err)
		}
		if err := bus.SaveState(dev)(); !errors.Is(err, bus.ErrGone) {
			t.Errorf("restoring a removed device = %v, want ErrGone", err)
		}
	})
	if err := m.Eject("hot"); err != nil {
		t.Fatal(err)
	}
	slotOf(t, m, "dn1").off()
	wantEjected(t, ejected, "hot")
	users.Wait()
	mem.Free()
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
	if name, old, ok := m.Named(f); !ok || name != "hot" || old != dev {
		t.Errorf("Named until it is forgotten = %s, %v, %v, want the device that was", name, old, ok)
	}
	m.Forget(f)
	if _, _, ok := m.Named(f); ok {
		t.Error("a function that was forgotten has a name")
	}
	_, dev = plug(t, m, "dn1", qemu.DeviceSpec{Name: "hot", Model: "edu"})
	eduMoves(t, dev)
	if v := r.Read32(0); v != ^uint32(0) {
		t.Errorf("the old device's register reads %#x where another stands, want all-ones", v)
	}
}
