package sim

import (
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Errors of the fabric (PCI Express Base 5.0, 6.2): who detects, logs, reports, forwards and collects them.

// maxLog is how many headers a function records (Multiple Header Recording).
const maxLog = 8

// logged is an uncorrectable error whose header is in the log, or waits for its turn.
type logged struct {
	bit    uint8
	header [4]uint32
}

// corOverflow is the correctable error Header Log Overflow.
const corOverflow = 1 << 15

// unsupported is the uncorrectable error Unsupported Request.
const unsupported = 1 << 20

func lowest(v uint32) int { return bits.TrailingZeros32(v) & 31 }

// InjectError makes a function detect an error, or several at once. Status, header log and first error pointer are set, and what is
// enabled and not masked is told upstream, one message for each severity, through every bridge that lets it pass, to the root port. What is set already
// stays set. A function without Advanced Error Reporting (aer=on) logs in Device Status only.
func (m *Machine) InjectError(name string, e pci.AERError) error {
	m.lock()
	defer m.unlock()
	d := m.find(name)
	if d == nil {
		return fmt.Errorf("sim: injecting an error: no device is named %s: %w", name, unix.ENODEV)
	}
	s := d.space
	if d.isPlatform() || s.exp == 0 {
		return d.errorf("injecting an error: model %s is no PCI Express function: %w", d.spec.Model, bus.ErrNotSupported)
	}
	if e.Uncorrectable&^aerUnc != 0 || e.Correctable&^uint32(aerCor) != 0 {
		return d.errorf("injecting an error: uncorrectable %#x, correctable %#x: want bits of %#x and %#x: %w", e.Uncorrectable, e.Correctable, uint32(aerUnc), uint32(aerCor), bus.ErrNotSupported)
	}
	if !d.live || d.gone {
		return d.errorf("injecting an error: nothing reaches the function: %w", bus.ErrGone)
	}
	d.detect(e)
	return nil
}

// detect is Figure 6-2.
func (d *device) detect(e pci.AERError) {
	s := d.space
	sev, uncMask, corMask := uint32(aerUncSev), uint32(0), uint32(0)
	if s.aer != 0 {
		sev, uncMask, corMask = s.get32(s.aer+int(pci.AERUncSev)), s.get32(s.aer+int(pci.AERUncMask)), s.get32(s.aer+int(pci.AERCorMask))
		e.Correctable |= d.record(e, uncMask)
		at := s.aer + int(pci.AERCorSta)
		s.put32(at, s.get32(at)|e.Correctable)
	}
	fatal, non := e.Uncorrectable&sev, e.Uncorrectable&^sev
	sta := uint16(0)
	for _, x := range []struct {
		on  bool
		bit uint16
	}{{e.Correctable != 0, pci.DevStaCor}, {non != 0, pci.DevStaNonFatal}, {fatal != 0, pci.DevStaFatal}, {e.Uncorrectable&unsupported != 0, pci.DevStaUnsup}} {
		if x.on {
			sta |= x.bit
		}
	}
	at := s.exp + int(pci.ExpDevSta)
	s.put16(at, s.get16(at)|sta)
	if p := d.port; p != nil && e.Uncorrectable&^uncMask != 0 {
		// Of a port that contains, its own uncorrectable errors trigger, and are not told: 6.2.10.
		if p.contain(dpcUncorrectable, 0, d.requester()) {
			fatal, non = 0, 0
		}
	}
	if e.Correctable&^corMask != 0 {
		d.report(pci.AERCorrectable)
	}
	// An unsupported request is told only where those are.
	ctl, serr := s.get16(s.exp+int(pci.ExpDevCtl)), s.command()&pci.CmdSERR != 0
	told := ^uncMask
	if ctl&pci.DevCtlUnsup == 0 && !serr {
		told &^= unsupported
	}
	if non&told != 0 {
		d.report(pci.AERNonFatal)
	}
	if fatal&told != 0 {
		d.report(pci.AERFatal)
	}
}

// record sets status bits, the pointer to the first error, and the log of headers. It returns what is wrong with that: an overflow.
func (d *device) record(e pci.AERError, mask uint32) (cor uint32) {
	s := d.space
	at := s.aer + int(pci.AERUncSta)
	s.put32(at, s.get32(at)|e.Uncorrectable)
	multi := s.get32(s.aer+int(pci.AERCap))&aerMulti != 0
	for v := e.Uncorrectable &^ mask; v != 0; v &= v - 1 {
		switch n := len(d.log); {
		case n == 0 || multi && n < maxLog:
			d.log = append(d.log, logged{uint8(lowest(v)), e.Header})
		case multi:
			cor = corOverflow
		}
	}
	d.showLog()
	return cor
}

// showLog shows the first error of the log.
func (d *device) showLog() {
	s := d.space
	at := s.aer + int(pci.AERCap)
	var first logged
	if len(d.log) > 0 {
		first = d.log[0]
	}
	s.put32(at, s.get32(at)&^pci.AERFirst|uint32(first.bit))
	s.headerBytes(s.aer+int(pci.AERHeader), first.header)
}

// cleared is told that software wrote Uncorrectable Error Status, which was before: an error that is cleared makes room in the log.
// Where several were recorded of one kind, each must be cleared: 6.2.4.2.
func (d *device) cleared(before uint32) {
	s := d.space
	at := s.aer + int(pci.AERUncSta)
	gone := before &^ s.get32(at)
	if gone == 0 || len(d.log) == 0 {
		return
	}
	for len(d.log) > 0 && gone&(1<<d.log[0].bit) != 0 {
		gone &^= 1 << d.log[0].bit
		d.log = append(d.log[:0], d.log[1:]...)
	}
	for _, x := range d.log { // still recorded
		s.put32(at, s.get32(at)|1<<x.bit)
	}
	d.showLog()
}

// enabled says whether a function's controls let a message of that severity go up (6.2.6), and notes in Status that it did.
func (d *device) enabled(sev pci.AERSeverity) bool {
	s := d.space
	ctl := s.get16(s.exp + int(pci.ExpDevCtl))
	if sev == pci.AERCorrectable {
		return ctl&pci.DevCtlCor != 0
	}
	bit := pci.DevCtlNonFatal
	if sev == pci.AERFatal {
		bit = pci.DevCtlFatal
	}
	serr := s.command()&pci.CmdSERR != 0
	if serr {
		s.b[pci.CfgStatus+1] |= 1 << 6 // Signaled System Error
	}
	return serr || ctl&bit != 0
}

// report sends a message of the function itself.
func (d *device) report(sev pci.AERSeverity) {
	if !d.enabled(sev) {
		return
	}
	from := d.requester()
	if d.port != nil && d.port.kind.kind == pci.ExpRootPort {
		d.port.collect(sev, from)
		return
	}
	for u := d.up; u != nil; u = u.up {
		if !u.port.up || !u.port.forward(sev, from) {
			return
		}
		if u.port.kind.kind == pci.ExpRootPort {
			u.port.collect(sev, from)
			return
		}
	}
}

// forward is a message that arrives from below: it is contained, or passed on if Bridge Control and, unless correctable, the controls of the primary
// side let it.
func (p *port) forward(sev pci.AERSeverity, from uint16) bool {
	s := p.d.space
	if sev != pci.AERCorrectable {
		s.put16(brgStatus, s.get16(brgStatus)|brgSERR)
		reason := uint16(dpcNonFatal)
		if sev == pci.AERFatal {
			reason = dpcFatal
		}
		if p.contain(reason, 0, from) {
			return false
		}
	}
	if s.get16(int(pci.CfgBridgeCtl))&pci.BridgeSERR == 0 {
		return false
	}
	return sev == pci.AERCorrectable || p.d.enabled(sev)
}

// collect is what a root port makes of a message (7.8.4.9 to 7.8.4.11).
func (p *port) collect(sev pci.AERSeverity, from uint16) {
	s := p.d.space
	sta, src := s.aer+int(pci.AERRootSta), s.aer+int(pci.AERErrSrc)
	v := s.get32(sta)
	switch {
	case sev == pci.AERCorrectable && v&pci.RootStaCor != 0:
		v |= pci.RootStaMultiCor
	case sev == pci.AERCorrectable:
		v |= pci.RootStaCor
		s.put16(src, from)
	case v&pci.RootStaUnc != 0:
		v |= pci.RootStaMultiUnc
	default:
		v |= pci.RootStaUnc
		if sev == pci.AERFatal {
			v |= pci.RootStaFirstFat
		}
		s.put16(src+2, from)
	}
	switch sev {
	case pci.AERNonFatal:
		v |= pci.RootStaNonFatal
	case pci.AERFatal:
		v |= pci.RootStaFatal
	}
	s.put32(sta, v)
	p.interrupts()
}
