package rapidio

import (
	"context"
	"fmt"
	"slices"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/uevent"
)

// AddNet makes the net that a port is on, under the lowest number that is free. A port that is on one has that. That of a port
// out of service takes no devices.
func (b *Bus) AddNet(m *Mport) *Net {
	b.mu.Lock()
	if m.net != nil {
		defer b.mu.Unlock()
		return m.net
	}
	n := &Net{bus: b, home: m, tags: map[uint32]*Device{}}
	if m.ctx.Err() != nil {
		n.gone = true
		b.mu.Unlock()
		return n
	}
	for n.id < len(b.nets) && b.nets[n.id].id == n.id {
		n.id++
	}
	b.nets = slices.Insert(b.nets, n.id, n)
	m.net = n
	b.tree.addNet(n)
	b.mu.Unlock()
	b.changed()
	return n
}

// ID is the net's number.
func (n *Net) ID() int { return n.id }

// Name is "rnet_0", by its number.
func (n *Net) Name() string { return fmt.Sprintf("rnet_%d", n.id) }

// Bus is the bus that it is on.
func (n *Net) Bus() *Bus { return n.bus }

// Mport is the master port that reaches it.
func (n *Net) Mport() *Mport { return n.home }

// Devices lists its devices in the order in which they were found.
func (n *Net) Devices() []*Device {
	n.bus.mu.Lock()
	defer n.bus.mu.Unlock()
	return slices.Clone(n.devices)
}

// ByTag is the device with a component tag; nil: there is none.
func (n *Net) ByTag(tag uint32) *Device {
	n.bus.mu.Lock()
	defer n.bus.mu.Unlock()
	return n.tags[tag]
}

// AddDevice shows a device, tells of it, and looks for its driver. It fails where its net is gone, or has a device of that name or tag.
// What identifies it must be set before, and a switch's operations; its routes and neighbours may come later.
func (n *Net) AddDevice(d *Device) error {
	d.init()
	_ = d.turn.take(context.Background())
	defer n.bus.changed()
	defer d.turn.give()
	if err := n.insert(d); err != nil {
		return fmt.Errorf("%s: adding a device: %w", n.Name(), err)
	}
	d.unhook = context.AfterFunc(n.home.ctx, d.cancel) // a port that goes waits for no driver
	n.bus.tree.addDevice(d)
	d.uevent(uevent.Add)
	if n.bus.Autoprobe() {
		n.bus.probe(d)
	}
	return nil
}

func (n *Net) insert(d *Device) error {
	if d.Switch != nil && d.Switch.Ops == nil {
		return fmt.Errorf("component tag %#08x: a switch without operations: %w", d.Tag, bus.ErrNotSupported)
	}
	b := n.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	if n.gone || d.ctx.Err() != nil {
		return bus.ErrGone
	}
	if d.Net != nil {
		return fmt.Errorf("%s: it was added already: %w", d.Name(), bus.ErrBusy)
	}
	for _, other := range n.devices {
		if other.Tag&ComponentMask == d.Tag&ComponentMask && other.IsSwitch() == d.IsSwitch() || other.Tag == d.Tag {
			return fmt.Errorf("component tag %#08x: %s has %#08x: %w", d.Tag, other.Name(), other.Tag, bus.ErrBusy)
		}
	}
	if d.Mport == nil {
		d.Mport = n.home
	}
	d.Net = n
	d.name = d.Name()
	n.devices = append(n.devices, d)
	n.tags[d.Tag] = d
	return nil
}

// RemoveDevice takes a device away: its driver gives it up, what was claimed of it is free, nobody has it as a neighbour any more. It is
// idempotent. A driver may not call it of its own device while it is probed or removed.
func (n *Net) RemoveDevice(d *Device) {
	if d.Net != n {
		return
	}
	d.init()
	d.cancel() // whoever waits for it need not
	_ = d.turn.take(context.Background())
	b := n.bus
	b.mu.Lock()
	i := slices.Index(n.devices, d)
	if i >= 0 {
		n.devices = slices.Delete(n.devices, i, i+1)
		delete(n.tags, d.Tag)
		for _, sw := range n.devices {
			if sw.Switch != nil {
				for port, next := range sw.Switch.next {
					if next == d {
						sw.Switch.next[port] = nil
					}
				}
			}
		}
	}
	b.mu.Unlock()
	if i < 0 {
		d.turn.give()
		return
	}
	d.unhook()
	b.unbind(d)
	d.claims.drop()
	d.hooks.drop()
	b.tree.removeDevice(d)
	d.uevent(uevent.Remove)
	d.turn.give()
	b.changed()
}

// Remove takes a net away with all its devices, the last first.
func (n *Net) Remove() {
	b := n.bus
	b.mu.Lock()
	n.gone = true
	devices := slices.Clone(n.devices)
	b.mu.Unlock()
	for _, d := range slices.Backward(devices) {
		n.RemoveDevice(d)
	}
	b.mu.Lock()
	i := slices.Index(b.nets, n) // its number was taken so far
	if i >= 0 {
		b.nets = slices.Delete(b.nets, i, i+1)
		b.tree.removeNet(n)
		n.home.net = nil
	}
	b.mu.Unlock()
	if i >= 0 {
		b.changed()
	}
}

// Move tells that a device, which stays the same, is now reached by another way: a link failed, or a shorter one came. dest and hop are
// of a switch; an endpoint is always reached by its own ID.
func (n *Net) Move(d *Device, dest DestID, hop uint8, prev *Device) {
	if d.Net != n {
		return
	}
	n.bus.mu.Lock()
	moved := d.Prev != prev
	d.Prev = prev
	if d.IsSwitch() && (d.DestID != dest || d.Hop != hop) {
		d.DestID, d.Hop, moved = dest, hop, true
	}
	n.bus.mu.Unlock()
	if moved {
		n.bus.changed()
	}
}

// SetNext says which device is at a port of a switch; nil: none, or the way back.
func (n *Net) SetNext(sw *Device, port int, d *Device) {
	if sw.Switch == nil || port < 0 || port >= sw.Ports() {
		return
	}
	n.bus.mu.Lock()
	defer n.bus.mu.Unlock()
	if sw.Switch.next == nil {
		sw.Switch.next = make([]*Device, sw.Ports())
	}
	sw.Switch.next[port] = d
}

// SetRoute remembers by which port a switch sends what is for dest; InvalidRoute: by none. It writes nothing into the switch:
// SwitchOps do.
func (n *Net) SetRoute(sw *Device, dest DestID, port uint8) {
	if sw.Switch == nil {
		return
	}
	n.bus.mu.Lock()
	defer n.bus.mu.Unlock()
	s := sw.Switch
	if int(dest) >= len(s.routes) {
		if port == InvalidRoute {
			return
		}
		have := len(s.routes)
		s.routes = slices.Grow(s.routes, int(dest)+1-have)[:int(dest)+1]
		for i := have; i < len(s.routes); i++ {
			s.routes[i] = InvalidRoute
		}
	}
	s.routes[dest] = port
}
