package sim

import (
	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Virtual channels (PCI Express Base 5.0, 6.3 and 7.9.1). Arbitration is by hardware or weighted, in 32 phases: each table has 32 entries of 4 bits.

const (
	vcTable    = 16     // bytes of a table, and its alignment
	vcArbs     = 0b11   // arbitrations: hardware-fixed, weighted round robin with 32 phases
	vcLoad     = 1 << 0 // of Port VC Control
	vcResLoad  = 1 << 16
	vcResOn    = 1 << 31
	vcPending  = 1 << 1 // of VC Resource Status: negotiation
	vcChanged  = 1 << 0 // of both Status registers: the table was written, not loaded
	vcEntry4   = 2 << 10
	vcResRW    = vcResOn | 7<<24 | 7<<17 | 0xff
	vcSelect   = 7 << 1
	vcSlots32  = 31 << 16
	vcTableAt  = 24 // of both Capability registers: where a table is, in 16 bytes
	vcResFirst = 0x10
)

func (p *port) vcCount() int { return p.opt.vc + 1 }

// vcTables is where the tables begin: that of the channels, then one for each resource.
func (p *port) vcTables() int {
	return (vcResFirst + p.vcCount()*int(pci.VCStride) + vcTable - 1) &^ (vcTable - 1)
}

func (p *port) vcRes(n int, reg bus.Off) int { return p.vc + int(reg) + n*int(pci.VCStride) }

func (p *port) layoutVC(s *space) {
	n := p.vcCount()
	tables := p.vcTables()
	p.vcSize = tables + (n+1)*vcTable
	s.put32(p.vc+int(pci.VCCap1), uint32(p.opt.vc)|uint32(p.opt.vc)<<4|vcEntry4)
	cap2 := uint32(1)
	if p.opt.vc > 0 {
		cap2 = vcArbs | uint32(tables/vcTable)<<vcTableAt
		p.table(s, 0)
		s.set16(p.vc+int(pci.VCCtl), 0, vcSelect, 0)
	}
	s.put32(p.vc+int(pci.VCCap2), cap2)
	for i := range n {
		s.put32(p.vcRes(i, pci.VCResCap), vcArbs|vcSlots32|uint32(tables/vcTable+1+i)<<vcTableAt)
		p.table(s, i+1)
		v, rw := uint32(i)<<24, uint32(vcResRW)
		if i == 0 { // it is always on, with TC 0
			v, rw = vcResOn|0xff, 7<<17|0xfe
		}
		s.set32(p.vcRes(i, pci.VCResCtl), v, rw, 0)
	}
}

// table makes a table writable.
func (p *port) table(s *space, n int) {
	at := p.vc + p.vcTables() + n*vcTable
	for i := range vcTable {
		s.rw[at+i] = 0xff
	}
}

// wroteVC is told of a write to the capability: to a table, which is loaded when software says so, or to a channel's control.
func (p *port) wroteVC(off bus.Off, width int, v uint32) {
	s := p.d.space
	touched := func(at, n int) bool { return int(off) < at+n && at < int(off)+width }
	tables := p.vc + p.vcTables()
	for i := range p.vcCount() + 1 {
		status := p.vc + int(pci.VCSta)
		if i > 0 {
			status = p.vcRes(i-1, pci.VCResSta)
		}
		if at := tables + i*vcTable; touched(at, vcTable) && (i > 0 || p.opt.vc > 0) {
			s.b[status] |= vcChanged
		}
	}
	if at := p.vc + int(pci.VCCtl); touched(at, 1) && byteOf(off, v, at)&vcLoad != 0 {
		s.b[p.vc+int(pci.VCSta)] &^= vcChanged
	}
	for i := range p.vcCount() {
		if at := p.vcRes(i, pci.VCResCtl) + 2; touched(at, 1) && byteOf(off, v, at)&(vcResLoad>>16) != 0 {
			s.b[p.vcRes(i, pci.VCResSta)] &^= vcChanged
		}
	}
	p.negotiateVC()
}

// negotiateVC: a channel that is on, and whose link is not, is being negotiated.
func (p *port) negotiateVC() {
	if p.vc == 0 {
		return
	}
	s := p.d.space
	for i := range p.vcCount() {
		at := p.vcRes(i, pci.VCResSta)
		s.b[at] &^= vcPending
		if i > 0 && s.get32(p.vcRes(i, pci.VCResCtl))&vcResOn != 0 && !p.up {
			s.b[at] |= vcPending
		}
	}
}
