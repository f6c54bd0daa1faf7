package host

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/aerinject"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/internal/node"
)

// What is exported of PCI Express ports, and the files by which devices are removed, found, reset, bound.

// exportPorts fills sys/bus/pci_express, sys/bus/pci/slots and dev/aer_inject.
func (s *System) exportPorts(root *node.Dir) {
	buses := root.MkdirAll("sys/bus")
	buses.Put("pci_express", s.ports.Dir())
	buses.MkdirAll("pci").Put("slots", s.ports.Slots())
	root.MkdirAll("dev").Put("aer_inject", aerinject.Node(s.injectError))
}

// injectError is a record that was written to /dev/aer_inject.
func (s *System) injectError(_ context.Context, r aerinject.Record) error {
	return s.injector.Inject(r)
}

// detectError has a device itself detect an error.
func (s *System) detectError(a pci.Addr, e pci.AERError) error {
	b := s.at(a)
	if b == nil {
		return fmt.Errorf("%s: %w", a, unix.ENODEV)
	}
	m, ok := b.machine.(hotMachine)
	if !ok {
		return bus.ErrNotSupported
	}
	return m.InjectError(b.spec.Name, e)
}

// servesErrors says whether a root port's errors are served.
func (s *System) servesErrors(root pci.Addr) bool {
	p := s.ports.PortAt(root)
	return p != nil && p.Service(portbus.AER) != nil
}

// sysfsOps are what the files of /sys/bus/pci do; pci.SysfsOps.
type sysfsOps struct{ s *System }

// changing holds scan while f runs, with the device at an address.
func (o sysfsOps) changing(ctx context.Context, a pci.Addr, f func(b *boundDevice) error) error {
	if err := o.s.scan.lock(ctx); err != nil {
		return unix.EINTR
	}
	defer o.s.scan.unlock()
	b := o.s.at(a)
	if b == nil {
		return fmt.Errorf("%s: %w", a, unix.ENODEV)
	}
	return f(b)
}

func (o sysfsOps) RemoveFunction(ctx context.Context, a pci.Addr) error {
	return o.changing(ctx, a, func(b *boundDevice) error {
		if _, ok := b.machine.(hotMachine); !ok {
			return fmt.Errorf("%s: the backend %s cannot find it again: %w", a, b.spec.Backend, unix.EOPNOTSUPP)
		}
		o.s.complain(o.s.removeBelow(a))
		o.s.complain(o.s.remove(b))
		o.s.exportModules()
		return nil
	})
}

func (o sysfsOps) RescanBus(ctx context.Context, a *pci.Addr) error {
	if err := o.s.scan.lock(ctx); err != nil {
		return unix.EINTR
	}
	defer o.s.scan.unlock()
	if a != nil {
		b := o.s.at(*a)
		if b == nil {
			return unix.ENODEV
		}
		// A function's file looks at the bus that it stands on too, as the kernel's does.
		if m, ok := b.machine.(hotMachine); ok {
			return o.s.rescan(ctx, m, b.fn.Parent)
		}
		return unix.EOPNOTSUPP
	}
	if !slices.ContainsFunc(o.s.machines, func(m machine) bool { _, hot := m.(hotMachine); return hot }) {
		return fmt.Errorf("rescanning: the kernel finds what is behind real ports, by its own file: %w", unix.EOPNOTSUPP)
	}
	var errs []error
	for _, m := range o.s.machines {
		if h, ok := m.(hotMachine); ok && m.Err() == nil {
			errs = append(errs, o.s.rescan(ctx, h, nil))
		}
	}
	return errors.Join(errs...)
}

// ResetFunction resets a device under its driver, which takes part as in the recovery from an error. With a bridge all that is behind it is reset.
func (o sysfsOps) ResetFunction(ctx context.Context, a pci.Addr) error {
	return o.changing(ctx, a, func(b *boundDevice) error {
		all := append([]*boundDevice{b}, o.s.below(a)...)
		asked := func(f func(*boundDevice, bus.ErrorHandler)) {
			for _, x := range all {
				o.s.member(x).Use(func(i pci.Instance) {
					if h, ok := i.(bus.ErrorHandler); ok {
						f(x, h)
					}
				})
			}
		}
		var restores []func() error
		for _, x := range all[1:] {
			restores = append(restores, bus.SaveState(x.dev))
		}
		asked(func(_ *boundDevice, h bus.ErrorHandler) { h.ErrorDetected(false) })
		err := b.dev.Reset(ctx)
		for _, restore := range restores {
			err = errors.Join(err, restore())
		}
		asked(func(x *boundDevice, h bus.ErrorHandler) {
			if h.SlotReset(ctx) == bus.Disconnect && err == nil {
				err = fmt.Errorf("%s: its driver %s could not bring it up after the reset: %w", x.fn.Addr, x.driverName(), unix.EIO)
			}
		})
		asked(func(_ *boundDevice, h bus.ErrorHandler) { h.ErrorResume() })
		switch {
		case errors.Is(err, bus.ErrNotSupported):
			return fmt.Errorf("%w: %w", err, unix.ENOTTY)
		case errors.Is(err, bus.ErrGone):
			return fmt.Errorf("%w: %w", err, unix.ENODEV)
		}
		return err
	})
}

