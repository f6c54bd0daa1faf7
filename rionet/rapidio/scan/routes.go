package scan

import (
	"slices"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// number decides the IDs and tags of everything that was met. An endpoint keeps the ID that an enumeration gave it, if no other one has it:
// first those that were here the round before, then the rest in the order in which they were met. New ones get the lowest that are free.
func (r *round) number() {
	used := map[rapidio.DestID]bool{r.host: true}
	numbered := map[*node]bool{}
	keep := func(n *node) {
		if n.regID <= r.lastID && n.regID != r.ids.Any() && !used[n.regID] {
			n.dest, used[n.regID], numbered[n] = n.regID, true, true
		}
	}
	for _, known := range []bool{true, false} {
		for _, n := range r.nodes {
			if !n.isSwitch() && (n.was != nil) == known {
				keep(n)
			}
		}
	}
	var free rapidio.DestID
	for _, n := range r.nodes {
		if n.isSwitch() || numbered[n] {
			continue
		}
		for used[free] && free <= r.lastID {
			free++
		}
		if free > r.lastID {
			r.fail(n, errNoID)
			continue
		}
		n.dest, used[free] = free, true
		if n.was != nil { // it has to change its ID, so it is another device
			delete(r.taken, n.was)
			n.was = nil
			r.renew(n)
		}
	}
	for _, n := range r.nodes {
		if n.was == nil && (n.tag == 0 || n.tag >= tempTags) {
			n.tag = r.nextTag()
			r.tags[n.tag] = n
		}
	}
}

// renew makes of a node whose device the net has one that is new.
func (r *round) renew(n *node) {
	d := n.dev
	n.dev = &rapidio.Device{
		DID: d.DID, VID: d.VID, Rev: d.Rev, AsmDID: d.AsmDID, AsmVID: d.AsmVID, AsmRev: d.AsmRev, EFPtr: d.EFPtr, PHY: d.PHY, PHYMap2: d.PHYMap2,
		ErrMgmt: d.ErrMgmt, PEF: d.PEF, SwitchPorts: d.SwitchPorts, SrcOps: d.SrcOps, DstOps: d.DstOps, Hop: d.Hop,
	}
	n.tag, n.fresh = 0, true
}

// nextTag is a component tag that nothing has. Tags count up, so that a device that went and came back has another one.
func (r *round) nextTag() uint32 {
	for range lastTag {
		r.p.tag++
		if r.p.tag <= firstTag || r.p.tag > lastTag {
			r.p.tag = firstTag + 1
		}
		if r.tags[r.p.tag] == nil && r.p.known[r.p.tag] == nil {
			break
		}
	}
	return r.p.tag
}

// plan decides all routing tables: from each switch the shortest way to each endpoint, over whatever links there are. On each step of
// such a way the next switch is one link nearer, so no packet goes in a circle.
func (r *round) plan() {
	var switches []*node
	top := r.host
	if r.ids == rapidio.Small {
		top = r.ids.Any() - 1
	}
	for _, n := range r.nodes {
		if n.isSwitch() {
			switches = append(switches, n)
		} else if !n.failed {
			top = max(top, n.dest)
		}
	}
	if len(switches) == 0 {
		return
	}
	for _, n := range switches {
		n.want = make([]uint8, max(int(top)+1, len(n.table)))
		for i := range n.want {
			n.want[i] = rapidio.InvalidRoute
		}
		if len(n.want) > int(r.ids.Any()) {
			n.want = n.want[:r.ids.Any()]
		}
	}
	for _, from := range switches {
		first := firstPorts(from)
		for _, n := range r.nodes {
			if !n.isSwitch() && !n.failed {
				if n.parent == from {
					from.want[n.dest] = uint8(n.port)
				} else if p, ok := first[n.parent]; ok {
					from.want[n.dest] = uint8(p)
				}
			}
		}
		if from == r.root {
			from.want[r.host] = uint8(from.in) // the port to us has no link to a node
		} else if p, ok := first[r.root]; ok {
			from.want[r.host] = uint8(p)
		}
	}
	r.paths(switches)
}

// firstPorts are the ports by which the shortest ways from a switch to all others begin.
func firstPorts(from *node) map[*node]int {
	first := map[*node]int{from: unknown}
	for queue := []*node{from}; len(queue) > 0; queue = queue[1:] {
		n := queue[0]
		for port, l := range n.links {
			if l.to == nil || !l.to.isSwitch() {
				continue
			}
			if _, seen := first[l.to]; seen {
				continue
			}
			if first[l.to] = first[n]; n == from {
				first[l.to] = port
			}
			queue = append(queue, l.to)
		}
	}
	return first
}

// paths finds for each switch an ID on whose way from the host it lies. One on no way gets an ID of its own, that routes lead to.
func (r *round) paths(switches []*node) {
	var ends []*node
	used := map[rapidio.DestID]bool{r.host: true}
	for _, n := range r.nodes {
		if !n.isSwitch() && !n.failed {
			ends = append(ends, n)
			used[n.dest] = true
		}
	}
	slices.SortFunc(ends, func(a, b *node) int { return int(a.dest) - int(b.dest) })
	on := map[*node]bool{}
	for _, e := range ends {
		if len(on) == len(switches) {
			break
		}
		r.follow(e.dest, on)
	}
	if !on[r.root] { // it is next to us, whatever the ID
		r.root.path, r.root.back = r.ids.Any(), r.root.in
		on[r.root] = true
	}
	for _, n := range switches {
		if !on[n] {
			r.reserve(n, switches, used)
			r.follow(n.path, on)
		}
	}
}

// follow goes the way of an ID, and notes the switches on it that are on no other.
func (r *round) follow(id rapidio.DestID, on map[*node]bool) {
	n, prev, back := r.root, (*node)(nil), r.root.in
	for hop := 0; n != nil && n.isSwitch() && hop <= rapidio.MaxHops; hop++ {
		if !on[n] {
			on[n], n.path, n.hop, n.prev, n.back = true, id, hop, prev, back
		}
		port := int(n.want[id])
		if port >= len(n.links) {
			return
		}
		prev, back, n = n, n.links[port].port, n.links[port].to
	}
}

// reserve gives a switch without endpoints an ID: of 8-bit ones from the end, where endpoints get theirs last; of 16-bit ones the first
// from where tables of 256 or more would end.
func (r *round) reserve(sw *node, switches []*node, used map[rapidio.DestID]bool) {
	id, step := int(r.lastID), -1
	if r.ids == rapidio.Large {
		id, step = (len(switches[0].want)+0xff)&^0xff, 1
	}
	for id >= 0 && id <= int(r.lastID) && used[rapidio.DestID(id)] {
		id += step
	}
	if id < 0 || id > int(r.lastID) {
		r.fail(sw, errNoID)
		return
	}
	used[rapidio.DestID(id)] = true
	for _, n := range switches {
		for id >= len(n.want) {
			n.want = append(n.want, rapidio.InvalidRoute)
		}
		if p, ok := firstPorts(n)[sw]; ok && n != sw {
			n.want[id] = uint8(p)
		}
	}
	sw.path = rapidio.DestID(id)
}
