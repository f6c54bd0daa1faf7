package shm

import "encoding/binary"

// Consumer is the end of a ring that takes records out. It belongs to one goroutine at a time. What the producer writes is
// read once and checked: where it makes no sense, the ring is broken, and gives nothing more.
type Consumer struct {
	end
	head, released, tail uint32
	scratch              []byte // where it is not mapped: the data of a record
}

func newConsumer(mem Memory, g geometry) (*Consumer, error) {
	e, err := newEnd(mem, g)
	if err != nil {
		return nil, err
	}
	c := &Consumer{end: e}
	if e.b == nil {
		c.scratch = make([]byte, g.slot)
	}
	return c, nil
}

func (c *Consumer) begin(at uint32) {
	c.head, c.released, c.tail, c.staged, c.err = at, at, at, at, nil
	c.stage = c.stage[:0]
}

// reset makes the ring anew, for the side that owns it, while nobody is at the other end.
func (c *Consumer) reset() {
	c.store(ctlWake, 0)
	c.store(ctlRoom, 0)
	c.store(ctlTail, 0)
	c.store(ctlHead, 0)
	c.begin(0)
}

// Drop releases all that is there, also what was broken.
func (c *Consumer) Drop() (wake bool) {
	c.begin(c.load(ctlTail))
	return c.publish(ctlHead, c.head, ctlRoom)
}

// Next takes a record. Its data is shared memory, which may change under the reader, and is only valid until the
// next Next or Release.
func (c *Consumer) Next(h *Header) (data []byte, ok bool) {
	if c.head == c.tail && !c.refresh() || c.err != nil {
		return nil, false
	}
	i := int(c.head & c.mask)
	if c.b != nil {
		at := ctlSize + i*descSize
		h.get(c.b[at : at+descSize])
	} else {
		h.get(c.stage[(c.head-c.staged)*descSize:])
	}
	if h.slot != noSlot {
		n := int(h.Len)
		if int(h.slot) >= c.n || n > c.slot {
			c.broken("record %d has %d bytes in slot %d of %d", c.head, n, h.slot, c.n)
			return nil, false
		}
		if at := ctlSize + c.n*descSize + int(h.slot)*c.gap; c.b != nil {
			data = c.b[at : at+n : at+n]
		} else {
			data = c.scratch[:n]
			c.mem.Read(c.off+at, data)
		}
	}
	c.head++
	return data, true
}

// get reads a record's words, each once.
func (h *Header) get(p []byte) {
	p = p[:descSize]
	h.set(binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:]), binary.LittleEndian.Uint64(p[16:]), binary.LittleEndian.Uint64(p[24:]))
}

// refresh looks at what was published, and says whether there is something.
func (c *Consumer) refresh() bool {
	tail := c.load(ctlTail)
	if tail == c.tail {
		return false
	}
	if tail-c.released > uint32(c.n) || tail-c.released < c.head-c.released {
		c.broken("published up to record %d, released up to %d of %d", tail, c.released, c.n)
		return false
	}
	c.tail = tail
	if c.b == nil {
		c.fetch()
	}
	return true
}

// fetch reads the records from head to tail: at most two copies.
func (c *Consumer) fetch() {
	at, all := int(c.head&c.mask)*descSize, int(c.tail-c.head)*descSize
	c.stage, c.staged = c.stage[:all], c.head
	first := min(all, c.n*descSize-at)
	c.mem.Read(c.desc()+at, c.stage[:first])
	if first < all {
		c.mem.Read(c.desc(), c.stage[first:])
	}
}

// Ready says whether Next has something, or never will.
func (c *Consumer) Ready() bool { return c.head != c.tail || c.refresh() || c.err != nil }

// Release gives what was taken back to the producer, and says whether to wake that.
func (c *Consumer) Release() (wake bool) {
	if c.head == c.released {
		return false
	}
	c.released = c.head
	return c.publish(ctlHead, c.head, ctlRoom)
}

// Arm asks to be woken by the next Publish. more: there is something already, or the ring is broken, and nobody will.
func (c *Consumer) Arm() (more bool) {
	c.store(ctlWake, 1)
	if c.b == nil {
		c.mem.Fence()
	}
	if !c.Ready() {
		return false
	}
	c.store(ctlWake, 0)
	return true
}

// Disarm takes that back.
func (c *Consumer) Disarm() { c.store(ctlWake, 0) }

// Waiting is how many records were published and not released.
func (c *Consumer) Waiting() int { return int(min(c.load(ctlTail)-c.released, uint32(c.n))) }

// Cap is how many records the ring has.
func (c *Consumer) Cap() int { return c.n }
