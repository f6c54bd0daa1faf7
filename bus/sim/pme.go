package sim

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// pmSupport is PME from D0 and D3hot, in PMCap (PCI Power Management 1.2, 3.2.3).
const pmSupport = 1<<11 | 1<<14

// maxPMEs is how many PMEs wait in a root port: more would need more functions than there are buses.
const maxPMEs = 256

// SignalPME makes a function that can (pme=on) assert PME, as one that wakes up does. PME_Status is set, and if PME_En is, a message
// goes to the root port, whose Root Status tells of one after the other.
func (m *Machine) SignalPME(name string) error {
	m.lock()
	defer m.unlock()
	d := m.find(name)
	if d == nil {
		return fmt.Errorf("sim: signalling PME: no device is named %s: %w", name, unix.ENODEV)
	}
	s := d.space
	if d.isPlatform() || s.pm == 0 || s.get16(s.pm+pmCap)>>11 == 0 {
		return d.errorf("signalling PME: the function has no PME: pme=on gives it one: %w", bus.ErrNotSupported)
	}
	ctl := s.get16(s.pm + pmCtl)
	s.put16(s.pm+pmCtl, ctl|pci.PMCtlPMESta)
	if ctl&pci.PMCtlPMEEn == 0 || !d.live {
		return nil
	}
	if root := d.rootOf(); root != nil {
		root.pme(d.requester())
	}
	return nil
}

// pme is a message that arrives: 6.1.6, 7.5.3.14.
func (p *port) pme(from uint16) {
	s, at := p.d.space, p.d.space.exp+int(pci.ExpRtSta)
	if s.get32(at)&pci.RtStaPME == 0 {
		s.put32(at, uint32(from)|pci.RtStaPME)
		p.interrupts()
		return
	}
	for _, x := range p.pmes {
		if x == from {
			return // it says nothing new
		}
	}
	if len(p.pmes) < maxPMEs {
		p.pmes = append(p.pmes, from)
	}
	s.put32(at, s.get32(at)|pci.RtStaMore)
}

// nextPME shows the next one once software has cleared PME Status.
func (p *port) nextPME() {
	s, at := p.d.space, p.d.space.exp+int(pci.ExpRtSta)
	if p.kind.kind != pci.ExpRootPort || s.get32(at)&pci.RtStaPME != 0 || len(p.pmes) == 0 {
		return
	}
	p.interrupts() // it was low in between, so there is a message for the next
	v := uint32(p.pmes[0]) | pci.RtStaPME
	p.pmes = append(p.pmes[:0], p.pmes[1:]...)
	if len(p.pmes) > 0 {
		v |= pci.RtStaMore
	}
	s.put32(at, v)
}
