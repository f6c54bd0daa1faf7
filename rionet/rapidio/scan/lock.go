package scan

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// errLost says that a host with a higher ID, or one that was here first, enumerates.
var errLost = errors.New("a remote host enumerates")

// Times of locks.
const (
	lockRetry    = time.Millisecond // as the kernel has it
	lockRetryMax = 16 * time.Millisecond
	// lockGrace is how long a lock with a higher ID must not move until it counts as a host's: agents hold a switch's for a few accesses only.
	lockGrace = 100 * time.Millisecond
)

// Bounds of what a device with a strange lock register may cost.
const (
	maxAttempts  = 64
	maxTakeovers = 8
)

// wait is how somebody waits for a lock that another one has.
type wait struct {
	last  uint32
	since time.Time
	pause time.Duration
}

// held takes what the lock holds now, and returns how long that has been so.
func (w *wait) held(v uint32) time.Duration {
	now := time.Now()
	if v != w.last || w.since.IsZero() {
		w.last, w.since, w.pause = v, now, lockRetry
	}
	return now.Sub(w.since)
}

func (w *wait) sleep(a *access) error {
	begun := time.Now()
	err := sleep(a.ctx, w.pause)
	a.waited += time.Since(begun)
	w.pause = min(2*w.pause, lockRetryMax)
	a.left++ // waiting is not what the budget bounds
	return err
}

// acquire takes a device's lock for a host. mine: it was held with our ID already. The lock is a register that takes an ID while it is
// free, and that its holder frees by writing its ID again: so it is written only where that is certain to be right, and what it then
// holds, not the write's response, says who has it.
//
// A lower host's lock is waited for: that host retreats when it meets ours. A higher host's means that we have lost. An agent's is a
// switch's, for a few accesses, and waited for. One that does not change for the lock timeout belongs to somebody who died, and is taken
// over: a lower one's always, a higher one's only by a round that may (force), since a lost host first waits to be discovered; an
// agent's as soon as that does not answer.
func (r *round) acquire(t target) (mine bool, err error) {
	me := uint32(r.host)
	var w wait
	attempts := 0
	defer func() {
		if err != nil && attempts > 0 {
			_ = r.surrender(t, r.host) // it may have taken the ID
		}
	}()
	for {
		held, err := t.read(rapidio.RegHostLock)
		if err != nil {
			return false, err
		}
		switch held &= rapidio.LockFree; held {
		case me:
			return attempts == 0, nil
		case rapidio.LockFree:
			if attempts++; attempts > maxAttempts {
				return false, errors.New("the lock register does not take an ID")
			}
			// A lost response is no matter: the next read tells.
			if err := t.writeOnce(rapidio.RegHostLock, me); err != nil && !unanswered(err) {
				return false, fmt.Errorf("locking: %w", err)
			}
			continue
		}
		took := w.held(held)
		over, err := r.over(held, took)
		if err != nil {
			return false, err
		}
		if over {
			r.say("taking over the lock of %#x, which has gone", held)
			if err := t.writeOnce(rapidio.RegHostLock, held); err != nil && !unanswered(err) {
				return false, fmt.Errorf("taking over a lock: %w", err)
			}
			w = wait{}
			if r.takeovers++; r.takeovers > maxTakeovers {
				return false, errors.New("locks that were taken over come back")
			}
			continue
		}
		if err := w.sleep(&r.access); err != nil {
			return false, err
		}
	}
}

// over decides what to do with a lock that somebody else has for so long: whether it may be taken over, or is lost to.
func (r *round) over(held uint32, took time.Duration) (bool, error) {
	if took >= r.p.s.o.LockTimeout {
		if held > uint32(r.host) && !r.force && r.p.byID[rapidio.DestID(held)] == nil {
			return false, fmt.Errorf("%w: %#x holds a lock", errLost, held)
		}
		return true, nil
	}
	if n := r.p.byID[rapidio.DestID(held)]; n != nil {
		if took == 0 {
			return false, nil
		}
		v, err := (target{a: &r.access, dest: n.dest, hop: rapidio.MaxHops}).read(rapidio.RegBaseDeviceID)
		if err == nil && r.ids.Of(v) == n.dest {
			host, err := r.isHost(n)
			if err == nil && host && held > uint32(r.host) {
				return false, fmt.Errorf("%w: %#x holds a lock", errLost, held)
			}
			return false, nil
		}
		return err == nil || unanswered(err), nil // it is another one by now, or there is none
	}
	if held > uint32(r.host) && !r.force && took >= lockGrace {
		return false, fmt.Errorf("%w: %#x holds a lock", errLost, held)
	}
	return false, nil
}

// isHost tells whether an endpoint has become a host's.
func (r *round) isHost(n *node) (bool, error) {
	if n.dev.PHY == 0 {
		return false, nil
	}
	v, err := (target{a: &r.access, dest: n.dest, hop: rapidio.MaxHops}).read(n.dev.PHY + rapidio.PHYGenControl)
	return v&rapidio.GenHost != 0, err
}

// release gives a device's lock up, if it is ours.
func (a *access) release(t target, me rapidio.DestID) error {
	for range tries {
		held, err := t.read(rapidio.RegHostLock)
		if err != nil {
			return err
		}
		if held&rapidio.LockFree != uint32(me) {
			return nil
		}
		if err := t.writeOnce(rapidio.RegHostLock, uint32(me)); err == nil {
			return nil
		} else if !unanswered(err) {
			return fmt.Errorf("unlocking: %w", err)
		}
	}
	return fmt.Errorf("unlocking: %w", rapidio.ErrNoReply)
}

// surrender is release at the end of a scan that may have been cut short, by its context or its budget: that must leave no lock either.
func (a *access) surrender(t target, me rapidio.DestID) error {
	own := *a
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), retreatTime)
	defer cancel()
	own.ctx, own.left = ctx, maxBudget
	t.a = &own
	return own.release(t, me)
}

// borrow takes a switch's lock for an agent, which selects entries of its table: two that do at a time read each other's, and a host
// would write the wrong ones.
func (s *search) borrow(t target) (err error) {
	me := uint32(s.own)
	var w wait
	attempts := 0
	defer func() {
		if err != nil && attempts > 0 {
			_ = s.surrender(t, s.own) // it may have taken the ID
		}
	}()
	for {
		held, err := t.read(rapidio.RegHostLock)
		if err != nil {
			return err
		}
		switch held &= rapidio.LockFree; held {
		case me:
			return nil
		case rapidio.LockFree:
			if attempts++; attempts > maxAttempts {
				return errors.New("the lock register does not take an ID")
			}
			if err := t.writeOnce(rapidio.RegHostLock, me); err != nil && !unanswered(err) {
				return fmt.Errorf("locking: %w", err)
			}
			continue
		}
		if took := w.held(held); took >= s.p.s.o.LockTimeout {
			return fmt.Errorf("%#x holds the lock of a switch for %v: %w", held, took.Round(time.Millisecond), bus.ErrTimeout)
		}
		if err := w.sleep(&s.access); err != nil {
			return err
		}
	}
}
