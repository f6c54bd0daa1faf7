package sim

import (
	"encoding/binary"
	"hash/crc32"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// e1TxBuf holds the longest frame there can be: a header and a segment, both as long as their
// fields say at most, and room for a tag in front.
const e1TxBuf = 4 + 256 + 64<<10

// Commands of a transmit descriptor, 3.3.3, 3.3.6 and 3.3.7: bits of its second word.
const (
	e1TxEOP  = 1 << 24
	e1TxIFCS = 1 << 25
	e1TxIC   = 1 << 26 // legacy: insert checksum
	e1TxTSE  = 1 << 26 // extended: segment
	e1TxRS   = 1 << 27
	e1TxDEXT = 1 << 29
	e1TxVLE  = 1 << 30
	e1TxIDE  = 1 << 31
	e1TxDD   = 1 << 32
	e1TxIXSM = 1 << 40
	e1TxTXSM = 1 << 41

	e1TxDTYP = 0xf << 20 // extended: 0 context, 1 data
	e1TxData = 1 << 20
)

// e1Turn is how much is sent at most when it is asked for. What is more waits for e1Next: no ring
// makes an access last for long, whatever is in it.
const (
	e1Turn = 64 << 20
	e1Next = time.Millisecond
)

// e1Ahead is how many descriptors are looked at ahead of their turn.
const e1Ahead = 32

// e1MinMSS is the shortest segment that is made: no TCP sends shorter ones, and it keeps a
// descriptor from becoming a million frames.
const e1MinMSS = 16

// e1Tx is the transmitter.
type e1Tx struct {
	buf   []byte // a frame that is put together begins at 4
	q     [2]e1TxQueue
	owner int    // queue whose frame is in buf
	want  uint   // queues that have something to do
	busy  bool   // transmit runs
	turn  int    // bytes that this turn may still send
	again *timer // the next turn
	pause [60]byte
}

// e1TxQueue is what a transmit queue remembers from descriptor to descriptor.
type e1TxQueue struct {
	ctx [2]e1Context // for checksums, and for segmentation; the 82574L has but the first

	began bool      // a frame
	first uint64    // its first descriptor's second word
	tag   uint64    // the second word of the last descriptor with VLE
	n     int       // bytes so far
	drop  bool      // it cannot be sent
	segs  int       // that were sent of it
	seg   e1Context // of a frame that is cut up, as it began
	hdr   [256]byte
	kept  []byte // queue 1: what is in buf while queue 0 works
}

func (t *e1Tx) reset() {
	t.q[0], t.q[1] = e1TxQueue{}, e1TxQueue{}
	t.want = 0
	t.again.stop()
}

// transmit sends what queue q was given. It is not entered twice: what a frame sets off may come
// back, as a pause that ends.
func (c *e1000) transmit(q int) {
	t := &c.tx
	t.want |= 1 << q
	if t.busy {
		return
	}
	t.busy, t.turn = true, e1Turn
	for t.want != 0 {
		q := 0
		if t.want&1 == 0 {
			q = 1
		}
		t.want &^= 1 << q
		c.transmitQueue(q)
	}
	t.busy = false
}

// transmitQueue is one queue's turn: at most once around its ring.
func (c *e1000) transmitQueue(q int) {
	r := c.queue(e1TXQ, q)
	n := r.free()
	if n == 0 || !c.on(e1TCTL, e1TCTLen) || c.fc.off || !c.master() || c.m.pcie && !c.on(e1TARC+bus.Off(q)*e1Queue2, e1TarcEnable) {
		return
	}
	ring := c.s.mem(r.base, int(r.size)*16)
	if ring == nil {
		return
	}
	c.own(q)
	reports, ide := false, true
	for told := uint32(0); n > 0 && !c.fc.off && c.tx.turn > 0; n-- {
		if told == 0 {
			told = min(n, r.size-r.head, e1Ahead)
			c.s.ahead(ring[r.head*16:][:told*16])
		}
		told--
		d := ring[r.head*16:][:16]
		addr, cmd := binary.LittleEndian.Uint64(d), binary.LittleEndian.Uint64(d[8:])
		c.descriptor(&c.tx.q[q], bus.IOVA(addr), cmd)
		if cmd&e1TxRS != 0 {
			c.s.store32(r.base+bus.IOVA(r.head*16)+12, uint32(cmd>>32|e1TxDD>>32))
			reports, ide = true, ide && cmd&e1TxIDE != 0
		}
		if r.head++; r.head == r.size {
			r.head = 0
		}
	}
	c.setR(e1TXQ+e1QH+bus.Off(q)*e1Queue2, r.head)
	if c.tx.turn <= 0 {
		c.tx.again.reset(e1Next)
	}
	causes := uint32(0)
	if n == 0 {
		causes = e1TXQE
	}
	if reports {
		causes |= e1TXDW
	}
	c.sent(q, causes, reports && ide)
}

// own makes buf queue q's: a frame may be half there when the other queue's turn comes.
func (c *e1000) own(q int) {
	t := &c.tx
	if t.owner == q {
		return
	}
	if o := &t.q[t.owner]; o.n > 0 {
		o.kept = append(o.kept[:0], t.buf[4:4+o.n]...)
	}
	if n := &t.q[q]; n.n > 0 {
		copy(t.buf[4:], n.kept)
	}
	t.owner = q
}

// descriptor does what one says.
func (c *e1000) descriptor(t *e1TxQueue, addr bus.IOVA, cmd uint64) {
	n := int(cmd & 0xffff)
	if cmd&e1TxDEXT != 0 {
		switch cmd & e1TxDTYP {
		case 0:
			c.context(t, uint64(addr), cmd)
			return
		case e1TxData:
			n = int(cmd & 0xfffff)
		default:
			return // nothing that there is
		}
	}
	if !t.began {
		t.began, t.first, t.tag, t.n, t.drop, t.segs = true, cmd, 0, 0, false, 0
		if cmd&(e1TxEOP|e1TxVLE|e1TxDEXT|e1TxIC|e1TxIFCS) == e1TxEOP|e1TxIFCS && n >= 60 {
			// The plain case: the frame is all there, and goes as it is.
			t.began = false
			if f := c.s.mem(addr, n); f != nil {
				c.wire(f)
			}
			return
		}
	}
	tse := t.first&e1TxDEXT != 0 && t.first&e1TxTSE != 0
	if tse && t.first == cmd && t.n == 0 && t.segs == 0 {
		t.seg = *c.segContext(t)
	}
	// 3.3.3: the tag counts where the frame ends, and with segmentation, which sends before that,
	// from where it begins.
	if cmd&e1TxVLE != 0 && (tse || cmd&e1TxEOP != 0) && c.on(e1CTRL, e1CtrlVME) {
		t.tag = cmd
	}
	switch {
	case n == 0 || t.drop:
	case tse:
		c.segment(t, addr, n)
	default:
		f := c.s.mem(addr, n)
		if f == nil || t.n+n > e1TxBuf-4 {
			t.drop = true
			break
		}
		copy(c.tx.buf[4+t.n:], f)
		t.n += n
		c.tx.turn -= n
	}
	if cmd&e1TxEOP == 0 {
		return
	}
	t.began = false
	switch {
	case t.drop:
	case tse:
		c.lastSegment(t)
	default:
		c.frame(t, cmd)
	}
	t.n = 0
}

// frame sends one that is complete, with its checksums.
func (c *e1000) frame(t *e1TxQueue, last uint64) {
	f := c.tx.buf[4 : 4+t.n]
	if t.first&e1TxDEXT != 0 {
		x := &t.ctx[0]
		if t.first&e1TxTXSM != 0 {
			putSum(f, x.tucss, x.tucso, x.tucse)
		}
		if t.first&e1TxIXSM != 0 {
			putSum(f, x.ipcss, x.ipcso, x.ipcse)
		}
	} else if last&e1TxIC != 0 { // 3.3.3
		putSum(f, int(last>>40&0xff), int(last>>16&0xff), 0)
	}
	if (t.first|last)&e1TxIFCS == 0 {
		// The software has put a check sequence in. With a wrong one the frame ends at the next
		// receiver, which is here.
		n := len(f) - 4
		if n < 60 || crc32.ChecksumIEEE(f[:n]) != binary.LittleEndian.Uint32(f[n:]) {
			return
		}
		f = f[:n]
	}
	c.finish(t, len(f))
}

// finish puts the tag in, pads, and sends the n bytes in buf.
func (c *e1000) finish(t *e1TxQueue, n int) {
	b := c.tx.buf
	f := b[4 : 4+n]
	if n < 14 {
		return // not even a header
	}
	if t.tag != 0 {
		copy(b[0:12], b[4:16])
		binary.BigEndian.PutUint16(b[12:], uint16(c.r(e1VET)))
		binary.BigEndian.PutUint16(b[14:], uint16(t.tag>>48))
		f = b[:4+n]
	}
	if len(f) < 60 {
		if !c.on(e1TCTL, e1TCTLpsp) {
			return // a fragment: no receiver takes it
		}
		n = len(f)
		f = f[:60]
		clear(f[n:])
	}
	c.wire(f)
}

// wire sends a frame and counts it.
func (c *e1000) wire(f []byte) {
	n := len(f) + 4
	c.tx.turn -= n
	c.count(e1GPTC)
	c.count(e1TPT)
	c.countOctets(e1GOTC, n)
	c.countOctets(e1TOT, n)
	c.countSize(e1PTC64, n)
	switch {
	case f[0]&1 == 0:
	case [6]byte(f[:6]) == [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}:
		c.count(e1BPTC)
	default:
		c.count(e1MPTC)
	}
	switch {
	case c.phy[phyBMCR]&bmcrLoop != 0 || c.r(e1RCTL)&e1RCTLlbm == 1<<6:
		c.receive(f)
	case c.linkUp():
		c.s.send(f)
	}
}
