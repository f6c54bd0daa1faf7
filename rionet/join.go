package rionet

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/crash"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Doorbells. The first two are the kernel's.
const (
	doorbellJoin  = 0x1000 // the sender is here; who does not know it yet answers with the same
	doorbellLeave = 0x1001 // the sender goes
	doorbellExact = 0x1002 // ours, before a JOIN: the sender's messages have exactly their frames' lengths
	doorbellAlive = 0x1003 // ours: its response matters; and who sends it keeps lengths
	doorbellLast  = doorbellAlive
)

// Times of the keeper.
const (
	joinFirst   = 100 * time.Millisecond // the second JOIN comes so long after the first, then twice as long, and so on
	joinSlowest = 2 * time.Second
	rejoinGap   = time.Second            // an active peer's JOIN is answered at most so often, or two would answer each other for ever
	aliveEvery  = time.Second            // so often an active peer that was not heard of is asked
	linkEvery   = time.Second            // so often the port's own state is read, and when its link changes
	ringTime    = time.Second            // a doorbell has its response by then, by any fabric's timeouts
	leaveTime   = time.Second            // all LEAVEs of Close
	askAgain    = 100 * time.Millisecond // so soon again, after no good answer
	lostAlive   = 3                      // so many bad answers in a row are a lost peer
	exactTries  = 4                      // so often EXACT goes to a peer that takes JOIN and refuses EXACT
)

// doorbell is told of doorbells that came in.
func (d *Device) doorbell(src rapidio.DestID, info uint16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	p := d.peers.get(src)
	if p == nil {
		d.onStray(src, info, now)
		return
	}
	switch info {
	case doorbellJoin:
		d.onJoin(p, now)
	case doorbellLeave:
		d.deactivate(p, now)
		p.wait, p.nextJoin = joinSlowest, now.Add(joinSlowest) // it just went
	case doorbellExact:
		p.announced = true
		d.keepsLengths(p, now)
	case doorbellAlive:
		d.keepsLengths(p, now)
		p.held.Store(nil) // it keeps our lengths: it says this to nobody else
		p.mute = false
		if !p.active.Load() { // it takes us for active, so it missed that we lost it
			p.nextJoin = latest(now, p.joined.Add(joinFirst)) // it answers a JOIN with ALIVE, so two might not end
			d.wakeKeeper()
		}
	}
}

// onStray remembers what an endpoint said that was not found yet. Called with mu held.
func (d *Device) onStray(src rapidio.DestID, info uint16, now time.Time) {
	s, known := d.strays[src]
	switch info {
	case doorbellJoin:
		s.joined = true
	case doorbellExact:
		s.announced, s.joined = true, false
	case doorbellLeave:
		delete(d.strays, src)
		return
	default:
		return
	}
	if !known && len(d.strays) >= maxStrays {
		maps.DeleteFunc(d.strays, func(_ rapidio.DestID, s stray) bool { return now.Sub(s.at) >= strayFor })
	}
	if known || len(d.strays) < maxStrays {
		s.at = now
		d.strays[src] = s
	}
}

// onJoin takes a peer's JOIN. One that was not active is answered; so is one that was, as it may have begun anew without
// a LEAVE. Called with mu held.
func (d *Device) onJoin(p *peer, now time.Time) {
	answer := !p.active.Load() || now.Sub(p.joined) >= rejoinGap
	d.activate(p, now, answer)
	if answer {
		p.owed, p.nextJoin = true, latest(now, p.joined.Add(joinFirst)) // others are owed one, too
		d.wakeKeeper()
	}
}

// wakeKeeper makes the keeper look again.
func (d *Device) wakeKeeper() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// keep sends JOIN to whom it is due, sees whether active peers are alive, and watches the port, until the device is
// closed or its port is gone.
func (d *Device) keep() {
	defer crash.Report()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var nextLink time.Time
	for d.life.Err() == nil {
		now := time.Now()
		if d.relook.Swap(false) || !now.Before(nextLink) || !d.linkUp() { // with the link down what woke us may be that it came up
			d.lookAtPort()
			now = time.Now()
			nextLink = now.Add(linkEvery)
		}
		p, join, at := d.due(now)
		switch {
		case p != nil && join:
			d.sendJoin(p)
			continue
		case p != nil:
			d.ask(p)
			continue
		}
		if at.IsZero() || at.After(nextLink) {
			at = nextLink
		}
		timer.Reset(time.Until(at))
		select {
		case <-timer.C:
		case <-d.wake:
		case <-d.life.Done():
		case <-d.port.Done():
			d.fail()
			return
		}
	}
}

