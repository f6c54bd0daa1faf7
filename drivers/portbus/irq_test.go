package portbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus/internal/portmodel"
)

// fixed message numbers, however many vectors there are.
func fixed(exp, aer, dpc int) func(int) (int, int, int) {
	return func(int) (int, int, int) { return exp, aer, dpc }
}

func TestVectors(t *testing.T) {
	type vectors = map[bus.IRQMode]int
	const none = -1
	for _, c := range []struct {
		what     string
		vectors  vectors
		messages func(int) (int, int, int)
		mode     bus.IRQMode
		enabled  string // numbers asked for
		pme, aer int    // vectors of the services
		dpc      int
		warns    bool
	}{
		{"one vector", vectors{bus.MSIX: 1}, nil, bus.MSIX, "[1]", 0, 0, 0, false},
		{"separate numbers", vectors{bus.MSIX: 8}, fixed(0, 1, 2), bus.MSIX, "[8 3]", 0, 1, 2, false},
		{"as many as are needed", vectors{bus.MSIX: 3}, fixed(0, 1, 2), bus.MSIX, "[3]", 0, 1, 2, false},
		{"more than a number can say", vectors{bus.MSIX: 64}, fixed(31, 0, 0), bus.MSIX, "[32]", 31, 0, 0, false},
		{"ioh3420: MSI", vectors{bus.MSI: 2}, fixed(0, 1, 0), bus.MSI, "[2]", 0, 1, 0, false},
		{"MSI-X before MSI", vectors{bus.MSIX: 1, bus.MSI: 1, bus.INTx: 1}, nil, bus.MSIX, "[1]", 0, 0, 0, false},
		{"a number beyond", vectors{bus.MSIX: 2, bus.INTx: 1}, fixed(0, 5, 0), bus.INTx, "[2 1]", 0, 0, 0, true},
		{"a number beyond, then MSI", vectors{bus.MSIX: 1, bus.MSI: 8}, fixed(0, 5, 0), bus.MSI, "[1 8 6]", 0, 5, 0, true},
		{"a number beyond and no line", vectors{bus.MSIX: 2}, fixed(0, 5, 0), 0, "[2]", none, none, none, true},
		{"numbers that shrink with the vectors", vectors{bus.MSIX: 8}, func(n int) (int, int, int) {
			return 0, min(n-1, 3), 0
		}, bus.MSIX, "[8 4]", 0, 3, 0, false},
		{"numbers that grow as vectors go", vectors{bus.MSIX: 8, bus.INTx: 1}, func(n int) (int, int, int) {
			return 0, 9 - n, 0
		}, bus.INTx, "[8 2 1]", 0, 0, 0, true},
		{"a number that is lower afterwards", vectors{bus.MSIX: 8}, func(n int) (int, int, int) {
			if n == 8 {
				return 0, 3, 2
			}
			return 0, 1, 2
		}, bus.MSIX, "[8 4]", 0, 1, 2, false},
		{"INTx", vectors{bus.INTx: 1}, fixed(3, 5, 7), bus.INTx, "[1]", 0, 0, 0, false},
		{"none", vectors{}, nil, 0, "[]", none, none, none, false},
	} {
		bustest.NoLeaks(t)
		spec := all(pci.ExpRootPort)
		spec.Vectors, spec.Messages = c.vectors, c.messages
		r := &rig{T: t, model: portmodel.New(spec), tree: &portmodel.Tree{}}
		r.bus, _ = New()
		r.bind("")
		if got := fmt.Sprint(r.model.Enabled()); got != c.enabled {
			t.Errorf("%s: vectors enabled = %s, want %s", c.what, got, c.enabled)
		}
		for s, want := range map[Service]int{PME: c.pme, HP: c.pme, BW: c.pme, AER: c.aer, DPC: c.dpc, VC: none} {
			got := none
			if v := r.device(s).vector; v != nil {
				got = v.irq.Vector()
				if v.irq.Mode() != c.mode {
					t.Errorf("%s: mode of %s = %v, want %v", c.what, s, v.irq.Mode(), c.mode)
				}
			}
			if got != want {
				t.Errorf("%s: vector of %s = %d, want %d", c.what, s, got, want)
			}
		}
		if got := strings.Contains(strings.Join(r.tree.Lines(), "\n"), "interrupt message number"); got != c.warns {
			t.Errorf("%s: messages = %q, want a warning: %t", c.what, r.tree.Lines(), c.warns)
		}
		if err := r.port.Close(); err != nil {
			t.Errorf("%s: Close = %v", c.what, err)
		}
	}
}

// Without an interrupt a service is told to poll; twice the same handler is a mistake.
func TestHandle(t *testing.T) {
	spec := portmodel.Spec{Type: pci.ExpRootPort, Vectors: map[bus.IRQMode]int{}}
	log := &trail{}
	try := func(want error) *ServiceDriver {
		return log.driver("pme", PME, func(d *Device) error {
			if _, err := d.Handle("PCIe PME", func() bool { return true }); !errors.Is(err, want) {
				t.Errorf("Handle = %v, want %v", err, want)
			}
			return nil
		})
	}
	newRig(t, spec, try(bus.ErrNotSupported))
	spec.Vectors = nil
	newRig(t, spec, log.driver("pme", PME, func(d *Device) error {
		if n, err := d.Handle("PCIe PME", func() bool { return true }); n != 24 || err != nil {
			t.Errorf("Handle = %d, %v, want 24", n, err)
		}
		if _, err := d.Handle("PCIe PME", func() bool { return true }); !errors.Is(err, bus.ErrBusy) {
			t.Errorf("Handle again = %v, want ErrBusy", err)
		}
		return nil
	}))
}

