package sim

import (
	"encoding/binary"
	"math/bits"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Capabilities as the machine lays them out, from 0x40 on (PCI Local Bus 3.0, 6.7 and 6.8; PCI
// Express Base 3.0, 7.8; PCI Power Management 1.2, 3.2).
const (
	pmSize      = 0x08
	pmCap       = 0x02   // Power Management Capabilities, RO
	pmCtl       = 0x04   // Power Management Control/Status, RW
	pmVersion   = 3      // of pmCap
	pmState     = 0b11   // of pmCtl
	pmNoSoftRst = 1 << 3 // of pmCtl: D3hot to D0 changes nothing

	msiSize    = 0x0e
	msiCtl     = 0x02 // Message Control, RW
	msiAddr    = 0x04 // Message Address, RW
	msiAddrHi  = 0x08 // Message Upper Address, RW
	msiData    = 0x0c // Message Data, RW
	msiOn      = 1 << 0
	msi64      = 1 << 7
	msiCanMask = 1 << 8

	msixSize   = 0x0c
	msixCtl    = 0x02 // Message Control, RW
	msixTable  = 0x04 // Table Offset and BIR, RO
	msixPBA    = 0x08 // PBA Offset and BIR, RO
	msixMask   = 1 << 14
	msixOn     = 1 << 15
	pbaAt      = 0x2000
	entrySize  = 16
	entryCtl   = 12
	entryIsOff = 1 << 0

	expSize   = 0x3c
	expCaps   = 0x02 // PCI Express Capabilities, RO
	expDevCap = 0x04 // Device Capabilities, RO
	expDevCtl = 0x08 // Device Control, RW
	expDevSta = 0x0a // Device Status, W1C
	expLnkCap = 0x0c // Link Capabilities, RO
	expLnkCtl = 0x10 // Link Control, RW
	expLnkSta = 0x12 // Link Status, RO

	expV2      = 2       // of expCaps
	expRoleErr = 1 << 15 // of expDevCap: role-based error reporting
	expFLR     = 1 << 28 // of expDevCap: function-level reset
	expInitFLR = 1 << 15 // of expDevCtl: do it
	expGen1x1  = 1 | 1<<4
)

// Bits of Status that are cleared by writing 1: the errors, PCI Local Bus 3.0, 6.2.3.
const statusErrors = 0xf900

// space is a function's config space: what it reads as, what of it can be written, and what
// writing means.
type space struct {
	b     []byte
	rw    []byte // bits that keep what is written
	w1c   []byte // bits that writing 1 clears
	first []byte // b after reset

	pm, msi, msix, exp, aer int // offsets of the capabilities; 0: none
}

func newSpace(h *header) *space {
	if h.layout != nil {
		return h.layout(h)
	}
	n := 256
	if h.pcie {
		n = 4096
	}
	s := &space{b: make([]byte, n), rw: make([]byte, n), w1c: make([]byte, n)}
	s.put16(int(pci.CfgVendor), h.id.Vendor)
	s.put16(int(pci.CfgDevice), h.id.Device)
	s.put32(int(pci.CfgRevision), h.id.Class<<8|uint32(h.id.Revision))
	s.put16(int(pci.CfgSubVendor), h.id.SubVendor)
	s.put16(int(pci.CfgSubDevice), h.id.SubDevice)
	// QEMU's functions have the bits of both spaces, and no parity.
	cmd := pci.CmdIO | pci.CmdMem | pci.CmdMaster | pci.CmdSERR | pci.CmdINTxDisable
	for _, r := range h.regions {
		s.bar(r)
	}
	binary.LittleEndian.PutUint16(s.rw[pci.CfgCommand:], uint16(cmd))
	binary.LittleEndian.PutUint16(s.w1c[pci.CfgCommand+2:], statusErrors)
	s.rw[0x0c] = 0xff // Cache Line Size
	s.rw[pci.CfgIRQLine] = 0xff
	if h.intx {
		s.b[pci.CfgIRQPin] = 1
	}
	s.caps(h)
	if h.aer {
		s.aer = (&chain{s: s}).addExt(pci.ExtCapAER, 2, 0x100)
		s.layoutAER(false)
	}
	s.first = append([]byte(nil), s.b...)
	return s
}

// bar lays out a base address register: the bits above the size can be written.
func (s *space) bar(r bus.RegionInfo) {
	at := int(pci.CfgBAR0) + 4*r.Index
	mask := ^(r.Size - 1)
	binary.LittleEndian.PutUint32(s.rw[at:], uint32(mask))
	if r.Kind == bus.RegionIO {
		s.b[at] = 1
		return
	}
	if r.Prefetch {
		s.b[at] |= 1 << 3
	}
	if r.Is64 {
		s.b[at] |= 0b10 << 1
		binary.LittleEndian.PutUint32(s.rw[at+4:], uint32(mask>>32))
	}
}

// caps chains the capabilities that the header asks for.
func (s *space) caps(h *header) {
	link, at := int(pci.CfgCapPtr), 0x40
	add := func(id byte, size int) int {
		s.b[pci.CfgCommand+2] |= byte(pci.StatusCaps)
		s.b[link], s.b[at] = byte(at), id
		link = at + 1
		here := at
		at += (size + 3) &^ 3
		return here
	}
	if h.pcie {
		s.pm = add(pci.CapPM, pmSize)
		s.put16(s.pm+pmCap, pmVersion) // D0 and D3 only
		s.put16(s.pm+pmCtl, pmNoSoftRst)
		s.rw[s.pm+pmCtl] = pmState
		if h.pme {
			s.put16(s.pm+pmCap, pmVersion|pmSupport)
			s.set16(s.pm+pmCtl, pmNoSoftRst, pmState|pci.PMCtlPMEEn, pci.PMCtlPMESta)
		}
	}
	if h.msi > 0 {
		s.msi = add(pci.CapMSI, msiSize)
		log2 := bits.Len(uint(h.msi) - 1)
		s.put16(s.msi+msiCtl, uint16(log2<<1|msi64))
		s.rw[s.msi+msiCtl] = msiOn | 0b111<<4
		binary.LittleEndian.PutUint32(s.rw[s.msi+msiAddr:], ^uint32(3))
		binary.LittleEndian.PutUint32(s.rw[s.msi+msiAddrHi:], ^uint32(0))
		binary.LittleEndian.PutUint16(s.rw[s.msi+msiData:], 0xffff)
	}
	if h.pcie {
		s.exp = add(pci.CapPCIe, expSize)
		s.put16(s.exp+expCaps, expV2)
		cap := uint32(expRoleErr)
		if h.flr {
			cap |= expFLR
		}
		s.put32(s.exp+expDevCap, cap)
		s.put16(s.exp+expDevCtl, 2<<12|1<<11|1<<4) // 512 bytes a read, no snoop, relaxed ordering: 7.8.4
		binary.LittleEndian.PutUint16(s.rw[s.exp+expDevCtl:], 0x7fff)
		s.w1c[s.exp+expDevSta] = 0xf
		s.put32(s.exp+expLnkCap, expGen1x1)
		binary.LittleEndian.PutUint16(s.rw[s.exp+expLnkCtl:], 0x00c3)
		s.put16(s.exp+expLnkSta, expGen1x1)
	}
	if h.msix > 0 {
		s.msix = add(pci.CapMSIX, msixSize)
		s.put16(s.msix+msixCtl, uint16(h.msix-1))
		s.rw[s.msix+msixCtl+1] = (msixOn | msixMask) >> 8
		s.put32(s.msix+msixTable, uint32(h.msixBAR))
		s.put32(s.msix+msixPBA, uint32(pbaAt|h.msixBAR))
	}
}

// reset is what a function reset does to config space. What was placed is placed no more.
func (s *space) reset() { copy(s.b, s.first) }

func (s *space) put16(at int, v uint16) { binary.LittleEndian.PutUint16(s.b[at:], v) }
func (s *space) put32(at int, v uint32) { binary.LittleEndian.PutUint32(s.b[at:], v) }
func (s *space) get16(at int) uint16    { return binary.LittleEndian.Uint16(s.b[at:]) }
func (s *space) get32(at int) uint32    { return binary.LittleEndian.Uint32(s.b[at:]) }

// inside says whether an access is one: aligned, and below the end.
func (s *space) inside(off bus.Off, width int) bool {
	return off&bus.Off(width-1) == 0 && off < bus.Off(len(s.b))
}

func (s *space) read(off bus.Off, width int) uint32 {
	switch width {
	case 1:
		return uint32(s.b[off])
	case 2:
		return uint32(s.get16(int(off)))
	}
	return s.get32(int(off))
}

// write keeps the bits that can be kept. It says whether function-level reset was asked for.
func (s *space) write(off bus.Off, width int, v uint32) (flr bool) {
	for i := range width {
		at, x := int(off)+i, byte(v>>(8*i))
		if s.exp != 0 && at == s.exp+expDevCtl+1 && x&(expInitFLR>>8) != 0 && s.get32(s.exp+expDevCap)&expFLR != 0 {
			flr = true
		}
		if s.pm != 0 && at == s.pm+pmCtl && (x&pmState == 1 || x&pmState == 2) {
			continue // a state that there is not: PCI Power Management 1.2, 3.2.4
		}
		s.b[at] = s.b[at]&^s.rw[at] | x&s.rw[at]
		s.b[at] &^= x & s.w1c[at]
		if s.msi != 0 && at == s.msi+msiCtl {
			// No more vectors than there are.
			have := s.b[at] >> 1 & 7
			s.b[at] = s.b[at]&^(7<<4) | min(s.b[at]>>4&7, have)<<4
		}
	}
	return flr
}

// asleep says whether the function is in D3, where it answers in config space only.
func (s *space) asleep() bool { return s.pm != 0 && s.b[s.pm+pmCtl]&pmState != 0 }

func (s *space) command() pci.Command { return pci.Command(s.get16(int(pci.CfgCommand))) }

// addr is where the BAR of a region says that it is.
func (s *space) addr(r *bus.RegionInfo) uint64 {
	at := int(pci.CfgBAR0) + 4*r.Index
	a := uint64(s.get32(at)) &^ (r.Size - 1)
	if r.Is64 {
		a |= uint64(s.get32(at+4)) << 32
	}
	return a
}

// setINTx sets Interrupt Status.
func (s *space) setINTx(high bool) {
	s.b[pci.CfgCommand+2] &^= byte(pci.StatusINTx)
	if high {
		s.b[pci.CfgCommand+2] |= byte(pci.StatusINTx)
	}
}

// mode is the kind of interrupt that is on.
func (s *space) mode() bus.IRQMode {
	switch {
	case s.msix != 0 && s.get16(s.msix+msixCtl)&msixOn != 0:
		return bus.MSIX
	case s.msi != 0 && s.get16(s.msi+msiCtl)&msiOn != 0:
		return bus.MSI
	}
	return bus.INTx
}

// Properties that every PCI Express model has.
const (
	aerProp = "on: Advanced Error Reporting (default off)"
	pmeProp = "on: it can signal PME (default off)"
)

// add reads the properties that every PCI Express model has.
func (h *header) add(props map[string]string) (err error) {
	if h.layout != nil || !h.pcie {
		return nil
	}
	if h.aer, err = onProp(props, "aer", h.aer); err == nil {
		h.pme, err = onProp(props, "pme", h.pme)
	}
	return err
}
