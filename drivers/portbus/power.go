package portbus

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ring3dev/ring3/bus"
)

// Suspend suspends the services, the last first; bus.PowerHandler. What one cannot is undone for those before.
func (p *Port) Suspend(ctx context.Context) error {
	p.looks.asleep.Store(true)
	for i, d := range slices.Backward(p.devices) {
		if err := d.power(func(h bus.PowerHandler) error { return h.Suspend(ctx) }); err != nil {
			err = fmt.Errorf("suspending: %w", err)
			for _, done := range p.devices[i+1:] {
				err = errors.Join(err, done.power(func(h bus.PowerHandler) error { return h.Resume(ctx) }))
			}
			p.looks.asleep.Store(false)
			return err
		}
	}
	return nil
}

// Resume resumes the services in order; bus.PowerHandler.
func (p *Port) Resume(ctx context.Context) error {
	var errs []error
	defer p.looks.asleep.Store(false)
	for _, d := range p.devices {
		if err := d.power(func(h bus.PowerHandler) error { return h.Resume(ctx) }); err != nil {
			errs = append(errs, fmt.Errorf("resuming: %w", err))
		}
	}
	return errors.Join(errs...)
}

// power asks the service's driver, if it takes part.
func (d *Device) power(ask func(bus.PowerHandler) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	h, ok := d.inst.(bus.PowerHandler)
	if !ok {
		return nil
	}
	if err := ask(h); err != nil {
		return fmt.Errorf("%s: %w", d.name, err)
	}
	return nil
}
