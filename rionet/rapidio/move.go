package rapidio

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
		n.bus.tree.fillWay(d)
		n.bus.changed()
	}
}

// way is how a device is reached.
func (d *Device) way() (DestID, uint8) {
	if d.Net != nil {
		d.Net.bus.mu.Lock()
		defer d.Net.bus.mu.Unlock()
	}
	return d.DestID, d.Hop
}
