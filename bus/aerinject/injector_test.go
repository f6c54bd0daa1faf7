package aerinject

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// What is refused, with which number and which message of the kernel's.
func TestInjectErrors(t *testing.T) {
	bare := func(a pci.Addr) *model { m := newModel(a, a == rootAddr); m.set(0x100, 0); return m }
	cor, unc := pci.AERError{Correctable: 0x40}, pci.AERError{Uncorrectable: 0x4000}
	for _, c := range []struct {
		name string
		prep func(g *rig)
		e    pci.AERError
		want error
		log  string
	}{
		{"good", nil, pci.AERError{Correctable: 0x40, Uncorrectable: 0x4000}, nil, `level=INFO msg="drv 1000:00:04.0: aer_inject: Injecting errors 00000040/00004000 into device 1000:01:02.1";`},
		{"nothing", nil, pci.AERError{}, nil, `level=INFO msg="drv 1000:00:04.0: aer_inject: Injecting errors 00000000/00000000 into device 1000:01:02.1";`},
		{"unknown", func(g *rig) { g.in.Remove(fnAddr) }, cor, unix.ENODEV, ""},
		{"dead", func(g *rig) { g.below.kill() }, cor, unix.ENODEV, ""},
		{"no root port", func(g *rig) { g.in.Add(fnAddr, g.fn, pci.Addr{}) }, cor, unix.ENODEV, `level=ERROR msg="drv 1000:01:02.1: aer_inject: Root port not found";`},
		{"root port gone", func(g *rig) { g.in.Remove(rootAddr) }, cor, unix.ENODEV, `level=ERROR msg="drv 1000:01:02.1: aer_inject: Root port not found";`},
		{"no root port, says the port", func(g *rig) { g.in.Add(fnAddr, g.fn, fnAddr) }, cor, unix.ENODEV, `level=ERROR msg="drv 1000:01:02.1: aer_inject: Root port not found";`},
		{"not wrapped", func(g *rig) { g.in.Add(fnAddr, nil, rootAddr) }, cor, unix.EPROTONOSUPPORT, `level=ERROR msg="drv 1000:01:02.1: aer_inject: Device doesn't support AER";`},
		{"no AER", func(g *rig) { g.in.Add(fnAddr, Wrap(bare(fnAddr)), rootAddr) }, cor, unix.EPROTONOSUPPORT, `level=ERROR msg="drv 1000:01:02.1: aer_inject: Device doesn't support AER";`},
		{"no AER in root port", func(g *rig) { g.in.Add(rootAddr, Wrap(bare(rootAddr)), rootAddr) }, cor, unix.EPROTONOSUPPORT, `level=ERROR msg="drv 1000:00:04.0: aer_inject: Root port doesn't support AER";`},
		{"masked", func(g *rig) { g.below.set(aerAt+pci.AERCorMask, 0x40) }, cor, unix.EINVAL, `level=WARN msg="drv 1000:01:02.1: aer_inject: The correctable error(s) is masked by device";`},
		{"masked uncorrectable", func(g *rig) { g.below.set(aerAt+pci.AERUncMask, 0x4000) }, unc, unix.EINVAL, `level=WARN msg="drv 1000:01:02.1: aer_inject: The uncorrectable error(s) is masked by device";`},
		{"one of two masked", func(g *rig) { g.below.set(aerAt+pci.AERCorMask, 0x40) }, pci.AERError{Correctable: 0x41}, nil, `level=INFO msg="drv 1000:00:04.0: aer_inject: Injecting errors 00000041/00000000 into device 1000:01:02.1";`},
		{"no interrupt", func(g *rig) { _ = g.root.DisableIRQs() }, cor, unix.ENODEV, `level=ERROR msg="drv 1000:00:04.0: aer_inject: AER device not found";`},
		{"not served", func(g *rig) { g.hw.set(aerAt+pci.AERRootCmd, 0) }, cor, unix.ENODEV, `level=ERROR msg="drv 1000:00:04.0: aer_inject: AER device not found";`},
		{"not served, says the host", func(g *rig) { g.in.o.Service = func(pci.Addr) bool { return false } }, cor, unix.ENODEV, `level=ERROR msg="drv 1000:00:04.0: aer_inject: AER device not found";`},
	} {
		g := newRig(t)
		qs := g.enable(bus.MSIX, 4)
		if c.prep != nil {
			c.prep(g)
		}
		err := g.in.Inject(Record{Domain: 0x1000, Bus: 1, Dev: 2, Fn: 1, Error: c.e})
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: Inject = %v, want %v", c.name, err, c.want)
		}
		if got := g.logged(); got != c.log {
			t.Errorf("%s: logged %s, want %s", c.name, got, c.log)
		}
		if fired(t, qs[message]) != (c.want == nil) {
			t.Errorf("%s: fired = %v, want %v", c.name, c.want != nil, c.want == nil)
		}
		if strings.HasPrefix(c.name, "masked") && !g.fn.Pending() {
			t.Errorf("%s: the status does not have it", c.name)
		}
	}
}

// fired says whether a vector was signalled. One signal more makes Wait return at once.
func fired(t *testing.T, q *bus.IRQ) bool {
	t.Helper()
	q.Signal()
	n, err := q.Wait(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return n > 1
}

// Which vector a message fires.
func TestVector(t *testing.T) {
	for _, c := range []struct {
		mode    bus.IRQMode
		n, want int
	}{{bus.INTx, 1, 0}, {bus.MSI, 1, 0}, {bus.MSI, 2, 0}, {bus.MSIX, 3, 2}, {bus.MSIX, 8, 2}} {
		g := newRig(t)
		qs := g.enable(c.mode, c.n)
		g.inject(fnAddr, pci.AERError{Correctable: 1})
		for i, q := range qs {
			if got := fired(t, q); got != (i == c.want) {
				t.Errorf("%d vectors of %s, number %d: fired = %v, want %v", c.n, c.mode, i, got, i == c.want)
			}
		}
	}
}

// Injections, accesses, and changes of interrupts at once.
func TestInjectConcurrent(t *testing.T) {
	g := newRig(t)
	g.in = NewInjector(Options{})
	g.in.Add(rootAddr, g.root, rootAddr)
	g.in.Add(fnAddr, g.fn, rootAddr)
	g.enable(bus.MSI, 1)
	var wg sync.WaitGroup
	const each = 500
	for range 2 {
		wg.Go(func() {
			for range each {
				_ = g.in.Inject(Record{Domain: 0x1000, Bus: 1, Dev: 2, Fn: 1, Error: pci.AERError{Correctable: 0x40}})
			}
		})
		wg.Go(func() {
			for range each {
				for _, d := range []*Device{g.root, g.fn} {
					for _, o := range []bus.Off{pci.AERRootSta, pci.AERCorSta} {
						d.Config().Write32(aerAt+o, d.Config().Read32(aerAt+o))
					}
				}
			}
		})
	}
	wg.Go(func() {
		for i := range each {
			g.root.setIRQs(nil)
			g.root.setIRQs(g.hw.irqs)
			g.in.Add(fnAddr, g.fn, rootAddr)
			if i%10 == 0 {
				g.root.Config().Read32(aerAt + pci.AERErrSrc)
			}
		}
	})
	wg.Wait()
}

func BenchmarkRead(b *testing.B) {
	g := newRig(b)
	g.enable(bus.MSI, 1)
	run := func(name string, c bus.Config) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.Read32(0)
			}
		})
	}
	run("bare", g.below)
	run("wrapped", g.fn.Config())
	g.inject(fnAddr, pci.AERError{Correctable: 1})
	run("injected", g.fn.Config())
}
