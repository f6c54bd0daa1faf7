package scan

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Times of discovery.
const (
	pollFirst = 20 * time.Millisecond // how soon registers are looked at again that nobody tells of
	pollLast  = time.Second
	passes    = 4 // how often a net is looked at that changes meanwhile
	passPause = 50 * time.Millisecond
)

// awaitAndDiscover waits for a host to be done, and discovers. A host that lost does not wait for ever for the one that won.
func (p *port) awaitAndDiscover(ctx context.Context) error {
	wait := p.s.o.DiscoverTimeout
	if p.m.Host() >= 0 {
		wait = min(wait, p.s.o.LockTimeout)
	}
	err := p.await(ctx, wait)
	if errors.Is(err, errNotYet) && p.m.Host() >= 0 {
		p.say("no host has finished in %v; enumerating", wait)
		changed, err := p.enumerate(ctx, true)
		if err == nil && changed {
			p.forward(ctx, pending{})
		}
		return err
	}
	if err != nil {
		return err
	}
	return p.discover(ctx)
}

// errNotYet says that no host has enumerated.
var errNotYet = fmt.Errorf("not enumerated by any host: %w", bus.ErrTimeout)

// await waits until the port's own endpoint was enumerated by another host.
func (p *port) await(ctx context.Context, wait time.Duration) error {
	a := &access{ctx: ctx, ops: p.m.Ops(), ids: p.m.IDs(), left: maxBudget}
	end := time.NewTimer(wait)
	defer end.Stop()
	for poll := pollFirst; ; poll = min(2*poll, pollLast) {
		done, err := p.ready(a)
		if done || err != nil {
			return err
		}
		t := time.NewTimer(poll)
		select {
		case <-p.cfg:
		case <-t.C:
		case <-end.C:
			t.Stop()
			return errNotYet
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		case <-p.m.Done():
			t.Stop()
			return bus.ErrGone
		}
		t.Stop()
	}
}

// ready tells whether the port's own endpoint was enumerated by another host.
func (p *port) ready(a *access) (bool, error) {
	up, err := p.linkUp(a.own())
	if err != nil || !up {
		return false, err
	}
	if p.m.Host() >= 0 {
		return p.enumerated(a.own())
	}
	return discovered(a.own(), p.self)
}

// actAgent discovers again what a host enumerated, and a host that lost looks whether it must be one again.
func (p *port) actAgent(ctx context.Context, e pending, periodic bool) error {
	a := &access{ctx: ctx, ops: p.m.Ops(), ids: p.m.IDs(), left: maxBudget}
	up, err := p.linkUp(a.own())
	if err != nil {
		return err
	}
	if !up {
		p.empty()
		return nil
	}
	done, err := p.ready(a)
	if err != nil {
		return err
	}
	if p.m.Host() >= 0 && p.bossGone(a, done, periodic) {
		p.s.log.Info(fmt.Sprintf("RIO: enumerate master port %d, %s", p.m.ID(), p.m.Name()))
		changed, err := p.enumerate(ctx, true)
		if err == nil && changed {
			p.forward(ctx, e)
		}
		return err
	}
	if !done {
		if p.m.Host() < 0 || e.link {
			p.empty() // these registers are new
		}
		return nil
	}
	return p.discover(ctx)
}

// bossGone tells whether the host that won is no more: twice it did not answer, or was not done, or its link came back without it.
func (p *port) bossGone(a *access, done, periodic bool) bool {
	if !periodic || p.boss == a.ids.Any() {
		return false
	}
	if done {
		t := target{a: a, dest: p.boss, hop: rapidio.MaxHops}
		v, err := t.read(rapidio.RegBaseDeviceID)
		if err == nil && a.ids.Of(v) == p.boss {
			p.missed = 0
			return false
		}
	}
	p.missed++
	return p.missed >= 2
}

// search is one pass of discovery: it goes the ways of all IDs, as switches route them, and reads what is there.
type search struct {
	access
	p       *port
	own     rapidio.DestID
	root    *node
	nodes   []*node
	tags    map[uint32]*node
	taken   map[*node]bool
	boss    rapidio.DestID
	trouble []string // what was left out, and why
}

// discover makes the net what a host enumerated. While that changes, it looks again: what does not answer is gone only if it does not
// answer then either.
func (p *port) discover(ctx context.Context) error {
	for pass := 1; ; pass++ {
		begun := time.Now()
		s := &search{
			access: access{ctx: ctx, ops: p.m.Ops(), ids: p.m.IDs(), left: budget(p.m.IDs())}, p: p,
			tags: map[uint32]*node{}, taken: map[*node]bool{},
		}
		err := s.run()
		if s.fatal(err) || err != nil && pass == passes {
			p.last = time.Since(begun) - s.waited
			return fmt.Errorf("discovering: %w", err)
		}
		sure := err == nil && len(s.trouble) == 0 && (pass > 1 || len(s.taken) == len(p.order)) // what went may come back at once
		if sure || err == nil && pass == passes {
			for _, text := range s.trouble {
				p.say("%s", text)
			}
			p.last = time.Since(begun) - s.waited
			if s.boss != s.ids.Any() && s.boss != p.boss {
				p.boss, p.missed = s.boss, 0
			}
			p.apply(s.nodes)
			p.settled(len(s.trouble))
			return nil
		}
		if err := sleep(ctx, time.Duration(pass)*passPause); err != nil {
			return err
		}
	}
}

