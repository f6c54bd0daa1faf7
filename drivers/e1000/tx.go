package e1000

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
)

// txQueue is a transmit queue; netdev.TxQueue.
type txQueue struct {
	nic  *nic
	id   int
	tail bus.Off    // its tail register
	wake *bus.Waker // the interrupt

	mu     sync.Mutex // guards all below, against Close
	closed bool
	mem    *bus.Memory
	ring   []byte
	slots  []*dma.Buf
	// last is, at the first descriptor of a group, the counter of the one after its
	// last, which reports for the whole group.
	last   []uint64
	report txCmd // txRS, and txIDE where interrupts are delayed
	c      counters
	limit  int // the longest frame, with one VLAN tag

	features netdev.Feature // that are on
	context  txContext      // the last context descriptor, where cacheContext
	// cacheContext: the device knows the last context descriptor. With two queues it knows the
	// last of either, 82574L 7.2.6.
	cacheContext bool
	maxSegs      int // credit that is enough for any frame: all there ever is

	credit func(sent uint64) int
	sent   uint64 // frames ever put into the ring, as they go over the wire, at most
	spare  uint64 // of sent, segments that were only counted to be safe
	octets uint64 // their length
	errors uint64 // frames that cannot be sent
	// dropped: frames that a reset found in the ring. Those before until are to be freed by the owner, if aborted.
	dropped uint64
	until   uint64
	aborted bool
	busies  uint64 // bursts cut short
}

func (q *txQueue) init(n *nic, id, size int) error {
	mem, err := n.dev.DMA().Alloc(bus.DMARequest{Size: size * descSize, Dir: bus.Bidirectional})
	if err != nil {
		return err
	}
	fillOnes(mem.Bytes)
	q.nic, q.id, q.tail = n, id, regTDT(id)
	q.wake, q.mem = bus.NewWaker(), mem
	q.ring = mem.Bytes[:size*descSize]
	q.slots, q.last = make([]*dma.Buf, size), make([]uint64, size)
	q.c.mask = uint64(size - 1)
	q.report = txRS
	q.limit, q.maxSegs = frameLen(n.MTU()), math.MaxInt
	q.cacheContext = n.queues == 1
	return nil
}

// program tells the device of an empty ring, 14.5.
func (q *txQueue) program() {
	r, i := q.nic.regs, q.id
	r.Write32(regTDBAL(i), uint32(q.mem.IOVA))
	r.Write32(regTDBAH(i), uint32(q.mem.IOVA>>32))
	r.Write32(regTDLEN(i), uint32(len(q.ring)))
	r.Write32(regTDH(i), 0)
	r.Write32(regTDT(i), 0)
	d := dctlGRAN
	if q.nic.chip.pcie {
		d |= dctlOne
		r.Write32(regTARC(i), r.Read32(regTARC(i))|tarcEnable)
	}
	r.Write32(regTXDCTL(i), uint32(d))
}

// NewPool makes a pool of n buffers of 2048 bytes that this queue can send from. The
// caller closes it, after the device or once nothing of it is in flight.
func (q *txQueue) NewPool(n int) (*dma.Pool, error) { return q.NewPoolOf(n, dma.BufSize) }

// NewPoolOf makes a pool of buffers of any size; netdev.NewTxPool.
func (q *txQueue) NewPoolOf(n, size int) (*dma.Pool, error) {
	p, err := dma.NewStaggered(q.nic.dev.DMA(), n, max(size, minBuf), bus.ToDevice)
	if err != nil {
		return nil, q.nic.errorf("transmit buffers: %w", err)
	}
	return p, nil
}

// SetCredit limits what Burst sends; netdev.TxQueue.
func (q *txQueue) SetCredit(avail func(sent uint64) int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.credit = avail
}

// SetMaxSegs says how many frames the far end has room for at most: one that makes more of them
// waits for so many only; see netdev.Wire.
func (q *txQueue) SetMaxSegs(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.maxSegs = n
}

