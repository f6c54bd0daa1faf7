package host

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"sync"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
)

// portDriver is the driver of ports, which says itself what it serves.
const portDriver = portbus.DriverName

// scanLock is held while devices come and go, as the kernel holds pci_lock_rescan_remove. Who waits for it gives up when its
// context ends: a port that is being removed has services that may be waiting to look for devices.
type scanLock chan struct{}

func (l scanLock) lock(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		if ctx.Err() != nil { // it ended first: what was called off must not begin
			l.unlock()
			return context.Cause(ctx)
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l scanLock) unlock() { <-l }

// shut waits for who has it, and lets nobody in any more.
func (l scanLock) shut() { l <- struct{}{} }

// hotMachine is a machine whose devices come and go.
type hotMachine interface {
	machine
	// Rescan finds what is behind a port, nil: anywhere, and was not known.
	Rescan(port *pci.Function) ([]*pci.Function, error)
	// Named is the device of a function, and the name that it was given.
	Named(f *pci.Function) (name string, dev bus.Device, ok bool)
	// Forget ends a function and all that is behind it.
	Forget(f *pci.Function)
	// Disconnect kills all devices behind a port, whose hardware is gone.
	Disconnect(port *pci.Function)
	// Eject asks for a device's removal, as by its slot's attention button.
	Eject(name string) error
	// InjectError has a device detect an error; bus.ErrNotSupported: it cannot.
	InjectError(name string, e pci.AERError) error
}

// hierarchy is a System as the drivers of ports see it; pci.Hierarchy.
type hierarchy struct{ s *System }

func (h hierarchy) Find(a pci.Addr) *pci.Member {
	if b := h.s.at(a); b != nil {
		return h.s.member(b)
	}
	return nil
}

func (h hierarchy) Below(port pci.Addr) []*pci.Member {
	var out []*pci.Member
	for _, b := range h.s.below(port) {
		out = append(out, h.s.member(b))
	}
	return out
}

// Uevent adds what each event of a function says of it.
func (h hierarchy) Uevent(action, at, subsystem string, env ...string) {
	if a, err := pci.ParseAddr(path.Base(at)); err == nil && subsystem == "pci" {
		if b := h.s.at(a); b != nil {
			env = append(slices.Clone(env), ueventVars(b)...)
		}
	}
	h.s.events.Publish(action, at, subsystem, env...)
}

// member is a device as the drivers of ports see it.
func (s *System) member(b *boundDevice) *pci.Member {
	return &pci.Member{
		Function: b.fn, Device: b.dev, Name: b.spec.Name, Driver: b.driverName(), Restore: b.restore,
		Use: func(f func(pci.Instance)) {
			b.use.Lock()
			defer b.use.Unlock()
			var inst pci.Instance
			if now := s.boundOf(b.spec.Name); now != nil && now.use == b.use {
				inst = now.inst
			}
			f(inst)
		},
	}
}

// label is how the kernel's messages about a function begin.
func (s *System) label(a pci.Addr) string {
	if b := s.at(a); b != nil {
		return s.member(b).Label()
	}
	return "pci " + a.String()
}

// below are the devices behind a port, parents before what is behind them.
func (s *System) below(port pci.Addr) (out []*boundDevice) {
	behind := map[pci.Addr]bool{port: true}
	for _, b := range s.bound() {
		if b.fn != nil && b.fn.Parent != nil && behind[b.fn.Parent.Addr] {
			behind[b.fn.Addr] = true
			out = append(out, b)
		}
	}
	return out
}

func (h hierarchy) Rescan(ctx context.Context, port pci.Addr) (int, error) {
	s := h.s
	b := s.at(port)
	if b == nil {
		return 0, fmt.Errorf("%s: rescanning: nothing is known there: %w", port, bus.ErrGone)
	}
	m, ok := b.machine.(hotMachine)
	if !ok {
		return 0, fmt.Errorf("%s: rescanning: on the backend %s the kernel finds devices ('echo 1 > /sys/bus/pci/rescan', as root): %w", port, b.spec.Backend, bus.ErrNotSupported)
	}
	if err := s.scan.lock(ctx); err != nil {
		return 0, err
	}
	defer s.scan.unlock()
	if err := s.rescan(ctx, m, b.fn); err != nil {
		return 0, err
	}
	return len(s.below(port)), nil
}

// rescan takes what is found behind a port, nil: anywhere on a machine, into service. What is wrong with one of them is logged. scan is
// held.
func (s *System) rescan(ctx context.Context, m hotMachine, port *pci.Function) error {
	found, err := m.Rescan(port)
	if err != nil {
		return err
	}
	var came []*boundDevice
	for _, f := range found {
		name, dev, ok := m.Named(f)
		if !ok {
			continue // nobody's: the machine's own
		}
		spec := s.specOf(name)
		if spec == nil || s.boundOf(name) != nil {
			continue
		}
		s.complain(f.Err)
		b := &boundDevice{spec: *spec, machine: m, dev: dev, fn: f, use: new(sync.Mutex), ifindex: s.ifindexOf(spec.Name)}
		if err := s.prepare(b); err != nil {
			s.complain(err)
		}
		s.put(b)
		s.watch(b)
		s.tree.addFunction(s, b)
		s.uevent("add", b)
		came = append(came, b)
	}
	for _, b := range came {
		if s.noprobe.Load() {
			s.refuse(b, errNotLooked)
			continue
		}
		s.probe(ctx, b)
	}
	s.exportModules()
	return nil
}

// probe finds a driver for a device that came; without one it stays as it is. scan is held.
func (s *System) probe(ctx context.Context, b *boundDevice) {
	b.use.Lock()
	defer b.use.Unlock()
	err := s.measureDevice(ctx, b) // it may be forbidden
	if err != nil {
		err = fmt.Errorf("%s: %w", b.spec.Name, err)
	} else {
		err = s.serve(ctx, b, s.driversFor(b))
	}
	if err != nil {
		s.complain(err)
		s.refuse(b, err)
	}
}

// refuse keeps why a device got no driver, for who waits for it.
func (s *System) refuse(b *boundDevice, why error) {
	n := *b
	n.refused = why
	s.put(&n)
}

// driversFor are the drivers that may have a device: driver_override names the only one.
func (s *System) driversFor(b *boundDevice) []*pci.Driver {
	if b.fn == nil || s.override(b.fn.Addr) == "" {
		return s.drivers
	}
	d := s.named(s.override(b.fn.Addr))
	if d == nil {
		return nil
	}
	any := *d // it is for whatever it is told to have
	any.IDs = []pci.ID{{Vendor: pci.Any, Device: pci.Any}}
	return []*pci.Driver{&any}
}

func (h hierarchy) Remove(ctx context.Context, port pci.Addr, gone bool) error {
	s := h.s
	if err := s.scan.lock(ctx); err != nil {
		return err
	}
	defer s.scan.unlock()
	b := s.at(port)
	if b == nil {
		return nil
	}
	if m, ok := b.machine.(hotMachine); ok && gone {
		m.Disconnect(b.fn)
	}
	return s.removeBelow(port)
}

// removeBelow takes all behind a port out of service and forgets it, the leaves first. scan is held.
func (s *System) removeBelow(port pci.Addr) error {
	var errs []error
	for _, b := range slices.Backward(s.below(port)) {
		errs = append(errs, s.remove(b))
	}
	s.exportModules()
	return errors.Join(errs...)
}

// remove takes one device, behind which there is nothing any more, out of service and forgets it. scan is held.
func (s *System) remove(b *boundDevice) error {
	b.use.Lock()
	bare, err := s.unbind(b)
	b.use.Unlock()
	s.injector.Remove(b.fn.Addr)
	s.tracing.forget(b.trace)
	_ = sysfsOps{s}.Override(b.fn.Addr, "")
	s.drop(bare)
	s.irqs.forget(b)
	err = errors.Join(err, b.dev.Close())
	if m, ok := b.machine.(hotMachine); ok {
		m.Forget(b.fn)
	}
	s.tree.removeFunction(b)
	s.uevent("remove", bare)
	if errors.Is(err, bus.ErrGone) {
		err = nil
	}
	return err
}

// specOf is what the user said of a device of that name; nil if nothing.
func (s *System) specOf(name string) *DeviceSpec {
	s.specs.Lock()
	defer s.specs.Unlock()
	if d := s.plan.find(name); d != nil {
		copied := *d
		return &copied
	}
	return nil
}

// errNotLooked is why a device has no driver where none is looked for.
var errNotLooked = errors.New("drivers_autoprobe is 0, so no driver was looked for")
