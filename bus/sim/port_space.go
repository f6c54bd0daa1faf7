package sim

import (
	"encoding/binary"
	"math/bits"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Registers of a bridge's header (PCI-to-PCI Bridge 1.2, 3.2).
const (
	brgBuses  = 0x18 // Primary, Secondary, Subordinate Bus Number, Secondary Latency Timer
	brgIO     = 0x1c // I/O Base and Limit
	brgStatus = 0x1e // Secondary Status
	brgMem    = 0x20
	brgPref   = 0x24
	brgPrefHi = 0x28    // base, and 4 above it limit
	brgSERR   = 1 << 14 // of Secondary Status: Received System Error
)

// What Advanced Error Reporting knows in these models, and how bad it is by default (7.8.4); as QEMU 7.2.
const (
	aerUnc     = 0x03fff030
	aerUncSev  = 0x00462030
	aerCor     = 0x0000f1c1
	aerCorMask = 0x0000e000
	aerCaps    = 0x000002a0 // ECRC generation and checking, several headers recorded
	aerCapRW   = 0x00000540
	aerMulti   = 1 << 10 // of aerCapRW: record several
	aerSize    = 0x48
	rtStaAt    = 2 // byte of Root Status with the bit PME

	// lnkCtlTarget is Target Link Speed of Link Control 2, lnkCap2Speeds the speeds of Link Capabilities 2 up to 16 GT/s.
	lnkCtlTarget  = 0xf
	lnkCap2Speeds = 0x1e

	// Where capabilities stand that QEMU's ports do not have.
	dpcAt   = 0x160
	vcAt    = 0x200
	pmAt    = 0xe0
	msiElse = 0x90
)

// set16 and its kin lay a register out: what it reads as, what of it is kept, and what writing ones clears.
func (s *space) set16(at int, v, rw, w1c uint16) {
	s.put16(at, v)
	binary.LittleEndian.PutUint16(s.rw[at:], rw)
	binary.LittleEndian.PutUint16(s.w1c[at:], w1c)
}

func (s *space) set32(at int, v, rw, w1c uint32) {
	s.put32(at, v)
	binary.LittleEndian.PutUint32(s.rw[at:], rw)
	binary.LittleEndian.PutUint32(s.w1c[at:], w1c)
}

// chain is a list of capabilities that is being laid out: where the next one is to be named.
type chain struct {
	s    *space
	link int
	ext  int // of extended ones: the last, 0: none yet
}

func (c *chain) add(id byte, at int) int {
	c.s.b[c.link], c.s.b[at] = byte(at), id
	c.link = at + 1
	return at
}

func (c *chain) addExt(id uint16, version uint32, at int) int {
	c.s.put32(at, uint32(id)|version<<16)
	if c.ext != 0 {
		c.s.put32(c.ext, c.s.get32(c.ext)|uint32(at)<<20)
	}
	c.ext = at
	return at
}

// layout is the config space of a port.
func (p *port) layout(h *header) *space {
	const n = 4096
	s := &space{b: make([]byte, n), rw: make([]byte, n), w1c: make([]byte, n)}
	k := p.kind
	s.put16(int(pci.CfgVendor), k.id.Vendor)
	s.put16(int(pci.CfgDevice), k.id.Device)
	s.set16(int(pci.CfgCommand), 0, uint16(pci.CmdIO|pci.CmdMem|pci.CmdMaster|pci.CmdSERR|pci.CmdINTxDisable), 0)
	s.set16(int(pci.CfgStatus), uint16(pci.StatusCaps), 0, statusErrors)
	s.put32(int(pci.CfgRevision), k.id.Class<<8|uint32(k.id.Revision))
	s.rw[0x0c] = 0xff // Cache Line Size
	s.b[pci.CfgHeader] = pci.HeaderBridge
	for _, r := range h.regions {
		s.bar(r)
	}
	s.set32(brgBuses, 0, 0xffffffff, 0)
	s.set16(brgIO, 0, 0xf0f0, 0)
	s.set16(brgStatus, 0, 0, statusErrors)
	s.set32(brgMem, 0, 0xfff0fff0, 0)
	s.set32(brgPref, 0x00010001, 0xfff0fff0, 0)
	s.set32(brgPrefHi, 0, 0xffffffff, 0)
	s.set32(brgPrefHi+4, 0, 0xffffffff, 0)
	s.rw[pci.CfgIRQLine] = 0xff
	if h.intx {
		s.b[pci.CfgIRQPin] = 1
	}
	s.set16(int(pci.CfgBridgeCtl), 0, 0x5f, 0)
	p.layoutCaps(s, h)
	p.layoutExt(s)
	s.first = append([]byte(nil), s.b...)
	return s
}

func (p *port) layoutCaps(s *space, h *header) {
	k := p.kind
	c := chain{s: s, link: int(pci.CfgCapPtr)}
	s.exp = c.add(pci.CapPCIe, k.express)
	p.layoutExpress(s)
	irq := func() {
		switch {
		case h.msix > 0:
			s.msix = c.add(pci.CapMSIX, k.irq)
			s.set16(s.msix+msixCtl, uint16(h.msix-1), msixOn|msixMask, 0)
			s.put32(s.msix+msixPBA, uint32(h.pba))
		case h.msi > 0:
			at := k.irq
			if k.msix {
				at = msiElse // there is no room for it
			}
			s.msi = c.add(pci.CapMSI, at)
			p.layoutMSI(s, h.msi)
		}
	}
	if k.irq > k.ssvid || k.interMsi {
		irq()
	}
	ssvid := c.add(pci.CapSSVID, k.ssvid)
	s.put16(ssvid+4, k.id.SubVendor)
	s.put16(ssvid+6, k.id.SubDevice)
	if k.irq < k.ssvid && !k.interMsi {
		irq()
	}
	if p.opt.pme {
		p.pm = c.add(pci.CapPM, pmAt)
		s.pm = p.pm
		s.put16(p.pm+pmCap, pmVersion|pmSupport)
		s.set16(p.pm+pmCtl, pmNoSoftRst, pmState|pci.PMCtlPMEEn, pci.PMCtlPMESta)
	}
}

// layoutMSI: an ioh3420 has 32-bit addresses and masks.
func (p *port) layoutMSI(s *space, n int) {
	log2 := uint16(bits.Len(uint(n)) - 1)
	s.set32(s.msi+msiAddr, 0, 0xfffffffc, 0)
	if !p.kind.interMsi {
		s.set16(s.msi+msiCtl, log2<<1|msi64, msiOn|0b111<<4, 0)
		s.set32(s.msi+msiAddrHi, 0, 0xffffffff, 0)
		s.set16(s.msi+msiData, 0, 0xffff, 0)
		return
	}
	s.set16(s.msi+msiCtl, log2<<1|msiCanMask, msiOn|0b111<<4, 0)
	s.set16(s.msi+msiAddrHi, 0, 0xffff, 0)
	s.set32(s.msi+msiData, 0, uint32(1<<n-1), 0)
}

// layoutExpress has the registers of a port (7.5.3).
func (p *port) layoutExpress(s *space) {
	k, at := p.kind, func(reg bus.Off) int { return s.exp + int(reg) }
	flags := uint16(expV2) | uint16(k.kind)<<4
	lnk := k.lnkCap
	var ctl uint16
	if p.hasSlot() {
		flags |= pci.FlagSlot
		ctl = pci.LnkCtlDisable | 0x00c3
		if p.opt.bw {
			lnk |= pci.LnkCapNotify
			ctl |= pci.LnkCtlLBMIE | pci.LnkCtlLABIE
			if lnk&0xf < 4 {
				lnk = lnk&^0xf | 4
			}
		}
	}
	s.put16(at(pci.ExpFlags), flags)
	s.put32(at(pci.ExpDevCap), k.devCap)
	s.set16(at(pci.ExpDevCtl), 0, pci.DevCtlErrors, 0)
	s.set16(at(pci.ExpDevSta), 0, 0, pci.DevStaErrors)
	s.put32(at(pci.ExpLnkCap), lnk)
	s.set16(at(pci.ExpLnkCtl), 0, ctl, 0)
	s.put16(at(pci.ExpLnkSta), uint16(lnk&0x3ff))
	s.put32(at(pci.ExpDevCap2), 0x00300020)
	s.set16(at(pci.ExpDevCtl2), 0, 0x8020, 0)
	if !p.hasSlot() {
		s.put32(at(pci.ExpDevCap2), 0x00300000)
		s.set16(at(pci.ExpDevCtl2), 0, 0x8000, 0)
		return
	}
	if lnk&0xf > 1 {
		s.put32(at(pci.ExpLnkCap2), lnkCap2Speeds)
		s.set16(at(pci.ExpLnkCtl2), uint16(lnk&0xf), 0, 0)
		if p.opt.bw {
			s.set16(at(pci.ExpLnkCtl2), uint16(lnk&0xf), lnkCtlTarget, 0)
			s.set16(at(pci.ExpLnkSta), uint16(lnk&0x3ff), 0, pci.LnkStaLBMS|pci.LnkStaLABS)
		}
	}
	p.layoutSlot(s)
	if k.kind == pci.ExpRootPort {
		rt := pci.RtCtlSysErr
		if p.opt.pme {
			rt |= pci.RtCtlPME
		}
		s.set16(at(pci.ExpRtCtl), 0, rt, 0)
		s.set32(at(pci.ExpRtSta), 0, 0, pci.RtStaPME)
	}
}

// layoutSlot: an event can be enabled where it can happen.
func (p *port) layoutSlot(s *space) {
	cap := p.opt.sltCap
	s.put32(s.exp+int(pci.ExpSltCap), cap|p.opt.slot<<pci.SltCapSlotAt)
	ctl := pci.SltCtlPresence | pci.SltCtlHP
	sta := pci.SltStaPresence
	for _, x := range []struct {
		has      bool
		ctl, sta uint16
	}{
		{cap&pci.SltCapButton != 0, pci.SltCtlButton, pci.SltStaButton},
		{cap&pci.SltCapPower != 0, pci.SltCtlFault | pci.SltCtlPowerOff, pci.SltStaFault},
		{cap&pci.SltCapMRL != 0, pci.SltCtlMRL, pci.SltStaMRL},
		{cap&pci.SltCapAttnLED != 0, pci.SltCtlAttnLED, 0},
		{cap&pci.SltCapPowerLED != 0, pci.SltCtlPowerLED, 0},
		{cap&pci.SltCapNoCmd == 0, pci.SltCtlCmd, pci.SltStaCmd},
		{p.reportsActiveIn(s), pci.SltCtlLink, pci.SltStaLink},
	} {
		if x.has {
			ctl, sta = ctl|x.ctl, sta|x.sta
		}
	}
	s.set16(s.exp+int(pci.ExpSltCtl), 0, ctl, 0)
	s.set16(s.exp+int(pci.ExpSltSta), 0, 0, sta)
}

// layoutAER lays out Advanced Error Reporting (7.8.4).
func (s *space) layoutAER(root bool) {
	at := func(reg bus.Off) int { return s.aer + int(reg) }
	s.set32(at(pci.AERUncSta), 0, 0, aerUnc)
	s.set32(at(pci.AERUncMask), 0, aerUnc, 0)
	s.set32(at(pci.AERUncSev), aerUncSev, aerUnc, 0)
	s.set32(at(pci.AERCorSta), 0, 0, aerCor)
	s.set32(at(pci.AERCorMask), aerCorMask, aerCor, 0)
	s.set32(at(pci.AERCap), aerCaps, aerCapRW, 0)
	if root {
		s.set32(at(pci.AERRootCmd), 0, pci.RootCmdAll, 0)
		s.set32(at(pci.AERRootSta), 0, 0, 0x7f)
	}
}

func (p *port) layoutExt(s *space) {
	c := chain{s: s}
	root := p.kind.kind == pci.ExpRootPort
	s.aer = c.addExt(pci.ExtCapAER, p.kind.aerV, 0x100)
	s.layoutAER(root)
	if p.kind.acs {
		acs := c.addExt(pci.ExtCapACS, 1, 0x148)
		s.put16(acs+4, 0x5f)
		s.set16(acs+6, 0, 0x5f, 0)
	}
	if p.opt.dpc && p.hasSlot() {
		p.dpc = c.addExt(pci.ExtCapDPC, 1, dpcAt)
		p.layoutDPC(s, root)
	}
	if p.opt.vc >= 0 {
		p.vc = c.addExt(pci.ExtCapVC, 1, vcAt)
		p.layoutVC(s)
	}
}
