package sim

import (
	"encoding/binary"
	"time"
)

// The EEPROM, 64 words.
const (
	e1EEWords = 64
	e1EESum   = 0xbaba // what all words add up to
)

// loadEEPROM fills the EEPROM: address, identification, checksum; the rest is empty.
func (c *e1000) loadEEPROM() {
	for i := range c.ee {
		c.ee[i] = 0xffff
	}
	for i := range 3 {
		c.ee[i] = binary.LittleEndian.Uint16(c.mac[2*i:])
	}
	id := c.m.id
	c.ee[3], c.ee[5] = 0, 0x0100 // compatibility, version
	c.ee[10] = 0x4408            // initialization control: subsystem and vendor IDs are loaded
	c.ee[11], c.ee[12], c.ee[13], c.ee[14] = id.SubDevice, id.SubVendor, id.Device, id.Vendor
	c.sumEEPROM()
}

func (c *e1000) sumEEPROM() {
	sum := uint16(0)
	for _, w := range c.ee[:e1EEWords-1] {
		sum += w
	}
	c.ee[e1EEWords-1] = e1EESum - sum
}

// readWord is a write of EERD, 13.4.4: the word is there at once.
func (c *e1000) readWord(v uint32) {
	addr := v >> c.m.eeAddr & (0x10000>>c.m.eeAddr - 1)
	if v&1 == 0 {
		c.setR(e1EERD, addr<<c.m.eeAddr)
		return
	}
	word := uint32(0xffff) // nobody drives the line
	if addr < e1EEWords {
		word = uint32(c.ee[addr])
	}
	c.setR(e1EERD, word<<16|addr<<c.m.eeAddr|c.m.eeDone)
}

// writeWord is a write of EEWR.
func (c *e1000) writeWord(v uint32) {
	if addr := v >> 2 & 0x3fff; v&1 != 0 && addr < e1EEWords {
		c.ee[addr] = uint16(v >> 16)
	}
	c.setR(e1EEWR, v&^1|1<<1)
}

// microwire is the EEPROM's serial interface as the 8254x's EECD drives it.
type microwire struct {
	in    uint32 // bits since the start bit
	bits  int
	out   uint32 // bits to come, the next one highest of outs
	outs  int
	reads bool
}

func (c *e1000) setEECD(v uint32) {
	if c.m.pcie {
		c.setR(e1EECD, v&^(e1EECDpres|e1EECDautoRD|e1EECDsizeEx)|c.r(e1EECD)&(e1EECDpres|e1EECDautoRD|e1EECDsizeEx))
		return
	}
	old := c.r(e1EECD)
	v = v&(e1EECDsk|e1EECDcs|e1EECDdi|e1EECDreq|3<<4) | e1EECDpres
	if v&e1EECDreq != 0 {
		v |= e1EECDgnt
	}
	c.setR(e1EECD, v)
	switch {
	case v&e1EECDcs == 0:
		c.eebits = microwire{}
	case v&e1EECDsk != 0 && old&e1EECDsk == 0: // rising edge
		c.eebits.clock(v&e1EECDdi != 0, &c.ee)
	}
}

// clock takes a bit in, and moves the next one out. Only reading is modelled: start bit, 10, six
// bits of address, and then a zero and the word come out.
func (w *microwire) clock(di bool, ee *[e1EEWords]uint16) {
	if w.reads {
		if w.outs > 0 {
			w.outs--
		}
		return
	}
	if w.bits == 0 && !di {
		return // no start bit yet
	}
	w.in <<= 1
	if di {
		w.in |= 1
	}
	if w.bits++; w.bits < 9 {
		return
	}
	if w.in>>6 == 0b110 {
		w.reads, w.out, w.outs = true, uint32(ee[w.in&63]), 17
	}
}

func (c *e1000) readEECD() uint32 {
	v := c.r(e1EECD)
	if w := &c.eebits; !c.m.pcie && (!w.reads || w.outs > 0 && w.out>>(w.outs-1)&1 != 0) {
		v |= e1EECDdo // also: ready
	}
	return v
}

// Registers of the PHY, IEEE 802.3 clause 22, and their bits.
const (
	phyBMCR   = 0
	phyBMSR   = 1
	phyID1    = 2
	phyID2    = 3
	phyANAR   = 4
	phyANLPAR = 5
	phyANER   = 6
	phyCTRL1G = 9
	phySTAT1G = 10
	phyESTAT  = 15
	phySpec   = 17 // Marvell's: status

	bmcrReset   = 1 << 15
	bmcrLoop    = 1 << 14
	bmcrAuto    = 1 << 12
	bmcrDown    = 1 << 11
	bmcrRestart = 1 << 9
	bmsrDone    = 1 << 5
	bmsrLink    = 1 << 2
)

