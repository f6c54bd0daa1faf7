package sim

import (
	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// most is the best that the link of a port can be: what both ends can.
func (p *port) most() (speed, width uint16) {
	lnk := p.d.space.get32(p.d.space.exp + int(pci.ExpLnkCap))
	speed, width = uint16(lnk&0xf), uint16(lnk>>4&0x3f)
	if !p.hasSlot() || !p.present() {
		return speed, width
	}
	s := p.d.below[0].space
	if s.exp == 0 {
		return speed, width // a conventional function: QEMU's slots take them, at any speed
	}
	far := s.get32(s.exp + int(pci.ExpLnkCap))
	if !p.opt.bw { // else the card is as fast as is wanted
		speed = min(speed, max(uint16(far&0xf), 1))
	}
	return speed, min(width, max(uint16(far>>4&0x3f), 1))
}

// train brings the link up at the best speed that Link Control 2 allows.
func (p *port) train() {
	speed, width := p.most()
	if target := p.get(pci.ExpLnkCtl2) & lnkCtlTarget; p.opt.bw && target != 0 {
		speed = min(speed, target)
	}
	p.setSpeed(speed, width)
}

// setSpeed writes speed and width to Link Status. What the card's own says is left alone.
func (p *port) setSpeed(speed, width uint16) {
	p.speed, p.width = speed, width
	v := p.get(pci.ExpLnkSta) &^ (pci.LnkStaSpeed | pci.LnkStaWidth)
	p.d.space.put16(p.d.space.exp+int(pci.ExpLnkSta), v|speed|width<<4)
}

// retrain is what writing Retrain Link does (7.5.3.7): the link is trained anew, which is managed by software and shows in Link Bandwidth
// Management Status.
func (p *port) retrain() {
	if !p.hasSlot() || !p.up {
		return
	}
	p.train()
	if p.opt.bw {
		p.put(pci.ExpLnkSta, pci.LnkStaLBMS, true)
	}
}

// SetLinkSpeed changes the link below a port with bw=on: speed as Link Status numbers them (1 is 2.5 GT/s, 4 is 16), width in lanes.
// autonomous says that the hardware did it of its own accord, not because the link was unreliable or software asked for it: the one shows
// in Link Autonomous Bandwidth Status, the other in Link Bandwidth Management Status.
func (m *Machine) SetLinkSpeed(port string, speed, width uint8, autonomous bool) error {
	m.lock()
	defer m.unlock()
	p, err := m.portNamed(port, "setting the link's speed")
	if err != nil {
		return err
	}
	top, lanes := p.most()
	switch {
	case !p.opt.bw:
		return p.d.errorf("setting the link's speed: the port has no bw=on: %w", bus.ErrNotSupported)
	case !p.up:
		return p.d.errorf("setting the link's speed: the link is down: %w", bus.ErrGone)
	case speed < 1 || uint16(speed) > top || width < 1 || uint16(width) > lanes:
		return p.d.errorf("setting the link's speed: speed %d, width %d: want at most %d and %d: %w", speed, width, top, lanes, bus.ErrNotSupported)
	}
	p.setSpeed(uint16(speed), uint16(width))
	bit := pci.LnkStaLBMS
	if autonomous {
		bit = pci.LnkStaLABS
	}
	p.put(pci.ExpLnkSta, bit, true)
	p.interrupts()
	return nil
}

// bridgeControl looks for the beginning and end of a reset of the secondary bus. The link goes down meanwhile, which shows as an event
// only where the port was told to.
func (p *port) bridgeControl(before uint16) {
	now := p.d.space.get16(int(pci.CfgBridgeCtl))
	if (before^now)&pci.BridgeReset == 0 {
		return
	}
	if now&pci.BridgeReset != 0 && !p.up {
		p.resetBelow(false)
	}
	p.settle(p.opt.resetLink)
}
