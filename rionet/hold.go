package rionet

import (
	"time"
)

// A peer is active here from its JOIN on, and we are there once it took ours. Frames that it gets before that have 4096 bytes for it, since it
// does not know yet that we keep lengths. So they wait until it says ALIVE, which it says to who keeps lengths, and at once to who says that
// he does. That its port took our doorbells would not do: it may look at its mailbox before it looks at them.

// holdFor is how long they wait at most: they take room of the ring.
const holdFor = time.Second

// hold lets frames to a peer wait that is going to be told that we keep lengths. Called with mu held.
func (d *Device) hold(p *peer, now time.Time) {
	told := !p.exact.Load() && now.Sub(p.joined) < joinFirst // this JOIN is a classic peer's answer to ours
	if d.classic || p.gone || p.mute || told {
		return
	}
	end := now.Add(holdFor)
	p.held.Store(&end)
}

// holds tells whether frames to a peer are to wait. One that says nothing for too long lets them wait no more. Called with mu held.
func (q *txQueue) holds(p *peer, now time.Time) bool {
	end := p.held.Load()
	if end == nil {
		return false
	}
	if now.Before(*end) {
		return true
	}
	d := q.dev
	d.mu.Lock()
	defer d.mu.Unlock()
	if p.held.CompareAndSwap(end, nil) {
		p.mute = true
	}
	return false
}

// confirm lets a peer know, by ALIVE, that we took its word that it keeps lengths: its frames wait for that. Called with mu held.
func (d *Device) confirm(p *peer, now time.Time) {
	if p.gone || !p.exact.Load() {
		p.confirm = false
		return
	}
	p.confirm, p.nextAlive = true, latest(now, p.asked.Add(askAgain))
	d.wakeKeeper()
}

// latest is the later of two.
func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// What is logged of a peer: so many lines at once, and then one in so long.
const (
	sayFirst = 10
	sayEvery = 10 * time.Second
)

// pace limits lines by time.
type pace struct {
	next   time.Time // when the next line is due, with sayEvery between any two
	untold int       // lines that were left out since
}

// may tells whether there is to be a line now: it may be early by those that may come at once.
func (c *pace) may(now time.Time) bool {
	due := latest(now, c.next)
	if due.Sub(now) >= sayFirst*sayEvery {
		c.untold++
		return false
	}
	c.next = due.Add(sayEvery)
	return true
}

// say logs what became of a peer. One that comes and goes all the time does not fill the log. Called with mu held.
func (d *Device) say(p *peer, now time.Time, what string, more ...any) {
	if !p.said.may(now) {
		return
	}
	args := append([]any{"peer", p.dev.Name(), "destid", p.id}, more...)
	if p.said.untold > 0 {
		args = append(args, "untold", p.said.untold)
		p.said.untold = 0
	}
	d.log.Info(what, args...)
}
