package scan

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// errLinkDown says that the master port's own link is down.
var errLinkDown = errors.New("link inactive")

// enumerate is one round: locks, IDs, tables, and then the net as it was found. What of it fails leaves the net as it was, unless that
// the port's own link is down. The caller has the port's turn.
func (p *port) enumerate(ctx context.Context, force bool) (changed bool, err error) {
	r := &round{
		access: access{ctx: ctx, ops: p.m.Ops(), ids: p.m.IDs(), left: budget(p.m.IDs())},
		p:      p, host: rapidio.DestID(p.m.Host()), force: force, begun: time.Now(),
		tags: map[uint32]*node{}, taken: map[*node]bool{}, lastID: p.m.IDs().Any() - 1,
	}
	if err = r.begin(); err == nil {
		if err = r.walk(); err == nil {
			r.left = maxBudget // what is left to do is bounded by what was found
			r.number()
			r.plan()
			if err = r.settle(); err == nil {
				err = r.finish()
			}
			if err == nil {
				err = r.broken
			}
		}
	}
	p.last = time.Since(r.begun) - r.waited
	switch {
	case err == nil:
		changed = p.apply(r.nodes)
		p.role, p.trusted = host, true
		p.settled(r.trouble)
		return changed, nil
	case errors.Is(err, errLinkDown):
		p.empty()
		return false, err
	}
	r.retreatNow()
	p.trusted = false // some of it may have been written
	return false, err
}

// neighbourTime is how long a host tries to reach its neighbour: a port that had no link may be shut still, and another host is about to
// open it.
const neighbourTime = time.Second

// enumerateSoon is enumerate, that waits for the neighbour.
func (p *port) enumerateSoon(ctx context.Context, force bool) (changed bool, err error) {
	for end := time.Now().Add(neighbourTime); ; {
		changed, err = p.enumerate(ctx, force)
		if !errors.Is(err, errShut) || time.Now().After(end) {
			return changed, err
		}
		if err := sleep(ctx, neighbourTime/20); err != nil {
			return false, err
		}
	}
}

// maxBudget is no bound.
const maxBudget = int(^uint(0) >> 1)

// retreatTime is how long a round that was cut short may take to give its locks up.
const retreatTime = 2 * time.Second

// retreatNow retreats, also where the round's context has ended.
func (r *round) retreatNow() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), retreatTime)
	defer cancel()
	r.ctx, r.left = ctx, maxBudget
	r.retreat()
}

// begin looks whether the port may enumerate, and makes its own endpoint the host's.
func (r *round) begin() error {
	up, err := r.p.linkUp(r.own())
	if err != nil {
		return err
	}
	if !up {
		return errLinkDown
	}
	own, self := r.own(), r.p.self
	held, err := own.read(rapidio.RegHostLock)
	if err != nil {
		return err
	}
	if held &= rapidio.LockFree; held != rapidio.LockFree && held != uint32(r.host) && !r.force {
		return fmt.Errorf("%w: %#x has locked this endpoint", errLost, held)
	}
	if _, err := r.acquire(own); err != nil {
		return err
	}
	r.ownLocked = true
	theirs, err := r.p.enumerated(own)
	if err != nil {
		return err
	}
	if theirs && !r.force {
		return fmt.Errorf("%w: it has numbered this endpoint", errLost)
	}
	return r.claim(own, self)
}

// claim writes what a host's endpoint has: its ID, its tag, that it is a host's.
func (r *round) claim(own target, self *rapidio.Device) error {
	if err := own.update(rapidio.RegBaseDeviceID, r.ids.Reg(r.ids.Any()), r.ids.Reg(r.host)); err != nil {
		return err
	}
	if self.PHY == 0 {
		return nil
	}
	if err := own.update(rapidio.RegComponentTag, ^uint32(0), firstTag); err != nil {
		return err
	}
	if err := open(own, self, 0, true); err != nil {
		return err
	}
	const mine = rapidio.GenHost | rapidio.GenMaster
	return own.update(self.PHY+rapidio.PHYGenControl, mine, mine)
}

// linkUp tells whether the port's own link is up; without an LP-serial block, whether anybody answers.
func (p *port) linkUp(own target) (bool, error) {
	if p.self == nil {
		d, err := rapidio.ReadDevice(own.a.ctx, own)
		if err != nil {
			return false, fmt.Errorf("its own registers: %w", err)
		}
		p.self = d
	}
	if p.self.PHY != 0 {
		v, err := own.read(portReg(p.self, rapidio.PHYPortErrStat, 0))
		return v&rapidio.PortOK != 0, err
	}
	_, err := own.a.any(0).read(rapidio.RegDeviceID)
	if err != nil && !own.a.fatal(err) {
		return false, nil
	}
	return err == nil, err
}

// enumerated tells whether another host has numbered the port's own endpoint, which then is no host's.
func (p *port) enumerated(own target) (bool, error) {
	if p.self.PHY != 0 {
		v, err := own.read(p.self.PHY + rapidio.PHYGenControl)
		return v&(rapidio.GenDiscovered|rapidio.GenHost) == rapidio.GenDiscovered, err
	}
	done, err := discovered(own, p.self)
	if err != nil || !done {
		return false, err
	}
	id, err := own.read(rapidio.RegBaseDeviceID)
	return own.a.ids.Of(id) != rapidio.DestID(p.m.Host()), err
}