// due is the peer that is to get a JOIN now, or to be asked whether it is alive; nil: none, until at. JOINs that are owed
// come first, then what confirms one: somebody waits for them.
func (d *Device) due(now time.Time) (p *peer, join bool, at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.linkUp() {
		return nil, false, at
	}
	later := func(t time.Time) {
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	const plain, waitedFor = 1, 2
	rank := 0
	take := func(q *peer, isJoin bool, r int) {
		if r > rank {
			p, join, rank = q, isJoin, r
		}
	}
	for _, q := range d.all {
		switch {
		case q.owed || !q.active.Load():
			later(q.nextJoin)
			switch {
			case q.nextJoin.After(now):
			case q.owed:
				return q, true, at
			default:
				take(q, true, plain)
			}
		case q.nextAlive.After(now):
			later(q.nextAlive)
		case q.confirm:
			take(q, false, waitedFor)
		case q.heard.Swap(false):
			q.silent, q.nextAlive = 0, now.Add(aliveEvery)
			later(q.nextAlive)
		default:
			take(q, false, plain)
		}
	}
	return p, join, at
}

// tell sends a doorbell to a peer.
func (d *Device) tell(ctx context.Context, p *peer, info uint16) error {
	ctx, cancel := context.WithTimeout(ctx, ringTime)
	defer cancel()
	return p.dev.SendDoorbell(ctx, info)
}

// sendJoin sends JOIN to a peer, after word that its length will be exact. A classic peer may refuse what it does not know; so does one that is
// just opening its doorbells, and takes the JOIN. So to who refused the word both go again, a few times.
func (d *Device) sendJoin(p *peer) {
	d.mu.Lock()
	owed := p.owed
	p.owed = false // a JOIN that comes from now on is answered again
	d.mu.Unlock()
	var err error
	refused := false
	if !d.classic {
		err = d.tell(d.life, p, doorbellExact)
		refused = errors.Is(err, rapidio.ErrResponse)
	}
	if err == nil || refused {
		err = d.tell(d.life, p, doorbellJoin)
	}
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err != nil:
		p.owed = p.owed || owed
	case refused && p.tries < exactTries-1:
		p.tries++
		p.owed, p.joined = true, now
	default:
		p.joined = now
	}
	if giveUp := refused && !p.owed; err == nil && (giveUp || !p.exact.Load()) { // it will not say ALIVE
		p.held.Store(nil)
	}
	p.nextJoin = now.Add(p.wait)
	p.wait = min(2*p.wait, joinSlowest)
	d.judge(p, err, now)
}

// ask sees whether an active peer is still there.
func (d *Device) ask(p *peer) {
	d.mu.Lock()
	confirm := p.confirm
	p.confirm, p.asked = false, time.Now()
	d.mu.Unlock()
	info := uint16(doorbellAlive)
	if !p.exact.Load() {
		info = doorbellJoin // a classic peer knows no other, and ignores this one while we are active
		if !d.classic {     // or it takes us for one, and we it
			_ = d.tell(d.life, p, doorbellExact)
		}
	}
	err := d.tell(d.life, p, info)
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case p.confirm: // once more, since then
		p.nextAlive = now.Add(askAgain)
	case err != nil && confirm && p.exact.Load():
		p.confirm, p.nextAlive = true, now.Add(askAgain)
	default:
		p.nextAlive = now.Add(aliveEvery)
	}
	d.judge(p, err, now)
}

// judge takes an active peer for gone, or not, by what became of a doorbell to it. A port says Error of one that was lost too, so it takes
// several. Called with mu held.
func (d *Device) judge(p *peer, err error, now time.Time) {
	switch {
	case !p.active.Load():
	case err == nil || errors.Is(err, rapidio.ErrRetry):
		p.silent = 0
	case d.life.Err() != nil || errors.Is(err, bus.ErrGone): // ours, not the peer's fault
	default:
		p.nextAlive = now.Add(askAgain)
		if p.silent++; p.silent >= lostAlive {
			d.deactivate(p, now)
		}
	}
}

// leave says LEAVE to all active peers.
func (d *Device) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
	defer cancel()
	for _, p := range d.activePeers() {
		select {
		case <-ctx.Done():
			return
		case <-d.port.Done():
			return
		default:
		}
		_ = d.tell(ctx, p, doorbellLeave) // who does not hear it finds out by itself
	}
}
