package portmodel

import (
	"fmt"
	"slices"

	"github.com/ring3dev/ring3/bus"
)

// IRQVectors says how many vectors the port has in a mode.
func (p *Port) IRQVectors(m bus.IRQMode) int { return p.spec.Vectors[m] }

// EnableIRQs is bus.Device's; message numbers follow n.
func (p *Port) EnableIRQs(m bus.IRQMode, n int) ([]*bus.IRQ, error) {
	if n < 1 || n > p.spec.Vectors[m] {
		return nil, fmt.Errorf("%s: %d %s vectors: %w", p.spec.Name, n, m, bus.ErrNotSupported)
	}
	if err := p.DisableIRQs(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return nil, p.err
	}
	p.enabled = append(p.enabled, n)
	p.messages(n)
	p.masked = false
	for i := range n {
		var unmask func()
		if m == bus.INTx {
			unmask = p.unmask
		}
		q, err := bus.NewIRQ(m, i, unmask)
		if err != nil {
			return nil, err
		}
		q.SetNumber(24 + i)
		p.irqs = append(p.irqs, q)
	}
	return slices.Clone(p.irqs), nil
}

// DisableIRQs is bus.Device's.
func (p *Port) DisableIRQs() error {
	p.mu.Lock()
	irqs := p.irqs
	p.irqs = nil
	p.mu.Unlock()
	for _, q := range irqs {
		_ = q.Close()
	}
	return nil
}

// OnRestoreIRQs sets what becomes of the port's messages; without it they go where they went.
func (p *Port) OnRestoreIRQs(f func(write bool) (lost bool, err error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keeper = f
}

// RestoreIRQs is bus.IRQKeeper's.
func (p *Port) RestoreIRQs(write bool) (lost bool, err error) {
	p.mu.Lock()
	f := p.keeper
	p.mu.Unlock()
	if f == nil {
		return false, nil
	}
	return f(write)
}

// Enabled lists the numbers of vectors that EnableIRQs was asked for.
func (p *Port) Enabled() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.enabled)
}

// Fire sends the message of a vector, once.
func (p *Port) Fire(vector int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if vector < len(p.irqs) {
		p.irqs[vector].Signal()
	}
}

// Line sets the level of INTx.
func (p *Port) Line(up bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.line = up
	p.level()
}

// Masked says whether INTx is.
func (p *Port) Masked() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.masked
}

func (p *Port) unmask() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.masked = false
	p.level()
}

// level raises INTx if it wants to. mu is held.
func (p *Port) level() {
	if p.line && !p.masked && len(p.irqs) > 0 {
		p.masked = true
		p.irqs[0].Signal()
	}
}