// Burst sends the first n of bufs; netdev.TxQueue.
func (q *txQueue) Burst(bufs []*dma.Buf) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.reap()
	if q.closed || q.nic.dead.Load() || q.nic.stopped() {
		return 0
	}
	credit := math.MaxInt
	if q.credit != nil && len(bufs) > 0 && q.c.room() > 0 {
		credit = q.credit(q.sent)
	}
	n, first := 0, q.c.tail
	for n < len(bufs) {
		k := min(len(bufs)-n, reportEvery, q.c.room(), credit)
		if k <= 0 {
			break
		}
		before := q.c.tail
		took := q.group(bufs[n : n+k])
		sent := int(q.c.tail - before)
		if took == 0 {
			if took, sent = q.offloads(bufs[n:], credit); took == 0 {
				break
			}
		}
		n += took
		credit -= sent
		q.sent += uint64(sent)
	}
	if n < len(bufs) {
		q.busies++
	}
	if q.c.tail != first {
		q.nic.regs.Write32(q.tail, q.c.at(q.c.tail)) // after the descriptors: package dma
	}
	return n
}

// group writes descriptors for bufs, the last of which reports for all, up to the first that
// wants something of the device, and returns how many it took. There is room for them.
func (q *txQueue) group(bufs []*dma.Buf) int {
	first, took := q.c.tail, 0
	for took < len(bufs) {
		if n := q.plain(bufs[took:]); n > 0 {
			took += n
			continue
		}
		b := bufs[took]
		if b.Meta.Flags != 0 {
			break
		}
		if q.pad(b) { // too short, or no frame
			q.putShort(b)
		}
		took++
	}
	if tail := q.c.tail; tail != first {
		reportTx(q.ring, q.c.at(tail-1), q.report)
		q.last[q.c.at(first)] = tail
	}
	return took
}

// plain writes descriptors for bufs, up to the first that is not just a frame to be sent, and returns
// how many. It calls nothing, so that what it needs stays in registers.
func (q *txQueue) plain(bufs []*dma.Buf) int {
	if len(bufs) > 1 && bufs[0] == bufs[1] {
		return q.copies(bufs)
	}
	ring, slots, tail, limit := q.ring, q.slots, q.c.tail, q.limit
	var sum txCmd
	for _, b := range bufs {
		// Data is a slice of Mem, so the capacities tell where in it.
		n, off := len(b.Data), cap(b.Mem)-cap(b.Data)
		if b.Meta.Flags != 0 || n < minWire || n > limit || off < 0 || off+n > len(b.Mem) {
			break
		}
		i, cmd := tail&uint64(len(slots)-1), txEOP|txIFCS|txCmd(n)
		putTx(ring, uint32(i), b.Addr+bus.IOVA(off), cmd)
		if slots[i] != b {
			slots[i] = b
		}
		sum += cmd
		tail++
	}
	took := tail - q.c.tail
	q.c.tail = tail
	q.octets += uint64(sum) - took*uint64(txEOP|txIFCS)
	return int(took)
}

// copies is plain for a buffer that comes many times. It takes no others.
func (q *txQueue) copies(bufs []*dma.Buf) int {
	b, ring, slots, tail := bufs[0], q.ring, q.slots, q.c.tail
	n, off := len(b.Data), cap(b.Mem)-cap(b.Data)
	if b.Meta.Flags != 0 || n < minWire || n > q.limit || off < 0 || off+n > len(b.Mem) {
		return 0
	}
	addr, cmd := b.Addr+bus.IOVA(off), txEOP|txIFCS|txCmd(n)
	for _, next := range bufs {
		if next != b {
			break
		}
		i := tail & uint64(len(slots)-1)
		putTx(ring, uint32(i), addr, cmd)
		if slots[i] != b {
			slots[i] = b
		}
		tail++
	}
	took := int(tail - q.c.tail)
	q.c.tail = tail
	q.octets += uint64(took * n)
	return took
}