// handling makes a driver that serves its interrupt.
func handling(log *trail, name string, s Service, fn func() bool) *ServiceDriver {
	return log.driver(name, s, func(d *Device) error {
		_, err := d.Handle(name, func() bool {
			log.add("irq:%s", name)
			return fn()
		})
		return err
	})
}

// Services that share a vector are called in the order of their bits, whenever they came; one that goes is not called any more.
func TestSharing(t *testing.T) {
	log := &trail{}
	yes := func() bool { return true }
	hp, aer, pme := handling(log, "pciehp", HP, yes), handling(log, "aerdrv", AER, yes), handling(log, "PCIe PME", PME, yes)
	r := newRig(t, all(pci.ExpRootPort), hp)
	for _, d := range []*ServiceDriver{aer, pme} {
		if err := r.bus.Register(context.Background(), d); err != nil {
			t.Fatal(err)
		}
	}
	h := r.port.IRQHandlers()
	if len(h) != 1 || h[0].Name() != "PCIe PME, aerdrv, pciehp" {
		t.Fatalf("handlers = %d, %q, want one with all names", len(h), h[0].Name())
	}
	log.take()
	fire := func(want string) {
		t.Helper()
		r.model.Fire(0)
		n := strings.Count(want, "irq:")
		eventually(t, want, func() bool {
			log.mu.Lock()
			defer log.mu.Unlock()
			return len(log.s) >= n
		})
		if got := log.take(); got != want {
			t.Errorf("an interrupt called %q, want %q", got, want)
		}
	}
	fire("irq:PCIe PME irq:aerdrv irq:pciehp")
	if err := r.bus.Unregister("aerdrv"); err != nil {
		t.Fatal(err)
	}
	log.take()
	if got := h[0].Name(); got != "PCIe PME, pciehp" {
		t.Errorf("Name = %q, want without aerdrv", got)
	}
	fire("irq:PCIe PME irq:pciehp")
}

// Taking a service away while its handler runs waits for that.
func TestRemoveWhileItRuns(t *testing.T) {
	log := &trail{}
	in, out := make(chan struct{}), make(chan struct{})
	var running atomic.Bool
	drv := log.driver("aer", AER, func(d *Device) error {
		_, err := d.Handle("aerdrv", func() bool {
			running.Store(true)
			in <- struct{}{}
			<-out
			running.Store(false)
			return true
		})
		return err
	})
	r := newRig(t, all(pci.ExpRootPort), drv)
	r.model.Fire(0)
	<-in
	done := make(chan error)
	go func() { done <- r.bus.Unregister("aer") }()
	select {
	case err := <-done:
		t.Fatalf("Unregister = %v while the handler runs", err)
	default:
	}
	close(out)
	if err := <-done; err != nil || running.Load() {
		t.Errorf("Unregister = %v, handler runs: %t, want neither", err, running.Load())
	}
	// An interrupt that is pending when its service goes reaches nobody.
	r.model.Fire(0)
	if err := r.port.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
}

// A probe that fails after Handle leaves no handler.
func TestFailedProbeHasNoHandler(t *testing.T) {
	log := &trail{}
	r := newRig(t, all(pci.ExpRootPort), log.driver("aer", AER, func(d *Device) error {
		if _, err := d.Handle("aerdrv", func() bool { return true }); err != nil {
			return err
		}
		return errors.New("no")
	}))
	if got := r.port.IRQHandlers()[0].Name(); got != "" {
		t.Errorf("Name = %q, want none", got)
	}
	want := []string{"pcieport 1000:00:04.0: 1000:00:04.0:pcie002: driver aer: no"}
	equal(t, "messages", r.tree.Lines(), want)
}

// A line that nobody feels meant by is left masked, with the kernel's words; whoever comes next gets it again.
func TestNobodyCared(t *testing.T) {
	log := &trail{}
	spec := all(pci.ExpRootPort)
	spec.Vectors = map[bus.IRQMode]int{bus.INTx: 1}
	var n atomic.Int64
	r := newRig(t, spec, log.driver("aer", AER, func(d *Device) error {
		_, err := d.Handle("aerdrv", func() bool { n.Add(1); return false })
		return err
	}))
	r.model.Line(true)
	line := "pcieport 1000:00:04.0: irq 24: nobody cared"
	eventually(t, line, func() bool { return slices.Contains(r.tree.Lines(), line) })
	if got := n.Load(); got != strayLimit || !r.model.Masked() {
		t.Errorf("handler ran %d times, line masked: %t; want %d times, masked", got, r.model.Masked(), strayLimit)
	}
	served := make(chan struct{}, 1)
	if err := r.bus.Register(context.Background(), log.driver("pme", PME, func(d *Device) error {
		_, err := d.Handle("PCIe PME", func() bool {
			r.model.Line(false)
			select {
			case served <- struct{}{}:
			default:
			}
			return true
		})
		return err
	})); err != nil {
		t.Fatal(err)
	}
	<-served
	equal(t, "messages", r.tree.Lines(), []string{line})
}

// A line that is up before anybody serves it stays masked, and is served by who comes.
func TestLineBeforeService(t *testing.T) {
	log := &trail{}
	spec := all(pci.ExpRootPort)
	spec.Vectors = map[bus.IRQMode]int{bus.INTx: 1}
	r := newRig(t, spec)
	r.model.Line(true)
	served := make(chan struct{}, 1)
	if err := r.bus.Register(context.Background(), log.driver("pme", PME, func(d *Device) error {
		_, err := d.Handle("PCIe PME", func() bool {
			r.model.Line(false)
			select {
			case served <- struct{}{}:
			default:
			}
			return true
		})
		return err
	})); err != nil {
		t.Fatal(err)
	}
	<-served
	equal(t, "messages", r.tree.Lines(), nil)
}
