package rionet

import (
	"context"
	"errors"
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

const (
	// batch is how many messages go with one doorbell.
	batch = 64
	// bufSize is the usual buffer: the longest message, and one byte more, that tells a frame that is too long.
	bufSize = rapidio.MaxMessage + 64
)

// slot is a message without a result.
type slot struct {
	buf *dma.Buf
	to  *peer
	seq uint64 // its place among all
	// refused: the peer had no room for it.
	refused bool
}

// txQueue is the transmit queue; netdev.TxQueue.
//
// A frame's buffer is kept until all its messages have results, so that one that was refused for want of room can be sent again. Results may
// be taken by a timer, when the owner does nothing; buffers are freed by the owner alone, since their pool is his.
type txQueue struct {
	dev *Device

	mu     sync.Mutex // guards all below
	closed bool
	box    rapidio.Outbox
	timer  *time.Timer
	armed  bool // the timer runs

	// slots are the messages in the box, in order: head has the next result. Behind tail are those that are staged in msgs.
	slots      []slot
	head, tail uint64
	msgs       [batch]rapidio.Message
	staged     int
	results    [batch]rapidio.Status

	// again is a ring of messages that wait, in the order of seq: those that were refused, and behind them all others to the same peers.
	again   []slot
	first   int
	waiting int
	seq     uint64
	pass    uint64 // counts the times that all of again was looked at

	many spread     // the frame that is being sent to many
	done []*dma.Buf // to be freed by the owner

	last   *peer // the last one that a frame went to
	credit func(sent uint64) int
	c      txCounters
}

// spread is a frame on its way to all active peers; one ownership of its buffer for each of to.
type spread struct {
	buf *dma.Buf
	to  []*peer
}

// txCounters are what the queue counts.
type txCounters struct {
	sent      uint64 // messages ever put into the box, for Wire
	packets   uint64
	bytes     uint64
	errors    uint64
	dropped   uint64
	busies    uint64
	invalid   uint64 // of errors: no frame, too long, or asking for what is not there
	inactive  uint64 // of packets: to a peer that is not active
	foreign   uint64 // of dropped: to an address that is none of rionet's
	multicast uint64 // frames to more than one address
	retries   uint64 // messages that were sent again
	congested uint64 // of dropped: the peer had no room for too long
}

func (q *txQueue) init(d *Device, box rapidio.Outbox) {
	q.dev, q.box = d, box
	q.slots = make([]slot, d.ring)
	q.again = make([]slot, d.ring)
	q.done = make([]*dma.Buf, 0, 2*d.ring)
	q.timer = time.AfterFunc(time.Hour, q.tick)
	q.timer.Stop()
}

// NewPool makes a pool of buffers for the longest frame.
func (q *txQueue) NewPool(n int) (*dma.Pool, error) { return q.NewPoolOf(n, bufSize) }

// NewPoolOf makes a pool of buffers of any size; netdev.NewTxPool.
func (q *txQueue) NewPoolOf(n, size int) (*dma.Pool, error) {
	p, err := dma.NewStaggered(ordinary{}, n, size, bus.ToDevice)
	if err != nil {
		return nil, q.dev.errorf("transmit buffers: %w", err)
	}
	return p, nil
}

// SetCredit limits what Burst sends; netdev.TxQueue.
func (q *txQueue) SetCredit(avail func(sent uint64) int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.credit = avail
}

// Burst sends the first n of bufs; netdev.TxQueue. What goes to a peer that has no room waits, and takes room of the ring.
func (q *txQueue) Burst(bufs []*dma.Buf) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.free()
	if q.closed || q.dev.dead() {
		return 0
	}
	q.work()
	credit := math.MaxInt
	if q.credit != nil && len(bufs) > 0 && q.room() > 0 {
		credit = q.credit(q.c.sent)
	}
	n, end := 0, q.c.sent+uint64(max(credit, 0))
	if credit == math.MaxInt {
		end = math.MaxUint64
	}
	limit := q.dev.MTU() + headerLen
	for n < len(bufs) && q.many.buf == nil && q.room() > 0 && q.c.sent+uint64(q.staged) < end {
		q.send(bufs[n], limit)
		n++
	}
	if n < len(bufs) {
		q.c.busies++
	}
	q.flush()
	q.collect()
	q.free()
	q.arm()
	return n
}

// room is how many messages find room.
func (q *txQueue) room() int {
	return len(q.slots) - int(q.tail-q.head) - q.staged - q.waiting
}

// send takes one frame.
func (q *txQueue) send(b *dma.Buf, limit int) {
	f := b.Data
	if len(f) < headerLen || len(f) > limit || b.Meta.Flags != 0 {
		q.c.errors++
		q.c.invalid++
		b.Free()
		return
	}
	switch {
	case f[0]&1 != 0:
		q.c.multicast++
		to := q.dev.activePeers()
		if len(to) == 0 { // nobody listens: as on an empty wire
			q.sent(len(f))
			b.Free()
			return
		}
		b.Retain(len(to) - 1)
		q.many = spread{buf: b, to: to}
		q.spreadOut()
	case f[0] == 0 && f[1] == 1 && f[2] == 0 && f[3] == 1:
		p := q.last
		if id := rapidio.DestID(f[4])<<8 | rapidio.DestID(f[5]); p == nil || p.id != id || !p.active.Load() {
			p = q.dev.peers.get(id)
			q.last = p
		}
		if p == nil || !p.active.Load() { // counts as sent, as the kernel has it
			q.c.inactive++
			q.sent(len(f))
			b.Free()
			return
		}
		q.post(q.slot(b, p))
	default:
		q.c.dropped++
		q.c.foreign++
		b.Free()
	}
}