// putShort writes the descriptor of a frame that was padded.
func (q *txQueue) putShort(b *dma.Buf) {
	i := q.c.at(q.c.tail)
	putTx(q.ring, i, b.Addr+bus.IOVA(cap(b.Mem)-cap(b.Data)), txEOP|txIFCS|txCmd(minWire))
	q.slots[i] = b
	q.octets += minWire
	q.c.tail++
}

// pad gives a frame that is too short for the wire zeros in its buffer, up to minWire. The hardware
// would pad too (TCTL.PSP), but QEMU's models do not, and their receivers count such frames as
// errors. What cannot be sent is counted and freed: false.
func (q *txQueue) pad(b *dma.Buf) bool {
	n, off := len(b.Data), cap(b.Mem)-cap(b.Data)
	if n < minFrame || n >= minWire || off < 0 || off+minWire > len(b.Mem) {
		q.errors++
		b.Free()
		return false
	}
	clear(b.Mem[off+n : off+minWire])
	return true
}

// reap frees what the device is done with, group by group; after Close, everything.
// Called with mu held.
func (q *txQueue) reap() {
	if q.aborted {
		q.freeTo(q.c.head, q.until)
		q.c.head, q.aborted = q.c.tail, false
	}
	head, tail := q.c.head, q.c.tail
	for head != tail {
		last := q.last[q.c.at(head)]
		if !q.closed && !doneTx(q.ring, q.c.at(last-1)) {
			break
		}
		q.freeTo(head, last)
		head = last
	}
	q.c.head = head
}

// freeTo frees the buffers of the descriptors from head to last.
func (q *txQueue) freeTo(head, last uint64) {
	for head != last {
		i := uint64(q.c.at(head))
		n := min(last-head, uint64(len(q.slots))-i)
		// nil is a descriptor that is no frame's last.
		if b := q.slots[i]; n > 1 {
			dma.FreeAll(q.slots[i : i+n])
		} else if b != nil {
			b.Free()
		}
		head += n
	}
}

// Reap frees the buffers that the device is done with; netdev.TxQueue.
func (q *txQueue) Reap() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.reap()
	return q.c.used()
}

// drainTick bounds the sleep of Drain, should the device not interrupt.
const drainTick = 10 * time.Millisecond

// Drain waits until nothing is in flight; netdev.TxQueue. After Close it frees what was in
// flight and returns nil. While the device is stopped it waits, and what the reset takes away is not in flight any more.
func (q *txQueue) Drain(ctx context.Context) error {
	n := q.nic
	tick := time.NewTimer(drainTick)
	defer tick.Stop()
	for {
		if q.Reap() == 0 {
			return nil
		}
		if before := n.stops.Load(); before&1 == 0 {
			if n.mod.adaptive.Load() {
				q.mu.Lock()
				sent, octets := q.sent, q.octets
				q.mu.Unlock()
				n.adapt(n.queues+q.id, sent, octets)
			}
			n.arm(n.irq.tx[q.id])
			// The read comes after the doorbells, so most devices are done by then.
			if n.regs.Read32(regSTATUS) == allOnes {
				n.missing(before, "draining: STATUS reads all-ones")
			}
		}
		inFlight := q.Reap()
		if inFlight == 0 {
			return nil
		}
		tick.Reset(drainTick)
		select {
		case <-q.wake.C():
		case <-tick.C:
		case <-ctx.Done():
			return n.errorf("draining: %d frames in flight: %w", inFlight, ctx.Err())
		case <-n.done:
			if q.Reap() == 0 {
				return nil // closed, not lost
			}
			return n.errorf("draining: %d frames in flight: %w", inFlight, n.Err())
		}
	}
}

// close ends the queue once the device is reset. What was in flight is freed by the next
// call of the queue's owner, since the buffers' pool is his.
func (q *txQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed, q.ring = true, nil
	q.mem.Free()
}
