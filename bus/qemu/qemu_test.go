package qemu

import (
	"context"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// start starts a machine and closes it at the end of the test.
func start(t *testing.T, c Config) *Machine {
	t.Helper()
	m, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
	})
	return m
}

func device1(t *testing.T, model string) bus.Device {
	t.Helper()
	d, err := start(t, Config{Devices: []DeviceSpec{{Name: "d", Model: model}}}).Device("d")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRegisters(t *testing.T) {
	d := device1(t, "edu")
	if got, want := pci.ReadID(d.Config()).String(), "1234:11e8"; got != want {
		t.Fatalf("ReadID() = %s, want %s", got, want)
	}
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Read32(0); got&0xff != 0xed {
		t.Errorf("Read32(0) = %#x, want 0x____00ed", got)
	}
	r.Write32(4, 0x12345678)
	if got, want := r.Read32(4), ^uint32(0x12345678); got != want {
		t.Errorf("Read32(4) = %#x, want %#x", got, want)
	}
}

// TestInterrupts raises edu's interrupt in each mode that it has.
func TestInterrupts(t *testing.T) {
	d := device1(t, "edu")
	pci.SetCommand(d.Config(), pci.CmdMaster, 0)
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []bus.IRQMode{bus.INTx, bus.MSI, bus.INTx, bus.MSI} {
		q, err := d.EnableIRQs(mode, 1)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			r.Write32(0x60, 1) // raise
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			if _, err := q[0].Wait(ctx); err != nil {
				t.Fatalf("%s %d: Wait() = %v", mode, i, err)
			}
			cancel()
			r.Write32(0x64, 1) // acknowledge
			q[0].Unmask()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if n, err := q[0].Wait(ctx); err == nil {
			t.Errorf("%s: Wait() after the last = %d, want none", mode, n)
		}
		cancel()
	}
}

// TestPostedAlone posts many writes and then makes no access at all: QEMU must do them
// nevertheless, though nobody reads its replies.
func TestPostedAlone(t *testing.T) {
	d := device1(t, "edu")
	pci.SetCommand(d.Config(), pci.CmdMaster, 0)
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	q, err := d.EnableIRQs(bus.MSI, 1)
	if err != nil {
		t.Fatal(err)
	}
	for n := 50; n < 1200; n += 37 {
		for range n {
			r.Write32(4, 1)
		}
		r.Write32(0x60, 1) // raise
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if _, err := q[0].Wait(ctx); err != nil {
			t.Fatalf("the interrupt after %d posted writes: %v", n, err)
		}
		cancel()
		r.Write32(0x64, 1)
	}
}
