package pciehp

import (
	"context"

	"github.com/ring3dev/ring3/bus/pci"
)

// seize waits until nobody acts on events, and has nobody do so until release.
func (s *Slot) seize(ctx context.Context) error {
	select {
	case s.hold <- struct{}{}:
		return nil
	case <-s.ctx.Done():
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Slot) release() { <-s.hold }

// ResetSlot resets the bus behind the port, which takes its link down and may look as if the card went: that is no news. It is a
// portbus.SlotResetter's.
func (s *Slot) ResetSlot(ctx context.Context, reset func(context.Context) error) error {
	if err := s.seize(ctx); err != nil {
		return err
	}
	defer s.release()
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

// Suspend has the slot neither interrupt nor act on anything until it is resumed; bus.PowerHandler.
func (s *Slot) Suspend(ctx context.Context) error {
	if err := s.seize(ctx); err != nil {
		return err
	}
	if err := s.command(ctx, pci.SltCtlHP, 0, true); err != nil {
		s.release()
		if s.port.Err() != nil {
			return nil // it sleeps for good
		}
		return err
	}
	s.deafen(true)
	s.suspended = true
	return nil
}

// Resume sets the slot's registers as they were, whatever became of them, and looks whether the card is another one.
func (s *Slot) Resume(ctx context.Context) error {
	if !s.suspended {
		return nil
	}
	s.suspended = false
	defer s.release()
	return s.restore(ctx)
}

// SlotReset is Resume after the port itself was reset; portbus.Restorer.
func (s *Slot) SlotReset(ctx context.Context) error {
	if err := s.seize(ctx); err != nil {
		return err
	}
	defer s.release()
	return s.restore(ctx)
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
		s.forgetEvents() // the card was found anew, which is no news
	}
	s.deafen(false)
	s.collect()
	s.wakeIfChanged()
	return nil
}
