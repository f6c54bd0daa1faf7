package pciehp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Times of looking at a slot that does not interrupt: the first, and all others unless Options say something else. A port with INTx is
// looked at too, since a line that somebody else's write to config space lowered is not raised again for what had happened.
const (
	pollFirst = 10 * time.Second
	pollTime  = 2 * time.Second
)

// maxReads is how often Slot Status is read for one interrupt, and stuckTime when what could not be acknowledged is looked at
// again.
const (
	maxReads  = 16
	stuckTime = time.Second
)

// listen enables what the slot interrupts for (PCI Express Base 5.0, 6.7.3). Power faults and the latch are not among it: the kernel saw
// storms of the one, and asks for the other when it matters.
func (s *Slot) listen(ctx context.Context) error {
	ctl := pci.SltCtlLink
	if s.caps&pci.SltCapButton != 0 {
		ctl |= pci.SltCtlButton // presence comes with the button then
	} else {
		ctl |= pci.SltCtlPresence
	}
	s.poll = s.opts.Poll
	if !s.poll {
		_, err := s.dev.Handle(Name, s.collect)
		if err != nil && !errors.Is(err, bus.ErrNotSupported) {
			return fmt.Errorf("taking its interrupt: %w", err)
		}
		s.poll = err != nil
	}
	mode, ok := s.dev.IRQMode()
	switch {
	case s.poll:
		s.lookAgain(pollFirst)
	case ok && mode == bus.INTx:
		s.lookAgain(s.opts.PollTime)
	}
	if !s.poll {
		ctl |= pci.SltCtlHP
		if s.caps&pci.SltCapNoCmd == 0 {
			ctl |= pci.SltCtlCmd
		}
	}
	s.listens = ctl
	if err := s.command(ctx, notification, ctl, false); err != nil {
		return fmt.Errorf("enabling its interrupt: %w", err)
	}
	return nil
}

// collect takes in and acknowledges what Slot Status says, and says whether there was anything. It is the interrupt handler, and
// is called wherever something is waited for: an interrupt that was lost then does no harm.
func (s *Slot) collect() bool {
	s.sta.Lock()
	defer s.sta.Unlock()
	return s.collectLocked()
}

func (s *Slot) collectLocked() bool {
	mine := watched
	if s.mute || s.deaf {
		mine = uint16(evCommand)
	}
	var all, got uint16
	for n := 0; ; n++ {
		v := s.cfg.Read16(s.exp + pci.ExpSltSta)
		if v == 0xffff {
			s.unanswered("pciehp_isr")
			break
		}
		s.silent = false
		s.stuck &= v
		if got = v & mine &^ s.stuck; s.faulted {
			got &^= uint16(evFault) // told of, until power is switched on again
		}
		if got&^uint16(evCommand) != 0 && s.hushed() {
			mine = uint16(evCommand)
			if got &= mine; got == 0 {
				break
			}
		}
		if got == 0 {
			break
		}
		if n == maxReads {
			s.stuck |= got
			s.lookLocked(stuckTime)
			break
		}
		// Only what was read: one bit more, and QEMU gives all events back.
		s.cfg.Write16(s.exp+pci.ExpSltSta, got)
		s.faulted = s.faulted || got&uint16(evFault) != 0
		all |= got
	}
	if all&uint16(evCommand) != 0 && s.busy != nil {
		close(s.busy)
		s.busy = nil
	}
	if news := events(all) &^ evCommand; news != 0 {
		s.pending |= news
		s.wake()
	}
	return all != 0
}

// listening finds out whether somebody else switched the slot's interrupts off. Then only what is asked for counts, as if events were
// never told.
func (s *Slot) listening() {
	s.sta.Lock()
	defer s.sta.Unlock()
	s.hushed()
}

// hushed says whether somebody else did, now. Who asks after events were read knows that they are not from before. sta is held.
func (s *Slot) hushed() bool {
	v := s.cfg.Read16(s.exp + pci.ExpSltCtl)
	s.deaf = !s.poll && v != 0xffff && v&pci.SltCtlHP == 0
	return s.deaf
}

