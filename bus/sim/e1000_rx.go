package sim

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/ring3dev/ring3/bus"
)

// e1FIFOMax is the largest packet buffer, 64 KiB; e1MaxFrame the longest frame, with check
// sequence.
const (
	e1FIFOMax  = 64 << 10
	e1MaxFrame = 16384
)

// e1Rx is the receiver.
type e1Rx struct {
	// Frames that wait: a length in two bytes, the frame, from head to tail.
	fifo       []byte
	head, tail int
	drains     bool // drain runs
	fcs        [4]byte
}

func (x *e1Rx) reset() { x.head, x.tail = 0, 0 }

// receive takes a frame from the wire; netChip.
func (c *e1000) receive(f []byte) bool {
	if len(f) < 60 || !c.linkUp() {
		return false
	}
	if pause, unicast := c.isPause(f); pause {
		c.paused(f)
		if !unicast || c.on(e1RCTL, e1RCTLdpf) {
			return true
		}
	}
	if !c.on(e1RCTL, e1RCTLen) {
		return false
	}
	c.count(e1TPR)
	c.countOctets(e1TOR, len(f)+4)
	if n := len(f) + 4; n > e1MaxFrame || n > 1522 && !c.on(e1RCTL, e1RCTLlpe) {
		c.count(e1ROC)
		return true
	}
	if !c.wanted(f) {
		return true
	}
	if c.rx.head == c.rx.tail && !c.rx.drains {
		if c.deliver(f) {
			return true
		}
		c.count(e1RNBC)
	}
	kept := c.keep(f)
	if !kept {
		c.count(e1MPC)
		c.raise(e1RXO)
	}
	c.watchFIFO()
	return kept
}

// keep puts a frame into the packet buffer.
func (c *e1000) keep(f []byte) bool {
	x := &c.rx
	room := min(int(c.r(e1PBA)&0xffff)<<10, e1FIFOMax)
	if x.tail-x.head+2+len(f) > room {
		return false
	}
	if x.tail+2+len(f) > len(x.fifo) {
		x.tail = copy(x.fifo, x.fifo[x.head:x.tail])
		x.head = 0
	}
	binary.LittleEndian.PutUint16(x.fifo[x.tail:], uint16(len(f)))
	x.tail += 2 + copy(x.fifo[x.tail+2:], f)
	return true
}

// drain moves what waits to memory, as far as there are descriptors. It is not entered twice: what
// a frame sets off may come back.
func (c *e1000) drain() {
	x := &c.rx
	if x.drains || x.head == x.tail || !c.on(e1RCTL, e1RCTLen) {
		return
	}
	x.drains = true
	for limit := e1FIFOMax / 62; limit > 0 && x.head != x.tail; limit-- {
		n := int(binary.LittleEndian.Uint16(x.fifo[x.head:]))
		if !c.deliver(x.fifo[x.head+2:][:n]) {
			break
		}
		x.head += 2 + n
		c.watchFIFO()
	}
	x.drains = false
}

// wanted is the filters, 3.2.1 and 13.4.22.
func (c *e1000) wanted(f []byte) bool {
	rctl := c.r(e1RCTL)
	if rctl&e1RCTLvfe != 0 && binary.BigEndian.Uint16(f[12:]) == uint16(c.r(e1VET)) {
		tci := binary.BigEndian.Uint16(f[14:])
		if c.reg[e1VFTA/4+int(tci>>5&127)]>>(tci&31)&1 == 0 {
			return false
		}
		if rctl&e1RCTLcfien != 0 && (tci&0x1000 != 0) != (rctl&e1RCTLcfi != 0) {
			return false
		}
	}
	low, high := binary.LittleEndian.Uint32(f), uint32(binary.LittleEndian.Uint16(f[4:]))
	switch {
	case low == 0xffffffff && high == 0xffff:
		return rctl&e1RCTLbam != 0 || rctl&e1RCTLmpe != 0 || c.exact(low, high)
	case low&1 != 0 && rctl&e1RCTLmpe != 0, low&1 == 0 && rctl&e1RCTLupe != 0:
		return true
	case c.exact(low, high):
		return true
	}
	// The hash is 12 of the last 16 bits, SDM 13.5.1; also of a unicast address.
	i := high >> [4]int{4, 3, 2, 0}[rctl>>12&3] & 0xfff
	return c.reg[e1MTA/4+i>>5]>>(i&31)&1 != 0
}

// exact says whether one of the receive addresses is this.
func (c *e1000) exact(low, high uint32) bool {
	ra := c.reg[e1RA/4:][:32]
	for i := 0; i < len(ra); i += 2 {
		if ra[i] == low && ra[i+1]&0xffff == high && ra[i+1]>>31 != 0 {
			return true
		}
	}
	return false
}

