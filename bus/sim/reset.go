package sim

import (
	"context"
	"slices"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Reset is a function-level reset, where the device has it, or a reset of the bus on which it stands alone, below a port. The models need no time for
// either.
func (d *device) Reset(ctx context.Context) error {
	if err := d.Err(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return d.errorf("function reset: %w", ctx.Err())
	}
	d.m.lock()
	alone := d.up != nil && d.up.port.hasSlot()
	d.m.unlock()
	if !d.hdr.flr && !alone {
		return d.errorf("the model has no function reset: %w", bus.ErrNotSupported)
	}
	return d.powerOn(false)
}

// powerOn is a reset that keeps what config space says, or the power-on one.
func (d *device) powerOn(cold bool) error {
	d.m.lock()
	defer d.m.unlock()
	if err := d.errLocked(); err != nil {
		return err
	}
	if !d.live {
		return d.errorf("reset: nothing reaches the function: %w", bus.ErrGone)
	}
	saved := slices.Clone(d.space.b)
	d.resetBus(cold)
	d.restore(saved)
	return nil
}

// restore writes config space back, as a driver would: what can be written, but for what asks for an act. Called with Machine.mu held.
func (d *device) restore(saved []byte) {
	s := d.space
	for i, v := range saved {
		s.b[i] = s.b[i]&^s.rw[i] | v&s.rw[i]
	}
	d.changed()
	if p := d.port; p != nil {
		p.numbers()
		p.settle(false)
	}
}

// SaveState remembers config space and where interrupts go; bus.StateKeeper.
func (d *device) SaveState() (restore func() error) {
	d.m.lock()
	defer d.m.unlock()
	saved, table := slices.Clone(d.space.b), slices.Clone(d.msixTab)
	return func() error {
		d.m.lock()
		defer d.m.unlock()
		if err := d.errLocked(); err != nil {
			return err
		}
		if !d.live {
			return d.errorf("restoring: nothing reaches the function: %w", bus.ErrGone)
		}
		copy(d.msixTab, table)
		d.restore(saved)
		return nil
	}
}

// resetFunction is what the function itself does. sticky says that what a log holds survives. Called with Machine.mu held.
func (d *device) resetFunction(sticky bool) {
	restore := d.keep()
	d.space.reset()
	if sticky {
		restore()
	} else {
		d.log = nil
	}
	d.resetMSIX()
	d.high = false
	d.changed()
	d.chip.reset()
}

// resetBelow resets all that is behind a port, as the link does that goes down. cold says that power was lost.
func (p *port) resetBelow(cold bool) {
	for _, d := range p.d.below {
		d.resetBus(cold)
	}
}

// resetBus is conventional reset of a function and all behind it. What a log holds survives it (Base 5.0, 7.4: sticky), unless power is lost.
func (d *device) resetBus(cold bool) {
	if d.port != nil {
		d.port.resetBelow(cold)
	}
	if cold {
		d.log = nil
		d.resetFunction(false)
		return
	}
	d.resetFunction(true)
}

// keep is what of a function's error log survives a reset.
func (d *device) keep() func() {
	s := d.space
	if s.aer == 0 {
		return func() {}
	}
	var was [aerSize]byte
	end := s.aer + int(pci.AERRootCmd)
	copy(was[:], s.b[s.aer:end])
	return func() { copy(s.b[s.aer:end], was[:]) }
}