// e1Negotiation is how long the ends of a link take to agree.
const e1Negotiation = 500 * time.Millisecond

// resetPHY is power-on. The link is there at once: it was before.
func (c *e1000) resetPHY() {
	c.phy = [32]uint16{
		phyBMCR: bmcrAuto | 1<<8 | 1<<6, phyBMSR: 0x7949, phyID1: 0x0141, phyID2: c.m.phyID,
		phyANAR: 0x0de1, phyANER: 1, phyCTRL1G: 0x0e00, phyESTAT: 0x3000,
	}
	c.negotiate.stop()
	c.setLinkBits(c.cable)
}

// setLinkBits says in the PHY's registers whether there is a link: to a partner that can do
// everything.
func (c *e1000) setLinkBits(up bool) {
	if up {
		c.phy[phyBMSR] |= bmsrLink | bmsrDone
		c.phy[phyANLPAR], c.phy[phySTAT1G], c.phy[phySpec] = 0x4de1, 0x3c00, 0xac00
		return
	}
	c.phy[phyBMSR] &^= bmsrLink | bmsrDone
	c.phy[phyANLPAR], c.phy[phySTAT1G], c.phy[phySpec] = 0, 0, 0x8000
}

// setMDIC reads or writes a register of the PHY: at once.
func (c *e1000) setMDIC(v uint32) {
	reg, write := v>>16&31, v&e1MDICwrite != 0
	switch {
	case v>>21&31 != 1 || write == (v&e1MDICread != 0):
		v |= e1MDICerror
	case write:
		c.writePHY(int(reg), uint16(v))
	default:
		v = v&^0xffff | uint32(c.phy[reg])
	}
	c.setR(e1MDIC, v|e1MDICready)
	if v&e1MDICirq != 0 {
		c.raise(e1MDAC)
	}
}

func (c *e1000) writePHY(reg int, v uint16) {
	switch reg {
	case phyBMSR, phyID1, phyID2, phyANLPAR, phyANER, phySTAT1G, phyESTAT, phySpec:
		return
	case phyBMCR:
		old := c.status()
		switch {
		case v&bmcrReset != 0:
			c.resetPHY()
			c.restartAuto()
		default:
			c.phy[reg] = v &^ (bmcrRestart | 0x3f)
			if v&bmcrDown != 0 {
				c.negotiate.stop()
				c.setLinkBits(false)
			} else if v&bmcrAuto != 0 && (v&bmcrRestart != 0 || c.phy[phyBMSR]&bmsrLink == 0) {
				c.restartAuto()
			}
		}
		c.linkChanged(old)
		return
	}
	c.phy[reg] = v
}

// restartAuto negotiates again: the link is down meanwhile.
func (c *e1000) restartAuto() {
	c.setLinkBits(false)
	if c.cable {
		c.negotiate.reset(e1Negotiation)
	}
}

func (c *e1000) negotiated() {
	old := c.status()
	c.setLinkBits(c.cable && c.phy[phyBMCR]&bmcrDown == 0)
	c.linkChanged(old)
}

// setLink is what pulls the cable, and plugs it in.
func (c *e1000) setLink(up bool) {
	if up == c.cable {
		return
	}
	old := c.status()
	c.cable = up
	c.negotiate.stop()
	c.setLinkBits(up && c.phy[phyBMCR]&bmcrDown == 0)
	c.linkChanged(old)
}

// linkChanged tells the driver where the link is not what it was.
func (c *e1000) linkChanged(old uint32) {
	if (old^c.status())&e1StatLU != 0 {
		if c.linkUp() {
			c.transmitAll()
		}
		c.raise(e1LSC)
	}
}

// linkUp is STATUS.LU.
func (c *e1000) linkUp() bool {
	return c.phy[phyBMSR]&bmsrLink != 0 && c.on(e1CTRL, e1CtrlSLU)
}

// status is STATUS, 13.4.2.
func (c *e1000) status() uint32 {
	v := c.r(e1STATUS) & e1StatPHYRA
	ctrl := c.r(e1CTRL)
	if c.linkUp() {
		v |= e1StatLU
	}
	if ctrl&e1CtrlFRCDPX == 0 || ctrl&e1CtrlFD != 0 {
		v |= e1StatFD
	}
	speed := uint32(2)
	if ctrl&e1CtrlFRCSPD != 0 {
		speed = ctrl & e1CtrlSpeed >> 8
	}
	v |= speed<<6 | 2<<8
	if c.fc.off {
		v |= e1StatTXOFF
	}
	if c.m.pcie && ctrl&e1CtrlGIODis == 0 {
		v |= e1StatGIO
	}
	return v
}
