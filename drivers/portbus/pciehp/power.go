package pciehp

import (
	"context"
	"errors"
	"fmt"

	"github.com/ring3dev/ring3/bus/pci"
)

// seize waits until nobody acts on events, and has nobody do so until release. It does not take long: who has hold waits for the slot alone, by
// the times of commands and cards. It fails where the slot goes out of service, and when ctx ends.
func (s *Slot) seize(ctx context.Context) error {
	select {
	case s.hold <- struct{}{}:
		if s.ctx.Err() != nil {
			s.release()
			return errEnded
		}
		return nil
	case <-s.ctx.Done():
		return errEnded
	case <-ctx.Done():
		return fmt.Errorf("waiting for the slot: %w", ctx.Err())
	}
}

// regain is the worker's seize: it waits until the slot is resumed too. Where the slot goes out of service it waits for neither that nor ctx, so
// that what was begun can be ended.
func (s *Slot) regain(ctx context.Context) {
	for {
		s.hold <- struct{}{}
		if !s.suspended || ctx.Err() != nil {
			return
		}
		resumed := s.resumed
		s.release()
		select {
		case <-resumed:
		case <-ctx.Done():
		}
	}
}

func (s *Slot) release() { <-s.hold }

// outside has the worker call somebody who may wait for who waits for hold: the hierarchy, of which who suspends, or resets, a device
// keeps others out, and recovery. It lets go of hold meanwhile, and stops afterwards until a slot that was suspended is resumed. It says whether
// the slot was reset or suspended meanwhile. The context of f ends when it is suspended, so that nothing begins behind a
// port that sleeps.
func (s *Slot) outside(ctx context.Context, f func(context.Context)) (upset bool) {
	call, cancel := context.WithCancel(ctx)
	defer cancel()
	before := s.upsets
	s.away, s.recall = true, cancel
	s.release()
	f(call)
	s.regain(ctx)
	s.away, s.recall = false, nil
	return s.upsets != before
}

// ResetSlot resets the bus behind the port, which takes its link down and may look as if the card went: that is no news. A slot that is suspended,
// or goes out of service, does not listen, so there it is no more than reset. It is a portbus.SlotResetter's.
func (s *Slot) ResetSlot(ctx context.Context, reset func(context.Context) error) error {
	if err := s.seize(ctx); errors.Is(err, errEnded) {
		return reset(ctx)
	} else if err != nil {
		return err
	}
	defer s.release()
	s.upsets++
	if s.suspended {
		err := reset(ctx)
		s.forget(uint16(evPresence | evLink))
		return err
	}
	mask := pci.SltCtlLink
	if s.caps&pci.SltCapButton == 0 {
		mask |= pci.SltCtlPresence
	}
	if err := s.command(ctx, mask, 0, true); err != nil {
		return err
	}
	err := reset(ctx)
	s.drop(evPresence | evLink)
	if s.command(context.WithoutCancel(ctx), 0, mask, false) == nil {
		s.wakeIfChanged() // a card may have gone meanwhile
	}
	return err
}

// asleep says whether the slot is suspended.
func (s *Slot) asleep() bool {
	s.sta.Lock()
	defer s.sta.Unlock()
	return s.suspended
}

// setAsleep makes it so, or undoes it. hold is held.
func (s *Slot) setAsleep(v bool) (refused []waiter) {
	s.sta.Lock()
	defer s.sta.Unlock()
	s.suspended = v
	if v {
		refused = s.waiters
		s.waiters, s.asked = nil, 0
	}
	return refused
}

// Suspend has the slot neither interrupt nor act on anything until it is resumed; bus.PowerHandler. It does not wait for a card that is taken into or out of
// service: that stops where it is, and goes on afterwards.
func (s *Slot) Suspend(ctx context.Context) error {
	if err := s.seize(ctx); err != nil {
		return err
	}
	defer s.release()
	if s.suspended {
		return nil
	}
	if err := s.command(ctx, pci.SltCtlHP, 0, true); err != nil {
		if s.port.Err() != nil {
			return nil // it sleeps for good
		}
		return err
	}
	s.deafen(true)
	s.resumed = make(chan struct{})
	answer(s.setAsleep(true), outcome{done: true, err: errAsleep})
	s.upsets++
	if s.away {
		s.recall()
	}
	return nil
}

