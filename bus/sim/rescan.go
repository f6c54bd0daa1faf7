package sim

import (
	"errors"
	"fmt"
	"slices"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Functions that come and go: what firmware and the kernel's PCI core do.

// placeAll tells devices where enumeration put them.
func (m *Machine) placeAll(fns []*pci.Function) {
	for _, f := range fns {
		m.lock()
		d := m.route(f.Addr)
		m.unlock()
		if d != nil {
			d.place(f)
		}
	}
}

// behind says whether f is behind port, or port is nil.
func behind(f, port *pci.Function) bool {
	for ; f != nil && port != nil; f = f.Parent {
		if f.Parent == port {
			return true
		}
	}
	return port == nil
}

// unknown says whether something that nobody enumerated can be reached on the bus behind a bridge.
func (m *Machine) unknown(bridge *pci.Function) bool {
	m.lock()
	defer m.unlock()
	d := m.holder(bridge)
	return d != nil && d.port != nil && d.port.up && slices.ContainsFunc(d.below, func(x *device) bool { return x.fn == nil && !x.gone })
}

// unknownRoots says the same of the root bus.
func (m *Machine) unknownRoots() bool {
	m.lock()
	defer m.unlock()
	return slices.ContainsFunc(m.roots, func(x *device) bool { return x.fn == nil && !x.gone && !x.isPlatform() })
}

// holder is the device of a function.
func (m *Machine) holder(f *pci.Function) *device {
	for _, d := range m.devices {
		if d.fn == f && f != nil {
			return d
		}
	}
	return nil
}

// Rescan looks for functions that nobody knows yet behind a port, or everywhere if port is nil, and gives them resources. Each has a new
// bus.Device (Named). It returns those that it found; which may be none, and is no error. Errors of one bridge do not keep others from being looked at.
func (m *Machine) Rescan(port *pci.Function) ([]*pci.Function, error) {
	m.topoMu.Lock()
	defer m.topoMu.Unlock()
	old := m.topo.Load()
	if port != nil && !slices.Contains(old.Functions, port) {
		return nil, fmt.Errorf("sim: rescanning: %s is not in service: %w", port.Addr, bus.ErrGone)
	}
	if port != nil && !port.IsBridge() {
		return nil, fmt.Errorf("sim: rescanning: %s is not a bridge: %w", port.Addr, bus.ErrNotSupported)
	}
	t := *old
	t.Functions = slices.Clone(old.Functions)
	var found []*pci.Function
	var err error
	if port == nil && m.unknownRoots() {
		if found, err = t.Rescan(nil); err != nil {
			err = fmt.Errorf("sim: %w", err)
		}
		m.placeAll(found)
	}
	for _, f := range old.Functions {
		if !f.IsBridge() || f != port && !behind(f, port) || !m.unknown(f) {
			continue
		}
		fns, e := t.Rescan(f)
		if e != nil {
			err = errors.Join(err, fmt.Errorf("sim: %w", e))
			continue
		}
		m.placeAll(fns)
		found = append(found, fns...)
	}
	m.topo.Store(&t)
	return found, err
}

// Named is the device of a function: what the user calls it, and its bus.Device. Not ok where there is none, or no more.
func (m *Machine) Named(f *pci.Function) (name string, dev bus.Device, ok bool) {
	m.lock()
	defer m.unlock()
	d := m.holder(f)
	if d == nil {
		return "", nil, false
	}
	return d.spec.Name, d, true
}

// Forget takes a function, and all behind it, out of the topology. Their bus.Devices end (bus.ErrGone). The hardware stays where it is, as it is but for the
// registers in its regions: Rescan finds it again.
func (m *Machine) Forget(f *pci.Function) {
	m.topoMu.Lock()
	defer m.topoMu.Unlock()
	t := *m.topo.Load()
	m.lock()
	for _, x := range slices.Backward(t.Functions) { // what is behind a bridge stands after it
		if x != f && !behind(x, f) {
			continue
		}
		if d := m.holder(x); d != nil {
			d.end(fmt.Errorf("it was taken out of service: %w", bus.ErrGone))
			m.renew(d)
		}
	}
	m.unlock()
	t.Functions = slices.Clone(t.Functions)
	t.Forget(f)
	m.topo.Store(&t)
}

// Disconnect makes all that is behind a port dead for its drivers (bus.ErrGone), without touching it: nothing they do reaches it from now on.
func (m *Machine) Disconnect(port *pci.Function) {
	t := m.Topology()
	m.lock()
	defer m.unlock()
	for _, x := range slices.Backward(t.Functions) {
		if x == port || !behind(x, port) {
			continue
		}
		if d := m.holder(x); d != nil {
			d.end(fmt.Errorf("it was disconnected: %w", bus.ErrGone))
		}
	}
}

// renew puts a device that ended back in its place, as one that nobody has enumerated. A port keeps its state. Called with Machine.mu held.
func (m *Machine) renew(d *device) {
	n, err := makeDevice(m, d.spec, d.index)
	if err != nil {
		m.log.Warn(d.errorf("putting it back: %v", err).Error()) // it was made before
		return
	}
	n.slot, n.input, n.up, n.addr = d.slot, d.input, d.up, pci.Addr{Domain: m.domain, Dev: d.slot}
	n.space, n.log, n.msixTab, n.cut = d.space, d.log, d.msixTab, d.cut
	n.below = d.below
	for _, x := range n.below {
		x.up = n
	}
	swap := func(list []*device) []*device {
		list = slices.Clone(list)
		for i, x := range list {
			if x == d {
				list[i] = n
			}
		}
		return list
	}
	m.devices = swap(m.devices)
	if d.up != nil {
		d.up.below = swap(d.up.below)
	} else {
		m.roots = swap(m.roots)
	}
	if n.far = d.far; n.far != nil {
		n.far.far = n
	}
	m.retire(d)
	n.silence()
	if p := d.port; p != nil {
		n.chip, n.port, p.d = p, p, n
		if p.command.pending() {
			p.put(pci.ExpSltSta, pci.SltStaCmd, true) // its clock was the other's
		}
		p.command.stop()
		p.command = nil
	} else {
		n.chip.reset()
	}
	n.refresh()
}

// silence turns messages off: where they went is for somebody else soon.
func (d *device) silence() {
	s := d.space
	if s.msix != 0 {
		s.b[s.msix+msixCtl+1] &^= msixOn >> 8
	}
	if s.msi != 0 {
		s.b[s.msi+msiCtl] &^= msiOn
	}
}

// wire connects a device as Config.Wires says.
func (m *Machine) wire(d *device) {
	for _, w := range m.pairs {
		for i, name := range w {
			if far := m.find(w[1-i]); name == d.spec.Name && far != nil && !far.gone {
				d.far, far.far = far, d
				d.setLink(true)
			}
		}
	}
}
