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

// graph is the switches of a round and the links between them.
type graph struct {
	switches []*node
	next     [][]edge // by number of a switch
	first    [][]int  // from a switch to a switch: the port by which a shortest way begins; unknown: there is none, or it is the same
}

// edge is a port of a switch and the switch that it leads to.
type edge struct{ port, to int }

// newGraph finds all shortest ways.
func newGraph(nodes []*node) *graph {
	g := &graph{}
	number := map[*node]int{}
	for _, n := range nodes {
		if n.isSwitch() && !n.failed {
			number[n] = len(g.switches)
			g.switches = append(g.switches, n)
		}
	}
	g.next = make([][]edge, len(g.switches))
	for i, n := range g.switches {
		n.number = i
		for port, l := range n.links {
			if to, ok := number[l.to]; ok {
				g.next[i] = append(g.next[i], edge{port, to})
			}
		}
	}
	g.first = make([][]int, len(g.switches))
	for i := range g.switches {
		g.first[i] = g.from(i)
	}
	return g
}

// from finds the shortest ways from one switch; of several that are as short, the one by the lowest port.
func (g *graph) from(start int) []int {
	first := make([]int, len(g.switches))
	for i := range first {
		first[i] = unknown
	}
	seen := make([]bool, len(g.switches))
	seen[start] = true
	for queue := []int{start}; len(queue) > 0; queue = queue[1:] {
		for _, e := range g.next[queue[0]] {
			if seen[e.to] {
				continue
			}
			seen[e.to] = true
			if first[e.to] = first[queue[0]]; queue[0] == start {
				first[e.to] = e.port
			}
			queue = append(queue, e.to)
		}
	}
	return first
}

// port is the port by which a switch sends what is for another.
func (g *graph) port(from, to *node) uint8 {
	if p := g.first[from.number][to.number]; p != unknown {
		return uint8(p)
	}
	return rapidio.InvalidRoute
}

// plan decides all routing tables: from each switch the shortest way to each endpoint, over whatever links there are. On each step of
// such a way the next switch is one link nearer, so no packet goes in a circle.
func (r *round) plan() {
	g := newGraph(r.nodes)
	if len(g.switches) == 0 {
		return
	}
	top := r.host
	for _, n := range r.nodes {
		if !n.isSwitch() && !n.failed {
			top = max(top, n.dest)
		}
	}
	// IDs are dense but for a host's own, which may be anything.
	dense := int(r.ids.Any())
	if r.ids == rapidio.Large {
		dense = len(r.nodes) + 256
	}
	for _, from := range g.switches {
		from.want = make([]uint8, min(max(int(top)+1, len(from.table)), int(r.ids.Any())))
		from.dense = dense
		for i := range from.want {
			from.want[i] = rapidio.InvalidRoute
		}
		for _, n := range r.nodes {
			switch {
			case n.isSwitch() || n.failed:
			case n.parent == from:
				from.want[n.dest] = uint8(n.port)
			default:
				from.want[n.dest] = g.port(from, n.parent)
			}
		}
		if from.want[r.host] = uint8(from.in); from != r.root {
			from.want[r.host] = g.port(from, r.root)
		}
	}
	r.paths(g)
}

// paths finds for each switch an ID on whose way from the host it lies. One on no way gets an ID of its own, that routes lead to.
func (r *round) paths(g *graph) {
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
		if len(on) == len(g.switches) {
			break
		}
		r.follow(e.dest, on)
	}
	if !on[r.root] { // it is next to us, whatever the ID
		r.root.path, r.root.back = r.ids.Any(), r.root.in
		on[r.root] = true
	}
	for _, n := range g.switches {
		if !on[n] {
			r.reserve(n, g, used)
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
		port := rapidio.InvalidRoute
		if int(id) < len(n.want) {
			port = int(n.want[id])
		}
		if port >= len(n.links) {
			return
		}
		prev, back, n = n, n.links[port].port, n.links[port].to
	}
}

// reserve gives a switch without endpoints an ID: of 8-bit ones from the end, where endpoints get theirs last; of 16-bit ones from 256 on, or
// the next multiple of that above theirs.
func (r *round) reserve(sw *node, g *graph, used map[rapidio.DestID]bool) {
	id, step := int(r.lastID), -1
	if r.ids == rapidio.Large {
		id, step = (r.endpoints+0x100)&^0xff, 1
	}
	for id >= 0 && id <= int(r.lastID) && used[rapidio.DestID(id)] {
		id += step
	}
	if id < 0 || id > int(r.lastID) {
		r.fail(sw, errNoID)
		return
	}
	used[rapidio.DestID(id)] = true
	for _, n := range g.switches {
		for id >= len(n.want) {
			n.want = append(n.want, rapidio.InvalidRoute)
		}
		n.want[id] = g.port(n, sw)
	}
	sw.path = rapidio.DestID(id)
}
