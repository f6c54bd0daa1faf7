package netdev

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/rt"
)

// Forwarder sends what one device receives out of another, in bursts, one direction. It copies each frame: devices
// cannot read each other's memory.
//
// It waits for room where the other device is slower, and receives nothing meanwhile: over wires with credit nothing
// is lost, and the sender slows down; elsewhere what comes too fast is missed where it comes in. What finds the
// link down, and what is longer than the other device's MTU allows, is dropped and counted.
type Forwarder struct {
	to     Device
	queues []*forwardQueue // of to

	frames, bytes, dropped atomic.Uint64
	pollers
	closed sync.Mutex
}

// ForwardStats is what a Forwarder did.
type ForwardStats struct {
	Frames, Bytes uint64 // that the other device took
	Dropped       uint64 // frames
}

// forwardQueue is a transmit queue and the frames that go there.
type forwardQueue struct {
	mu    sync.Mutex // receive queues may share it
	q     TxQueue
	pools [2]*dma.Pool // for small frames, and for all
	out   []*dma.Buf
	looks int // for room, in a row
}

const (
	smallFrame = 128 // buffers side by side, see NewTxPool
	// forwardPool is how many buffers of each size there are.
	forwardPool  = 1024
	forwardNap   = 20 * time.Microsecond
	forwardLooks = 8 // before it naps
	vlanTag      = 4
)

// NewForwarder starts one. It owns from's receive queues and to's transmit queues until it is closed. With a
// policy its goroutines run on real-time threads, one for each receive queue.
func NewForwarder(from, to Device, p *rt.Policy) (*Forwarder, error) {
	what := fmt.Sprintf("forwarding from %s to %s", from.Info().Name, to.Info().Name)
	rx, tx := from.Info().RxQueues, to.Info().TxQueues
	if from == to || rx < 1 || tx < 1 {
		return nil, fmt.Errorf("%s: want two devices, with %d and %d queues: %w", what, rx, tx, bus.ErrNotSupported)
	}
	f := &Forwarder{to: to}
	for i := range min(rx, tx) {
		x := &forwardQueue{q: to.Tx(i), out: make([]*dma.Buf, 0, Budget)}
		f.queues = append(f.queues, x)
		for k, size := range []int{smallFrame, to.MTU() + 14 + vlanTag} {
			var err error
			if x.pools[k], err = NewTxPool(x.q, min(to.Info().TxRing, forwardPool), size); err != nil {
				f.closePools()
				return nil, fmt.Errorf("%s: %w", what, err)
			}
		}
	}
	f.start(from, p, func(q int) func([]*dma.Buf) {
		x := f.queues[q%len(f.queues)]
		return func(frames []*dma.Buf) { f.take(x, frames) }
	})
	return f, nil
}

// Stats may be called at any time.
func (f *Forwarder) Stats() ForwardStats {
	return ForwardStats{f.frames.Load(), f.bytes.Load(), f.dropped.Load()}
}

// To is where frames go.
func (f *Forwarder) To() Device { return f.to }

// take forwards the frames of one poll, and frees them.
func (f *Forwarder) take(x *forwardQueue, frames []*dma.Buf) {
	f.show(frames)
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, b := range frames {
		c := f.buffer(x, b)
		if c != nil {
			write(c, b)
			x.out = append(x.out, c)
		} else {
			f.dropped.Add(1)
		}
		b.Free()
		if len(x.out) == cap(x.out) {
			f.flush(x)
		}
	}
	f.flush(x)
}

// buffer is one for a frame's copy; nil where there is none in time.
func (f *Forwarder) buffer(x *forwardQueue, b *dma.Buf) *dma.Buf {
	n, most := len(b.Data), f.to.MTU()+14
	if b.Meta.Flags&dma.VLAN != 0 {
		n += vlanTag
		most += vlanTag
	} else if n >= 14 && binary.BigEndian.Uint16(b.Data[12:]) == 0x8100 {
		most += vlanTag
	}
	pool := x.pools[0]
	if n > pool.BufSize() {
		pool = x.pools[1]
	}
	if n > most || n > pool.BufSize() {
		return nil
	}
	for {
		if c := pool.Get(); c != nil {
			x.looks = 0
			return c
		}
		f.flush(x)
		if !f.wait(x) {
			return nil
		}
	}
}

// write makes c the frame in b, with the tag that the device stripped.
func write(c, b *dma.Buf) {
	if b.Meta.Flags&dma.VLAN == 0 || len(b.Data) < 12 {
		c.Data = c.Mem[:copy(c.Mem, b.Data)]
	} else {
		copy(c.Mem, b.Data[:12])
		binary.BigEndian.PutUint16(c.Mem[12:], 0x8100)
		binary.BigEndian.PutUint16(c.Mem[14:], b.Meta.VLAN)
		c.Data = c.Mem[:16+copy(c.Mem[16:], b.Data[12:])]
	}
	c.Meta = dma.Meta{}
}

// flush sends what is there.
func (f *Forwarder) flush(x *forwardQueue) {
	if len(x.out) == 0 {
		return
	}
	out, bytes := x.out, lengths(x.out)
	for len(out) > 0 {
		if n := min(max(x.q.Burst(out), 0), len(out)); n > 0 {
			x.looks = 0
			out = out[n:]
			continue
		}
		if !f.wait(x) {
			break
		}
	}
	f.frames.Add(uint64(len(x.out) - len(out)))
	f.bytes.Add(bytes - lengths(out))
	f.dropped.Add(uint64(len(out)))
	dma.FreeAll(out)
	x.out = x.out[:0]
}

// lengths adds them up.
func lengths(bufs []*dma.Buf) (n uint64) {
	for _, b := range bufs {
		n += uint64(len(b.Data))
	}
	return n
}

// wait waits a little for room. It returns false where there will be none.
func (f *Forwarder) wait(x *forwardQueue) bool {
	x.q.Reap()
	if f.ctx.Err() != nil || gone(f.to) || !f.to.Link().Up {
		return false
	}
	if x.looks++; x.looks <= forwardLooks {
		runtime.Gosched()
	} else {
		time.Sleep(forwardNap)
	}
	return true
}

// Close ends it, and waits until the other device has sent what it was given, a second at most. It returns why
// forwarding had ended by itself, nil otherwise. Called again after a device that had died was closed, it
// gives back the memory that the device held.
func (f *Forwarder) Close() error {
	f.closed.Lock()
	defer f.closed.Unlock()
	f.cancel()
	<-f.done
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, x := range f.queues {
		if x.pools == [2]*dma.Pool{} {
			continue // it was closed before
		}
		if gone(f.to) {
			x.q.Reap()
		} else {
			_ = x.q.Drain(ctx) // a link that died: what it holds comes back with the device's end
		}
	}
	f.closePools()
	return f.err
}

// closePools gives back those that are whole.
func (f *Forwarder) closePools() {
	for _, x := range f.queues {
		for k, p := range x.pools {
			if p != nil && p.Free() == p.Len() {
				p.Close()
				x.pools[k] = nil
			}
		}
	}
}
