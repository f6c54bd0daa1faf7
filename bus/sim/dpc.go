package sim

import (
	"fmt"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Downstream Port Containment (PCI Express Base 5.0, 6.2.10 and 7.9.15).

const (
	dpcSize    = 0x40
	dpcPIO     = 0x00070707 // of the RP PIO registers: completions with UR, CA, and none, of config, I/O and memory requests
	dpcEnable  = pci.DPCCtlFatal | pci.DPCCtlNonFatal
	dpcNoPIO   = 0x1f // RP PIO First Error Pointer: none
	dpcLogSize = 4 << 8

	dpcUncorrectable = 0 // reasons, of DPCStaReason
	dpcNonFatal      = 1
	dpcFatal         = 2
	dpcMore          = 3
	dpcBySoftware    = 1 // of DPCStaMore
)

func (p *port) layoutDPC(s *space, root bool) {
	at := func(reg bus.Off) int { return p.dpc + int(reg) }
	cap := pci.DPCCapTrigger | pci.DPCCapActive
	if root {
		cap |= pci.DPCCapRP | dpcLogSize
	}
	s.put16(at(pci.DPCCap), cap)
	s.set16(at(pci.DPCCtl), 0, dpcEnable|pci.DPCCtlIRQ, 0)
	s.set16(at(pci.DPCSta), dpcNoPIO<<8, 0, pci.DPCStaTriggered|pci.DPCStaIRQ)
	if !root {
		s.put16(at(pci.DPCSta), 0)
		return
	}
	s.set32(at(pci.DPCPIOSta), 0, 0, dpcPIO)
	s.set32(at(pci.DPCPIOMask), dpcPIO, dpcPIO, 0)
	s.set32(at(pci.DPCPIOSev), 0, dpcPIO, 0)
	s.set32(at(pci.DPCPIOSysErr), 0, dpcPIO, 0)
	s.set32(at(pci.DPCPIOExc), 0, dpcPIO, 0)
}

// contained says whether the port keeps what is below from everybody.
func (p *port) contained() bool {
	return p.dpc != 0 && p.d.space.get16(p.dpc+int(pci.DPCSta))&pci.DPCStaTriggered != 0
}

// contain triggers, where this is enabled and has not happened: what is below is cut off. It says whether the port contained something, be it now or
// before: no message goes up then.
func (p *port) contain(reason, more uint16, source uint16) bool {
	if p.dpc == 0 {
		return false
	}
	s := p.d.space
	ctl, at := s.get16(p.dpc+int(pci.DPCCtl)), p.dpc+int(pci.DPCSta)
	// 1: on fatal errors; 2: on non-fatal ones too; 3 is reserved.
	switch enable := ctl & dpcEnable; {
	case enable == 0 || enable == dpcEnable:
		return false
	case enable == pci.DPCCtlFatal && reason == dpcNonFatal:
		return false
	}
	if p.contained() {
		return true
	}
	v := s.get16(at)&^(pci.DPCStaReason|pci.DPCStaMore) | pci.DPCStaTriggered | reason<<1 | more<<5
	if ctl&pci.DPCCtlIRQ != 0 {
		v |= pci.DPCStaIRQ
	}
	s.put16(at, v)
	s.put16(p.dpc+int(pci.DPCSource), source)
	p.settle(true)
	return true
}

// wroteDPC is told of a write to the capability.
func (p *port) wroteDPC(off bus.Off, width int, v uint32) {
	s := p.d.space
	ctl := p.dpc + int(pci.DPCCtl)
	if int(off) <= ctl && ctl < int(off)+width && byteOf(off, v, ctl)&byte(pci.DPCCtlTrigger) != 0 {
		p.contain(dpcMore, dpcBySoftware, p.d.requester())
	}
	if p.d.space.get32(p.dpc+int(pci.DPCPIOSta)) == 0 && s.get16(p.dpc+int(pci.DPCCap))&pci.DPCCapRP != 0 {
		at := p.dpc + int(pci.DPCSta)
		s.put16(at, s.get16(at)|pci.DPCStaPIOFirst)
	}
}

// TriggerDPC makes a root port with dpc=on detect errors of programmed I/O: these bits of RP PIO Status, with the header of the request.
// pio 0 is an unmasked uncorrectable error of the port itself. It contains what is below if software enabled that, whatever RP PIO Severity says, and the
// bits are not masked.
func (m *Machine) TriggerDPC(port string, pio uint32, header [4]uint32) error {
	m.lock()
	defer m.unlock()
	p, err := m.portNamed(port, "containing")
	if err != nil {
		return err
	}
	if p.dpc == 0 {
		return p.d.errorf("containing: the port has no dpc=on: %w", bus.ErrNotSupported)
	}
	if pio == 0 {
		p.contain(dpcUncorrectable, 0, p.d.requester())
		return nil
	}
	if p.kind.kind != pci.ExpRootPort || pio&^dpcPIO != 0 {
		return fmt.Errorf("sim: %s: containing: RP PIO Status %#x: want bits of %#x of a root port: %w", port, pio, dpcPIO, bus.ErrNotSupported)
	}
	s, at := p.d.space, func(reg bus.Off) int { return p.dpc + int(reg) }
	old := s.get32(at(pci.DPCPIOSta))
	s.put32(at(pci.DPCPIOSta), old|pio)
	if pio &^= s.get32(at(pci.DPCPIOMask)); pio == 0 {
		return nil
	}
	if first := lowest(pio); s.get16(at(pci.DPCSta))&pci.DPCStaPIOFirst == pci.DPCStaPIOFirst {
		s.put16(at(pci.DPCSta), s.get16(at(pci.DPCSta))&^pci.DPCStaPIOFirst|uint16(first)<<8)
		s.headerBytes(at(pci.DPCPIOHeader), header)
	}
	reason := uint16(dpcMore)
	p.contain(reason, 0, p.d.requester())
	return nil
}
