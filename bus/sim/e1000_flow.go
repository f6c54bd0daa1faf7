package sim

import (
	"encoding/binary"
	"time"
)

// e1Flow is IEEE 802.3x flow control.
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

// watchFIFO sends XOFF and XON as the packet buffer fills and empties, 13.4.23 and 13.4.24.
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
