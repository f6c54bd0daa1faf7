package pciehp

import (
	"context"
	"log/slog"
	"time"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
)

// graceTime is how long a press of the button can be taken back (6.7.1.5).
const graceTime = 5 * time.Second

// waiter waits for the result of what it asked for.
type waiter struct {
	enable bool
	result chan error // has room for one
}

// outcome is what became of a request. The zero value: nothing was done.
type outcome struct {
	done bool
	err  error
	lost bool // hold is somebody else's by now
}

// work acts on events until the slot goes out of service.
func (s *Slot) work() {
	if s.inUse() {
		s.enter(on)
	}
	close(s.ready)
	s.wakeIfChanged()
	for {
		select {
		case <-s.kick:
		case <-s.ctx.Done():
			_, ws := s.take()
			answer(ws, outcome{done: true, err: errEnded})
			return
		}
		for s.ctx.Err() == nil {
			if !s.turn(s.ctx) {
				break
			}
		}
	}
}

// take takes what is to be done.
func (s *Slot) take() (events, []waiter) {
	s.sta.Lock()
	defer s.sta.Unlock()
	e, ws := s.pending, s.waiters
	s.pending, s.waiters = 0, nil
	return e, ws
}

func answer(ws []waiter, o outcome) {
	for _, w := range ws {
		switch {
		case o.done:
			w.result <- o.err
		case w.enable:
			w.result <- errEmpty
		default:
			w.result <- nil
		}
	}
}

// inUse says whether somebody put what is in the slot to use already. Where nobody knows what stands behind the port, that is what has power.
func (s *Slot) inUse() bool {
	if s.port.Hierarchy() != nil {
		return len(s.port.Below()) > 0 || len(s.port.Others()) > 0
	}
	present, link := s.occupied()
	return (present || link) && (s.caps&pci.SltCapPower == 0 || s.powered())
}

// turn acts on what came so far, and says whether there was anything.
func (s *Slot) turn(ctx context.Context) bool {
	if s.seize(ctx) != nil {
		return false
	}
	s.listening()
	s.collect() // what came at the same time belongs together: a card and its button are no second press
	e, ws := s.take()
	if e == 0 && len(ws) == 0 {
		s.release()
		return false
	}
	o := outcome{done: true, err: errEnded}
	if !s.dead() {
		o = s.handle(ctx, e)
	}
	if !o.lost {
		s.release()
	}
	answer(ws, o)
	return true
}

// handle acts on events, the button first. The caller holds hold, which is let go while a failure is contained: recovery may want to reset
// what is below.
func (s *Slot) handle(ctx context.Context, e events) (o outcome) {
	if e&evButton != 0 {
		s.pressed(ctx)
	}
	if e&evFault != 0 {
		s.say(slog.LevelError, "Power fault")
		s.indicators(ctx, pci.LEDOff, pci.LEDOn)
	}
	if e&evLink != 0 && s.is(on) {
		contained, lost := s.contained(ctx)
		if lost {
			return outcome{done: true, err: errEnded, lost: true}
		}
		if contained {
			e &^= evLink
		}
	}
	switch {
	case e&evDisable != 0:
		s.enter(poweringOff)
		return outcome{done: true, err: s.disable(ctx, false)}
	case e&(evPresence|evLink) != 0:
		return s.changed(ctx, e)
	}
	return outcome{}
}

// is says whether the slot is in a state.
func (s *Slot) is(x state) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == x
}

// enter is a change of state, which ends the grace of a button press.
func (s *Slot) enter(x state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calm()
	s.state = x
}

// calm ends it. mu is held.
func (s *Slot) calm() {
	s.press++
	if s.grace != nil {
		s.grace()
		s.grace = nil
	}
}

