package rionet

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// rxQueue is the receive queue; netdev.RxQueue. Messages are copied from the mailbox into buffers of the queue's pool when they are asked
// for, so what nobody asks for stays in the mailbox, and its senders are told to try again.
type rxQueue struct {
	dev   *Device
	taken atomic.Uint64 // messages ever taken out of the mailbox

	mu     sync.Mutex // guards all below, against Free and Close
	closed bool
	box    rapidio.Inbox
	pool   *dma.Pool
	room   [batch]*dma.Buf // to be filled; the first ready are there
	ready  int
	msgs   [batch]rapidio.Message
	last   *peer // whom a message came from
	c      rxCounters

	waitMu sync.Mutex // held while somebody waits at the box, against Close
	over   bool       // guarded by waitMu: closed
	wait   merged
}

// rxCounters are what the queue counts.
type rxCounters struct {
	packets, bytes uint64
	multicast      uint64
	lengthErrors   uint64 // shorter than an Ethernet header, or longer than a message can be
	noBuffer       uint64 // looks that found no buffer free
	classic        uint64 // of packets: from a peer that does not keep lengths
}

func (q *rxQueue) init(d *Device, box rapidio.Inbox) error {
	pool, err := dma.NewPool(ordinary{}, batch+2*d.ring, rapidio.MaxMessage, bus.FromDevice)
	if err != nil {
		return d.errorf("receive buffers: %w", err)
	}
	q.dev, q.box, q.pool = d, box, pool
	return nil
}

// Burst returns received frames; netdev.RxQueue.
func (q *rxQueue) Burst(bufs []*dma.Buf) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0
	}
	want := min(len(bufs), batch)
	if want == 0 {
		return 0
	}
	if q.ready < want {
		q.ready += q.pool.GetAll(q.room[q.ready:want])
		if q.ready == 0 {
			q.c.noBuffer++
			return 0
		}
		want = min(want, q.ready)
	}
	for i, b := range q.room[:want] {
		q.msgs[i].Mbox, q.msgs[i].Data = mailbox, b.Mem[:rapidio.MaxMessage]
	}
	n := min(max(q.box.Get(q.msgs[:want]), 0), want)
	if n == 0 {
		return 0
	}
	q.taken.Add(uint64(n))
	k := 0
	for i, b := range q.room[:n] {
		if q.frame(b, &q.msgs[i]) {
			bufs[k] = b
			k++
		} else {
			b.Free()
		}
	}
	copy(q.room[:], q.room[n:q.ready])
	clear(q.room[q.ready-n : q.ready])
	q.ready -= n
	return k
}

// frame makes a received message the frame in b; false: it is none.
func (q *rxQueue) frame(b *dma.Buf, m *rapidio.Message) bool {
	n := len(m.Data)
	if n < headerLen || n > len(b.Mem) {
		q.c.lengthErrors++
		return false
	}
	p := q.last
	if p == nil || p.id != m.Peer || !p.active.Load() {
		p = q.dev.peers.get(m.Peer)
		q.last = p
	}
	exact := false
	if p != nil {
		if !p.heard.Load() {
			p.heard.Store(true)
		}
		exact = p.exact.Load()
	}
	if !exact {
		clear(b.Mem[n:]) // what the kernel leaves there is whatever was there
		n = rapidio.MaxMessage
		q.c.classic++
	}
	b.Data = b.Mem[:n]
	q.c.packets++
	q.c.bytes += uint64(n)
	if f := b.Data; f[0]&1 != 0 && [6]byte(f[:6]) != broadcast {
		q.c.multicast++
	}
	return true
}

// broadcast is the address of all.
var broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Wait sleeps until there is something to receive; netdev.RxQueue.
func (q *rxQueue) Wait(ctx context.Context) error {
	q.waitMu.Lock()
	defer q.waitMu.Unlock()
	d := q.dev
	if err := d.Err(); err != nil || q.over {
		return err
	}
	err := q.box.Wait(q.wait.of(ctx, d.life))
	if err == nil {
		return nil
	}
	if gone := d.Err(); gone != nil {
		return gone
	}
	if ctx.Err() != nil {
		return d.errorf("waiting for a frame: %w", ctx.Err())
	}
	if d.life.Err() != nil { // it is being closed, or the port went
		<-d.done
		return d.Err()
	}
	return d.errorf("waiting for a frame: %w", err)
}

// Posted is how many messages the mailbox had room for in all; netdev.RxQueue.
func (q *rxQueue) Posted() uint64 { return uint64(q.dev.ring) + q.taken.Load() }

// Free is how many it has room for now; netdev.RxQueue.
func (q *rxQueue) Free() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0
	}
	return q.box.Free()
}

// close ends the queue. The device's life has ended, so a Wait ends too. Frames that the program holds stay what they are: their memory is
// ordinary.
func (q *rxQueue) close() error {
	q.waitMu.Lock()
	q.over = true
	q.wait.drop()
	q.waitMu.Unlock()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil
	}
	q.closed = true
	return q.box.Close()
}

// merged is a context that ends with another one or with the device. It is made once for each context in a row, so that
// a poll that sleeps often makes none.
type merged struct {
	parent, ctx context.Context
	cancel      context.CancelFunc
	stop        func() bool
}

// of is the context that ends with ctx or life.
func (m *merged) of(ctx, life context.Context) context.Context {
	if m.ctx != nil && m.parent == ctx {
		return m.ctx
	}
	m.drop()
	m.parent = ctx
	m.ctx, m.cancel = context.WithCancel(ctx)
	m.stop = context.AfterFunc(life, m.cancel)
	return m.ctx
}

func (m *merged) drop() {
	if m.ctx != nil {
		m.stop()
		m.cancel()
		*m = merged{}
	}
}

var _ netdev.RxQueue = (*rxQueue)(nil)
