package e1000

import "github.com/ring3dev/ring3/bus/dma"

// What becomes of the rings when the device was reset.

// restart begins anew after the device was reset, with the same buffers: those that the device had it gets again, so
// that nothing of the pool, which is its owner's, is touched. What it had received in them is lost, and counted. Posted grows by
// what the device had used, and only when repost gives it the ring. Called with mu held.
func (q *rxQueue) restart() {
	used, filled := q.c.used(), 0
	slots := make([]*dma.Buf, len(q.slots))
	for i := range used {
		at := q.at(q.c.head + uint64(i))
		slots[i] = q.slots[at]
		if st := q.stat(at); filled == i && st&rxDD != 0 {
			filled++
			q.drop(st)
		}
	}
	q.slots = slots
	fillOnes(q.ring)
	for i, b := range slots[:used] {
		putRx(q.ring, uint32(i), b.Addr)
	}
	q.c.head += uint64(filled)
	q.c.tail += uint64(filled)
	q.start = q.c.head
	q.midFrame = false
}

// drop counts a descriptor whose frame nobody gets.
func (q *rxQueue) drop(st rxStat) {
	length, verdict := st.decode(q.pool.BufSize())
	if verdict == rxGood && !q.midFrame {
		q.dropped++
		q.droppedOctets += uint64(length)
		return
	}
	q.reject(verdict, st)
}

// repost gives the device the ring that restart made. Called with mu held.
func (q *rxQueue) repost() {
	q.nic.regs.Write32(q.tail, q.at(q.c.tail)) // after the descriptors: package dma
	q.posted.Store(q.c.tail)
}

// abandon begins anew with an empty ring after the device was reset. What it had not sent is lost, and counted; the owner's next
// call frees it, since the pool is his. The counters go on at the next multiple of the ring's size,
// which is descriptor 0. Called with mu held.
func (q *txQueue) abandon() {
	if q.aborted {
		return // nothing was put into the ring since
	}
	head, tail := q.c.head, q.c.tail
	for head != tail {
		last := q.last[q.c.at(head)]
		if !doneTx(q.ring, q.c.at(last-1)) {
			break
		}
		head = last
	}
	for ; head != tail; head++ {
		if q.slots[q.c.at(head)] != nil {
			q.dropped++
		}
	}
	q.until, q.aborted = tail, true
	q.c.tail = (tail + q.c.mask) &^ q.c.mask
	q.context = txContext{}
	fillOnes(q.ring)
}
