package rionet

import (
	"context"
	"fmt"
	"testing"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/rapidio/scan"
)

// process is what one ring3 process is: a bus whose scan finds the others, and its network device.
type process struct {
	ops  interface{ Close() error }
	bus  *rapidio.Bus
	scan *scan.Scanner
	dev  *Device
}

// start begins one on pe<i>; a host enumerates, the others are discovered.
func (w *world) start(i, host int) *process {
	w.t.Helper()
	ops, err := w.f.Mport(fmt.Sprintf("pe%d", i))
	if err != nil {
		w.t.Fatal(err)
	}
	log := bustest.Log(w.t)
	p := &process{ops: ops, bus: rapidio.NewBus(rapidio.BusOptions{Log: log})}
	p.scan = scan.New(p.bus, scan.Options{Log: log})
	m, err := p.bus.AddMport(context.Background(), ops, rapidio.MportOptions{Host: host, Scan: p.scan})
	if err != nil {
		w.t.Fatal(err)
	}
	v := NewDriver()
	if err := p.bus.Register(v.Rapidio()); err != nil {
		w.t.Fatal(err)
	}
	if p.dev, err = New(m, Options{Name: fmt.Sprintf("rio%d", i), Driver: v, Log: log}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(p.kill)
	go func() { _ = p.bus.Scan(w.t.Context(), -1) }()
	return p
}

// kill ends it without a word.
func (p *process) kill() {
	_ = p.ops.Close()
	_ = p.dev.Close()
	p.bus.Close()
	p.scan.Wait()
}

// peers is how many active, exact peers it has.
func (p *process) peers() (n int) {
	for _, x := range p.dev.Peers() {
		if x.Active && x.Exact {
			n++
		}
	}
	return n
}

// A host numbers the fabric, the others are discovered, all find each other; one is killed and comes back.
func TestScanned(t *testing.T) {
	bustest.NoLeaks(t)
	w := newWorld(t, star(4, ""))
	ps := []*process{w.start(0, 0), w.start(1, -1), w.start(2, -1)}
	all := func(n int) {
		t.Helper()
		for _, p := range ps {
			eventually(t, fmt.Sprintf("%s has %d peers", p.dev.name, n), func() bool { return p.peers() == n })
		}
	}
	all(2)
	seen := map[string]bool{}
	for _, p := range ps {
		mac := p.dev.MAC().String()
		if seen[mac] || !p.dev.Link().Up {
			t.Errorf("%s has address %s and link %+v, want an address of its own and a link", p.dev.name, mac, p.dev.Link())
		}
		seen[mac] = true
	}
	ping := func() {
		t.Helper()
		for i, p := range ps {
			s := newSender(t, p.dev, 8)
			to := ps[(i+1)%len(ps)].dev
			s.send(to.MAC(), i, 100)
			s.drain()
			receive(t, to, 1, func(f []byte) {
				if len(f) != 100 {
					t.Errorf("%s received %d bytes, want 100", to.name, len(f))
				}
			})
		}
	}
	ping()
	ps[1].kill()
	ps = []*process{ps[0], ps[2]}
	all(1)
	ps = append(ps, w.start(1, -1), w.start(3, -1))
	all(3)
	ping()
}
