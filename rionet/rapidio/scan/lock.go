package scan

import (
	"errors"
	"fmt"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// errLost says that a host with a higher ID, or one that was here first, enumerates.
var errLost = errors.New("a remote host enumerates")

// Times of locks.
const (
	lockRetry    = time.Millisecond // as the kernel has it
	lockRetryMax = 16 * time.Millisecond
)

// acquire takes a device's lock. mine: it was held with our ID already. The lock is a register that takes an ID while it is free, and
// that its holder frees by writing its ID again: so it is written only where that is certain to be right, and what it then holds,
// not the write's response, says who has it.
//
// A lower host's lock is waited for: that host retreats when it meets ours. A higher host's means that we have lost. One that does not
// change for the lock timeout belongs to a host that died in the middle, and is taken over: a lower one's always, a higher one's only by
// a round that may (force), since a lost host first waits to be discovered.
func (r *round) acquire(t target) (mine bool, err error) {
	me := uint32(r.host)
	var last uint32
	var since time.Time
	pause, wrote := lockRetry, 0
	for {
		held, err := t.read(rapidio.RegHostLock)
		if err != nil {
			return false, err
		}
		held &= rapidio.LockFree
		switch {
		case held == me:
			return wrote == 0, nil
		case held == rapidio.LockFree:
			if wrote++; wrote > maxAttempts {
				return false, errors.New("the lock register does not take an ID")
			}
			// A lost response is no matter: the next read tells.
			if err := t.writeOnce(rapidio.RegHostLock, me); err != nil && !errors.Is(err, rapidio.ErrNoReply) {
				return false, fmt.Errorf("locking: %w", err)
			}
			continue
		case held > me && !r.force:
			return false, fmt.Errorf("%w: %#x holds a lock", errLost, held)
		}
		if now := time.Now(); held != last || since.IsZero() {
			last, since = held, now
		} else if now.Sub(since) >= r.p.s.o.LockTimeout {
			r.say("taking over the lock of host %#x, which has not moved for %v", held, r.p.s.o.LockTimeout)
			if err := t.writeOnce(rapidio.RegHostLock, held); err != nil && !errors.Is(err, rapidio.ErrNoReply) {
				return false, fmt.Errorf("taking over a lock: %w", err)
			}
			since = time.Time{}
			if r.takeovers++; r.takeovers > maxTakeovers {
				return false, errBudget
			}
			continue
		}
		if err := sleep(r.ctx, pause); err != nil {
			return false, err
		}
		pause = min(2*pause, lockRetryMax)
		r.left++ // waiting is not what the budget bounds
	}
}

// Bounds of what a device with a strange lock register may cost.
const (
	maxAttempts  = 64
	maxTakeovers = 8
)

// release gives a device's lock up, if it is ours.
func (r *round) release(t target) error {
	for range tries {
		held, err := t.read(rapidio.RegHostLock)
		if err != nil {
			return err
		}
		if held&rapidio.LockFree != uint32(r.host) {
			return nil
		}
		if err := t.writeOnce(rapidio.RegHostLock, uint32(r.host)); err == nil {
			return nil
		} else if !errors.Is(err, rapidio.ErrNoReply) {
			return fmt.Errorf("unlocking: %w", err)
		}
	}
	return fmt.Errorf("unlocking: %w", rapidio.ErrNoReply)
}