// named is a driver; nil if there is none of that name.
func (s *System) named(driver string) *pci.Driver {
	for _, d := range s.drivers {
		if d.Name == driver {
			return d
		}
	}
	return nil
}

func (o sysfsOps) BindDriver(ctx context.Context, driver string, a pci.Addr) error {
	return o.changing(ctx, a, func(b *boundDevice) error {
		d := o.s.named(driver)
		serves, _ := pci.Match(b.dev)
		override := o.s.override(a)
		if d == nil || override != "" && override != driver || override == "" && !serves(d) {
			return fmt.Errorf("%s: the driver %s is not for it: %w", a, driver, unix.ENODEV)
		}
		if b.driver != nil {
			return fmt.Errorf("%s: %s serves it: %w", a, b.driver.Name, unix.EBUSY)
		}
		b.use.Lock()
		defer b.use.Unlock()
		drivers := []*pci.Driver{d}
		if override != "" {
			drivers = o.s.driversFor(b)
		}
		err := o.s.serve(ctx, b, drivers)
		o.s.exportModules()
		if errors.Is(err, pci.ErrSkip) || errors.Is(err, errNoDriver) {
			return fmt.Errorf("%w: %w", err, unix.ENODEV)
		}
		return err
	})
}

func (o sysfsOps) UnbindDriver(ctx context.Context, driver string, a pci.Addr) error {
	return o.changing(ctx, a, func(b *boundDevice) error {
		if b.driverName() != driver || b.tpm != nil {
			return fmt.Errorf("%s: the driver %s does not serve it: %w", a, driver, unix.ENODEV)
		}
		b.use.Lock()
		defer b.use.Unlock()
		_, err := o.s.unbind(b)
		o.s.exportModules()
		o.s.complain(err)
		return nil
	})
}

func (o sysfsOps) ProbeFunction(ctx context.Context, a pci.Addr) error {
	return o.changing(ctx, a, func(b *boundDevice) error {
		if b.driver == nil {
			o.s.probe(ctx, b)
			o.s.exportModules()
		}
		return nil
	})
}

func (o sysfsOps) Override(a pci.Addr, driver string) error {
	o.s.specs.Lock()
	defer o.s.specs.Unlock()
	if driver == "" {
		delete(o.s.overrides, a)
	} else {
		o.s.overrides[a] = driver
	}
	return nil
}

func (o sysfsOps) OverrideOf(a pci.Addr) string { return o.s.override(a) }

// override is the only driver that may serve a function; "": any.
func (s *System) override(a pci.Addr) string {
	s.specs.Lock()
	defer s.specs.Unlock()
	return s.overrides[a]
}

func (o sysfsOps) NewID(ctx context.Context, driver string, id pci.ID) error {
	s := o.s
	if err := s.scan.lock(ctx); err != nil {
		return unix.EINTR
	}
	defer s.scan.unlock()
	d := s.named(driver)
	if d == nil {
		return unix.ENODEV
	}
	if slices.Contains(d.IDs, id) {
		return fmt.Errorf("the driver %s serves that already: %w", driver, unix.EEXIST)
	}
	d.IDs = append(slices.Clone(d.IDs), id)
	s.specs.Lock()
	s.added = append(s.added, addedID{driver, id})
	s.specs.Unlock()
	for _, b := range s.bound() {
		if b.driver == nil && b.fn != nil {
			s.probe(ctx, b)
		}
	}
	s.exportModules()
	return nil
}

// addedID is an ID that a user gave a driver.
type addedID struct {
	driver string
	id     pci.ID
}

func (o sysfsOps) RemoveID(driver string, id pci.ID) error {
	s := o.s
	if err := s.scan.lock(s.ctx); err != nil {
		return unix.EINTR
	}
	defer s.scan.unlock()
	d := s.named(driver)
	i := slices.IndexFunc(s.added, func(a addedID) bool {
		return a.driver == driver && a.id.Vendor == id.Vendor && a.id.Device == id.Device
	})
	if d == nil || i < 0 {
		return unix.ENODEV
	}
	id = s.added[i].id
	s.specs.Lock()
	s.added = slices.Delete(s.added, i, i+1)
	s.specs.Unlock()
	d.IDs = slices.DeleteFunc(slices.Clone(d.IDs), func(o pci.ID) bool { return o == id })
	return nil
}

func (o sysfsOps) Autoprobe() bool { return !o.s.noprobe.Load() }

func (o sysfsOps) SetAutoprobe(on bool) { o.s.noprobe.Store(!on) }

func (o sysfsOps) Uevent(action, devpath, subsystem string, env ...string) error {
	o.s.events.Publish(action, devpath, subsystem, env...)
	return nil
}
