package scan

import (
	"errors"
	"fmt"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Bounds of a walk. A fabric that is larger is walked that far.
const (
	maxSwitches = 1024
	maxEntries  = 16 << 20 // of routing tables, all together
	smallBudget = 1 << 17  // accesses, with 8-bit IDs
	largeBudget = 1 << 22
)

// walk takes in everything that can be reached, depth first, each device locked before anything of it is changed. It fails if there is no
// going on; what cannot be reached is left out, with a line.
//
// What did not answer is tried again at the end: by then the port at the other end of a link that came back is open, too.
func (r *round) walk() error {
	if _, err := r.visit(nil, 0); err != nil {
		return fmt.Errorf("the neighbour: %w", err)
	}
	for len(r.later) > 0 && !r.stopped {
		l := r.later[0]
		r.later = r.later[1:]
		if l.to.links[l.port].to != nil {
			continue
		}
		err := r.lead(l.to.parent, l.to.port)
		if err == nil {
			err = r.port(l.to, l.port)
		}
		if err == nil {
			continue
		}
		if r.ends(err) {
			return err
		}
		if !r.stopped {
			r.trouble++
			r.say("leaving out what is at %s: %v", place(l.to, l.port), err)
		}
	}
	return nil
}

// errShut says that the neighbour does not answer.
var errShut = errors.New("no answer")

// visit takes in what is at a port of parent, and all beyond; nil: it is known already, by another link.
func (r *round) visit(parent *node, port int) (*node, error) {
	depth := 0
	if parent != nil {
		depth = parent.depth + 1
	}
	t := r.any(depth)
	mine, err := r.acquire(t)
	if err != nil {
		if parent == nil && unanswered(err) {
			err = fmt.Errorf("%w: %w", errShut, err)
		}
		return nil, err
	}
	if mine && parent != nil {
		switch again, err := r.again(t, parent, port); {
		case err != nil:
			if r.fatal(err) {
				_ = r.surrender(t, r.host) // it may be of no list, with a lock that another process left
			}
			return nil, err
		case again:
			return nil, nil
		}
	}
	n, err := r.meet(t, parent, port)
	if err == nil {
		err = r.place(t, n)
	}
	if err != nil {
		_ = r.surrender(t, r.host) // the error that counts is the first
		return nil, err
	}
	if parent != nil {
		parent.children = append(parent.children, n)
		parent.links[port] = link{n, n.in}
		if n.isSwitch() {
			n.links[n.in] = link{parent, port}
		}
	} else {
		r.root = n
	}
	r.nodes = append(r.nodes, n)
	if !n.isSwitch() {
		r.endpoints++
		return n, nil
	}
	r.switches++
	if err := r.beyond(t, n); r.ends(err) {
		return nil, err
	} else if err != nil {
		r.fail(n, err)
	}
	return n, nil
}

// again looks whether a device that has our lock is one of this walk, by its component tag. One that is not has a lock that an
// enumeration left which was cut short; tags may be left as well, so a tag alone does not tell.
func (r *round) again(t target, parent *node, port int) (bool, error) {
	tag, err := t.read(rapidio.RegComponentTag)
	if err != nil {
		return false, err
	}
	n := r.tags[tag]
	if n == nil || !n.isSwitch() {
		return false, nil
	}
	same, err := r.same(t, n, parent, port)
	if err != nil || !same {
		return false, err
	}
	swp, err := t.read(rapidio.RegSwitchPort)
	if err != nil {
		return false, err
	}
	in := int(swp & 0xff)
	if in >= n.ports() || n == parent && in == port {
		return false, fmt.Errorf("%s, reached by its port %d of %d", n.label(), in, n.ports())
	}
	parent.links[port], n.links[in] = link{n, in}, link{parent, port}
	n.up[in] = true
	return true, nil
}

// same finds out whether the device at a port and one that was met are one: what is written into the one is read in the other.
func (r *round) same(t target, n, parent *node, port int) (bool, error) {
	r.temp++
	probe := uint32(tempTags) | r.temp
	if err := t.write(rapidio.RegComponentTag, probe); err != nil {
		return false, err
	}
	if err := r.lead(n.parent, n.port); err != nil {
		return false, err
	}
	got, err := r.reach(n).read(rapidio.RegComponentTag)
	if err != nil {
		return false, err
	}
	if err := r.lead(parent, port); err != nil {
		return false, err
	}
	return got == probe, t.write(rapidio.RegComponentTag, n.regTag)
}

// lead makes the routes of the "any" ID lead to a port of a switch, from the master port on.
func (r *round) lead(n *node, port int) error {
	if n == nil {
		return nil
	}
	if err := r.lead(n.parent, n.port); err != nil {
		return err
	}
	return r.setAny(n, port)
}

// meet reads a device that is locked, and finds out whether it is one of the round before.
func (r *round) meet(t target, parent *node, port int) (*node, error) {
	if r.switches >= maxSwitches || r.endpoints >= int(r.lastID) || r.switches*max(r.endpoints, 256) > maxEntries {
		return nil, fmt.Errorf("%w: %d switches, %d endpoints", errTooMany, r.switches, r.endpoints)
	}
	d, err := identify(t)
	if err != nil {
		return nil, err
	}
	n := &node{dev: d, depth: int(t.hop), parent: parent, port: port, any: unknown, fresh: true}
	if n.regTag, err = t.read(rapidio.RegComponentTag); err != nil {
		return nil, err
	}
	if !n.isSwitch() {
		return n, r.meetEndpoint(t, n)
	}
	n.in, n.links, n.up = inPort(d), make([]link, d.Ports()), make([]bool, d.Ports())
	n.up[n.in] = true
	if t.a.ids == rapidio.Large {
		limit, err := t.read(rapidio.RegRTLimit)
		if err != nil {
			return nil, err
		}
		if limit &= 0xffff; limit != 0 {
			r.lastID = min(r.lastID, rapidio.DestID(limit))
		}
	}
	if was := r.p.known[n.regTag]; was != nil && was.isSwitch() {
		r.recognize(n, was)
	}
	return n, nil
}

func (r *round) meetEndpoint(t target, n *node) error {
	v, err := t.read(rapidio.RegBaseDeviceID)
	if err != nil {
		return err
	}
	n.regID = r.ids.Of(v)
	if n.dev.PHY == 0 {
		// Its tag is the magic, so its ID says which it is.
		if n.done = n.regTag == rapidio.EnumComplete; !n.done {
			n.regID = r.ids.Any()
		}
		if was := r.p.byID[n.regID]; n.done && was != nil && was.dev.PHY == 0 {
			r.recognize(n, was)
		}
		return nil
	}
	v, err = t.read(n.dev.PHY + rapidio.PHYGenControl)
	if err != nil {
		return err
	}
	// A host numbers itself before anybody else does.
	n.done = v&rapidio.GenDiscovered != 0
	if v&(rapidio.GenDiscovered|rapidio.GenHost) == 0 {
		n.regID = r.ids.Any()
	}
	if was := r.p.known[n.regTag]; n.done && was != nil && !was.isSwitch() && was.dest == n.regID {
		r.recognize(n, was)
	}
	return nil
}

// recognize makes n what was there the round before, if it can be.
func (r *round) recognize(n, was *node) {
	if r.taken[was] || !alike(n.dev, was.dev) {
		return
	}
	r.taken[was] = true
	n.was, n.tag, n.table = was, was.tag, was.table
	n.dev = was.dev
	if n.fresh = !r.p.trusted; n.fresh {
		n.table = nil
	}
}

// errTooMany ends a walk.
var errTooMany = errors.New("there are more devices than can be")

// place gives a device its tag in this round. One that nobody knows keeps what it has where that may be right: then a host that was
// restarted changes nothing. A switch must be told from others at once; what is new gets its last tag when all were met.
func (r *round) place(t target, n *node) error {
	if n.was != nil {
		r.tags[n.tag] = n
		if n.dev.PHY != 0 || n.isSwitch() {
			n.regTag = n.tag
		}
		return nil
	}
	if tag := n.regTag; tag > firstTag && tag <= lastTag && r.tags[tag] == nil && r.p.known[tag] == nil && (n.isSwitch() || n.done) {
		n.tag = tag
		r.tags[tag] = n
		return nil
	}
	if !n.isSwitch() {
		return nil
	}
	r.temp++
	n.tag = tempTags | r.temp
	if err := t.write(rapidio.RegComponentTag, n.tag); err != nil {
		return err
	}
	got, err := t.read(rapidio.RegComponentTag)
	if err != nil {
		return err
	}
	if got != n.tag {
		return fmt.Errorf("its component tag is %#x after %#x was written: it cannot be told from others", got, n.tag)
	}
	n.regTag = n.tag
	r.tags[n.tag] = n
	return nil
}

// beyond walks on through the ports of a switch.
func (r *round) beyond(t target, n *node) error {
	if err := r.route(t, n, r.host, n.in); err != nil {
		return err
	}
	for port := range n.ports() {
		if port == n.in || n.links[port].to != nil || r.stopped { // in is the root's, too
			continue
		}
		if err := r.port(n, port); r.ends(err) {
			return err
		} else if err != nil && !r.stopped {
			r.later = append(r.later, link{n, port})
		}
	}
	return nil
}

// port walks on through one port of a switch, to which "any" IDs lead.
func (r *round) port(n *node, port int) error {
	t := r.reach(n)
	up, err := linked(t, n.dev, port)
	if err != nil {
		return err
	}
	n.up[port] = up
	if err := open(t, n.dev, port, up); err != nil || !up {
		return err
	}
	if n.depth >= rapidio.MaxHops {
		return fmt.Errorf("%w: %s is %d switches away", errTooMany, n.label(), n.depth)
	}
	if err := r.setAny(n, port); err != nil {
		return err
	}
	_, err = r.visit(n, port)
	return err
}

// ends tells whether an error ends the round; some end only the walk.
func (r *round) ends(err error) bool {
	if errors.Is(err, errBudget) || errors.Is(err, errTooMany) {
		r.stop("%v", err)
	}
	return err != nil && (r.fatal(err) || errors.Is(err, errLost))
}

// stop ends the walk where it is.
func (r *round) stop(format string, args ...any) {
	if !r.stopped {
		r.say("not looking further: "+format, args...)
	}
	r.stopped, r.left = true, maxBudget
}

// route writes an entry of a switch's table, if it does not hold it.
func (r *round) route(t target, n *node, id rapidio.DestID, port int) error {
	if n.held(id) == int16(port) {
		return nil
	}
	n.hold(id, unknown) // until it is certain
	if err := n.dev.Switch.Ops.AddEntry(r.ctx, t, rapidio.GlobalTable, id, uint8(port)); err != nil {
		return fmt.Errorf("route of %#x: %w", id, err)
	}
	n.hold(id, int16(port))
	return nil
}

// setAny makes the route of the "any" ID lead through a port: what is beyond it is then reached by r.any.
func (r *round) setAny(n *node, port int) error {
	if n.any == port {
		return nil
	}
	n.any = unknown
	if err := n.dev.Switch.Ops.AddEntry(r.ctx, r.reach(n), rapidio.GlobalTable, r.ids.Any(), uint8(port)); err != nil {
		return fmt.Errorf("route of any ID: %w", err)
	}
	n.any = port
	return nil
}

// reach is a node by the "any" ID, whose routes lead there.
func (r *round) reach(n *node) target {
	t := r.any(n.depth)
	t.ports = n.ports()
	return t
}
