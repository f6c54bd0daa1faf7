package shm

// Producer is the end of a ring that puts records in. It belongs to one goroutine at a time. What the consumer writes is
// checked against what the producer remembers itself: where it does not fit, the ring is broken, and takes nothing more.
type Producer struct {
	end
	tail, published, head uint32
	limit                 uint32   // so many at most
	free                  []uint16 // slots, the last is taken first
	used                  []uint16 // by record: its slot
}

func newProducer(mem Memory, g geometry) (*Producer, error) {
	e, err := newEnd(mem, g)
	if err != nil {
		return nil, err
	}
	p := &Producer{end: e, limit: uint32(g.n), free: make([]uint16, 0, g.n), used: make([]uint16, g.n)}
	p.begin(0, 0)
	return p, nil
}

// begin has the records from head to tail outstanding.
func (p *Producer) begin(head, tail uint32) {
	p.head, p.tail, p.published, p.staged, p.err = head, tail, tail, tail, nil
	p.stage = p.stage[:0]
	p.free = p.free[:0]
	if p.slot > 0 {
		for i := p.n - 1; i >= 0; i-- {
			p.free = append(p.free, uint16(i))
		}
	}
}

// reset makes the ring anew, for the side that owns it, while nobody is at the other end.
func (p *Producer) reset() {
	p.store(ctlWake, 0)
	p.store(ctlRoom, 0)
	p.store(ctlHead, 0)
	p.store(ctlTail, 0)
	p.begin(0, 0)
}

// adopt continues a ring that another producer filled, whose consumer may be there: of a direct link.
func (p *Producer) adopt() {
	head, tail := p.load(ctlHead), p.load(ctlTail)
	p.begin(head, tail)
	if tail-head > uint32(p.n) {
		p.broken("%d records under way of %d", tail-head, p.n)
		return
	}
	taken := make([]bool, p.n)
	for i := head; i != tail; i++ {
		var rec [descSize]byte
		p.mem.Read(p.desc()+int(i&p.mask)*descSize, rec[:])
		var h Header
		h.get(rec[:])
		p.used[i&p.mask] = noSlot
		if int(h.slot) < p.n && p.slot > 0 && !taken[h.slot] {
			taken[h.slot] = true
			p.used[i&p.mask] = h.slot
		}
	}
	p.free = p.free[:0]
	for i := p.n - 1; i >= 0 && p.slot > 0; i-- {
		if !taken[i] {
			p.free = append(p.free, uint16(i))
		}
	}
}

// Put stages a record with its data, which it copies. It says false, and does nothing, where there is no room, the ring is
// broken, or the data is longer than a record's may be.
func (p *Producer) Put(h *Header, data []byte) bool {
	if p.tail-p.head >= p.limit && !p.refresh() || p.err != nil || len(data) > p.slot {
		return false
	}
	i := p.tail & p.mask
	h.slot = noSlot
	if len(data) > 0 {
		if len(p.free) == 0 {
			return false // cannot be: there is a slot for each record
		}
		h.slot = p.free[len(p.free)-1]
		p.free = p.free[:len(p.free)-1]
		if at := ctlSize + p.n*descSize + int(h.slot)*p.gap; p.b != nil {
			copy(p.b[at:at+len(data)], data)
		} else {
			p.mem.Write(p.off+at, data)
		}
		h.Len = uint16(len(data))
	}
	p.used[i] = h.slot
	if at := ctlSize + int(i)*descSize; p.b != nil {
		putRecord(p.b[at:at+descSize], h)
	} else {
		n := len(p.stage)
		p.stage = p.stage[:n+descSize]
		putRecord(p.stage[n:], h)
	}
	p.tail++
	return true
}

// refresh looks at what the consumer released, and says whether there is room.
func (p *Producer) refresh() bool {
	head := p.load(ctlHead)
	if head == p.head {
		return p.tail-p.head < p.limit
	}
	if head-p.head > p.published-p.head {
		p.broken("released up to record %d of %d to %d", head, p.head, p.published)
		return false
	}
	for i := head; i != p.head; { // the first of them is to be taken first: what is in a row stays so
		i--
		if s := p.used[i&p.mask]; s != noSlot {
			p.free = append(p.free, s)
		}
	}
	p.head = head
	return p.tail-p.head < p.limit
}

// Publish lets the consumer see what was put, and says whether to wake it.
func (p *Producer) Publish() (wake bool) {
	if p.tail == p.published || p.err != nil {
		return false
	}
	if p.b == nil {
		p.flush()
	}
	p.published = p.tail
	return p.publish(ctlTail, p.tail, ctlWake)
}

// flush writes the staged records: at most two copies, of which the second begins at the ring's beginning.
func (p *Producer) flush() {
	at := int(p.staged&p.mask) * descSize
	first := min(len(p.stage), p.n*descSize-at)
	p.mem.Write(p.desc()+at, p.stage[:first])
	if first < len(p.stage) {
		p.mem.Write(p.desc(), p.stage[first:])
	}
	p.stage, p.staged = p.stage[:0], p.tail
}

// Room is how many more records there is room for, at the least.
func (p *Producer) Room() int {
	if p.err != nil || !p.refresh() {
		return 0
	}
	return int(p.limit - (p.tail - p.head))
}

// WantRoom has the consumer's next Release say that the producer is to be woken, unless there is room now. It takes nothing back where
// there is: others may wait for room, too, and one signal too many is no harm.
func (p *Producer) WantRoom() (room bool) {
	p.store(ctlRoom, 1)
	if p.b == nil {
		p.mem.Fence()
	}
	return p.err != nil || p.refresh()
}
