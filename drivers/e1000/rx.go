package e1000

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
)

// rxQueue is a receive queue; netdev.RxQueue. In its counters, head is the next
// descriptor to look at, tail the next to give to the device.
type rxQueue struct {
	nic    *nic
	id     int
	tail   bus.Off       // its tail register
	wake   chan struct{} // the interrupt
	posted atomic.Uint64 // counters.tail, for other goroutines
	ready  time.Time     // when the receiver listens

	mu     sync.Mutex // guards all below, against Close
	closed bool
	mem    *bus.Memory
	ring   []byte
	slots  []*dma.Buf
	pool   *dma.Pool
	c      counters
	chunk  int
	held   int // buffers that the program may hold, at most

	frames, octets uint64 // ever received

	lengthErrors, crcErrors, frameErrors, garbage, allocFailed uint64
}

// spareBufs is how many buffers a program can hold while the ring stays full.
func spareBufs(ring int) int { return min(ring, 512) }

func (q *rxQueue) init(n *nic, id, size int) error {
	mem, err := n.dev.DMA().Alloc(bus.DMARequest{Size: size * descSize, Dir: bus.Bidirectional})
	if err != nil {
		return err
	}
	pool, err := dma.NewStaggered(n.dev.DMA(), size+spareBufs(size), bufSize, bus.FromDevice)
	if err != nil {
		mem.Free()
		return err
	}
	fillOnes(mem.Bytes)
	q.nic, q.id, q.tail = n, id, regRDT(id)
	q.wake, q.mem, q.pool = make(chan struct{}, 1), mem, pool
	q.ring = mem.Bytes[:size*descSize]
	q.slots = make([]*dma.Buf, size)
	q.c.mask = uint64(size - 1)
	q.chunk = refillChunk(size)
	return nil
}

// program tells the device of an empty ring, 14.4.
func (q *rxQueue) program() {
	r, i := q.nic.regs, q.id
	r.Write32(regRXDCTL(i), uint32(dctlGRAN))
	r.Write32(regRDBAL(i), uint32(q.mem.IOVA))
	r.Write32(regRDBAH(i), uint32(q.mem.IOVA>>32))
	r.Write32(regRDLEN(i), uint32(len(q.ring)))
	r.Write32(regRDH(i), 0)
	r.Write32(regRDT(i), 0)
}

// Burst returns received frames; netdev.RxQueue.
func (q *rxQueue) Burst(bufs []*dma.Buf) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		q.release()
		return 0
	}
	if q.nic.dead.Load() {
		return 0
	}
	n, octets := 0, 0
	head, tail := q.c.head, q.c.tail
	for n < len(bufs) && head != tail {
		i := q.c.at(head)
		st := statRx(q.ring, i)
		if st&rxDD == 0 {
			break
		}
		b := q.slots[i]
		head++
		if length, verdict := st.decode(); verdict == rxGood {
			b.Data = b.Mem[:length]
			bufs[n] = b
			n++
			octets += length
		} else {
			q.reject(verdict)
			b.Free()
		}
		if int(q.c.mask)-int(tail-head) >= q.chunk {
			q.c.head = head
			q.refill()
			tail = q.c.tail
		}
	}
	q.c.head = head
	q.frames += uint64(n)
	q.octets += uint64(octets)
	if q.c.room() >= q.chunk {
		q.refill() // what found no buffer before
	}
	q.held = q.pool.Len() - q.pool.Free() - q.c.used()
	return n
}

// refill gives empty buffers to the device, a chunk with one tail write. Called with mu
// held.
func (q *rxQueue) refill() {
	n := min(q.c.room(), q.pool.Free())
	if n < q.c.room() {
		q.allocFailed++
	}
	if n == 0 {
		return
	}
	tail := q.c.tail
	for range n {
		b := q.pool.Get()
		i := q.c.at(tail)
		q.slots[i] = b
		putRx(q.ring, i, b.Addr)
		tail++
	}
	q.c.tail = tail
	q.nic.regs.Write32(q.tail, q.c.at(tail)) // after the descriptors: package dma
	q.posted.Store(tail)
}

// reject counts a descriptor that holds no good frame.
func (q *rxQueue) reject(v rxVerdict) {
	switch v {
	case rxLength:
		q.lengthErrors++
	case rxCRC:
		q.crcErrors++
	case rxFrame:
		q.frameErrors++
	default:
		q.garbage++
	}
}

// pending says whether there is something to receive.
func (q *rxQueue) pending() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.closed && q.c.used() > 0 && statRx(q.ring, q.c.at(q.c.head))&rxDD != 0
}

// Wait arms the interrupt and sleeps; netdev.RxQueue.
func (q *rxQueue) Wait(ctx context.Context) error {
	n := q.nic
	if q.pending() {
		return nil
	}
	select {
	case <-n.done:
		q.Burst(nil) // the owner's last word: gives the memory back
		return n.Err()
	default:
	}
	if n.mod.adaptive.Load() {
		q.mu.Lock()
		frames, octets := q.frames, q.octets
		q.mu.Unlock()
		n.adapt(q.id, frames, octets)
	}
	n.arm(n.irq.rx[q.id])
	if q.pending() {
		return nil
	}
	select {
	case <-q.wake:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-n.done:
		q.Burst(nil)
		return n.Err()
	}
}

// Posted is how many descriptors were ever given to the device; netdev.RxQueue.
func (q *rxQueue) Posted() uint64 { return q.posted.Load() }

// Free asks the device how many descriptors it has left; netdev.RxQueue. It is exact
// while nothing arrives, and 0 while the receiver does not listen yet: frames sent then
// wait on their way, and must not be taken for filtered ones.
func (q *rxQueue) Free() int {
	n := q.nic
	if n.dead.Load() || !q.ready.IsZero() && time.Now().Before(q.ready) {
		return 0
	}
	rdh := n.regs.Read32(regRDH(q.id))
	if rdh == allOnes {
		return 0 // gone, or closed
	}
	if uint64(rdh) > q.c.mask {
		n.fail(n.errorf("reading the head of receive queue %d: RDH=%#x, want less than %d: %w", q.id, rdh, q.c.mask+1, bus.ErrProtocol))
		return 0
	}
	return freeAhead(q.posted.Load(), rdh, q.c.mask)
}

// close ends the queue once the device is reset. Memory that the program still holds
// frames in is given back by the owner's next call after he freed them.
func (q *rxQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed, q.ring = true, nil
	q.mem.Free()
	if q.held == 0 {
		q.pool.Close()
		q.pool = nil
	}
}

// release gives the buffers' memory back if the program holds none. Called by the owner, with
// mu held.
func (q *rxQueue) release() {
	if q.pool != nil && q.pool.Len()-q.pool.Free() == q.c.used() {
		q.pool.Close()
		q.pool = nil
	}
}
