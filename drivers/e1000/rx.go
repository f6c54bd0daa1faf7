package e1000

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
)

// rxQueue is a receive queue; netdev.RxQueue. In its counters, head is the next
// descriptor to look at, tail the next to give to the device.
type rxQueue struct {
	nic    *nic
	id     int
	tail   bus.Off       // its tail register
	wake   *bus.Waker    // the interrupt
	posted atomic.Uint64 // counters.tail, for other goroutines

	mu     sync.Mutex // guards all below, against Close
	closed bool
	mem    *bus.Memory
	ring   []byte
	slots  []*dma.Buf
	pool   *dma.Pool
	old    []oldPool // of before a change of the MTU
	c      counters
	start  uint64 // the counter of the device's descriptor 0
	chunk  int
	held   int // buffers that the program may hold, at most

	extended bool // the descriptors are
	hash     bool // netdev.RxHash
	midFrame bool // a frame that is too long goes on in the next descriptor

	frames, octets  uint64 // ever received
	sumGood, sumBad uint64 // frames whose checksums the device found right, and wrong

	dropped, droppedOctets uint64 // frames that a reset found in the ring

	lengthErrors, crcErrors, frameErrors, garbage, allocFailed uint64
}

// spareBufs is how many buffers a program can hold while the ring stays full.
func spareBufs(ring int) int { return min(ring, 512) }

func (q *rxQueue) init(n *nic, id, size int) error {
	mem, err := n.dev.DMA().Alloc(bus.DMARequest{Size: size * descSize, Dir: bus.Bidirectional})
	if err != nil {
		return err
	}
	pool, err := newRxPool(n.dev.DMA(), size, rxBufSize(n.MTU()))
	if err != nil {
		mem.Free()
		return err
	}
	fillOnes(mem.Bytes)
	q.nic, q.id, q.tail = n, id, regRDT(id)
	q.wake, q.mem, q.pool = bus.NewWaker(), mem, pool
	q.ring = mem.Bytes[:size*descSize]
	q.slots = make([]*dma.Buf, size)
	q.c.mask = uint64(size - 1)
	q.chunk = refillChunk(size)
	q.extended = n.extended()
	return nil
}

