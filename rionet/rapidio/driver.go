package rapidio

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/uevent"
)

// ErrNoDevice is what a driver's Probe returns of a device that matches its IDs and is not for it.
var ErrNoDevice = errors.New("not a device of this driver")

// Serves tells whether a driver's IDs match a device.
func (drv *Driver) Serves(d *Device) bool {
	is := func(want, have uint16) bool { return want == AnyID || want == have }
	return slices.ContainsFunc(drv.IDs, func(id ID) bool {
		return is(id.VID, d.VID) && is(id.DID, d.DID) && is(id.AsmVID, d.AsmVID) && is(id.AsmDID, d.AsmDID)
	})
}

// Register adds a driver, and probes it for the devices without one that are there. It fails with ErrBusy where there is one of
// that name.
func (b *Bus) Register(d *Driver) error {
	if d.Name == "" || d.Name == "." || d.Name == ".." || strings.ContainsAny(d.Name, "/\x00\n") || d.Probe == nil {
		return fmt.Errorf("rapidio: registering driver %q: it needs a name and a Probe: %w", d.Name, bus.ErrNotSupported)
	}
	b.mu.Lock()
	err := error(nil)
	switch {
	case b.closed:
		err = bus.ErrClosed
	case slices.ContainsFunc(b.drivers, func(o *Driver) bool { return o.Name == d.Name }):
		err = fmt.Errorf("there is one of that name: %w", bus.ErrBusy)
	default:
		b.drivers = append(b.drivers, d)
		b.tree.addDriver(d)
	}
	b.mu.Unlock()
	if err != nil {
		return fmt.Errorf("rapidio: registering driver %q: %w", d.Name, err)
	}
	for _, dev := range b.Devices() {
		_ = dev.turn.take(context.Background())
		if b.Autoprobe() && dev.bound() == nil && dev.here() == nil && d.Serves(dev) {
			_ = b.bind(dev, d) // what fails was logged
		}
		dev.turn.give()
	}
	b.changed()
	return nil
}

// Unregister takes a driver away: it gives up its devices first, which other drivers do not get by that. It is idempotent.
func (b *Bus) Unregister(d *Driver) {
	b.mu.Lock()
	i := slices.Index(b.drivers, d)
	if i >= 0 {
		b.drivers = slices.Delete(b.drivers, i, i+1)
		b.tree.removeDriver(d)
	}
	b.mu.Unlock()
	if i < 0 {
		return
	}
	for _, dev := range slices.Backward(b.Devices()) {
		_ = dev.turn.take(context.Background())
		if dev.bound() == d {
			b.unbind(dev)
		}
		dev.turn.give()
	}
	b.changed()
}

func (d *Device) bound() *Driver {
	d.Net.bus.mu.Lock()
	defer d.Net.bus.mu.Unlock()
	return d.driver
}

// probe finds a driver for a device that has none: the first that takes it. The device's turn is held.
func (b *Bus) probe(d *Device) bool {
	b.mu.Lock()
	drivers := slices.Clone(b.drivers)
	has := d.driver != nil
	b.mu.Unlock()
	if has {
		return true
	}
	for _, drv := range drivers {
		if drv.Serves(d) && d.ctx.Err() == nil && b.bind(d, drv) == nil {
			return true
		}
	}
	return false
}

// bind gives a device to a driver. The device's turn is held.
func (b *Bus) bind(d *Device, drv *Driver) error {
	b.mu.Lock()
	known := slices.Contains(b.drivers, drv)
	b.mu.Unlock()
	if !known { // it was unregistered, and would not give the device up
		return bus.ErrGone
	}
	inst, err := drv.Probe(d.ctx, d)
	if err != nil {
		if !errors.Is(err, ErrNoDevice) && d.ctx.Err() == nil {
			b.log.Error(fmt.Sprintf("rapidio %s: probe with driver %s failed: %v", d.Name(), drv.Name, err))
		}
		return err
	}
	b.mu.Lock()
	d.driver, d.inst = drv, inst
	b.mu.Unlock()
	b.tree.bound(d, drv)
	d.uevent(uevent.Bind)
	return nil
}

// unbind takes a device from its driver, if it has one. The device's turn is held.
func (b *Bus) unbind(d *Device) {
	b.mu.Lock()
	drv, inst := d.driver, d.inst
	b.mu.Unlock()
	if drv == nil {
		return
	}
	b.tree.unbound(d, drv)
	if inst != nil {
		inst.Remove()
	}
	b.mu.Lock()
	d.driver, d.inst = nil, nil
	b.mu.Unlock()
	d.uevent(uevent.Unbind)
}

// find is the device of a name.
func (b *Bus) find(name string) *Device {
	for _, d := range b.Devices() {
		if d.Name() == name {
			return d
		}
	}
	return nil
}

// Bind gives a device to a driver, by their names. It fails with ErrGone where there is no such device or driver, ErrNotSupported where the
// driver is not for it, and ErrBusy where it has one.
func (b *Bus) Bind(ctx context.Context, driver, device string) error {
	return b.rebind(ctx, driver, device, func(d *Device, drv *Driver) error {
		if has := d.bound(); has != nil {
			return fmt.Errorf("%s has it: %w", has.Name, bus.ErrBusy)
		}
		if !drv.Serves(d) {
			return fmt.Errorf("the driver is not for %s: %w", d.Modalias(), bus.ErrNotSupported)
		}
		return b.bind(d, drv)
	})
}

// Unbind takes a device from a driver, by their names. It fails with ErrGone where the driver does not have it.
func (b *Bus) Unbind(ctx context.Context, driver, device string) error {
	return b.rebind(ctx, driver, device, func(d *Device, drv *Driver) error {
		if d.bound() != drv {
			return fmt.Errorf("the driver does not have it: %w", bus.ErrGone)
		}
		b.unbind(d)
		return nil
	})
}

// rebind does something to a device and a driver, in the device's turn.
func (b *Bus) rebind(ctx context.Context, driver, device string, do func(*Device, *Driver) error) error {
	fail := func(err error) error { return fmt.Errorf("rapidio: driver %s, device %q: %w", driver, device, err) }
	d := b.find(device)
	b.mu.Lock()
	i := slices.IndexFunc(b.drivers, func(o *Driver) bool { return o.Name == driver })
	var drv *Driver
	if i >= 0 {
		drv = b.drivers[i]
	}
	b.mu.Unlock()
	if d == nil || drv == nil {
		return fail(fmt.Errorf("there is none: %w", bus.ErrGone))
	}
	if err := d.turn.take(ctx); err != nil {
		return fail(err)
	}
	err := d.here()
	if err == nil {
		err = do(d, drv)
	}
	d.turn.give()
	if err != nil {
		return fail(err)
	}
	b.changed()
	return nil
}

// Probe finds a driver for a device that has none, by its name. Where there is none, that is no error.
func (b *Bus) Probe(ctx context.Context, device string) error {
	d := b.find(device)
	if d == nil {
		return fmt.Errorf("rapidio: device %q: there is none: %w", device, bus.ErrGone)
	}
	if err := d.turn.take(ctx); err != nil {
		return fmt.Errorf("rapidio: device %q: %w", device, err)
	}
	if d.here() == nil {
		b.probe(d)
	}
	d.turn.give()
	b.changed()
	return nil
}

// Autoprobe says whether devices and drivers find each other by themselves, which they do unless told otherwise.
func (b *Bus) Autoprobe() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.noprobe
}

// SetAutoprobe changes that, for devices and drivers that come later.
func (b *Bus) SetAutoprobe(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noprobe = !on
}
