package dpc

import (
	"context"
	"log/slog"
	"math/bits"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
)

// surpriseDown is the bit of Uncorrectable Error Status (7.8.4.2).
const surpriseDown uint32 = 1 << 5

// Values of DPCStaReason and DPCStaMore.
const (
	reasonUncorrectable = 0
	reasonNonFatal      = 1
	reasonFatal         = 2
	reasonMore          = 3

	morePIO      = 0
	moreSoftware = 1
)

// handle takes the port through one event.
func (s *Service) handle(ctx context.Context) {
	m := s.port.Member()
	if s.pulledOut(m) {
		s.releaseSilently(ctx, m)
		return
	}
	s.report(m)
	if s.port.Err() != nil {
		return // nobody is left to be recovered
	}
	// Only fatal errors trigger, so what is below cannot be reached.
	s.port.Recover(ctx, m, true, s.release)
}

// pulledOut says whether all that happened is that a card was pulled out.
func (s *Service) pulledOut(m *pci.Member) bool {
	e := s.port.Express()
	if !s.port.Profile().SurpriseDown || !e.Slot || s.cfg.Read32(e.At+pci.ExpSltCap)&pci.SltCapHotPlug == 0 || s.port.AER() == 0 {
		return false
	}
	return m.Device.Config().Read32(s.port.AER()+pci.AERUncSta)&surpriseDown != 0 && !s.port.Gone()
}

// releaseSilently releases the port after a card was pulled out, and clears what that left behind.
func (s *Service) releaseSilently(ctx context.Context, m *pci.Member) {
	defer s.recovered.Store(false)
	if !s.linkDown(ctx) || !s.idle(ctx) {
		return
	}
	clearErrors(m)
	portbus.ClearStatus(m)
	if s.extended() {
		s.cfg.Write32(s.at+pci.DPCPIOSta, 0xffffffff)
	}
	s.cfg.Write16(s.at+pci.DPCSta, pci.DPCStaTriggered)
}

// clearErrors clears the port's own uncorrectable errors.
func clearErrors(m *pci.Member) { portbus.ClearErrors(m, pci.AERNonFatal, ^uint32(0)) }

// report says what happened.
func (s *Service) report(m *pci.Member) {
	status, source := s.read(pci.DPCSta), s.read(pci.DPCSource)
	if status == 0xffff {
		return
	}
	reason, more := status&pci.DPCStaReason>>1, status&pci.DPCStaMore>>5
	s.announce(status, source, reason, more)
	switch {
	case reason == reasonMore && more == morePIO && s.extended():
		s.reportPIO()
	case reason == reasonUncorrectable && s.port.AER() != 0:
		c, at := m.Device.Config(), s.port.AER()
		sev := pci.AERNonFatal
		if c.Read32(at+pci.AERUncSta)&^c.Read32(at+pci.AERUncMask)&c.Read32(at+pci.AERUncSev) != 0 {
			sev = pci.AERFatal
		}
		if e, ok := portbus.ReadError(m, sev, true); ok {
			s.port.Report(m, e)
			clearErrors(m)
		}
	}
}

// announce is the message of the event.
func (s *Service) announce(status, source, reason, more uint16) {
	what := "reserved error"
	switch {
	case reason == reasonUncorrectable:
		what = "unmasked uncorrectable error"
	case reason == reasonNonFatal:
		what = "ERR_NONFATAL"
	case reason == reasonFatal:
		what = "ERR_FATAL"
	case more == morePIO:
		what = "RP PIO error"
	case more == moreSoftware:
		what = "software trigger"
	}
	switch {
	case !s.port.Profile().DPCOneLine:
		s.d.Log(slog.LevelInfo, "containment event, status:0x%04x source:0x%04x", status, source)
		s.d.Log(slog.LevelWarn, "%s detected", what)
	case reason == reasonNonFatal || reason == reasonFatal:
		from := pci.Addr{Domain: s.port.Addr().Domain, Bus: uint8(source >> 8), Dev: uint8(source >> 3 & 0x1f), Fn: uint8(source & 7)}
		s.d.Log(slog.LevelWarn, "containment event, status:0x%04x, %s received from %s", status, what, from)
	default:
		s.d.Log(slog.LevelWarn, "containment event, status:0x%04x: %s detected", status, what)
	}
}

// pioNames are the kernel's names of the bits of RP PIO Status (7.9.15.6).
var pioNames = map[int]string{
	0:  "Configuration Request received UR Completion",
	1:  "Configuration Request received CA Completion",
	2:  "Configuration Request Completion Timeout",
	8:  "I/O Request received UR Completion",
	9:  "I/O Request received CA Completion",
	10: "I/O Request Completion Timeout",
	16: "Memory Request received UR Completion",
	17: "Memory Request received CA Completion",
	18: "Memory Request Completion Timeout",
}

