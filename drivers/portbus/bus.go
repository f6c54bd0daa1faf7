package portbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/sysfs"
)

// Bus is the bus of the services: drivers, and what ports offer. Safe for concurrent use.
type Bus struct {
	tree  *tree
	every atomic.Int64 // ns between two looks at a port

	mu      sync.Mutex // guards what follows
	drivers []*ServiceDriver
	devices []*Device
	ports   map[pci.Addr]*Port
	roots   map[pci.Addr]chan struct{} // see recovery
	noprobe bool                       // drivers_autoprobe is 0
}

// New makes a bus with these drivers.
func New(drivers ...*ServiceDriver) (*Bus, error) {
	b := &Bus{ports: map[pci.Addr]*Port{}, roots: map[pci.Addr]chan struct{}{}}
	b.tree = newTree(b)
	b.SetLook(LookEvery)
	for _, d := range drivers {
		if err := b.Register(context.Background(), d); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Register adds a driver, and gives it the services that it is for and nobody serves. It fails with EBUSY where
// the bus has one of that name. That it could not serve something is logged and is no error.
func (b *Bus) Register(ctx context.Context, drv *ServiceDriver) error {
	b.mu.Lock()
	if slices.ContainsFunc(b.drivers, func(o *ServiceDriver) bool { return o.Name == drv.Name }) {
		b.mu.Unlock()
		return fmt.Errorf("pci_express: a driver named %s is registered already: %w", drv.Name, unix.EBUSY)
	}
	b.drivers = append(b.drivers, drv)
	devices := slices.Clone(b.devices)
	auto := !b.noprobe
	b.mu.Unlock()
	b.tree.addDriver(drv)
	if auto {
		for _, d := range devices {
			b.offer(ctx, d, drv)
		}
	}
	return nil
}

// Unregister takes a driver away from all that it serves, and then off the bus.
func (b *Bus) Unregister(name string) error {
	b.mu.Lock()
	i := slices.IndexFunc(b.drivers, func(o *ServiceDriver) bool { return o.Name == name })
	if i < 0 {
		b.mu.Unlock()
		return fmt.Errorf("pci_express: no driver is named %s: %w", name, unix.ENODEV)
	}
	drv := b.drivers[i]
	b.drivers = slices.Delete(b.drivers, i, i+1)
	devices := slices.Clone(b.devices)
	b.mu.Unlock()
	var errs []error
	for _, d := range slices.Backward(devices) {
		d.mu.Lock()
		if d.driver == drv {
			errs = append(errs, d.unbind())
		}
		d.mu.Unlock()
	}
	b.tree.removeDriver(drv)
	return errors.Join(errs...)
}

// Devices lists the services that there are.
func (b *Bus) Devices() []*Device {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.devices)
}

// has says whether a driver is registered.
func (b *Bus) has(drv *ServiceDriver) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Contains(b.drivers, drv)
}

// Modules are the names of the drivers, as modules.
func (b *Bus) Modules() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var names []string
	for _, d := range b.drivers {
		names = append(names, d.Name)
	}
	return names
}

// find looks a service up by its name.
func (b *Bus) find(name string) (*Device, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range b.devices {
		if d.name == name {
			return d, nil
		}
	}
	return nil, fmt.Errorf("pci_express: no device is named %s: %w", name, unix.ENODEV)
}

// offer tries a driver on a service, if it is for it.
func (b *Bus) offer(ctx context.Context, d *Device, drv *ServiceDriver) {
	if !drv.matches(d) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone || d.driver != nil {
		return
	}
	if err := d.bind(ctx, drv); err != nil && !errors.Is(err, pci.ErrSkip) {
		d.port.Log(slog.LevelWarn, "%v", err)
	}
}

// probe finds a service its driver.
func (b *Bus) probe(ctx context.Context, d *Device) {
	b.mu.Lock()
	drivers := slices.Clone(b.drivers)
	b.mu.Unlock()
	for _, drv := range drivers {
		b.offer(ctx, d, drv)
	}
}

// add takes the services of a port in.
func (b *Bus) add(ctx context.Context, p *Port) {
	b.mu.Lock()
	b.devices = append(b.devices, p.devices...)
	b.ports[p.addr] = p
	auto := !b.noprobe
	b.mu.Unlock()
	for _, d := range p.devices {
		b.tree.addDevice(d)
		p.uevent("add", d)
		if auto {
			b.probe(ctx, d)
		}
	}
}

// remove takes them out, in the order in which they came, as the kernel does.
func (b *Bus) remove(p *Port) (err error) {
	for _, d := range p.devices {
		d.mu.Lock()
		err = errors.Join(err, d.unbind())
		d.gone = true
		d.mu.Unlock()
		b.tree.removeDevice(d)
		p.uevent("remove", d)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.devices = slices.DeleteFunc(b.devices, func(d *Device) bool { return d.port == p })
	if b.ports[p.addr] == p {
		delete(b.ports, p.addr)
	}
	return err
}

// PortAt is the port in service at an address, whatever services it has; nil if there is none. A root port's service finds the
// switch ports below it so. It may be closed at any time.
func (b *Bus) PortAt(a pci.Addr) *Port {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ports[a]
}

// recovery is what serializes recoveries below one root port: AER there and DPC of a switch's port would else tell
// the same drivers of two errors at once. Who can put something into the channel has the turn.
func (b *Bus) recovery(root pci.Addr) chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	turn := b.roots[root]
	if turn == nil {
		turn = make(chan struct{}, 1)
		b.roots[root] = turn
	}
	return turn
}

// Dir is /sys/bus/pci_express.
func (b *Bus) Dir() *sysfs.Dir { return b.tree.bus }

// Slots is /sys/bus/pci/slots, where hot-plug puts its slots.
func (b *Bus) Slots() *sysfs.Dir { return b.tree.slots }

// BindDevice gives a service of that name to a driver of that name, as the file bind does. ENODEV: no such driver, no such
// service, or that one is not for it.
func (b *Bus) BindDevice(ctx context.Context, driver, device string) error {
	d, err := b.find(device)
	if err != nil {
		return err
	}
	b.mu.Lock()
	i := slices.IndexFunc(b.drivers, func(o *ServiceDriver) bool { return o.Name == driver })
	var drv *ServiceDriver
	if i >= 0 {
		drv = b.drivers[i]
	}
	b.mu.Unlock()
	if drv == nil || !drv.matches(d) {
		return fmt.Errorf("binding %s to %s: %w", device, driver, unix.ENODEV)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.driver != nil {
		return fmt.Errorf("binding %s to %s: %s serves it: %w", device, driver, d.driver.Name, unix.EBUSY)
	}
	err = d.bind(ctx, drv)
	if errors.Is(err, bus.ErrBusy) || errors.Is(err, pci.ErrSkip) {
		err = fmt.Errorf("binding %s to %s: %w", device, driver, unix.ENODEV)
	}
	return err
}

// UnbindDevice takes it away again. ENODEV: the driver does not serve it.
func (b *Bus) UnbindDevice(driver, device string) error {
	d, err := b.find(device)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.driver == nil || d.driver.Name != driver {
		return fmt.Errorf("unbinding %s from %s: it does not serve it: %w", device, driver, unix.ENODEV)
	}
	return d.unbind()
}
