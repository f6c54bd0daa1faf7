package shm

import "github.com/ring3dev/ring3/rionet/rapidio"

// SetMailbox has a mailbox take so many messages at once; 0 closes it.
func (d *Daemon) SetMailbox(mbox, entries int) {
	p := &d.mbox[mbox]
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Publish() // of what was open before, before the node drops it
	p.limit = uint32(min(entries, p.n))
}

// MaxEntries is the most entries that SetMailbox gives a mailbox.
func (d *Daemon) MaxEntries() int { return d.mbox[0].n }

// PutMessage delivers a message to a mailbox. Done; Error where it is closed, or the message too long; Retry where it is full.
func (d *Daemon) PutMessage(mbox uint8, src rapidio.DestID, data []byte) rapidio.Status {
	one := [1][]byte{data}
	_, st := d.PutMessages(mbox, src, one[:])
	return st
}

// PutMessages delivers several of one source. The first n of them, at least one, have the status that it returns. Between the copies of a
// burst there is nothing that waits until the one before is in memory, as taking a lock does.
func (d *Daemon) PutMessages(mbox uint8, src rapidio.DestID, data [][]byte) (n int, st rapidio.Status) {
	if int(mbox) >= len(d.mbox) {
		return len(data), rapidio.Error
	}
	h := Header{Kind: KindMessage, Mbox: mbox, Peer: src}
	p := &d.mbox[mbox]
	p.mu.Lock()
	closed := p.limit == 0 || p.err != nil
	for ; !closed && n < len(data) && fits(data[n]) && p.Put(&h, data[n]); n++ {
	}
	p.mu.Unlock()
	switch {
	case n > 0:
		d.soil(VecMbox + uint32(mbox))
		return n, rapidio.Done
	case closed || !fits(data[0]):
		return 1, rapidio.Error
	}
	return 1, rapidio.Retry
}

func fits(message []byte) bool { return len(message) > 0 && len(message) <= rapidio.MaxMessage }

// Free is how many more messages a mailbox takes.
func (d *Daemon) Free(mbox int) int {
	p := &d.mbox[mbox]
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.Room()
}

// PutDoorbell delivers a doorbell: Done; Retry where the node has too many that it did not take; Error where it broke the ring.
func (d *Daemon) PutDoorbell(src rapidio.DestID, info uint16) rapidio.Status {
	return d.event(&Header{Kind: KindDoorbell, Peer: src, Info: info}, nil)
}

// PutPortWrite delivers a port-write, or loses it; the status is as PutDoorbell's.
func (d *Daemon) PutPortWrite(p []byte) rapidio.Status {
	return d.event(&Header{Kind: KindPortWrite}, p)
}

func (d *Daemon) event(h *Header, data []byte) rapidio.Status {
	p := &d.events
	p.mu.Lock()
	ok, broken := p.Put(h, data), p.err != nil
	p.mu.Unlock()
	switch {
	case ok:
		d.soil(VecEvents)
		return rapidio.Done
	case broken:
		return rapidio.Error
	}
	return rapidio.Retry
}

// PutResponse answers what is answered by a response.
func (d *Daemon) PutResponse(tag, v uint32, s rapidio.Status) {
	h := Header{Kind: KindResponse, Tag: tag, Value: v, Status: s}
	if !d.put(&d.answers, VecAnswers, &h, nil) {
		d.lost.Add(1)
	}
}

// PutResult answers a message or doorbell. Results of one status and of tags in a row are one record.
func (d *Daemon) PutResult(tag uint32, s rapidio.Status) {
	one := [1]uint32{tag}
	d.PutResults(one[:], s)
}

// PutResults answers several.
func (d *Daemon) PutResults(tags []uint32, s rapidio.Status) {
	d.answers.mu.Lock()
	for _, tag := range tags {
		if r := &d.run; r.Len > 0 && r.Len < 0xffff && r.Status == s && tag == r.Tag+uint32(r.Len) {
			r.Len++
		} else {
			d.endRun()
			*r = Header{Kind: KindResult, Tag: tag, Len: 1, Status: s}
		}
	}
	d.answers.mu.Unlock()
	d.soil(VecAnswers)
}

// endRun puts the results that were gathered. answers.mu is held.
func (d *Daemon) endRun() {
	if d.run.Len > 0 && !d.answers.Put(&d.run, nil) {
		d.lost.Add(uint64(d.run.Len))
	}
	d.run.Len = 0
}

// Lost is how many answers there was no room for: the node had more under way than it may.
func (d *Daemon) Lost() uint64 { return d.lost.Load() }

func (d *Daemon) put(p *lockedProducer, vector uint32, h *Header, data []byte) bool {
	p.mu.Lock()
	ok := p.Put(h, data)
	p.mu.Unlock()
	if ok {
		d.soil(vector)
	}
	return ok
}

// soil remembers that the ring of a vector is to be published.
func (d *Daemon) soil(vector uint32) {
	if d.dirty.Load()>>vector&1 == 0 {
		d.dirty.Or(1 << vector)
	}
}

// Flush lets the node see what was put, and says which of its vectors to signal: bit 0 is vector 0.
func (d *Daemon) Flush() (vectors uint32) {
	dirty := d.dirty.Load()
	if dirty != 0 {
		dirty = d.dirty.Swap(0)
	}
	if d.kicks.Load() != 0 {
		vectors = d.kicks.Swap(0)
	}
	if dirty>>VecEvents&1 != 0 && d.events.publish() {
		vectors |= 1 << VecEvents
	}
	for m := range d.mbox {
		if dirty>>(VecMbox+m)&1 != 0 && d.mbox[m].publish() {
			vectors |= 1 << (VecMbox + m)
		}
	}
	if dirty>>VecAnswers&1 != 0 {
		d.answers.mu.Lock()
		d.endRun()
		if d.answers.Publish() {
			vectors |= 1 << VecAnswers
		}
		d.answers.mu.Unlock()
	}
	if n := d.vectors.Load(); n < NumVectors && vectors>>n != 0 {
		vectors = vectors&(1<<n-1) | 1<<VecEvents
	}
	return vectors
}

func (p *lockedProducer) publish() (wake bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.Publish()
}

// SetLink tells the node whether its endpoint's link is up. It says whether that changed; the node is to be woken then.
func (d *Daemon) SetLink(up bool) (changed bool) {
	d.state.Lock()
	defer d.state.Unlock()
	if d.link&1 != 0 == up {
		return false
	}
	d.link = d.link&^1 + 2
	if up {
		d.link |= 1
	}
	d.mem.Store32(d.off+hdrLink, d.link)
	d.kicks.Or(1 << VecEvents)
	return true
}

// ConfigWritten tells the node that somebody else wrote its endpoint's registers.
func (d *Daemon) ConfigWritten() {
	d.state.Lock()
	defer d.state.Unlock()
	d.conf++
	d.mem.Store32(d.off+hdrConfig, d.conf)
	d.kicks.Or(1 << VecEvents)
}

// SetDirect tells the node that the device ID of the node at the other end of a direct link is id, and whether to use the link: else
// messages for it go through the fabric.
func (d *Daemon) SetDirect(peer int, id rapidio.DestID, up bool) {
	v := uint32(id)
	if up {
		v |= destValid
	}
	for _, w := range d.out {
		if w.peer == peer {
			d.mem.Store32(w.at, v)
		}
	}
}