// bufSize is the size of a receive buffer, 13.4.22 and 82574L 10.2.5.
func (c *e1000) bufSize() int {
	rctl := c.r(e1RCTL)
	if kib := rctl >> 27 & 15; kib != 0 && c.m.pcie {
		return int(kib) << 10
	}
	size := 2048 >> (rctl >> 16 & 3)
	if rctl&e1RCTLbsex != 0 && size < 2048 {
		size *= 16
	}
	return size
}

// deliver writes a frame to memory. False: there are not enough descriptors.
func (c *e1000) deliver(f []byte) bool {
	if !c.master() {
		return false
	}
	// What comes out: the frame, without its tag if that is taken off, and the check sequence
	// unless that is.
	d := e1RxDesc{more: f}
	if c.on(e1CTRL, e1CtrlVME) && binary.BigEndian.Uint16(f[12:]) == uint16(c.r(e1VET)) {
		d.first, d.more, d.tag, d.tagged = f[:12], f[16:], binary.BigEndian.Uint16(f[14:]), true
	}
	total := len(d.first) + len(d.more)
	if !c.on(e1RCTL, e1RCTLsecrc) {
		binary.LittleEndian.PutUint32(c.rx.fcs[:], crc32.ChecksumIEEE(f))
		d.fcs = c.rx.fcs[:]
		total += 4
	}
	c.classify(&d)
	q := c.queue(e1RXQ, d.queue)
	size := c.bufSize()
	if free := int(q.free()); free*size < total {
		return false
	}
	if !c.place(&d, &q, size, total) {
		return true // lost: the descriptors were none
	}
	n := len(f) + 4
	c.count(e1GPRC)
	c.countOctets(e1GORC, n)
	c.countSize(e1PRC64, n)
	switch {
	case f[0]&1 == 0:
	case [6]byte(f[:6]) == [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}:
		c.count(e1BPRC)
	default:
		c.count(e1MPRC)
	}
	c.rxCauses(&d, &q, n)
	return true
}

// place fills descriptors of queue q.
func (c *e1000) place(d *e1RxDesc, q *e1Queue, size, total int) bool {
	for left, free := total, q.free(); left > 0; free-- {
		at := q.base + bus.IOVA(q.head)*16
		addr, ok := c.s.load64(at)
		if !ok || free == 0 {
			return false
		}
		n := 0
		if addr != 0 { // 3.2.2: a null descriptor is skipped
			n = min(left, size)
			c.fill(d, bus.IOVA(addr), n)
			left -= n
		}
		c.writeBack(d, at, n, left == 0)
		if q.head++; q.head == q.size {
			q.head = 0
		}
		c.setR(e1RXQ+e1QH+bus.Off(d.queue)*e1Queue2, q.head)
	}
	return true
}

// fill writes the next n bytes to a buffer.
func (c *e1000) fill(d *e1RxDesc, at bus.IOVA, n int) {
	for _, part := range [...]*[]byte{&d.first, &d.more, &d.fcs} {
		k := min(n, len(*part))
		if k == 0 {
			continue
		}
		c.s.writeMem(at, (*part)[:k])
		*part = (*part)[k:]
		at, n = at+bus.IOVA(k), n-k
	}
}

// writeBack writes descriptor at: legacy (3.2.3) or extended (82574L 7.1.4).
func (c *e1000) writeBack(d *e1RxDesc, at bus.IOVA, n int, last bool) {
	status, tag, low, csum := uint64(1), uint64(0), uint64(0), uint64(0)
	if last {
		status = uint64(d.status) | 0b11
		if d.tagged {
			status |= 1 << 3
			tag = uint64(d.tag)
		}
		low, csum = d.low, uint64(d.csum)
	}
	if c.m.pcie && c.on(e1RFCTL, e1RFExten) {
		c.s.store64(at, low)
		c.s.store64(at+8, status|uint64(n)<<32|tag<<48)
		return
	}
	c.s.store64(at+8, uint64(n)|csum<<16|status&0xff<<32|status>>24&0xff<<40|tag<<48)
}

// rxCauses is the interrupt of a frame of n bytes.
func (c *e1000) rxCauses(d *e1RxDesc, q *e1Queue, n int) {
	more := uint32(0)
	if shift := c.r(e1RCTL)>>8&3 + 1; q.free() == q.size>>shift {
		more |= e1RXDMT
	}
	if n < int(c.r(e1RSRPD)) {
		more |= e1SRPD
	}
	c.received(d.queue, more, d.ack && c.m.pcie && !c.on(e1RFCTL, e1RFNoACK))
}
