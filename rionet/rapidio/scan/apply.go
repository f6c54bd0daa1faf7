package scan

import (
	"errors"
	"slices"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// apply makes the net what was found: first what is gone goes, the last found first, then what is new comes, in the order in which
// it was met. What was there before stays the device that it was, whatever leads to it now.
func (p *port) apply(found []*node) (changed bool) {
	kept := map[*node]bool{}
	for _, n := range found {
		if n.was != nil && !n.failed {
			kept[n.was] = true
		}
	}
	for _, old := range slices.Backward(p.order) {
		if !kept[old] {
			p.net.RemoveDevice(old.dev)
			changed = true
		}
	}
	p.order, p.known, p.byID = nil, map[uint32]*node{}, map[rapidio.DestID]*node{}
	for _, n := range found {
		if n.failed {
			continue
		}
		changed = p.show(n) || changed
		if n.failed {
			continue
		}
		p.order = append(p.order, n)
		p.known[n.tag] = n
		if !n.isSwitch() {
			p.byID[n.dest] = n
		}
	}
	for _, n := range p.order {
		changed = p.showLinks(n) || changed
		n.fresh = false
	}
	for _, n := range p.order { // a round looks at the one before it only
		n.isNew = n.was == nil
		n.was, n.parent, n.children = nil, nil, nil
	}
	return changed
}

// show brings a device into the net, or what leads to it up to date.
func (p *port) show(n *node) (changed bool) {
	before := n.prev
	if !n.isSwitch() {
		before = n.parent
		n.path = n.dest
	}
	var prev *rapidio.Device
	if before != nil && !before.failed {
		prev = before.dev
	}
	if n.was != nil {
		p.net.Move(n.dev, n.path, uint8(n.hop), prev)
		return false
	}
	d := n.dev
	d.Mport, d.Tag, d.DestID, d.Prev = p.m, n.tag, n.path, prev
	if n.isSwitch() {
		d.Hop = uint8(n.hop)
	}
	if err := p.net.AddDevice(d); err != nil {
		n.failed = true
		if !errors.Is(err, bus.ErrGone) {
			p.say("%v", err)
		}
		return false
	}
	return true
}

// showLinks tells the net of a switch's neighbours and routes, as far as they changed.
func (p *port) showLinks(n *node) (changed bool) {
	for port, l := range n.links {
		var next *rapidio.Device
		if l.to != nil && !l.to.failed && port != n.back {
			next = l.to.dev
		}
		if n.dev.Next(port) != next {
			p.net.SetNext(n.dev, port, next)
			changed = true
		}
	}
	if !n.isSwitch() {
		return changed
	}
	has := n.dev.Routes()
	for id, port := range n.want {
		was := uint8(rapidio.InvalidRoute)
		if id < len(has) {
			was = has[id]
		}
		if was != port {
			p.net.SetRoute(n.dev, rapidio.DestID(id), port)
			changed = true
		}
	}
	for id := len(n.want); id < len(has); id++ {
		p.net.SetRoute(n.dev, rapidio.DestID(id), rapidio.InvalidRoute)
	}
	return changed
}

// empty takes everything out of the net: the port reaches nothing.
func (p *port) empty() (changed bool) {
	changed = p.apply(nil)
	p.trusted = false
	return changed
}
