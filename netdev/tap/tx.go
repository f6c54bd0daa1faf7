package tap

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/crash"
	"github.com/ring3dev/ring3/internal/rt"
	"github.com/ring3dev/ring3/netdev"
)

const (
	// burst is how many frames are sent at a time, at most.
	burst = 64
	// maxGSO is a buffer for the largest frame that the kernel leaves to be segmented, the
	// header before it, and one byte that tells a frame that fits from one that does not.
	maxGSO = netdev.MaxGSO + headerLen + 1
	// Buffers of a queue: of maxGSO bytes, and of one MTU. With the first, 128 are 8 MiB.
	largeBufs, smallBufs = 128, 512
)

// sender carries frames from one queue of the interface to one of the device.
type sender struct {
	b     *Bridge
	q     *file
	tx    netdev.TxQueue
	pool  *dma.Pool
	spare *dma.Buf   // taken from the pool, nothing in it
	batch []*dma.Buf // frames that were read
	some  func(fd uintptr) bool
	err   error // of the last read
	wait  backoff

	frames, bytes, gso, dropped atomic.Uint64
}

func newSender(b *Bridge, queue int) (*sender, error) {
	info := b.dev.Info()
	s := &sender{b: b, q: b.tap.queues[queue], batch: make([]*dma.Buf, 0, burst)}
	if s.tx = b.dev.Tx(queue); b.cfg.Tx != nil {
		s.tx = b.cfg.Tx(queue)
	}
	if s.tx == nil {
		return nil, fmt.Errorf("tap %s: %s has no transmit queue %d: %w", b.tap.name, info.Name, queue, bus.ErrNotSupported)
	}
	s.some = s.readSome
	s.wait.thread = b.cfg.RT != nil
	mtu := b.dev.MTU()
	if m, ok := b.dev.(netdev.MTUSetter); ok {
		if _, highest := m.MTURange(); highest > mtu {
			mtu = highest
		}
	}
	n, size := smallBufs, max(dma.BufSize, mtu+etherLen+2*tagLen+headerLen+1)
	if o, ok := b.dev.(netdev.Offloader); ok && !b.cfg.NoOffload {
		if available, _ := o.Features(); available&(netdev.TxTSO4|netdev.TxTSO6) != 0 {
			n, size = largeBufs, maxGSO
		}
	}
	var err error
	if s.pool, err = netdev.NewTxPool(s.tx, n, size); err != nil {
		return nil, fmt.Errorf("tap %s: %w", b.tap.name, err)
	}
	return s, nil
}

// run reads and sends until the bridge ends.
func (s *sender) run() {
	defer crash.Report()
	for {
		if !s.room() {
			return
		}
		if err := s.q.raw.Read(s.some); err != nil {
			s.err = err
			// While the interface is being deleted the poller may be told only that something is wrong.
			if s.b.gone() {
				s.err = unix.EBADFD
			}
		}
		if err := s.b.tune(); err != nil {
			s.b.fail(err)
		}
		if !s.send() {
			return
		}
		if s.err != nil {
			if !s.b.ended(s.err) {
				s.b.fail(fmt.Errorf("tap %s: reading: %w", s.b.tap.name, s.err))
			}
			return
		}
	}
}

// room waits until there is a buffer to read into. It returns false when the bridge or the
// device ended.
func (s *sender) room() bool {
	if s.spare != nil || s.pool.Free() > 0 {
		return true
	}
	s.wait.reset()
	for {
		s.tx.Reap()
		if s.pool.Free() > 0 {
			return true
		}
		if !s.pause() {
			return false
		}
	}
}

// readSome reads frames until there is none or the batch is full, without waiting. It
// returns false when it is to be called again once there is something to read.
func (s *sender) readSome(fd uintptr) bool {
	for len(s.batch) < burst {
		if s.spare == nil {
			if s.spare = s.pool.Get(); s.spare == nil {
				return true
			}
		}
		n, err := unix.Read(int(fd), s.spare.Mem)
		switch err {
		case nil:
			s.take(n)
		case unix.EINTR:
		case unix.EAGAIN:
			if len(s.batch) > 0 || s.b.stop == nil {
				return len(s.batch) > 0
			}
			if s.err = s.b.stop.wait(int(fd)); s.err != nil {
				return true
			}
		default:
			s.err = err
			return true
		}
	}
	return true
}

