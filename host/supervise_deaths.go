package host

import (
	"context"
	"fmt"
	"time"
)

// When a driver is given up: it died so often, each time within deathTime of the one before, and before its devices had worked for workedTime.
const (
	maxDeaths  = 5
	deathTime  = 30 * time.Second
	workedTime = time.Second
	// distrust is how many such deaths there are before the next worker is not told what the one before had saved, which may be what kills them.
	distrust = 3

	// maxRow is how many deaths in a row there may be where none of the lives between was as long as steadyTime. From a quarter of them on, the next attempt
	// waits longer each time.
	maxRow     = 20
	steadyTime = time.Minute

	firstDelay = 50 * time.Millisecond // before the second attempt, doubling from there
	lastDelay  = 5 * time.Second
)

// deaths is what happened to a group's workers.
type deaths struct {
	count   int           // so far
	last    string        // cause of the last
	why     string        // why no worker is up
	gave    string        // why there is no other worker, where the group was given up
	at      time.Time     // of the last
	took    time.Duration // from the last until the devices were in service again; 0: they are not, or a user had to have them tried again
	open    bool          // took is still to come
	report  string        // file; "": none could be written
	early   int           // in a row, of which none had worked, and workers that could not be started
	row     int           // in a row, without steadyTime between
	version string        // of the program that serves the group now
	outage  time.Duration // of the last exchange ('ring3 reload')
}

// recover replaces a worker that died of cause, as often as that is of use. Once that is over, another one is started in advance, for the next death:
// not before, since it would take time from the one that is waited for.
func (ch *charge) recover(w *worker, cause error) {
	defer ch.s.spare.refill()
	for {
		if !ch.died(w, cause) {
			return
		}
		if !ch.sleep(ch.s.ctx, ch.delay()) {
			return
		}
		ch.awaitWorld()
		if w, cause = ch.bring(ch.s.ctx); cause == nil {
			ch.mu.Lock()
			took, n := ch.deaths.took, ch.deaths.count
			ch.mu.Unlock()
			ch.s.log.Warn(fmt.Sprintf("%s: in service again after %s (death %d)", ch.Name, milliseconds(took), n))
			return
		}
		if ch.s.ctx.Err() != nil {
			if err := ch.end(w); err != nil {
				ch.s.log.Error(err.Error())
			}
			return
		}
	}
}

// died takes note of a worker's death, ends it, and stops its devices. It says whether another one is to be tried. Without a worker, it is that none could be
// started: that is no death, but cannot go on for ever either.
func (ch *charge) died(w *worker, cause error) bool {
	at := time.Now()
	cause = plain(cause)
	life := time.Duration(0)
	if w != nil && !w.since.IsZero() {
		life = at.Sub(w.since)
	}
	if w != nil {
		w.ask()
	}
	ch.part.Detach(cause)
	ch.set(func() {
		d := &ch.deaths
		switch {
		case life >= ch.worked() || w != nil && at.Sub(d.at) > deathTime:
			d.early = 1
		default:
			d.early++
		}
		if d.why = cause.Error(); w != nil {
			if d.row++; life >= steadyTime {
				d.row = 1
			}
			d.count, d.last, d.at, d.took, d.open = d.count+1, d.why, at, 0, true
		}
		ch.cur, ch.speaker, ch.state = nil, nil, stateRecovering
		if d.early > distrust && ch.saved != nil {
			ch.saved = nil
		}
	})
	ended := w
	if w == nil {
		ch.mu.Lock()
		ended = ch.stuck
		ch.mu.Unlock()
	}
	unkilled := ch.end(ended)
	last := cause
	if w != nil {
		last = plain(w.explain(cause))
	}
	quiesce, cancel := context.WithTimeout(context.Background(), quiesceTime)
	defer cancel()
	hardware := plain(ch.out.Quiesce(quiesce))
	if w != nil {
		ch.set(func() { ch.deaths.last, ch.deaths.why = last.Error(), last.Error() })
		ch.report(w, last, hardware)
	}
	ch.s.log.Error(fmt.Sprintf("%s: %v", ch.Name, last))
	if err := ch.mendLedger(); err != nil {
		ch.give(err)
		return false
	}
	ch.mu.Lock()
	early, row := ch.deaths.early, ch.deaths.row
	ch.mu.Unlock()
	switch {
	case unkilled != nil:
		ch.give(unkilled)
	case hardware != nil:
		ch.give(fmt.Errorf("its devices cannot be stopped: %w", hardware))
	case ch.bare != nil:
		ch.give(fmt.Errorf("%w, so it is not started again by itself; 'ring3 reload' does: %w", ch.bare, last))
	case early >= maxDeaths && w == nil:
		ch.give(fmt.Errorf("no worker can be started for it; 'ring3 reload' tries again: %w", last))
	case early >= maxDeaths:
		ch.give(fmt.Errorf("it died %d times before its devices had worked for %v; 'ring3 reload' tries again: %w", early, workedTime, last))
	case row >= ch.mostDeaths():
		ch.give(fmt.Errorf("it died %d times in a row, each time within %v; 'ring3 reload' tries again: %w", row, steadyTime, last))
	case early == distrust+1:
		if err := ch.newLedger(); err != nil {
			ch.give(err)
			return false
		}
		ch.s.log.Warn(fmt.Sprintf("%s: it dies again and again: it starts without what was configured", ch.Name))
		return true
	default:
		return true
	}
	return false
}

// worked is how long the devices have to have been in service, so that their worker's death is no early one. Where faults are asked for while they are
// in use, as often as somebody likes, it is enough that they were.
func (ch *charge) worked() time.Duration {
	if ch.Plan.Arm {
		return 1
	}
	return workedTime
}

// awaitWorld waits until what the devices are part of is there: a fabric may be gone for longer than a worker may take to come up.
func (ch *charge) awaitWorld() {
	o, ok := ch.out.(*nearOutside)
	if !ok {
		return
	}
	o.awaitWorld(ch.s.ctx, func(why error) {
		why = plain(why)
		ch.set(func() { ch.deaths.why = why.Error() })
		ch.s.log.Warn(fmt.Sprintf("%s: its next worker waits: %v", ch.Name, why))
	})
}

// mostDeaths is how many deaths in a row are too many.
func (ch *charge) mostDeaths() int {
	if ch.s == nil || ch.s.c.Deaths == 0 {
		return maxRow
	}
	return ch.s.c.Deaths
}

// give gives the group up.
func (ch *charge) give(err error) {
	err = plain(err)
	ch.set(func() { ch.state, ch.deaths.gave, ch.deaths.open = stateFailed, err.Error(), false })
	err = fmt.Errorf("%s: given up: %w", ch.Name, err)
	ch.part.Fail(err)
	ch.s.log.Error(err.Error())
}

// delay is how long to wait before the next attempt: not at all, and then longer each time.
func (ch *charge) delay() time.Duration {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	n := max(ch.deaths.early-2, ch.deaths.row-1-ch.mostDeaths()/4)
	if n < 0 {
		return 0
	}
	return min(firstDelay<<min(n, 16), lastDelay)
}