// reportPIO says what went wrong with programmed I/O, and clears it. Bits without a name are reserved.
func (s *Service) reportPIO() {
	reg := func(r bus.Off) uint32 { return s.cfg.Read32(s.at + r) }
	line := func(format string, args ...any) { s.d.Log(slog.LevelError, format, args...) }
	status, mask := reg(pci.DPCPIOSta), reg(pci.DPCPIOMask)
	line("rp_pio_status: 0x%08x, rp_pio_mask: 0x%08x", status, mask)
	line("RP PIO severity=0x%08x, syserror=0x%08x, exception=0x%08x", reg(pci.DPCPIOSev), reg(pci.DPCPIOSysErr), reg(pci.DPCPIOExc))
	first := int(s.read(pci.DPCSta) & pci.DPCStaPIOFirst >> 8)
	for rest := status &^ mask; rest != 0; rest &= rest - 1 {
		bit := bits.TrailingZeros32(rest)
		name, mark := pioNames[bit], ""
		if name == "" {
			continue
		}
		if bit == first {
			mark = " (First)"
		}
		line("[%2d] %s%s", bit, name, mark)
	}
	if s.log >= logHeader {
		h := pci.DPCPIOHeader
		line("TLP Header: 0x%08x 0x%08x 0x%08x 0x%08x", reg(h), reg(h+4), reg(h+8), reg(h+12))
	}
	if s.log >= logImp {
		line("RP PIO ImpSpec Log 0x%08x", reg(pci.DPCPIOImp))
		for i := range s.log - logImp {
			line("TLP Prefix Header: dw%d, 0x%08x", i, reg(pci.DPCPIOPrefix+bus.Off(4*i)))
		}
	}
	s.cfg.Write32(s.at+pci.DPCPIOSta, status)
}

// release lets the link up again, and waits for what is below: the reset of a recovery. The link went down in hardware,
// so it was a reset already.
func (s *Service) release(ctx context.Context) bus.Verdict {
	s.recovering.Store(true)
	defer s.recovering.Store(false)
	s.recovered.Store(false)
	s.linkDown(ctx)
	if ctx.Err() != nil || !s.idle(ctx) {
		return bus.Disconnect
	}
	s.cfg.Write16(s.at+pci.DPCSta, pci.DPCStaTriggered)
	if len(s.port.Below()) > 0 {
		if !s.linkUp(ctx) || s.port.RestoreBelow(ctx, "DPC") != nil {
			return bus.Disconnect
		}
	}
	if s.port.Err() != nil {
		return bus.Disconnect
	}
	s.recovered.Store(true)
	return bus.Recovered
}

// link waits until the link is active, or is not any more; a port that does not tell is given the time.
func (s *Service) link(ctx context.Context, active bool) bool {
	e := s.port.Express()
	if s.cfg.Read32(e.At+pci.ExpLnkCap)&pci.LnkCapActive == 0 {
		return s.port.Sleep(ctx, linkTime) == nil
	}
	return s.wait(ctx, linkTime, func() bool {
		v := s.cfg.Read16(e.At + pci.ExpLnkSta)
		return v != 0xffff && v&pci.LnkStaActive != 0 == active
	})
}

func (s *Service) linkDown(ctx context.Context) bool {
	ok := s.link(ctx, false)
	if !ok && s.alive(ctx) {
		s.d.Log(slog.LevelInfo, "Data Link Layer Link Active not cleared in %d msec", linkTime.Milliseconds())
	}
	return ok
}

func (s *Service) linkUp(ctx context.Context) bool {
	if !s.link(ctx, true) {
		if s.alive(ctx) {
			s.d.Log(slog.LevelInfo, "Data Link Layer Link Active not set in %d msec", linkTime.Milliseconds())
		}
		return false
	}
	return s.port.Sleep(ctx, settleTime) == nil
}

// idle waits until a root port has finished what was under way.
func (s *Service) idle(ctx context.Context) bool {
	if !s.extended() {
		return true
	}
	ok := s.wait(ctx, busyTime, func() bool {
		v := s.read(pci.DPCSta)
		return v != 0xffff && v&pci.DPCStaBusy == 0
	})
	if !ok && s.alive(ctx) {
		s.d.Log(slog.LevelWarn, "root port still busy")
	}
	return ok
}

// alive says whether it makes sense to complain.
func (s *Service) alive(ctx context.Context) bool { return ctx.Err() == nil && s.port.Err() == nil }

// wait asks until something is so.
func (s *Service) wait(ctx context.Context, limit time.Duration, so func() bool) bool {
	for waited := time.Duration(0); ; waited += step {
		switch {
		case so():
			return true
		case waited >= limit || s.port.Err() != nil:
			return false
		}
		if s.port.Sleep(ctx, step) != nil {
			return false
		}
	}
}