// Resume sets the slot's registers as they were, whatever became of them, and looks whether the card is another one.
func (s *Slot) Resume(ctx context.Context) error {
	if err := s.seize(ctx); err != nil {
		return err
	}
	defer s.release()
	if !s.suspended {
		return nil
	}
	s.setAsleep(false)
	defer close(s.resumed)
	return s.restore(ctx)
}

// SlotReset is Resume after the port itself was reset; portbus.Restorer. A slot that is suspended stays so, with its power and indicators as they
// were.
func (s *Slot) SlotReset(ctx context.Context) error {
	if err := s.seize(ctx); errors.Is(err, errEnded) {
		return nil // there is nothing to set up any more
	} else if err != nil {
		return err
	}
	defer s.release()
	s.upsets++
	if s.suspended {
		s.cmd.Lock()
		want := s.last &^ pci.SltCtlHP
		s.cmd.Unlock()
		return s.command(ctx, 0xffff, want, false)
	}
	return s.restore(ctx)
}

// Check is portbus.Keeper's. A slot that is at work is not looked at: what it waits for has a bound. One without interrupts looks by itself.
func (s *Slot) Check() (wrong, missed string) {
	select {
	case s.hold <- struct{}{}:
		defer s.release()
	default:
		return "", ""
	}
	if s.suspended || s.ctx.Err() != nil || !s.cmd.TryLock() {
		return "", ""
	}
	want := s.last&^notification | s.listens
	s.cmd.Unlock()
	kept := s.listens &^ pci.SltCtlLink // QEMU's ports do not keep that bit, and tell of the link all the same
	if s.caps&pci.SltCapPower != 0 {
		kept |= pci.SltCtlPowerOff
	}
	if s.caps&pci.SltCapPowerLED != 0 {
		kept |= pci.SltCtlPowerLED
	}
	if s.caps&pci.SltCapAttnLED != 0 {
		kept |= pci.SltCtlAttnLED
	}
	ctl, sta, lnk := s.cfg.Read16(s.exp+pci.ExpSltCtl), s.cfg.Read16(s.exp+pci.ExpSltSta), s.cfg.Read16(s.exp+pci.ExpLnkSta)
	full := s.is(on) || s.is(blinkingOff)
	if ctl != 0xffff && (ctl^want)&kept == pci.SltCtlHP {
		return "", "" // somebody switched its interrupts off, and nothing else: setpci does, a reset does not. See hushed
	}
	if ctl != 0xffff && (ctl^want)&kept != 0 {
		wrong = fmt.Sprintf("Slot Control=%#x, want %#x", ctl, want)
	}
	s.sta.Lock()
	defer s.sta.Unlock()
	mine := events(watched)
	if s.mute || s.poll {
		mine = 0
	}
	if mine &^= events(s.stuck); s.faulted {
		mine &^= evFault
	}
	if sta != 0xffff && events(sta)&mine != 0 {
		missed = fmt.Sprintf("Slot Status=%#x", sta)
	}
	if missed == "" && s.pending|s.asked == 0 && !s.away && full && sta != 0xffff && sta&pci.SltStaPresent == 0 && lnk != 0xffff && lnk&pci.LnkStaActive == 0 {
		missed = "the slot is on, and empty" // what told of it was taken in while the port lied
	}
	return wrong, missed
}

// Repair is restore, but that it forgets no event; portbus.Keeper. What is in the slot stays on, though it was reset: to take it out of service would take its power, and
// a machine that has no hands takes the card then.
func (s *Slot) Repair(ctx context.Context, reset bool) error {
	if err := s.seize(ctx); errors.Is(err, errEnded) {
		return nil
	} else if err != nil {
		return err
	}
	defer s.release()
	if s.suspended {
		return nil
	}
	s.cmd.Lock()
	want := s.last&^notification | s.listens
	s.cmd.Unlock()
	if err := s.command(ctx, 0xffff, want, false); err != nil {
		return err
	}
	s.deafen(false)
	s.collect()
	if reset {
		s.upsets++
	}
	s.wakeIfChanged()
	return nil
}

// restore writes Slot Control as it was.
func (s *Slot) restore(ctx context.Context) error {
	s.cmd.Lock()
	want := s.last&^notification | s.listens
	s.cmd.Unlock()
	s.deafen(true)
	defer s.deafen(false)
	if err := s.command(ctx, 0xffff, want, false); err != nil {
		return err
	}
	if s.is(on) || s.is(blinkingOff) {
		s.forget(pci.SltStaEvents) // the card was found anew, which is no news
	}
	s.deafen(false)
	s.collect()
	s.wakeIfChanged()
	return nil
}
