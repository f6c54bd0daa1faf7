package pciehp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Times of a card.
const (
	offTime      = time.Second            // from power off until it may be taken out: 6.7.1.8
	linkFirst    = 20 * time.Millisecond  // before a link is looked at
	linkTime     = time.Second            // until it is up
	linkStep     = 10 * time.Millisecond  //
	readyQuiet   = 100 * time.Millisecond // from link up until a card may be asked (6.6.1)
	presenceTime = 1250 * time.Millisecond
	presenceStep = 10 * time.Millisecond
	answerTime   = time.Second // until it answers
	answerStep   = 20 * time.Millisecond
)

// What the kernel answers to who wrote to the file power. Its own functions return -1 where a link does not come up, which is EPERM.
var (
	errLatch   = fmt.Errorf("the latch is open: %w", unix.ENODEV)
	errLink    = fmt.Errorf("the link does not come up: %w", unix.EPERM)
	errNothing = fmt.Errorf("nothing answers in the slot: %w", unix.EPERM)
	errFault   = fmt.Errorf("the slot's power failed: %w", unix.EIO)
	errEmpty   = fmt.Errorf("nothing is in the slot: %w", unix.ENODEV)
	errAdd     = fmt.Errorf("what is in the slot cannot be added: %w", unix.ENODEV)
	errOff     = fmt.Errorf("the slot is off already: %w", unix.EINVAL)
	errAsleep  = fmt.Errorf("the slot is suspended: %w", unix.EBUSY)
	errEnded   = fmt.Errorf("the slot went out of service: %w", unix.ENODEV)
)

// enable switches the slot on.
func (s *Slot) enable(ctx context.Context) error {
	upsets := s.upsets
	err := s.addCard(ctx)
	if err != nil {
		if s.caps&pci.SltCapButton != 0 {
			s.indicators(ctx, pci.LEDOff, keep)
		}
		s.enter(off)
		return err
	}
	s.enter(on)
	if s.upsets != upsets {
		s.wakeIfChanged() // what presence and link did meanwhile was forgotten
	}
	return nil
}

func (s *Slot) addCard(ctx context.Context) error {
	if s.caps&pci.SltCapMRL != 0 && s.cfg.Read16(s.exp+pci.ExpSltSta)&pci.SltStaOpen != 0 {
		s.say(slog.LevelInfo, "Latch open")
		return errLatch
	}
	if s.caps&pci.SltCapPower != 0 {
		if s.powered() {
			s.say(slog.LevelInfo, "Already enabled")
			if len(s.port.Below()) == 0 && len(s.port.Others()) == 0 { // it was switched on, and then nobody looked what it is
				s.rescanQuietly(ctx)
			}
			return nil
		}
		if err := s.powerOn(ctx); err != nil {
			return err
		}
	}
	s.indicators(ctx, pci.LEDBlink, keep)
	err := s.bringUp(ctx)
	if err != nil {
		s.giveUp(ctx)
		return err
	}
	s.indicators(ctx, pci.LEDOn, pci.LEDOff)
	return nil
}

// rescanQuietly looks for a card that needs no more than that.
func (s *Slot) rescanQuietly(ctx context.Context) {
	if h := s.port.Hierarchy(); h != nil {
		rescan := func(ctx context.Context) { _, _ = h.Rescan(ctx, s.port.Addr()) } // whoever switched it on sees to the rest
		for s.outside(ctx, rescan) && ctx.Err() == nil {
			continue // it may not have begun
		}
	}
}

// giveUp switches off what could not be switched on. A slot that goes out of service is not waited for.
func (s *Slot) giveUp(ctx context.Context) {
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.Background(), commandTimePolled)
		defer cancel()
		if s.caps&pci.SltCapPower != 0 {
			_ = s.command(ctx, 0, pci.SltCtlPowerOff, true)
		}
	} else {
		s.powerOff(ctx)
	}
	s.indicators(ctx, pci.LEDOff, pci.LEDOn)
}

// bringUp waits for the link of a card that is powered, and has it taken into service.
func (s *Slot) bringUp(ctx context.Context) error {
	if !s.awaitLink(ctx) {
		s.say(slog.LevelInfo, "No link")
		return errLink
	}
	if s.inBand {
		s.awaitPresence(ctx)
	}
	if v := s.cfg.Read16(s.exp + pci.ExpLnkSta); v&pci.LnkStaTrain != 0 || v&pci.LnkStaWidth == 0 {
		s.say(slog.LevelInfo, "Cannot train link: status %s", hex(v))
		return errLink
	}
	s.noteSpeed()
	if s.hasFault() {
		s.say(slog.LevelError, "Power fault")
		return errFault
	}
	return s.configure(ctx)
}