// newRxPool makes the buffers of a receive queue.
func newRxPool(d bus.DMA, ring, size int) (*dma.Pool, error) {
	return dma.NewStaggered(d, ring+spareBufs(ring), size, bus.FromDevice)
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
	if q.nic.dead.Load() || q.nic.stopped() {
		return 0
	}
	n, octets := 0, 0
	head, tail := q.c.head, q.c.tail
	size := q.pool.BufSize()
	for n < len(bufs) && head != tail {
		i := q.at(head)
		st := q.stat(i)
		if st&rxDD == 0 {
			break
		}
		b := q.slots[i]
		head++
		if length, verdict := st.decode(size); verdict == rxGood && !q.midFrame {
			b.Data = b.Mem[:length]
			if st&(rxTUCS|rxVP) != 0 {
				b.Meta.Flags, b.Meta.VLAN = st.meta()
				if b.Meta.Flags&dma.CsumGood != 0 {
					q.sumGood++
				} else if st&(rxTUE|rxIPE) != 0 {
					q.sumBad++
				}
			}
			if q.extended {
				b.Meta.Hash = q.hashOf(i)
			}
			bufs[n] = b
			n++
			octets += length
		} else {
			q.reject(verdict, st)
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
	if len(q.old) > 0 {
		q.sweep()
	}
	return n
}

// at is the descriptor of a counter.
func (q *rxQueue) at(n uint64) uint32 { return q.c.at(n - q.start) }

// stat reads the status of descriptor i, once.
func (q *rxQueue) stat(i uint32) rxStat {
	st := statRx(q.ring, i)
	if q.extended {
		st = extended(uint64(st))
	}
	return st
}

// hashOf is the RSS hash in the extended descriptor i; 0 where it is not wanted or there is
// none.
func (q *rxQueue) hashOf(i uint32) uint32 {
	if !q.hash {
		return 0
	}
	return dma.Load32(q.ring, int(i)*descSize+4)
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
		i := q.at(tail)
		q.slots[i] = b
		putRx(q.ring, i, b.Addr)
		tail++
	}
	q.c.tail = tail
	q.nic.regs.Write32(q.tail, q.at(tail)) // after the descriptors: package dma
	q.posted.Store(tail)
}

// reject counts a descriptor that holds no good frame. The descriptors of a frame that is longer
// than a buffer count once.
func (q *rxQueue) reject(v rxVerdict, st rxStat) {
	if v != rxGarbage {
		was := q.midFrame
		q.midFrame = st&rxEOP == 0 && int(st&rxLen) == q.pool.BufSize()
		if was {
			return
		}
	}
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
	return !q.closed && !q.nic.stopped() && q.c.used() > 0 && q.stat(q.at(q.c.head))&rxDD != 0
}

// Wait arms the interrupt and sleeps; netdev.RxQueue.
func (q *rxQueue) Wait(ctx context.Context) error {
	if ready, err := q.prepare(); ready || err != nil {
		return err
	}
	select {
	case <-q.wake.C():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-q.nic.done:
		return q.ended()
	}
}

// WaitThread is Wait of a thread of its own, without a context; netdev.ThreadWaiter.
func (q *rxQueue) WaitThread() error {
	if ready, err := q.prepare(); ready || err != nil {
		return err
	}
	q.wake.WaitThread(0) // fail wakes it too
	if q.nic.dead.Load() {
		return q.ended()
	}
	return nil
}

// Wake ends a WaitThread, or the next; netdev.ThreadWaiter.
func (q *rxQueue) Wake() { q.wake.Wake() }

// ended says why there is nothing to wait for any more.
func (q *rxQueue) ended() error {
	q.Burst(nil) // the owner's last word: gives the memory back
	return q.nic.Err()
}

// prepare arms the interrupt, unless there is something to receive already.
func (q *rxQueue) prepare() (ready bool, err error) {
	n := q.nic
	if n.dead.Load() { // even with frames left, which Burst does not give out any more
		return false, q.ended()
	}
	if q.pending() {
		return true, nil
	}
	if n.stopped() {
		return false, nil // start wakes
	}
	if n.mod.adaptive.Load() {
		q.mu.Lock()
		frames, octets := q.frames, q.octets
		q.mu.Unlock()
		n.adapt(q.id, frames, octets)
	}
	n.arm(n.irq.rx[q.id])
	return q.pending(), nil
}

// Posted is how many descriptors were ever given to the device; netdev.RxQueue.
func (q *rxQueue) Posted() uint64 { return q.posted.Load() }

// Free asks the device how many descriptors it has left; netdev.RxQueue. It is exact
// while nothing arrives, and 0 while the receiver does not listen yet, or is stopped: frames sent then
// wait on their way, and must not be taken for filtered ones.
func (q *rxQueue) Free() int {
	n := q.nic
	if n.dead.Load() || n.deaf() {
		return 0
	}
	q.mu.Lock() // a change of the MTU moves head and counters
	if n.stopped() {
		q.mu.Unlock()
		return 0
	}
	rdh := n.regs.Read32(regRDH(q.id))
	free := freeAhead(q.c.tail-q.start, rdh, q.c.mask)
	q.mu.Unlock()
	if rdh == allOnes {
		return 0 // gone, or closed
	}
	if uint64(rdh) > q.c.mask {
		n.fail(n.errorf("reading the head of receive queue %d: RDH=%#x, want less than %d: %w", q.id, rdh, q.c.mask+1, bus.ErrProtocol))
		return 0
	}
	return free
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
		q.closeOld()
	}
}

// release gives the buffers' memory back if the program holds none. Called by the owner, with
// mu held.
func (q *rxQueue) release() {
	q.sweep()
	if q.pool != nil && q.pool.Len()-q.pool.Free() == q.c.used() {
		q.pool.Close()
		q.pool = nil
	}
}

// oldPool is a pool that was replaced while the program may have held buffers of it. posted
// are those that the ring had; they never come back to the pool.
type oldPool struct {
	pool   *dma.Pool
	posted int
}

// renew begins anew with buffers of another pool, after the receiver was stopped. What was
// received and not taken is lost. Posted stays what it is until the refill that is to follow,
// so that nobody sees less than was posted and then more. The old pool is its owner's where he holds buffers, so that
// nothing of it is touched here. Called with mu held.
func (q *rxQueue) renew(pool *dma.Pool) {
	// Descriptors that the device has not used count as taken back, so that Posted tells
	// the far end's credit no more than there is.
	unused := 0
	if rdh := q.nic.regs.Read32(regRDH(q.id)); uint64(rdh) <= q.c.mask {
		unused = freeAhead(q.c.tail-q.start, rdh, q.c.mask)
	}
	if q.held == 0 {
		q.pool.Close()
	} else {
		q.old = append(q.old, oldPool{q.pool, q.c.used()})
	}
	q.pool = pool
	fillOnes(q.ring)
	q.c.tail -= uint64(unused)
	q.c.head, q.start = q.c.tail, q.c.tail
	q.midFrame = false
	q.program()
}

// sweep closes the old pools that have all their buffers back. Called by the owner, with mu
// held.
func (q *rxQueue) sweep() {
	left := q.old[:0]
	for _, o := range q.old {
		if out := o.pool.Len() - o.pool.Free() - o.posted; out > 0 {
			left = append(left, o)
			q.held += out
			continue
		}
		o.pool.Close()
	}
	clear(q.old[len(left):])
	q.old = left
}

// closeOld closes the old pools, none of whose buffers the program holds.
func (q *rxQueue) closeOld() {
	for _, o := range q.old {
		o.pool.Close()
	}
	q.old = nil
}
