package scan

import (
	"errors"
	"fmt"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// errNoID says that all IDs are taken.
var errNoID = errors.New("no device ID is free")

// settle writes what was decided, children first: IDs, component tags, where port-writes go, routing tables. Subtrees in which nothing
// changes are not entered.
func (r *round) settle() error {
	r.mark(r.root)
	return r.climb(r.root, func(n *node) bool { return n.dirty }, r.settleNode)
}

// mark finds what is to be written.
func (r *round) mark(n *node) {
	n.dirty = n.fresh
	for id := range n.want {
		if n.lacks(id) {
			n.dirty = true
			break
		}
	}
	for _, c := range n.children {
		r.mark(c)
		n.dirty = n.dirty || c.dirty && !c.failed
	}
}

// climb calls f of the nodes below n and then of n, for those that are wanted. "Any" IDs lead to each while f has it. A node whose
// f fails is left out, with what is beyond it.
func (r *round) climb(n *node, want func(*node) bool, f func(*node, target) error) error {
	for _, c := range n.children {
		if !want(c) {
			continue
		}
		err := r.setAny(n, c.port)
		if err == nil {
			if err = r.climb(c, want, f); err != nil {
				return err
			}
			continue
		}
		if r.fatal(err) {
			return err
		}
		r.fail(c, err)
	}
	if n.failed {
		return nil
	}
	err := f(n, r.reach(n))
	if err != nil && !r.fatal(err) {
		r.fail(n, err)
		err = nil
	}
	return err
}

// fail leaves a node out, and what is beyond it. It may be there in the next round.
func (r *round) fail(n *node, err error) {
	switch {
	case n == r.root:
		r.broken = errors.Join(r.broken, fmt.Errorf("the neighbour: %w", err))
	case !n.failed:
		r.trouble++
		r.say("leaving out what is at %s: %v", n.where(), err)
	}
	r.drop(n)
}

func (r *round) drop(n *node) {
	n.failed = true
	for _, c := range n.children {
		r.drop(c)
	}
}

// settleNode writes what was decided of one node.
func (r *round) settleNode(n *node, t target) error {
	if n.fresh {
		if err := reportTo(t, n.dev, r.host); err != nil {
			return fmt.Errorf("where its port-writes go: %w", err)
		}
	}
	if !n.isSwitch() {
		return r.settleEndpoint(n, t)
	}
	if n.fresh {
		if err := r.untold(n, t); err != nil {
			return err
		}
	}
	for id, port := range n.want {
		if !n.lacks(id) {
			continue
		}
		if err := r.route(t, n, rapidio.DestID(id), int(port)); err != nil {
			return err
		}
	}
	if n.fresh {
		if err := r.sweep(n, t); err != nil {
			return err
		}
	}
	return r.retag(n, t)
}

// untold looks whether a link came or went between the walk and now: only from now on does the switch tell. If so there will be another round.
func (r *round) untold(n *node, t target) error {
	for port := range n.ports() {
		up, err := linked(t, n.dev, port)
		if err != nil {
			return err
		}
		if up != n.up[port] {
			r.p.s.Link(r.p.m, true)
			return nil
		}
	}
	return nil
}

// sweepRun is after how many entries in a row that lead nowhere the rest of a table counts as empty. Hosts give the lowest IDs that are free, so
// what an earlier one has left is near.
const sweepRun = 32

// sweep makes entries invalid beyond the IDs in use, that another host left, or this one before it was restarted: there a switch would send packets
// for nobody on a way for ever.
func (r *round) sweep(n *node, t target) error {
	empty := 0
	for id := min(n.dense, len(n.want)); id < int(r.ids.Any()) && empty < sweepRun; id++ {
		if id < len(n.want) && n.want[id] != rapidio.InvalidRoute {
			continue
		}
		port, err := n.dev.Switch.Ops.GetEntry(r.ctx, t, rapidio.GlobalTable, rapidio.DestID(id))
		if err != nil {
			return err
		}
		if empty++; port != rapidio.InvalidRoute {
			empty = 0
			if err := r.route(t, n, rapidio.DestID(id), rapidio.InvalidRoute); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *round) settleEndpoint(n *node, t target) error {
	if n.regID != n.dest || n.fresh {
		if err := t.update(rapidio.RegBaseDeviceID, r.ids.Reg(r.ids.Any()), r.ids.Reg(n.dest)); err != nil {
			return fmt.Errorf("giving it ID %#x: %w", n.dest, err)
		}
		n.regID = n.dest
	}
	if n.dev.PHY == 0 {
		return nil // its tag is for the magic
	}
	return r.retag(n, t)
}

// retag writes a node's component tag where it has another one.
func (r *round) retag(n *node, t target) error {
	if n.regTag == n.tag {
		return nil
	}
	if err := t.write(rapidio.RegComponentTag, n.tag); err != nil {
		return fmt.Errorf("giving it component tag %#x: %w", n.tag, err)
	}
	n.regTag = n.tag
	return nil
}

// finish tells endpoints that they are enumerated, ends the routes of the "any" ID, and releases the locks; children first, since a
// switch's lock is what guards the way to them.
func (r *round) finish() error {
	err := r.climbAll(r.root, func(n *node, t target) error {
		if err := r.signal(n, t); err != nil {
			return err
		}
		return r.unlock(n, t)
	})
	if err != nil {
		return err
	}
	own, self := r.own(), r.p.self
	if self.PHY != 0 {
		err = own.update(self.PHY+rapidio.PHYGenControl, genAll, genAll)
	} else {
		err = own.write(rapidio.RegComponentTag, rapidio.EnumComplete)
	}
	if err == nil {
		err = r.release(own, r.host)
	}
	if err != nil {
		return fmt.Errorf("its own registers: %w", err)
	}
	r.ownLocked = false
	return nil
}

const genAll = rapidio.GenHost | rapidio.GenMaster | rapidio.GenDiscovered

// signal marks an endpoint as enumerated. Another host's is told by that that it is none any more.
func (r *round) signal(n *node, t target) error {
	if n.isSwitch() || n.failed || n.done && !n.fresh {
		return nil
	}
	var err error
	if n.dev.PHY != 0 {
		err = t.update(n.dev.PHY+rapidio.PHYGenControl, genAll, rapidio.GenMaster|rapidio.GenDiscovered)
	} else if n.regTag != rapidio.EnumComplete {
		err = t.write(rapidio.RegComponentTag, rapidio.EnumComplete)
	}
	if err != nil {
		return fmt.Errorf("marking it as enumerated: %w", err)
	}
	n.done = true
	return nil
}

// unlock gives a node's lock up, and before it, what only its holder may use.
func (r *round) unlock(n *node, t target) error {
	if n.isSwitch() && n.any != rapidio.InvalidRoute {
		if err := r.setAny(n, rapidio.InvalidRoute); err != nil {
			return err
		}
	}
	return r.release(t, r.host)
}

// climbAll is climb for everything that is locked, whether or not it failed before.
func (r *round) climbAll(n *node, f func(*node, target) error) error {
	for _, c := range n.children {
		err := r.setAny(n, c.port)
		if err == nil {
			if err = r.climbAll(c, f); err != nil {
				return err
			}
			continue
		}
		if r.fatal(err) {
			return err
		}
		r.fail(c, err)
	}
	err := f(n, r.reach(n))
	if err == nil {
		return nil
	}
	if r.fatal(err) {
		return err
	}
	r.fail(n, err)
	return nil
}

// retreat gives up all locks that the round holds, as far as they can be reached. What goes wrong then, goes wrong; the next round,
// or whoever waits, deals with what is left.
func (r *round) retreat() {
	if r.root != nil {
		_ = r.climbAll(r.root, r.unlock)
	}
	if r.ownLocked {
		_ = r.release(r.own(), r.host)
	}
}
