package pktgen

import (
	"context"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
)

// The modes other than start_xmit: frames handed up as if they had been received, and frames that go through a
// queue discipline.

// maxHandUp is the longest burst of netif_receive, where no ring bounds it.
const maxHandUp = 65536

// handUp is send for netif_receive. Nothing of it reaches the device. As in the kernel a frame that nobody took
// is an error, and counts as done all the same.
func (d *device) handUp(p *port) progress {
	for left := turn; ; {
		d.refill()
		n := len(d.pending)
		if n == 0 && d.left() > 0 {
			p.flight = p.q.Reap()
			return full // other devices on this queue have every buffer in flight
		}
		taken := 0
		d.intend(n)
		if d.up != nil {
			taken = d.up.Receive(d.pending)
		} else {
			dma.FreeAll(d.pending)
		}
		d.pending = d.pending[:0]
		d.errors += uint64(n - taken)
		d.done(n)
		d.settle(n, n)
		if left -= n; d.enough() {
			return finished
		}
		if left <= 0 || d.alone() {
			return sent
		}
	}
}

// enqueue is send for queue_xmit. As in the kernel a frame that the queue discipline refuses is an error, and is
// not counted; it is tried again.
func (d *device) enqueue(p *port) progress {
	for left := turn; ; {
		d.refill()
		want := len(d.pending)
		d.intend(want)
		n := p.qdisc.put(d.pending)
		d.pending = d.pending[n:]
		d.done(n)
		d.settle(n, want)
		if flight, looked := p.run(); looked {
			d.thr.reaped(flight)
		}
		if left -= n; d.enough() {
			return finished
		}
		if n < want || want == 0 {
			p.flight = p.q.Reap() // or there is no buffer
			d.errors++
			return full
		}
		if left <= 0 || d.alone() {
			return sent
		}
	}
}

// pfifo is a queue discipline: the kernel's pfifo. What does not fit is refused.
type pfifo struct {
	bufs    []*dma.Buf // circular; nil until one is needed
	head, n int
}

// put takes the first of bufs over, and returns how many.
func (f *pfifo) put(bufs []*dma.Buf) int {
	if f.bufs == nil {
		f.bufs = make([]*dma.Buf, netdev.TxQueueLen)
	}
	k := min(len(bufs), len(f.bufs)-f.n)
	for _, b := range bufs[:k] {
		f.bufs[(f.head+f.n)%len(f.bufs)] = b
		f.n++
	}
	return k
}

// first is what comes next, as far as it lies together; take says how many of it are gone.
func (f *pfifo) first() []*dma.Buf { return f.bufs[f.head:min(f.head+f.n, len(f.bufs))] }

func (f *pfifo) take(k int) {
	f.n -= k
	if f.head += k; f.head == len(f.bufs) {
		f.head = 0
	}
}

// run sends from the queue discipline what the ring has room for. It tells whether it had to look into the ring, and
// how many frames were in flight then. Called with mu held.
func (p *port) run() (flight int, looked bool) {
	depth := min(p.ring, minDepth)
	for p.qdisc.n > 0 {
		if p.flight >= depth {
			p.flight = p.q.Reap()
			flight, looked = p.flight, true
		}
		next := p.qdisc.first()
		next = next[:min(len(next), max(depth-p.flight, 0))]
		if len(next) == 0 {
			break
		}
		n := min(max(p.q.Burst(next), 0), len(next))
		p.qdisc.take(n)
		p.flight += n
		if n < len(next) {
			break
		}
	}
	return flight, looked
}

// flushPause is how long a port waits for the far end to take something.
const flushPause = 100 * time.Microsecond

// flush sends all that is in the queue discipline, or what it can until ctx ends. Called with mu held.
func (p *port) flush(ctx context.Context) {
	for p.run(); p.qdisc.n > 0 && ctx.Err() == nil; p.run() {
		had := p.qdisc.n
		_ = p.q.Drain(ctx) // as in drain
		p.flight = p.q.Reap()
		if p.run(); p.qdisc.n == had {
			time.Sleep(flushPause)
		}
	}
}

// reset drops what is in the queue discipline, as a kernel does when an interface goes down. Called with mu held.
func (p *port) reset() {
	for p.qdisc.n > 0 {
		next := p.qdisc.first()
		dma.FreeAll(next)
		p.qdisc.take(len(next))
	}
}