// awaitLink waits until the link is up and the card may be asked.
func (s *Slot) awaitLink(ctx context.Context) bool {
	if !s.reportsLink() {
		return s.sleep(ctx, linkTime+readyQuiet)
	}
	if !s.sleep(ctx, linkFirst) {
		return false
	}
	for end := s.clock.Now() + linkTime; ; {
		if _, link := s.occupied(); link {
			return s.sleep(ctx, readyQuiet)
		}
		if s.clock.Now() >= end || !s.sleep(ctx, linkStep) {
			return false
		}
	}
}

// awaitPresence waits until the card is seen, not only its link.
func (s *Slot) awaitPresence(ctx context.Context) {
	for end := s.clock.Now() + presenceTime; ; {
		if present, _ := s.occupied(); present {
			return
		}
		if s.clock.Now() >= end {
			s.log(slog.LevelInfo, "Timeout waiting for Presence Detect")
			return
		}
		if !s.sleep(ctx, presenceStep) {
			return
		}
	}
}

// configure has what stands in the slot found and driven.
func (s *Slot) configure(ctx context.Context) error {
	h := s.port.Hierarchy()
	for end := s.clock.Now() + answerTime; ; {
		// What the link did on its way up is no news; what it does from here on is.
		if _, link := s.occupied(); link || !s.reportsLink() {
			s.drop(evPresence | evLink)
		}
		n, err, upset := 0, bus.ErrNotSupported, false
		if h != nil {
			upset = s.outside(ctx, func(ctx context.Context) { n, err = h.Rescan(ctx, s.port.Addr()) })
		}
		switch {
		case errors.Is(err, bus.ErrNotSupported):
			s.say(slog.LevelWarn, "It is on; the kernel, whose bus it is, finds the card when root writes 1 to /sys/bus/pci/rescan")
			return nil
		case n > 0:
			if err != nil {
				s.say(slog.LevelWarn, "%v", err)
			}
			return nil
		case ctx.Err() != nil:
			return errEnded
		case upset: // by a reset, or by a suspension, in which anything may have happened: all over again
			if !s.awaitLink(ctx) {
				s.say(slog.LevelInfo, "No link")
				return errLink
			}
			end = s.clock.Now() + answerTime
			continue
		case err != nil:
			s.log(slog.LevelError, "Cannot add device at %s", s.address())
			return fmt.Errorf("%w: %w", errAdd, err)
		}
		if s.clock.Now() >= end {
			s.say(slog.LevelInfo, "No device found")
			return errNothing
		}
		if !s.sleep(ctx, answerStep) {
			return errEnded
		}
	}
}

// unconfigure takes what stands in the slot out of service. What a suspension kept from that is taken out after it. It
// fails where the slot goes out of service before.
func (s *Slot) unconfigure(ctx context.Context, gone bool) bool {
	h := s.port.Hierarchy()
	if h == nil {
		return true
	}
	for {
		var err error
		upset := s.outside(ctx, func(ctx context.Context) { err = h.Remove(ctx, s.port.Addr(), gone) })
		switch {
		case err == nil:
			return true
		case ctx.Err() != nil:
			return false
		case !upset || !errors.Is(err, context.Canceled):
			s.say(slog.LevelWarn, "removing what is in it: %v", err)
			return true
		}
	}
}

// disable switches the slot off. gone says that the card is, or that its link was down.
func (s *Slot) disable(ctx context.Context, gone bool) error {
	defer s.enter(off)
	if s.caps&pci.SltCapPower != 0 && !s.powered() && len(s.port.Below()) == 0 {
		s.say(slog.LevelInfo, "Already disabled")
		return errOff
	}
	if !s.unconfigure(ctx, gone) {
		return errEnded // what is in it stays on
	}
	if others := s.port.Others(); len(others) > 0 {
		s.say(slog.LevelWarn, "%s: still the kernel's, and going off: root writes 1 to its file remove, before a slot is switched off", strings.Join(others, ", "))
	}
	s.powerOff(ctx)
	s.indicators(ctx, pci.LEDOff, keep)
	return nil
}