// sent counts a message.
func (q *txQueue) sent(n int) {
	q.c.packets++
	q.c.bytes += uint64(n)
}

// spreadOut sends the frame for many to as many as there is room for.
func (q *txQueue) spreadOut() {
	m := &q.many
	for ; len(m.to) > 0 && q.room() > 0; m.to = m.to[1:] {
		if !m.to[0].active.Load() { // it went while others had no room
			q.c.dropped++
			q.done = append(q.done, m.buf)
			continue
		}
		q.post(q.slot(m.buf, m.to[0]))
	}
	if len(m.to) == 0 {
		*m = spread{}
	}
}

// slot is a new message.
func (q *txQueue) slot(b *dma.Buf, to *peer) slot {
	q.seq++
	return slot{buf: b, to: to, seq: q.seq}
}

// post sends a new message, or lets it wait behind others to the same peer. There is room for it.
func (q *txQueue) post(s slot) {
	p := s.to
	comesBack := p.again && p.inBox > 0 // what is under way
	switch {
	case p.waiting > 0, p.held.Load() != nil, !p.congested && (comesBack || p.window > 0 && p.inBox >= p.window):
		q.wait(s)
		return
	case p.congested && comesBack: // the attempt before has no result yet
		q.c.dropped++
		q.c.congested++
		q.done = append(q.done, s.buf)
		return
	}
	if q.stage(s); q.staged == len(q.msgs) {
		q.flush()
	}
}

// stage prepares a message, for which there is room.
func (q *txQueue) stage(s slot) {
	p := s.to
	q.slots[(q.tail+uint64(q.staged))&uint64(len(q.slots)-1)] = s
	m := &q.msgs[q.staged]
	m.Peer, m.Mbox, m.Data, m.Order = p.id, mailbox, s.buf.Data, rapidio.Behind
	if p.again {
		p.again, m.Order = false, rapidio.Again
	}
	p.inBox++
	q.staged++
}

// give gives the staged messages to the box. Should it take fewer than there is room for, it says how many are left: they are to be
// taken back.
func (q *txQueue) give() (left int) {
	if q.staged == 0 {
		return 0
	}
	k := q.staged
	n := min(max(q.box.Add(q.msgs[:k]), 0), k)
	q.staged = 0
	q.tail += uint64(n)
	q.c.sent += uint64(n)
	for i, m := range q.msgs[n:k] {
		p := q.slots[(q.tail+uint64(i))&uint64(len(q.slots)-1)].to
		p.inBox--
		p.again = p.again || m.Order == rapidio.Again
	}
	return k - n
}

// takeBack lets messages wait that the box did not take.
func (q *txQueue) takeBack(left int) {
	for i := range left {
		q.wait(q.slots[(q.tail+uint64(i))&uint64(len(q.slots)-1)])
	}
}

// flush gives the staged messages to the box. What it does not take waits.
func (q *txQueue) flush() { q.takeBack(q.give()) }

// Reap frees the buffers of messages that have results; netdev.TxQueue.
func (q *txQueue) Reap() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.work()
		q.arm()
	}
	q.free()
	return q.inFlight()
}

// inFlight is how many messages have no result yet, those that wait to be sent included.
func (q *txQueue) inFlight() int {
	return int(q.tail-q.head) + q.waiting + len(q.many.to)
}

// free frees what is done with. The owner calls it, alone.
func (q *txQueue) free() {
	if len(q.done) > 0 {
		dma.FreeAll(q.done)
		clear(q.done)
		q.done = q.done[:0]
	}
}

// Sleeps of Drain: results mostly come in microseconds.
const (
	drainSpins = 20
	drainTick  = 50 * time.Microsecond
)

// Drain waits until nothing is in flight; netdev.TxQueue. After Close it frees what was and returns nil. Where the port went it says so.
func (q *txQueue) Drain(ctx context.Context) error {
	for range drainSpins {
		if q.Reap() == 0 {
			return nil
		}
		runtime.Gosched()
	}
	d, gone := q.dev, q.dev.done
	tick := time.NewTimer(drainTick)
	defer tick.Stop()
	for {
		n := q.Reap()
		if n == 0 {
			if err := d.Err(); err != nil && !errors.Is(err, bus.ErrClosed) {
				return d.errorf("draining: %w", err)
			}
			return nil
		}
		tick.Reset(drainTick)
		select {
		case <-tick.C:
		case <-gone:
			gone = nil // the queue is closed next, and nothing is in flight then
		case <-ctx.Done():
			return d.errorf("draining: %d messages in flight: %w", n, ctx.Err())
		}
	}
}

var _ netdev.TxQueue = (*txQueue)(nil)
