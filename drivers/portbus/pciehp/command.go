package pciehp

import (
	"context"
	"log/slog"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Times of commands. A write to Slot Control is one, and completes within 1 s (PCI Express Base 5.0, 6.7.3.2); the next one must not come
// before that.
const (
	commandTime       = time.Second
	commandTimePolled = 2500 * time.Millisecond // without interrupts
	commandStep       = 10 * time.Millisecond
)

// command changes bits of Slot Control, once the command before completed, and with wait waits until this one did. That one does not
// complete in time is told, and is no error.
func (s *Slot) command(ctx context.Context, clear, set uint16, wait bool) error {
	s.cmd.Lock()
	defer s.cmd.Unlock()
	s.await(ctx)
	var done chan struct{}
	if s.caps&pci.SltCapNoCmd == 0 {
		done = make(chan struct{})
	}
	s.sta.Lock()
	s.busy = done
	s.sta.Unlock()
	old, err := s.dev.Modify(pci.ExpSltCtl, clear, set, true)
	if err != nil {
		s.sta.Lock()
		s.busy = nil
		s.unanswered("pcie_do_write_cmd")
		s.sta.Unlock()
		return err
	}
	s.issued, s.last = s.clock.Now(), old&^clear|set
	s.sta.Lock()
	s.deaf = !s.poll && s.last&pci.SltCtlHP == 0
	s.sta.Unlock()
	// At once: where interrupts are a line, or QEMU's, the next event interrupts only after this one is acknowledged.
	s.collect()
	if wait {
		s.await(ctx)
	}
	return nil
}

// await waits for the command that is under way. cmd is held.
func (s *Slot) await(ctx context.Context) {
	s.sta.Lock()
	done := s.busy
	s.sta.Unlock()
	if done == nil {
		return
	}
	limit := commandTime
	if s.poll {
		limit = commandTimePolled
	}
	for {
		s.collect()
		left := s.issued + limit - s.clock.Now()
		select {
		case <-done:
			return
		default:
		}
		if s.dead() || ctx.Err() != nil {
			return
		}
		if left <= 0 {
			break
		}
		if s.pause(ctx, done, min(left, commandStep)) {
			return
		}
	}
	s.log(slog.LevelInfo, "Timeout on hotplug command %s (issued %d msec ago)", hex(s.last), (s.clock.Now() - s.issued).Milliseconds())
}

// pause waits a while, or until done, and says whether it was done.
func (s *Slot) pause(ctx context.Context, done <-chan struct{}, d time.Duration) bool {
	late := make(chan struct{})
	stop := s.clock.AfterFunc(d, func() { close(late) })
	defer stop()
	select {
	case <-done:
		return true
	case <-late:
	case <-ctx.Done():
	}
	return false
}

// indicators sets the power and the attention indicator, of which the slot may have none: pci.LEDOn, LEDBlink, LEDOff, or keep.
func (s *Slot) indicators(ctx context.Context, power, attention uint16) {
	var clear, set uint16
	if power != keep && s.caps&pci.SltCapPowerLED != 0 {
		clear, set = clear|pci.SltCtlPowerLED, set|power<<8
	}
	if attention != keep && s.caps&pci.SltCapAttnLED != 0 {
		clear, set = clear|pci.SltCtlAttnLED, set|attention<<6
	}
	if clear != 0 {
		_ = s.command(ctx, clear, set, false) // that the port does not answer was told
	}
}

// powerOn switches the slot on, and its link.
func (s *Slot) powerOn(ctx context.Context) error {
	s.sta.Lock()
	if v := s.cfg.Read16(s.exp + pci.ExpSltSta); v != 0xffff && v&pci.SltStaFault != 0 {
		s.cfg.Write16(s.exp+pci.ExpSltSta, pci.SltStaFault)
	}
	s.faulted = false
	s.sta.Unlock()
	if err := s.command(ctx, pci.SltCtlPowerOff, 0, true); err != nil {
		return err
	}
	_, err := s.dev.Modify(pci.ExpLnkCtl, pci.LnkCtlDisable, 0, false)
	return err
}

// powerOff switches the slot off, and waits until a card can be taken out (6.7.1.8). What presence and link do meanwhile is no
// news.
func (s *Slot) powerOff(ctx context.Context) {
	if s.caps&pci.SltCapPower == 0 || s.command(ctx, 0, pci.SltCtlPowerOff, true) != nil {
		return
	}
	s.sleep(ctx, offTime)
	s.drop(evPresence | evLink)
}

// hasFault says whether the slot's power failed.
func (s *Slot) hasFault() bool {
	s.sta.Lock()
	defer s.sta.Unlock()
	v := s.cfg.Read16(s.exp + pci.ExpSltSta)
	return s.faulted || v != 0xffff && v&pci.SltStaFault != 0
}

// sleep waits by the port's clock, and says whether it is worth going on.
func (s *Slot) sleep(ctx context.Context, d time.Duration) bool {
	return bus.Sleep(ctx, s.clock, d) == nil && !s.dead()
}
