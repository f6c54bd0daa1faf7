package qemutest_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/qemu/qemutest"
)

func TestOpen(t *testing.T) {
	bustest.NoLeaks(t)
	for name, opts := range map[string][]qemutest.Option{
		"plain": nil,
		"port":  {qemutest.Under("pcie-root-port")},
		"deep":  {qemutest.Under("pcie-root-port", "x3130-upstream", "xio3130-downstream"), qemutest.IOMMU()},
		"props": {qemutest.Props("dma_mask=0xffffffff")},
	} {
		t.Run(name, func(t *testing.T) {
			dev := qemutest.Open(t, "edu", opts...)
			if got := pci.ReadID(dev.Config()).String(); got != "1234:11e8" {
				t.Errorf("Open(edu) = %s, want 1234:11e8", got)
			}
			if below := !strings.HasPrefix(dev.Address(), "1000:00:"); below != (name == "port" || name == "deep") {
				t.Errorf("Open(edu) is at %s", dev.Address())
			}
			mem, err := dev.DMA().Alloc(bus.DMARequest{Size: 4096})
			if err != nil {
				t.Fatal(err)
			}
			mem.Free()
		})
	}
}

func TestPair(t *testing.T) {
	bustest.NoLeaks(t)
	a, b := qemutest.Pair(t, "e1000e", qemutest.Under("pcie-root-port"), qemutest.IOMMU())
	if a.Address() == b.Address() || a.Backend() != "qemu:e1000e" || b.Backend() != "qemu:e1000e" {
		t.Errorf("Pair = %s (%s) and %s (%s), want two e1000e", a.Address(), a.Backend(), b.Address(), b.Backend())
	}
}

// closer is an instance that tells when it was closed.
type closer struct{ closed *bool }

func (c closer) Close() error { *c.closed = true; return nil }

func TestBind(t *testing.T) {
	bustest.NeedQEMU(t)
	closed := false
	t.Run("", func(t *testing.T) {
		dev := qemutest.Open(t, "edu")
		qemutest.Bind(t, dev, &pci.Driver{
			Name: "any", IDs: []pci.ID{{Vendor: pci.Any, Device: pci.Any}}, Options: map[string]string{"x": "an option"},
			Probe: func(_ context.Context, d bus.Device, env pci.Env) (pci.Instance, error) {
				env.Log.Info("probing")
				if d != dev || env.Options["x"] != "1" {
					return nil, errors.New("not what was given to Bind")
				}
				return closer{&closed}, nil
			},
		}, map[string]string{"x": "1"})
	})
	if !closed {
		t.Error("the instance was not closed with the test")
	}
}

// tb is a test that tells what was done to it.
type tb struct {
	testing.TB
	what     string
	said     strings.Builder
	cleanups []func()
}

func (b *tb) Helper()                   {}
func (b *tb) Name() string              { return "fake" }
func (b *tb) Cleanup(f func())          { b.cleanups = append(b.cleanups, f) }
func (b *tb) Log(a ...any)              { fmt.Fprintln(&b.said, a...) }
func (b *tb) Logf(f string, a ...any)   { fmt.Fprintf(&b.said, f+"\n", a...) }
func (b *tb) Errorf(f string, a ...any) { b.what = "error"; b.Logf(f, a...) }
func (b *tb) Skipf(f string, a ...any)  { b.what = "skip"; b.Logf(f, a...); runtime.Goexit() }
func (b *tb) Fatalf(f string, a ...any) { b.what = "fatal"; b.Logf(f, a...); runtime.Goexit() }
func (b *tb) Fatal(a ...any)            { b.what = "fatal"; b.Log(a...); runtime.Goexit() }

// run runs f as a test does, with the cleanups in their order.
func (b *tb) run(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for i := len(b.cleanups) - 1; i >= 0; i-- {
				b.cleanups[i]()
			}
		}()
		f()
	}()
	<-done
}

func TestWithoutQEMU(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for need, want := range map[string]string{"": "skip", "1": "fatal"} {
		t.Setenv("RING3_NEED_QEMU", need)
		b := &tb{TB: t}
		b.run(func() { qemutest.Open(b, "edu") })
		if got := b.said.String(); b.what != want || !strings.Contains(got, "apt-get install qemu-system-x86") {
			t.Errorf("Open without QEMU, RING3_NEED_QEMU=%q = %s, %q, want %s with the remedy", need, b.what, got, want)
		}
	}
}

func TestFailures(t *testing.T) {
	bustest.NeedQEMU(t)
	b := &tb{TB: t}
	b.run(func() { qemutest.Open(b, "flux-capacitor") })
	if b.what != "fatal" || !strings.Contains(b.said.String(), "not a valid device model") {
		t.Errorf("Open of an unknown model = %s, %q, want fatal", b.what, &b.said)
	}
	b = &tb{TB: t}
	b.run(func() {
		if _, err := qemutest.Open(b, "edu").DMA().Alloc(bus.DMARequest{Size: 4096}); err != nil {
			t.Error(err)
		}
	})
	if b.what != "error" || !strings.Contains(b.said.String(), "1 pieces of DMA memory were not freed") {
		t.Errorf("a test that leaves DMA memory = %s, %q, want an error", b.what, &b.said)
	}
	// A machine that died is no failure, and is told.
	b = &tb{TB: t}
	b.run(func() {
		m := qemutest.Machine(b, qemu.Config{Devices: []qemu.DeviceSpec{{Name: "x", Model: "edu"}}})
		dev := qemutest.Device(b, m, "x")
		_, _ = m.Execute("quit", nil)
		<-dev.Done()
	})
	if b.what != "" || !strings.Contains(b.said.String(), "device gone") {
		t.Errorf("a test that ends QEMU = %s, %q, want the reason in the log", b.what, &b.said)
	}
}

// A line that comes late is dropped.
func TestLog(t *testing.T) {
	b := &tb{TB: t}
	var log *slog.Logger
	b.run(func() {
		log = qemutest.Log(b)
		log.Info("in time")
	})
	log.Info("late")
	if got := b.said.String(); got != "level=INFO msg=\"in time\"\n" {
		t.Errorf("the log has %q, want the line in time only", got)
	}
}
