package qemu

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// unit is a device that QEMU has, whether or not enumeration found it. Its fields are guarded by Machine.mu.
type unit struct {
	seat
	under *unit // the port or bridge it stands under; nil: the root bus

	fn  *pci.Function // nil: not found yet, or forgotten; or no PCI function
	dev *device       // as fn
}

// stands says whether a function is this unit's.
func (u *unit) stands(f *pci.Function) bool {
	if u.fn != nil || IsTPM(u.spec.Model) || f.Addr.Fn != 0 || int(f.Addr.Dev) != u.slot {
		return false
	}
	if u.under == nil {
		return f.Parent == nil
	}
	return f.Parent != nil && u.under.fn == f.Parent
}

// adopt gives a function that was found to the unit that it is of, if any. Called with mu held, or before anybody else
// has the machine.
func (m *Machine) adopt(f *pci.Function) *unit {
	for _, u := range m.units {
		if u.stands(f) {
			u.fn, u.dev = f, newDevice(m, u.spec, f)
			return u
		}
	}
	return nil
}

// unit finds one by name. Called with mu held.
func (m *Machine) unit(name string) *unit {
	i := slices.IndexFunc(m.units, func(u *unit) bool { return u.spec.Name == name })
	if i < 0 {
		return nil
	}
	return m.units[i]
}

// known is a unit, in service if found is wanted.
func (m *Machine) known(name string, found bool) (*unit, error) {
	u := m.unit(name)
	switch {
	case u == nil && slices.Contains(m.missing, name):
		return nil, fmt.Errorf("qemu: %s has left its slot: %w", name, bus.ErrGone)
	case u == nil:
		return nil, fmt.Errorf("qemu: no device is named %s: %w", name, unix.ENODEV)
	case found && u.dev == nil:
		return nil, fmt.Errorf("qemu: %s is plugged in, and was not found on the bus yet: is its slot powered? %w", name, unix.ENODEV)
	}
	return u, nil
}

// devices are those in service, in the order in which they came.
func (m *Machine) devices() []*device {
	var out []*device
	for _, u := range m.units {
		if u.dev != nil {
			out = append(out, u.dev)
		}
	}
	return out
}

// Device returns the device of that name. There is one bus.Device for it, until it is forgotten; closing that is closing
// it for everybody.
func (m *Machine) Device(name string) (bus.Device, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u, err := m.known(name, true)
	if err != nil {
		return nil, err
	}
	return u.dev, nil
}

// Function returns what enumeration found out about the device of that name; nil, without an error, if it is
// no PCI function.
func (m *Machine) Function(name string) (*pci.Function, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u, err := m.known(name, true)
	if err != nil {
		return nil, err
	}
	return u.fn, nil
}

// Named is the name and the device of a function, until it is forgotten; not ok for one of the chipset's.
func (m *Machine) Named(f *pci.Function) (name string, dev bus.Device, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, units := range [][]*unit{m.units, m.late} {
		for _, u := range units {
			if f != nil && u.fn == f {
				return u.spec.Name, u.dev, true
			}
		}
	}
	return "", nil, false
}

// Topology is what is known to stand on the bus now, the chipset's own functions included. It is a snapshot: Rescan and
// Forget change later ones.
func (m *Machine) Topology() *pci.Topology {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.topo.Snapshot()
}