// run is the pass.
func (s *search) run() error {
	v, err := s.access.own().read(rapidio.RegBaseDeviceID)
	if err != nil {
		return fmt.Errorf("its own ID: %w", err)
	}
	s.own = s.ids.Of(v)
	s.boss = s.ids.Any()
	if s.root, err = s.meet(s.any(0), nil, 0); err != nil {
		return fmt.Errorf("the neighbour: %w", err)
	}
	if !s.root.isSwitch() {
		return nil
	}
	ids, err := s.listed()
	if err != nil {
		return fmt.Errorf("the neighbour: %w", err)
	}
	if err := s.follow(s.root, 0, ids); err != nil {
		return err
	}
	return s.tables(ids)
}

// follow goes on from a switch, so many switches away, on the ways of IDs that lead there. What fails is left out.
func (s *search) follow(n *node, hop int, ids []rapidio.DestID) error {
	if len(ids) == 0 {
		return nil
	}
	if hop > len(s.nodes) || hop >= rapidio.MaxHops {
		return s.leave(errors.New("it goes in a circle"), ids[0])
	}
	if err := s.entries(target{a: &s.access, dest: ids[0], hop: uint8(hop), ports: n.ports()}, n, ids); err != nil {
		return s.leave(err, ids[0])
	}
	by := make([][]rapidio.DestID, n.ports())
	for _, id := range ids {
		// The way may end here: it is a switch's own, or ours.
		if port := int(n.held(id)); port < len(by) && !(n == s.root && port == n.in) {
			by[port] = append(by[port], id)
		}
	}
	for port, ids := range by {
		if len(ids) == 0 {
			continue
		}
		if n.links[port].to == nil {
			if err := s.step(n, port, ids[0], hop+1); err != nil {
				if err := s.leave(err, ids[0]); err != nil {
					return err
				}
				continue
			}
		}
		if to := n.links[port].to; to.isSwitch() {
			if err := s.follow(to, hop+1, ids); err != nil {
				return err
			}
		}
	}
	return nil
}

// leave takes an error of what is on the way to an ID: it is returned if it ends the pass.
func (s *search) leave(err error, id rapidio.DestID) error {
	if s.fatal(err) || errors.Is(err, errBudget) {
		return err
	}
	if len(s.trouble) < maxSaid {
		s.trouble = append(s.trouble, fmt.Sprintf("leaving out what is on the way to %#x: %v", id, err))
	}
	return nil
}

// step finds out what is at a port of a switch.
func (s *search) step(from *node, port int, id rapidio.DestID, hop int) error {
	t := target{a: &s.access, dest: id, hop: uint8(hop)}
	n, err := s.meet(t, from, port)
	if err != nil {
		return err
	}
	from.links[port] = link{n, n.in}
	if !n.isSwitch() {
		return nil
	}
	in := n.in
	if n.prev != from || n.port != port { // it was met before, by another port
		v, err := t.read(rapidio.RegSwitchPort)
		if err != nil {
			return err
		}
		if in = int(v & 0xff); in >= n.ports() {
			return fmt.Errorf("%s, reached by its port %d of %d", n.label(), in, n.ports())
		}
		from.links[port] = link{n, in}
	}
	n.links[in] = link{from, port}
	return nil
}

// meet reads what is there: a switch that was met before, by its component tag, or something new.
func (s *search) meet(t target, from *node, port int) (*node, error) {
	tag, err := t.read(rapidio.RegComponentTag)
	if err != nil {
		return nil, err
	}
	if n := s.tags[tag]; n != nil && n.isSwitch() {
		return n, nil
	}
	d, err := identify(t)
	if err != nil {
		return nil, err
	}
	n := &node{dev: d, parent: from, prev: from, port: port, tag: tag, depth: int(t.hop), path: t.dest, hop: int(t.hop)}
	if n.isSwitch() {
		n.in = inPort(d)
		n.back, n.links = n.in, make([]link, d.Ports())
		if tag == 0 || tag >= tempTags {
			return nil, fmt.Errorf("switch %04x:%04x has no component tag (%#x)", d.VID, d.DID, tag)
		}
		s.recognize(n, s.p.known[tag])
	} else if err := s.meetEndpoint(t, n); err != nil {
		return nil, err
	}
	if s.tags[n.tag] != nil {
		return nil, fmt.Errorf("two devices have component tag %#x", n.tag)
	}
	s.tags[n.tag] = n
	s.nodes = append(s.nodes, n)
	return n, nil
}

func (s *search) meetEndpoint(t target, n *node) error {
	v, err := t.read(rapidio.RegBaseDeviceID)
	if err != nil {
		return err
	}
	n.dest = s.ids.Of(v)
	if s.root != nil && n.dest != t.dest {
		return fmt.Errorf("the endpoint there has ID %#x", n.dest)
	}
	if n.dev.PHY == 0 {
		n.tag = magicTags | uint32(n.dest)
	} else if v, err = t.read(n.dev.PHY + rapidio.PHYGenControl); err != nil {
		return err
	} else if v&rapidio.GenHost != 0 {
		s.boss = n.dest
	}
	if was := s.p.known[n.tag]; was != nil && was.dest == n.dest {
		s.recognize(n, was)
	}
	return nil
}

// magicTags are the tags, in memory, of endpoints whose register has the 2005 magic: with their IDs they are told apart.
const magicTags = tempTags

func (s *search) recognize(n, was *node) {
	if was != nil && !s.taken[was] && alike(n.dev, was.dev) && was.isSwitch() == n.isSwitch() {
		s.taken[was] = true
		n.was, n.dev = was, was.dev
	}
}