// take puts the frame in the spare buffer into the batch, if it can be sent. n is its
// length with the header.
func (s *sender) take(n int) {
	b := s.spare
	if n < headerLen+etherLen || n >= len(b.Mem) {
		s.dropped.Add(1)
		return
	}
	frame := b.Mem[headerLen:n]
	meta, ok := decodeHeader(b.Mem[:headerLen], frame)
	if !ok {
		s.dropped.Add(1)
		return
	}
	b.Data, b.Meta = frame, meta
	s.batch, s.spare = append(s.batch, b), nil
}

// send hands the batch to the device. It returns false when the bridge or the device
// ended.
func (s *sender) send() bool {
	if len(s.batch) == 0 {
		return true
	}
	on := netdev.Feature(s.b.tuned.Load())
	rest := s.batch[:0]
	var bytes, gso uint64
	for _, b := range s.batch {
		if missing := needs(b.Meta.Flags) &^ on; missing != 0 {
			if b.Meta.Flags&(dma.GSO4|dma.GSO6) != 0 {
				s.dropped.Add(1)
				b.Free()
				continue
			}
			checksum(b.Data, &b.Meta)
		}
		if b.Meta.Flags&(dma.GSO4|dma.GSO6) != 0 {
			gso++
		}
		bytes += uint64(len(b.Data))
		rest = append(rest, b)
	}
	s.frames.Add(uint64(len(rest)))
	s.bytes.Add(bytes)
	s.gso.Add(gso)
	s.wait.reset()
	for len(rest) > 0 {
		n := s.tx.Burst(rest)
		rest = rest[n:]
		if n > 0 {
			s.wait.reset()
		} else if !s.pause() {
			for _, b := range rest {
				b.Free()
			}
			s.batch = s.batch[:0]
			return false
		}
	}
	s.batch = s.batch[:0]
	return true
}

// pause waits a little for the device. It returns false when it or the bridge ended.
func (s *sender) pause() bool {
	select {
	case <-s.b.ctx.Done():
		return false
	case <-s.b.dev.Done():
		s.b.fail(s.b.dev.Err())
		return false
	default:
	}
	s.wait.pause(s.b.ctx)
	return true
}

// close frees what the device still has, and the pool. Called when run has ended.
func (s *sender) close() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if s.b.dev.Err() == nil {
		_ = s.tx.Drain(ctx) // a queue that is stuck: see below
	}
	if s.spare != nil {
		s.spare.Free()
		s.spare = nil
	}
	if !s.release() && s.b.dev.Err() == nil {
		s.b.log.Warn(fmt.Sprintf("tap %s: %d frames still in flight", s.b.tap.name, s.pool.Len()-s.pool.Free()))
	}
}

// release gives back the memory, unless the device may still read some of it: one that died,
// until it is closed.
func (s *sender) release() bool {
	if s.pool == nil {
		return true
	}
	s.tx.Reap()
	if s.pool.Free() < s.pool.Len() {
		return false
	}
	s.pool.Close()
	s.pool = nil
	return true
}

// backoff is the wait for a device that has no room: a few times other goroutines go first,
// then it sleeps, longer each time.
type backoff struct {
	n      int
	timer  *time.Timer
	thread bool // of a real-time thread, which sleeps by itself and yields to nobody
}

// Of a wait: how often others go first, and the shortest and longest sleep.
const (
	yields   = 16
	minSleep = 20 * time.Microsecond
	maxSleep = time.Millisecond
)

func (w *backoff) reset() { w.n = 0 }

func (w *backoff) pause(ctx context.Context) {
	if w.n++; w.n <= yields && !w.thread {
		runtime.Gosched()
		return
	}
	d := min(minSleep<<min(max(w.n-yields-1, 0), 10), maxSleep)
	if w.thread {
		rt.Sleep(d)
		return
	}
	if w.timer == nil {
		w.timer = time.NewTimer(d)
	} else {
		w.timer.Reset(d)
	}
	select {
	case <-w.timer.C:
	case <-ctx.Done():
	}
}