// pressed is the attention button: it announces a change, or takes the announcement back.
func (s *Slot) pressed(ctx context.Context) {
	brief := s.port.Profile().ButtonPress
	if !brief {
		s.say(slog.LevelInfo, "Attention button pressed")
	}
	s.mu.Lock()
	was := s.state
	s.mu.Unlock()
	switch was {
	case on, off:
		next, brieftext, text := blinkingOff, "off", "Slot(%s): Powering off due to button press"
		if was == off {
			next, brieftext, text = blinkingOn, "on", "Slot(%s) Powering on due to button press" // sic: no colon
		}
		s.enter(next)
		if brief {
			s.say(slog.LevelInfo, "Button press: will power %s in 5 sec", brieftext)
		} else {
			s.log(slog.LevelInfo, text, s.name)
		}
		s.indicators(ctx, pci.LEDBlink, pci.LEDOff)
		s.mu.Lock()
		n := s.press
		s.grace = s.clock.AfterFunc(graceTime, func() { s.graceOver(n) })
		s.mu.Unlock()
	case blinkingOff, blinkingOn:
		back, led, what := on, uint16(pci.LEDOn), "off"
		if was == blinkingOn {
			back, led, what = off, pci.LEDOff, "on"
		}
		if !brief {
			s.say(slog.LevelInfo, "Button cancel")
		}
		s.enter(back)
		s.indicators(ctx, led, pci.LEDOff)
		if brief {
			s.say(slog.LevelInfo, "Button press: canceling request to power %s", what)
		} else {
			s.say(slog.LevelInfo, "Action canceled due to button press")
		}
	}
}

// graceOver is called when nobody took press n back.
func (s *Slot) graceOver(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.press != n {
		return
	}
	s.grace = nil
	switch s.state {
	case blinkingOff:
		s.request(evDisable)
	case blinkingOn:
		s.request(evPresence)
	}
}

// changed is a card that came or went, or a link: what was on goes off, whatever is there now, and what is there goes on.
func (s *Slot) changed(ctx context.Context, e events) (o outcome) {
	if s.is(on) || s.is(blinkingOff) {
		s.enter(poweringOff)
		if e&evLink != 0 {
			s.say(slog.LevelInfo, "Link Down")
		}
		if e&evPresence != 0 {
			s.say(slog.LevelInfo, "Card not present")
		}
		_ = s.disable(ctx, true)
	}
	if ctx.Err() != nil || s.dead() {
		return outcome{done: true, err: errEnded}
	}
	present, link := s.occupied()
	if !present && !link {
		if s.is(blinkingOn) {
			s.enter(off)
			s.indicators(ctx, pci.LEDOff, keep)
			s.say(slog.LevelInfo, "Card not present")
		}
		return o
	}
	if !s.is(off) && !s.is(blinkingOn) {
		return o
	}
	s.enter(poweringOn)
	if present {
		s.say(slog.LevelInfo, "Card present")
	}
	if link {
		s.say(slog.LevelInfo, "Link Up")
	}
	return outcome{done: true, err: s.enable(ctx)}
}

// wakeIfChanged looks whether the slot is in another state than what stands in it, as when an event came before anybody listened.
func (s *Slot) wakeIfChanged() {
	present, link := s.occupied()
	if s.dead() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	full := present || link
	if full && (s.state == off || s.state == blinkingOn) || !full && (s.state == on || s.state == blinkingOff) {
		s.request(evPresence)
	}
}

// contained says whether the link went because the port contained a failure, and is back: that is no news. It lets go of hold
// meanwhile, and does not get it back where the slot goes out of service.
func (s *Slot) contained(ctx context.Context) (yes, lost bool) {
	c, ok := s.port.Service(portbus.DPC).(portbus.Container)
	if !ok {
		return false, false
	}
	s.release()
	recovered := c.Recovered(ctx)
	if s.seize(ctx) != nil {
		return false, true
	}
	if !recovered {
		return false, false
	}
	s.drop(evLink)
	s.say(slog.LevelInfo, "Link Down/Up ignored (recovered by DPC)")
	if _, link := s.occupied(); !link && !s.dead() {
		s.request(evLink)
	}
	return true, false
}
