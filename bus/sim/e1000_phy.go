package sim

import (
	"encoding/binary"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// The EEPROM, 64 words.
const (
	e1EEWords = 64
	e1EESum   = 0xbaba // what all words add up to, SDM 5.6.35
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

// writeWord is a write of EEWR, 82574L 10.2.2.
func (c *e1000) writeWord(v uint32) {
	if addr := v >> 2 & 0x3fff; v&1 != 0 && addr < e1EEWords {
		c.ee[addr] = uint16(v >> 16)
	}
	c.setR(e1EEWR, v&^1|1<<1)
}

// microwire is the EEPROM's serial interface as the 8254x's EECD drives it, SDM 5.4.1.
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

// setMDIC reads or writes a register of the PHY, 13.4.8: at once.
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

// e1Flow is IEEE 802.3x flow control, SDM 3.? and 82574L 7.1.11.
type e1Flow struct {
	off    bool   // we must not send
	resume *timer // until then

	told  bool          // we sent XOFF, and no XON
	until time.Duration // and the far end obeys until then
}

// quantum is the unit of a pause: 512 bit times.
const quantum = 512 * time.Nanosecond

var pauseGroup = [6]byte{0x01, 0x80, 0xc2, 0, 0, 1}

// isPause says whether a frame is flow control, and to us alone.
func (c *e1000) isPause(f []byte) (pause, unicast bool) {
	if f[12] != 0x88 || f[13] != 0x08 || f[14] != 0 || f[15] != 1 {
		return false, false
	}
	var ra [8]byte
	binary.LittleEndian.PutUint32(ra[0:], c.r(e1RA))
	binary.LittleEndian.PutUint32(ra[4:], c.r(e1RA+4))
	unicast = [6]byte(f[:6]) == [6]byte(ra[:6])
	return unicast || [6]byte(f[:6]) == pauseGroup, unicast
}

// paused does what a pause frame asks for, if it is to be obeyed.
func (c *e1000) paused(f []byte) {
	quanta := binary.BigEndian.Uint16(f[16:])
	if !c.on(e1CTRL, e1CtrlRFCE) {
		c.count(e1FCRUC)
		return
	}
	if quanta == 0 {
		c.count(e1XONRXC)
		if c.fc.off {
			c.fc.resume.reset(0) // not now: the wire is in use
		}
		return
	}
	c.count(e1XOFFRXC)
	c.fc.off = true
	c.fc.resume.reset(time.Duration(quanta) * quantum)
}

// pauseOver lets the transmitter go on.
func (c *e1000) pauseOver() {
	c.fc.resume.stop()
	if c.fc.off {
		c.fc.off = false
		c.transmitAll()
	}
}

// sendPause sends a pause frame, 0 quanta being XON.
func (c *e1000) sendPause(quanta uint32) {
	f := &c.tx.pause
	*f = [60]byte{}
	binary.LittleEndian.PutUint32(f[0:], c.r(e1FCAL))
	binary.LittleEndian.PutUint16(f[4:], uint16(c.r(e1FCAH)))
	binary.LittleEndian.PutUint32(f[6:], c.r(e1RA))
	binary.LittleEndian.PutUint16(f[10:], uint16(c.r(e1RA+4)))
	binary.BigEndian.PutUint16(f[12:], uint16(c.r(e1FCT)))
	f[15] = 1
	binary.BigEndian.PutUint16(f[16:], uint16(quanta))
	if quanta == 0 {
		c.count(e1XONTXC)
	} else {
		c.count(e1XOFFTXC)
	}
	if c.linkUp() {
		c.s.send(f[:])
	}
}

// watchFIFO sends XOFF and XON as the packet buffer fills and empties, 13.4.14 and 13.4.15.
func (c *e1000) watchFIFO() {
	level := uint32(c.rx.tail - c.rx.head)
	if c.on(e1CTRL, e1CtrlTFCE) {
		if high := c.r(e1FCRTH); high != 0 && level >= high && (!c.fc.told || c.s.now() >= c.fc.until) {
			v := c.r(e1FCTTV)
			c.fc.told, c.fc.until = true, c.s.now()+time.Duration(v)*quantum
			c.sendPause(v)
			return
		}
	}
	if c.fc.told && level <= c.r(e1FCRTL)&0xfff8 {
		c.fc.told = false
		if c.on(e1FCRTL, e1FCXONE) {
			c.sendPause(0)
		}
	}
}

// setTCTL is a write of TCTL, 13.4.33.
func (c *e1000) setTCTL(v uint32) {
	c.setR(e1TCTL, v&^e1TCTLswxoff)
	if v&e1TCTLswxoff != 0 && c.on(e1CTRL, e1CtrlTFCE) {
		c.sendPause(c.r(e1FCTTV))
	}
	c.transmitAll()
}

func (c *e1000) transmitAll() {
	c.transmit(0)
	if c.m.pcie {
		c.transmit(1)
	}
}

// queue is the registers of a queue.
type e1Queue struct {
	base bus.IOVA
	size uint32 // descriptors
	head uint32
	tail uint32
}

func (c *e1000) queue(first bus.Off, q int) e1Queue {
	r := c.reg[first/4+bus.Off(q)*e1Queue2/4:][:8]
	return e1Queue{
		base: bus.IOVA(r[e1QBAH/4])<<32 | bus.IOVA(r[e1QBAL/4]),
		size: r[e1QLEN/4] / 16, head: r[e1QH/4], tail: r[e1QT/4],
	}
}

// free is how many descriptors are the chip's. Where head or tail is none of the ring's, none is.
func (q *e1Queue) free() uint32 {
	switch {
	case q.head >= q.size || q.tail >= q.size:
		return 0
	case q.tail >= q.head:
		return q.tail - q.head
	}
	return q.size - q.head + q.tail
}
