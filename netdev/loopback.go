package netdev

import (
	"context"
	"net"
	"sync"
	"sync/atomic"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
)

// A Receiver takes frames as if a device had received them: what the kernel's netif_receive_skb
// leads to. [Sink] is one.
type Receiver interface {
	// Receive takes all of frames over and returns how many were received; the others were dropped. It
	// does not keep the slice, and frees the frames before it returns: their pool is the caller's.
	Receive(frames []*dma.Buf) int
}

// Limits of a Loopback, as of the kernel's lo.
const (
	loopbackMTU  = 65536
	loopbackRing = 1024
	etherHeader  = 14
)

// Loopback is the device that receives what it sends, the kernel's lo: no hardware, no address, one
// queue, a link that is always up. A frame is received, in the goroutine that sends it, by
// the [Sink] that Sink returns; so there is no receive queue to poll.
type Loopback struct {
	name   string
	tx     loopbackQueue
	sink   *Sink
	done   chan struct{}
	closed sync.Once

	frames, bytes, errors atomic.Uint64
}

// NewLoopback makes a loopback device.
func NewLoopback(name string) *Loopback {
	l := &Loopback{name: name, done: make(chan struct{})}
	l.tx.dev = l
	l.sink = &Sink{pollers: pollers{cancel: func() {}, done: l.done}}
	return l
}

// Info says that it is a loopback device, which has no bus.
func (l *Loopback) Info() Info {
	return Info{Name: l.name, Driver: "loopback", TxQueues: 1, TxRing: loopbackRing, Loopback: true}
}

// MAC is all zeros.
func (l *Loopback) MAC() net.HardwareAddr { return make(net.HardwareAddr, 6) }

// MTU is 65536.
func (l *Loopback) MTU() int { return loopbackMTU }

// Link is up, and has no speed.
func (l *Loopback) Link() Link { return Link{Up: !gone(l), FullDuplex: true} }

// Stats counts each frame as sent and as received, and as the kernel does of lo, its bytes without the Ethernet
// header.
func (l *Loopback) Stats() Stats {
	n, b := l.frames.Load(), l.bytes.Load()
	return Stats{RxPackets: n, TxPackets: n, RxBytes: b, TxBytes: b, TxErrors: l.errors.Load()}
}

// Tx is the one transmit queue.
func (l *Loopback) Tx(q int) TxQueue {
	if q != 0 {
		return nil
	}
	return &l.tx
}

// Rx is nil: see Sink.
func (l *Loopback) Rx(int) RxQueue { return nil }

// Sink is what receives.
func (l *Loopback) Sink() *Sink { return l.sink }

// Done is closed by Close.
func (l *Loopback) Done() <-chan struct{} { return l.done }

// Err is ErrClosed after Close.
func (l *Loopback) Err() error {
	if gone(l) {
		return bus.ErrClosed
	}
	return nil
}

// Close ends it. It is idempotent.
func (l *Loopback) Close() error {
	l.closed.Do(func() { close(l.done) })
	return nil
}

// loopbackQueue is the transmit queue. What is sent has been received when Burst returns, so nothing is
// ever in flight.
type loopbackQueue struct{ dev *Loopback }

// NewPool makes a pool of the usual buffers.
func (q *loopbackQueue) NewPool(n int) (*dma.Pool, error) { return q.NewPoolOf(n, dma.BufSize) }

// NewPoolOf makes a pool of other ones.
func (q *loopbackQueue) NewPoolOf(n, size int) (*dma.Pool, error) {
	return dma.NewPool(ordinary{}, n, size, bus.ToDevice)
}

// Burst sends, which is to receive.
func (q *loopbackQueue) Burst(bufs []*dma.Buf) int {
	l := q.dev
	if gone(l) {
		return 0
	}
	var n, bad, bytes uint64
	for _, b := range bufs {
		if !fits(b) {
			bad++
			continue
		}
		n++
		bytes += uint64(len(b.Data) - etherHeader)
	}
	if bad == 0 {
		l.sink.Receive(bufs)
	} else {
		q.receiveGood(bufs)
	}
	l.frames.Add(n)
	l.bytes.Add(bytes)
	l.errors.Add(bad)
	return len(bufs)
}

// fits tells whether a frame can be sent.
func fits(b *dma.Buf) bool {
	return len(b.Data) >= etherHeader && len(b.Data) <= loopbackMTU+etherHeader
}

// receiveGood receives those that can be sent, and frees the others.
func (q *loopbackQueue) receiveGood(bufs []*dma.Buf) {
	for i, b := range bufs {
		if !fits(b) {
			b.Free()
			continue
		}
		q.dev.sink.Receive(bufs[i : i+1])
	}
}

// Reap finds nothing in flight.
func (q *loopbackQueue) Reap() int { return 0 }

// Drain has nothing to wait for.
func (q *loopbackQueue) Drain(context.Context) error { return nil }

// SetCredit does nothing: there is no far end.
func (q *loopbackQueue) SetCredit(func(sent uint64) int) {}

// ordinary is memory for frames that no device reads.
type ordinary struct{}

// Alloc makes it Go's own.
func (ordinary) Alloc(r bus.DMARequest) (*bus.Memory, error) {
	return bus.NewMemory(make([]byte, r.Size), 0, func() {}), nil
}

// Map is refused.
func (ordinary) Map([]byte, bus.DMARequest) (*bus.Memory, error) { return nil, bus.ErrNotSupported }
