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

// takesPlug says why nothing can be plugged in below a unit.
func (u *unit) takesPlug() error {
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

// checkPlug checks what can be told without asking QEMU. Called with mu held.
func (m *Machine) checkPlug(d *DeviceSpec) (port *unit, err error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	fail := func(format string, args ...any) (*unit, error) {
		return nil, fmt.Errorf("qemu: plugging %s (%s): %w", d.Name, d.Model, fmt.Errorf(format, args...))
	}
	switch {
	case m.unit(d.Name) != nil:
		return fail("the name is taken: %w", bus.ErrBusy)
	case IsTPM(d.Model):
		return fail("it is no PCI device, and cannot be plugged in later: %w", bus.ErrNotSupported)
	case d.Model == "xio3130-downstream":
		return fail("downstream ports cannot be added later: start with them: %w", bus.ErrNotSupported)
	case slices.Contains(hotPlugModels, d.Model):
		return fail("root ports stand on the root bus, where nothing can be plugged in later: start with them: %w", bus.ErrNotSupported)
	case d.Capture != nil:
		return fail("captures begin with the machine: %w", bus.ErrNotSupported)
	case d.IOMMU && m.iommu == nil:
		return fail("the machine has no IOMMU, since no device asked for one when it started: %w", bus.ErrNotSupported)
	case d.Bus == "":
		return fail("nothing can be plugged in on the root bus: name a port for it to stand under: %w", bus.ErrNotSupported)
	case len(m.units) >= maxDevices:
		return fail("the machine has %d devices, which is the most: %w", len(m.units), bus.ErrBusy)
	}
	if port = m.unit(d.Bus); port == nil {
		return fail("there is no port named %s: %w", d.Bus, bus.ErrNotSupported)
	}
	if err := port.takesPlug(); err != nil {
		return fail("%w", err)
	}
	for _, u := range m.units {
		if u.under == port {
			return fail("%s stands under %s: %w", u.spec.Name, d.Bus, bus.ErrBusy)
		}
	}
	return port, nil
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
	port, err := m.checkPlug(&spec)
	if err != nil {
		m.mu.Unlock()
		return err
	}
	m.plugs++
	u := &unit{spec: spec, serial: m.freeSerial(), key: fmt.Sprintf("p%d", m.plugs), under: port}
	m.units = append(m.units, u)
	m.mu.Unlock()

	if err := m.add(u); err != nil {
		m.mu.Lock()
		m.units = slices.DeleteFunc(m.units, func(o *unit) bool { return o == u })
		m.mu.Unlock()
		return fmt.Errorf("qemu: plugging %s (%s) under %s: %w", spec.Name, spec.Model, spec.Bus, err)
	}
	return nil
}

// freeSerial is the lowest that no unit has. Called with mu held.
func (m *Machine) freeSerial() int {
	for n := 0; ; n++ {
		if !slices.ContainsFunc(m.units, func(u *unit) bool { return u.serial == n }) {
			return n
		}
	}
}

// add gives QEMU a device. The human monitor takes the same words as the command line, whatever the type of a property.
func (m *Machine) add(u *unit) error {
	if IsNetwork(u.spec.Model) {
		if _, err := m.Execute("netdev_add", map[string]any{"type": "hubport", "id": u.netdev(), "hubid": m.wires + u.serial}); err != nil {
			return err
		}
	}
	option := u.spec.option(u.key, u.serial, fmt.Sprintf(",bus=%s,addr=0", u.under.id()))
	said, err := m.qmp.monitor(`device_add "` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(option) + `"`)
	// It warns of a netdev without peer only, and else says nothing.
	if _, why, bad := strings.Cut(said, "Error: "); err == nil && bad {
		err = plugError(u.spec.Model, strings.TrimSpace(why))
	}
	m.mu.Lock()
	u.ready = err == nil
	m.mu.Unlock()
	if err != nil {
		m.dropNetdev(u)
	}
	return err
}

// plugError is what QEMU said, with the sentinel for it.
func plugError(model, why string) error {
	is := bus.ErrNotSupported
	if strings.Contains(why, "already occupied") || strings.Contains(why, "uplicate ID") || strings.Contains(why, "in use") || strings.Contains(why, "guest is busy") {
		is = bus.ErrBusy
	}
	return fmt.Errorf("%s%s: %w", why, remedy(model, why), is)
}

// dropNetdev takes the network side of a unit away that is gone.
func (m *Machine) dropNetdev(u *unit) {
	if !IsNetwork(u.spec.Model) {
		return
	}
	if _, err := m.Execute("netdev_del", map[string]any{"id": u.netdev()}); err != nil && m.Err() == nil {
		m.log.Warn(fmt.Sprintf("qemu: %s: taking its network side away: %v", u.spec.Name, err))
	}
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
