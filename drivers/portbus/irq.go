package portbus

import (
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// maxVectors is the most that a port can use: message numbers have five bits.
const maxVectors = 32

// strayLimit is how often in a row nobody feels meant before a level-triggered line is left masked.
const strayLimit = 1000

// vector is an interrupt vector that services share.
type vector struct {
	port    *Port
	irq     *bus.IRQ
	handler *bus.Handler

	mu      sync.Mutex // held while handlers run
	actions []*action  // in the order of the services
	stray   int        // interrupts in a row that nobody was meant by
}

// action is one service's handler.
type action struct {
	name  string
	order Service
	fn    func() bool
}

// enableIRQs allocates vectors: as many as the services' message numbers need, or one INTx for all, or none.
func (p *Port) enableIRQs(s Service) error {
	for _, mode := range []bus.IRQMode{bus.MSIX, bus.MSI} {
		n := min(p.dev.IRQVectors(mode), maxVectors)
		if n < 1 {
			continue
		}
		irqs, err := p.dev.EnableIRQs(mode, n)
		if err != nil {
			return err
		}
		// The numbers depend on how many vectors there are (7.5.3.2), so they are read now.
		need := p.highest(s) + 1
		if need > n {
			p.Log(slog.LevelWarn, "a service has interrupt message number %d, and the port %d %s vectors", need-1, n, mode)
			if err := p.dev.DisableIRQs(); err != nil {
				return err
			}
			continue
		}
		if need < n {
			if irqs, err = p.dev.EnableIRQs(mode, need); err != nil {
				return err
			}
			if again := p.highest(s) + 1; again > need {
				p.Log(slog.LevelWarn, "a service has interrupt message number %d once the port has %d %s vectors", again-1, need, mode)
				if err := p.dev.DisableIRQs(); err != nil {
					return err
				}
				continue
			}
		}
		p.serve(mode, irqs)
		return nil
	}
	if p.dev.IRQVectors(bus.INTx) > 0 {
		irqs, err := p.dev.EnableIRQs(bus.INTx, 1)
		if err != nil {
			return err
		}
		p.serve(bus.INTx, irqs)
	}
	return nil
}

func (p *Port) serve(mode bus.IRQMode, irqs []*bus.IRQ) {
	p.mode = mode
	for _, q := range irqs {
		v := &vector{port: p, irq: q}
		p.irqs = append(p.irqs, v)
	}
	for _, v := range p.irqs {
		v.handler = bus.Handle(v.irq, "", v.fire)
	}
}

// message is the interrupt message number of a service.
func (p *Port) message(s Service) int {
	switch s {
	case AER:
		if p.exp.HasRoot() {
			return int(p.cfg.Read32(p.caps.aer+pci.AERRootSta) & pci.RootStaMessage >> pci.RootStaMsgAt)
		}
	case DPC:
		return int(p.cfg.Read16(p.caps.dpc+pci.DPCCap) & pci.DPCCapMessage)
	case PME, HP, BW:
		return int(p.cfg.Read16(p.exp.At+pci.ExpFlags) & pci.FlagMessage >> 9)
	}
	return -1
}

// highest is the highest message number that a service has.
func (p *Port) highest(s Service) int {
	n := 0
	for bit := range services {
		if x := Service(1 << bit); s&x != 0 {
			n = max(n, p.message(x))
		}
	}
	return n
}

// vectorOf is the vector of a service; nil: it has no interrupt.
func (p *Port) vectorOf(s Service) *vector {
	n := p.message(s)
	switch {
	case n < 0 || len(p.irqs) == 0:
		return nil
	case p.mode == bus.INTx:
		n = 0
	}
	if n >= len(p.irqs) { // it says something else by now
		return nil
	}
	return p.irqs[n]
}

// fire is an interrupt.
func (v *vector) fire(uint64) {
	v.mu.Lock()
	if len(v.actions) == 0 && v.irq.Mode() == bus.INTx {
		v.mu.Unlock()
		return // it stays masked until somebody serves it
	}
	meant := false
	for _, a := range v.actions {
		meant = a.fn() || meant
	}
	mask := false
	if v.irq.Mode() == bus.INTx {
		if v.stray++; meant {
			v.stray = 0
		}
		mask = v.stray >= strayLimit
	}
	first := mask && v.stray == strayLimit
	v.mu.Unlock()
	if first {
		v.port.Log(slog.LevelError, "irq %d: nobody cared", v.irq.Number())
	}
	if !mask {
		v.irq.Unmask()
	}
}

// add makes a handler part of the vector. A line that is up already is served at once. A message that came before is lost: a service enables
// its interrupt in hardware after this, and a port sends a message when what is pending becomes enabled (PCI Express Base 5.0, 6.7.3.4).
func (v *vector) add(a *action) {
	v.mu.Lock()
	v.actions = append(v.actions, a)
	slices.SortStableFunc(v.actions, func(a, b *action) int { return int(a.order) - int(b.order) })
	v.rename()
	v.mu.Unlock()
	if v.irq.Mode() == bus.INTx {
		v.irq.Unmask()
	}
}

// remove returns when the handler does not run any more.
func (v *vector) remove(a *action) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.actions = slices.DeleteFunc(v.actions, func(o *action) bool { return o == a })
	v.rename()
}

func (v *vector) rename() {
	names := make([]string, len(v.actions))
	for i, a := range v.actions {
		names[i] = a.name
	}
	v.stray = 0
	v.handler.Rename(strings.Join(names, ", "))
}

// IRQHandlers are those of the vectors that a service uses; pci.IRQUser.
func (p *Port) IRQHandlers() []*bus.Handler {
	var hs []*bus.Handler
	for _, v := range p.irqs {
		hs = append(hs, v.handler)
	}
	return hs
}