// wake has the worker look.
func (s *Slot) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// request asks the worker to act as if an event had come.
func (s *Slot) request(e events) {
	s.sta.Lock()
	defer s.sta.Unlock()
	s.pending |= e
	s.wake()
}

// drop forgets events that came so far.
func (s *Slot) drop(e events) {
	s.sta.Lock()
	defer s.sta.Unlock()
	s.collectLocked()
	s.pending &^= e
	s.asked &^= e
}

// forget clears events of Slot Status, whoever they were meant for.
func (s *Slot) forget(mask uint16) {
	s.sta.Lock()
	defer s.sta.Unlock()
	if v := s.cfg.Read16(s.exp + pci.ExpSltSta); v != 0xffff && v&mask != 0 {
		s.cfg.Write16(s.exp+pci.ExpSltSta, v&mask)
	}
}

// deafen has only completed commands taken in, or everything again.
func (s *Slot) deafen(mute bool) {
	s.sta.Lock()
	defer s.sta.Unlock()
	s.mute = mute
}

// lookAgain has somebody look at Slot Status in a while, and again after that.
func (s *Slot) lookAgain(d time.Duration) {
	s.sta.Lock()
	defer s.sta.Unlock()
	s.lookLocked(d)
}

func (s *Slot) lookLocked(d time.Duration) {
	if s.again == nil && s.ctx.Err() == nil {
		s.again = s.clock.AfterFunc(d, s.look)
	}
}

func (s *Slot) look() {
	s.sta.Lock()
	s.again = nil
	if s.ctx.Err() != nil {
		s.sta.Unlock()
		return
	}
	was := s.stuck
	s.collectLocked()
	freed := was &^ s.stuck
	if mode, ok := s.dev.IRQMode(); s.poll || ok && mode == bus.INTx {
		s.lookLocked(s.opts.PollTime)
	} else if s.stuck != 0 {
		s.lookLocked(stuckTime)
	}
	s.sta.Unlock()
	if freed&uint16(evPresence|evLink) != 0 {
		s.wakeIfChanged() // whatever came meanwhile was not seen
	}
}

// stopLooking ends that.
func (s *Slot) stopLooking() {
	s.sta.Lock()
	defer s.sta.Unlock()
	if s.again != nil {
		s.again()
		s.again = nil
	}
}

// unanswered tells, once, that the port does not answer. Who asked is the kernel's function that would have. sta is held.
func (s *Slot) unanswered(who string) {
	if !s.silent && s.port.Err() == nil {
		s.log(slog.LevelInfo, "%s: no response from device", who)
	}
	s.silent = true
}

// dead says whether there is no port to wait for.
func (s *Slot) dead() bool {
	if s.port.Err() != nil {
		return true
	}
	s.sta.Lock()
	defer s.sta.Unlock()
	if s.silent && s.cfg.Read16(s.exp+pci.ExpSltSta) != 0xffff {
		s.silent = false // it was for a moment
	}
	return s.silent
}

// occupied says what stands in the slot: a card that is seen, a link that is up. A port that does not answer has neither.
func (s *Slot) occupied() (present, link bool) {
	sta, lnk := s.cfg.Read16(s.exp+pci.ExpSltSta), s.cfg.Read16(s.exp+pci.ExpLnkSta)
	return sta != 0xffff && sta&pci.SltStaPresent != 0, lnk != 0xffff && lnk&pci.LnkStaActive != 0
}

// reportsLink says whether the port tells that its link is up.
func (s *Slot) reportsLink() bool { return s.cfg.Read32(s.exp+pci.ExpLnkCap)&pci.LnkCapActive != 0 }

// powered says whether the slot's power is on, by the power controller.
func (s *Slot) powered() bool { return s.cfg.Read16(s.exp+pci.ExpSltCtl)&pci.SltCtlPowerOff == 0 }
