package edu

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/fault/faulttest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/sim"
)

// openSim is an edu in this process.
func openSim(t testing.TB) bus.Device {
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
	dev, err := m.Device("edu0")
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

// openQEMU is an edu in QEMU.
func openQEMU(t testing.TB) bus.Device {
	t.Helper()
	m, err := qemu.Start(context.Background(), qemu.Config{Devices: []qemu.DeviceSpec{{Name: "edu0", Model: "edu"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() }) // it may have ended by itself: edu aborts on a transfer that leaves its buffer
	dev, err := m.Device("edu0")
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

// life brings an edu up, uses it, and closes it.
func life(use func(ctx context.Context, d *Device) error) func(context.Context, bus.Device) error {
	return func(ctx context.Context, dev bus.Device) error {
		inst, err := Driver.Probe(ctx, dev, pci.Env{Name: "edu0"})
		if err != nil {
			return err
		}
		err = use(ctx, inst.(*Device))
		if e := inst.Close(); err == nil {
			err = e
		}
		return err
	}
}

func bringUp(context.Context, *Device) error { return nil }

func factorial(ctx context.Context, d *Device) error {
	got, err := d.Factorial(ctx, 5)
	if err == nil && got != 120 {
		return faulttest.Wrong("Factorial(5) = %d, want 120", got)
	}
	return err
}

func copyBothWays(ctx context.Context, d *Device) error {
	out, in := []byte("sixteen bytes and a few more"), make([]byte, 28)
	if err := d.Copy(ctx, out, 100, bus.ToDevice); err != nil {
		return err
	}
	if err := d.Copy(ctx, in, 100, bus.FromDevice); err != nil {
		return err
	}
	if !bytes.Equal(in, out) {
		return faulttest.Wrong("Copy there and back = %q, want %q", in, out)
	}
	return nil
}

func scenario(name string, open func(testing.TB) bus.Device, use func(context.Context, *Device) error) faulttest.Scenario {
	return faulttest.Scenario{Name: name, Driver: "edu", Registers: registers, Open: open, Run: life(use)}
}

// long says whether everything is to be tried, however long it takes.
func long() bool { return os.Getenv("RING3_LONG") != "" }

// Every access fails, in every way, and no driver panics, hangs, leaks or says nothing.
func TestFaults(t *testing.T) {
	o := faulttest.Options{Parallel: 32, Patience: 100 * time.Millisecond}
	if long() {
		o.Bits = 32
	}
	faulttest.Every(t, scenario("bringup", openSim, bringUp), o)
	faulttest.Every(t, scenario("copy", openSim, copyBothWays), o)
	o.Pairs = true
	if testing.Short() {
		o.MaxPairs = 300
	}
	faulttest.Every(t, scenario("factorial", openSim, factorial), o)
}

// The same on QEMU's model, in short scenarios.
func TestFaultsOnQEMU(t *testing.T) {
	bustest.NeedQEMU(t)
	o := faulttest.Options{
		Kinds:    []fault.Kind{fault.Ones, fault.Flip, fault.LostWrite, fault.Deny, fault.IRQLost, fault.Garbage, fault.Gone},
		Parallel: 3, Patience: 200 * time.Millisecond, Max: 40,
	}
	switch {
	case testing.Short():
		o.Max = 6
	case long():
		o.Max = 0
	}
	faulttest.Every(t, scenario("factorial", openQEMU, factorial), o)
}
