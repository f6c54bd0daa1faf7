package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// hotPlugModels are the ports below which a device may come and go (PCI Express native hot-plug).
var hotPlugModels = []string{"pcie-root-port", "ioh3420", "xio3130-downstream"}

// HasSlot says whether a model is a port with a slot, whose number is its property slot.
func HasSlot(model string) bool { return slices.Contains(hotPlugModels, model) }

// takesPlug says why nothing can be plugged in below a device.
func (u *seat) takesPlug() error {
	if !slices.Contains(hotPlugModels, u.spec.Model) {
		return fmt.Errorf("%s (%s) is no port with hot-plug; those are %s: %w", u.spec.Name, u.spec.Model, strings.Join(hotPlugModels, ", "), bus.ErrNotSupported)
	}
	for _, p := range u.spec.Props {
		if k, v, _ := strings.Cut(p, "="); k == "hotplug" && slices.Contains([]string{"off", "no", "false", "n"}, v) {
			return fmt.Errorf("%s has no hot-plug, its property %s says: %w", u.spec.Name, p, bus.ErrNotSupported)
		}
	}
	return nil
}

// checkPlug checks what can be told without asking QEMU, of a device and those that there are.
func checkPlug(d *DeviceSpec, all []*seat, iommu bool) error {
	if err := d.check(); err != nil {
		return err
	}
	fail := func(format string, args ...any) error {
		return fmt.Errorf("qemu: plugging %s (%s): %w", d.Name, d.Model, fmt.Errorf(format, args...))
	}
	called := func(name string) *seat {
		if i := slices.IndexFunc(all, func(s *seat) bool { return s.spec.Name == name }); i >= 0 {
			return all[i]
		}
		return nil
	}
	port := called(d.Bus)
	switch {
	case called(d.Name) != nil:
		return fail("the name is taken: %w", bus.ErrBusy)
	case IsTPM(d.Model):
		return fail("it is no PCI device, and cannot be plugged in later: %w", bus.ErrNotSupported)
	case d.Model == "xio3130-downstream":
		return fail("downstream ports cannot be added later: start with them: %w", bus.ErrNotSupported)
	case slices.Contains(hotPlugModels, d.Model):
		return fail("root ports stand on the root bus, where nothing can be plugged in later: start with them: %w", bus.ErrNotSupported)
	case d.Capture != nil:
		return fail("captures begin with the machine: %w", bus.ErrNotSupported)
	case d.IOMMU && !iommu:
		return fail("the machine has no IOMMU, since no device asked for one when it started: %w", bus.ErrNotSupported)
	case d.Bus == "":
		return fail("nothing can be plugged in on the root bus: name a port for it to stand under: %w", bus.ErrNotSupported)
	case len(all) >= maxDevices:
		return fail("the machine has %d devices, which is the most: %w", len(all), bus.ErrBusy)
	case port == nil:
		return fail("there is no port named %s: %w", d.Bus, bus.ErrNotSupported)
	}
	if err := port.takesPlug(); err != nil {
		return fail("%w", err)
	}
	for _, s := range all {
		if s.spec.Bus == d.Bus {
			return fail("%s stands under %s: %w", s.spec.Name, d.Bus, bus.ErrBusy)
		}
	}
	return nil
}

