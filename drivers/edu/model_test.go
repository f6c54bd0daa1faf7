package edu

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/qemu/qemutest"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/bus/sim/simtest"
)

// backends carry an edu each. kill makes its link die.
var backends = []struct {
	name string
	open func(t *testing.T, model string) (dev bus.Device, kill func())
}{
	{"qemu", inQEMU(false)},
	{"qemu-iommu", inQEMU(true)},
	{"sim", func(t *testing.T, model string) (bus.Device, func()) {
		m := simtest.Machine(t, sim.Config{Devices: []sim.DeviceSpec{{Name: "edu0", Model: model}}})
		return simtest.Device(t, m, "edu0"), func() {
			if err := m.Unplug("edu0"); err != nil {
				t.Fatal(err)
			}
		}
	}},
}

func inQEMU(iommu bool) func(*testing.T, string) (bus.Device, func()) {
	return func(t *testing.T, model string) (bus.Device, func()) {
		m := qemutest.Machine(t, qemu.Config{Devices: []qemu.DeviceSpec{{Name: "edu0", Model: model, IOMMU: iommu}}})
		return qemutest.Device(t, m, "edu0"), func() {
			if _, err := m.Execute("quit", nil); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// rig is an edu in service.
type rig struct {
	*Device
	dev  bus.Device
	kill func()
}

// each runs a test on every backend.
func each(t *testing.T, test func(t *testing.T, d rig)) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			bustest.NoLeaks(t)
			dev, kill := b.open(t, "edu")
			r := pci.Bind(t.Context(), dev, pci.Env{Name: "edu0"}, []*pci.Driver{Driver})
			if r.Outcome != pci.Bound {
				t.Fatalf("Bind = %s, %v, want bound", r.Outcome, r.Err)
			}
			d := r.Instance.(*Device)
			t.Cleanup(func() {
				if err := d.Close(); err != nil {
					t.Errorf("Close of the driver = %v", err)
				}
			})
			test(t, rig{d, dev, kill})
		})
	}
}

func TestFactorial(t *testing.T) { each(t, testFactorial) }

func testFactorial(t *testing.T, d rig) {
	want := uint32(1)
	for n := range uint32(13) {
		want *= max(n, 1)
		if got, err := d.Factorial(t.Context(), n); err != nil || got != want {
			t.Errorf("Factorial(%d) = %d, %v, want %d", n, got, err, want)
		}
	}
	if _, err := d.Factorial(t.Context(), 13); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Factorial(13) = %v, want ErrNotSupported", err)
	}
	served := func() (n uint64) {
		for _, c := range d.IRQHandlers()[0].Counts() {
			n += c
		}
		return n
	}
	// The device may be done before anybody has to wait for its interrupt, which is served all
	// the same, a little later.
	for deadline := time.Now().Add(5 * time.Second); served() == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if served() == 0 {
		t.Error("no interrupt was served")
	}
}

func TestCopy(t *testing.T) { each(t, testCopy) }

func testCopy(t *testing.T, d rig) {
	out := make([]byte, bufferLen)
	for i := range out {
		out[i] = byte(i*7 + i>>8)
	}
	if err := d.Copy(t.Context(), out, 0, bus.ToDevice); err != nil {
		t.Fatal(err)
	}
	in := make([]byte, 1000)
	if err := d.Copy(t.Context(), in, 3000, bus.FromDevice); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(in, out[3000:4000]) {
		t.Errorf("1000 bytes at 3000 differ from what was written there")
	}
	for _, tt := range []struct{ n, off int }{{0, 0}, {bufferLen + 1, 0}, {1, bufferLen}, {1, -1}, {bufferLen, 1}, {1, 1 << 40}} {
		if err := d.Copy(t.Context(), make([]byte, tt.n), tt.off, bus.ToDevice); !errors.Is(err, bus.ErrNotSupported) {
			t.Errorf("Copy of %d bytes at %d = %v, want ErrNotSupported", tt.n, tt.off, err)
		}
	}
	if err := d.Copy(t.Context(), in, 0, bus.Bidirectional); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Copy both ways = %v, want ErrNotSupported", err)
	}
}

// An operation given up leaves the device busy; then it is usable again.
func TestGivenUp(t *testing.T) { each(t, testGivenUp) }

func testGivenUp(t *testing.T, d rig) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	p := []byte("left behind")
	if err := d.Copy(ctx, p, 0, bus.ToDevice); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Copy with 10 ms = %v, want DeadlineExceeded", err)
	}
	if err := d.Copy(t.Context(), p, 0, bus.ToDevice); !errors.Is(err, bus.ErrBusy) {
		t.Errorf("Copy right after = %v, want ErrBusy", err)
	}
	if got, err := d.Factorial(t.Context(), 5); err != nil || got != 120 {
		t.Errorf("Factorial(5) beside a transfer = %d, %v, want 120", got, err)
	}
	for until := time.Now().Add(5 * time.Second); ; {
		err := d.Copy(t.Context(), p, 0, bus.ToDevice)
		if err == nil {
			break
		}
		if !errors.Is(err, bus.ErrBusy) || time.Now().After(until) {
			t.Fatalf("Copy after the transfer ended = %v, want nil", err)
		}
		select {
		case <-d.wake: // its end
		case <-time.After(time.Second):
		}
	}
}

func TestConcurrent(t *testing.T) { each(t, testConcurrent) }

func testConcurrent(t *testing.T, d rig) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				if got, err := d.Factorial(t.Context(), 6); err != nil || got != 720 {
					t.Errorf("Factorial(6) = %d, %v, want 720", got, err)
				}
			}
		})
	}
	wg.Wait()
}

// The device dies under an operation.
func TestGone(t *testing.T) { each(t, testGone) }

func testGone(t *testing.T, d rig) {
	done := make(chan error, 1)
	go func() { done <- d.Copy(t.Context(), make([]byte, 100), 0, bus.ToDevice) }()
	d.kill()
	select {
	case err := <-done:
		// The transfer may have ended first, or the device before it began.
		if err != nil && !errors.Is(err, bus.ErrGone) {
			t.Errorf("Copy while the device goes = %v, want ErrGone", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Copy hangs on a dead device")
	}
	<-d.dev.Done()
	if _, err := d.Factorial(t.Context(), 3); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Factorial on a dead device = %v, want ErrGone", err)
	}
}

func TestClosed(t *testing.T) { each(t, testClosed) }

func testClosed(t *testing.T, d rig) {
	for range 2 {
		if err := d.Close(); err != nil {
			t.Errorf("Close = %v, want nil", err)
		}
	}
	if _, err := d.Factorial(t.Context(), 3); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Factorial after Close = %v, want ErrClosed", err)
	}
	if v := pci.Command(d.dev.Config().Read16(pci.CfgCommand)); v&pci.CmdMaster != 0 {
		t.Errorf("Command after Close = %s, want no Master", v)
	}
}

// The driver refuses what is not an edu, whatever its ID says.
func TestNotAnEdu(t *testing.T) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			dev, _ := b.open(t, "pci-testdev")
			if d, err := Driver.Probe(t.Context(), dev, pci.Env{Name: "x"}); !errors.Is(err, bus.ErrProtocol) {
				t.Errorf("Probe of pci-testdev = %v, %v, want ErrProtocol", d, err)
			}
		})
	}
}