// Plug puts a device into the slot of a port that is empty, which spec.Bus names. It returns when QEMU has the device: the
// port then says that a card is present and that its button was pressed, and somebody must power the slot on (Slot Control) and
// call Rescan. Errors wrap bus.ErrBusy where a name or a port is taken, and bus.ErrNotSupported where it can never be.
// The frames of a network adapter go nowhere: it has no wire.
func (m *Machine) Plug(ctx context.Context, spec DeviceSpec) error {
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("qemu: plugging %s: %w", spec.Name, err)
	}
	spec.Props = slices.Clone(spec.Props)
	m.mu.Lock()
	if m.shut {
		m.mu.Unlock()
		return fmt.Errorf("qemu: plugging %s: %w", spec.Name, bus.ErrClosed)
	}
	var all []*seat
	for _, u := range m.units {
		all = append(all, &u.seat)
	}
	if err := checkPlug(&spec, all, m.iommu != nil); err != nil {
		m.mu.Unlock()
		return err
	}
	// It may be found before QEMU's owner has answered.
	u := &unit{seat: seat{spec: spec}, under: m.unit(spec.Bus)}
	m.units = append(m.units, u)
	m.mu.Unlock()

	a := plugArgs{Name: spec.Name, Model: spec.Model, Bus: spec.Bus, Props: spec.Props, IOMMU: spec.IOMMU}
	var key string
	var err error
	if own := m.monitor(); own != nil {
		key, err = own.plug(a.spec())
	} else {
		key, err = m.askPlug(a)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.units = slices.DeleteFunc(m.units, func(o *unit) bool { return o == u })
		return err
	}
	u.key, u.ready = key, true
	return nil
}

// Rescan looks for functions that are not known yet behind a port and all that is known behind that, or everywhere for nil.
// They are enumerated within what the port keeps (pci.Topology.Rescan), and those of a device with a name have a bus.Device
// then: see Named. What found no room says so in its Err.
func (m *Machine) Rescan(port *pci.Function) ([]*pci.Function, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.shut {
		return nil, fmt.Errorf("qemu: rescanning: %w", bus.ErrClosed)
	}
	found, err := m.topo.Rescan(port)
	if err == nil {
		err = m.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("qemu: rescanning: %w", err)
	}
	for _, f := range found {
		u := m.adopt(f)
		if m.iommu == nil {
			continue
		}
		var d *device
		if u != nil {
			d = u.dev
		}
		if err := m.iommu.join(f, d); err != nil {
			f.Err = errors.Join(f.Err, fmt.Errorf("%s: behind the IOMMU: %w", f.Addr, err))
			if d != nil {
				d.stop(fmt.Errorf("%s %s: it has no place behind the IOMMU: %w (%w)", d.Address(), d.spec.Name, err, bus.ErrGone))
			}
		}
	}
	return found, nil
}

// Forget takes a function and all behind it out of the topology: its addresses and bus numbers are free, its devices end
// (bus.ErrGone). No hardware is touched. What QEMU still has is found again by the next Rescan, as another bus.Device.
func (m *Machine) Forget(f *pci.Function) {
	m.mu.Lock()
	if f == nil || !slices.Contains(m.topo.Functions, f) {
		m.mu.Unlock()
		return
	}
	gone := append(m.topo.Behind(f), f)
	m.topo.Forget(f)
	var ended []*device
	for _, u := range m.units {
		if u.fn != nil && slices.Contains(gone, u.fn) {
			ended = append(ended, u.dev)
			u.fn, u.dev = nil, nil
		}
	}
	m.late = slices.DeleteFunc(m.late, func(u *unit) bool { return slices.Contains(gone, u.fn) })
	m.mu.Unlock()
	for _, d := range ended {
		d.leave("it was removed")
	}
}

// Disconnect ends all devices behind a port at once (bus.ErrGone), as a link that went down does. No hardware is touched.
func (m *Machine) Disconnect(port *pci.Function) {
	m.mu.Lock()
	defer m.mu.Unlock()
	behind := m.topo.Behind(port)
	for _, u := range m.units {
		if u.fn != nil && slices.Contains(behind, u.fn) {
			u.dev.stop(fmt.Errorf("%s %s: its port was disconnected: %w", u.dev.Address(), u.spec.Name, bus.ErrGone))
		}
	}
}

// leave ends a device that was removed: accesses read all-ones, its interrupts are closed and their vectors free.
func (d *device) leave(why string) {
	d.stop(fmt.Errorf("%s %s: %s: %w", d.Address(), d.spec.Name, why, bus.ErrGone))
	_ = d.DisableIRQs() // nothing of it reaches the hardware any more
	if d.domain != nil {
		d.m.iommu.part(d)
	}
}
