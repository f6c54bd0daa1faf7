package tap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/rt"
	"github.com/ring3dev/ring3/netdev"
)

// Config says what interface is wanted.
type Config struct {
	Name      string // of the interface, at most 15 bytes; empty: tap0, tap1, ...
	Queues    int    // for Open; Attach takes as many as the device has queue pairs
	NoOffload bool   // the kernel computes checksums and segments, and no frames are joined
	NoGRO     bool   // received frames are not joined
	Up        bool   // bring the interface up; otherwise the administrator does
	// Drop says which received frames the kernel is not given; nil: all are. It runs in several goroutines, and must
	// neither keep nor change a frame.
	Drop func(b *dma.Buf) bool
	// Tx is where frames are sent, by queue, if not into the device's own queues: those of a netdev.Client. nil: the device's own.
	Tx  func(queue int) netdev.TxQueue
	Log *slog.Logger
	// RT puts what carries frames on real-time threads, one for each queue and direction; nil: goroutines.
	RT *rt.Policy
	// Lender holds the interface, which outlives the bridge; nil: the bridge does by itself, and Name, Queues and Up are for Hold.
	Lender Lender
}

// Bridge carries frames between a device and its interface. Its methods are safe for
// concurrent use.
type Bridge struct {
	dev    netdev.Device
	tap    *Tap // its queues are the bridge's own, the rest is asked of lender
	lender Lender
	holder *Holder // that is it; nil: somebody else's
	cfg    Config
	log    *slog.Logger
	tx     []*sender
	rx     []*receiver
	tuned  atomic.Uint32 // netdev.Feature: what the kernel was told
	tuneMu sync.Mutex    // held while it is told
	follow *follower
	mode   netdev.RxMode // the device's before
	watch  atomic.Pointer[func(frames []*dma.Buf)]

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	done   chan struct{}
	stop   *stop // wakes the senders' threads

	errMu sync.Mutex
	err   error

	closeMu   sync.Mutex // guards the senders' pools, once their goroutines have ended
	closeOnce sync.Once
	closeErr  error
}

// Stats counts what a Bridge carried since it was made.
type Stats struct {
	TxFrames, TxBytes uint64 // kernel to device, as read: before segmentation
	TxGSO             uint64 // of them, those that the device cuts up
	TxDropped         uint64 // too long, or asking for what the device does not do any more
	RxFrames, RxBytes uint64 // device to kernel, as received
	RxWrites          uint64 // frames given to the kernel; less than RxFrames where they were joined
	RxJoined          uint64 // of RxFrames, those that went as part of a larger one
	RxDropped         uint64 // of RxFrames, those that the kernel did not take
	RxKept            uint64 // of RxFrames, those that it was not given: Config.Drop
}

// Attach makes dev a kernel interface. It owns dev's queues until Close.
func Attach(dev netdev.Device, c Config) (_ *Bridge, err error) {
	info := dev.Info()
	c.Queues = min(info.TxQueues, info.RxQueues)
	if c.Queues < 1 {
		return nil, fmt.Errorf("tap %s: %s has %d transmit and %d receive queues, want one of each: %w", c.Name, info.Name, info.TxQueues, info.RxQueues, bus.ErrNotSupported)
	}
	b := &Bridge{dev: dev, cfg: c, log: c.Log, done: make(chan struct{})}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	if b.lender = c.Lender; b.lender == nil {
		b.holder = Hold(c)
		b.lender = b.holder
	}
	if m, ok := b.dev.(netdev.RxModer); ok {
		b.mode = m.RxMode()
	}
	f := newFollower(b)
	if b.tap, err = f.open(c.Queues); err != nil {
		b.cancel()
		if b.holder != nil {
			err = errors.Join(err, b.holder.Close())
		}
		return nil, err
	}
	b.follow = f
	if err = b.prepare(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	seen := f.seq // before others change it
	for i, s := range b.tx {
		b.carry(fmt.Sprintf("tap/%s-%d", b.Name(), i), s.run)
	}
	for i, r := range b.rx {
		b.carry(fmt.Sprintf("napi/%s-%d", info.Name, i), r.run)
	}
	b.wg.Go(func() { b.follow.wait(seen) })
	b.wg.Go(b.follow.run)
	return b, nil
}

// carry starts what carries frames of one queue one way.
func (b *Bridge) carry(name string, run func()) {
	b.wg.Add(1)
	b.cfg.RT.Go(name, func() {
		defer b.wg.Done()
		run()
	})
}

// prepare makes everything that the goroutines need.
func (b *Bridge) prepare() (err error) {
	if b.cfg.RT != nil {
		if b.stop, err = newStop(); err != nil {
			return fmt.Errorf("tap %s: %w", b.Name(), err)
		}
	}
	for i := range b.tap.Queues() {
		s, err := newSender(b, i)
		if err != nil {
			return err
		}
		b.tx = append(b.tx, s)
	}
	for i := range b.dev.Info().RxQueues {
		b.rx = append(b.rx, newReceiver(b, i))
	}
	return b.tune()
}

// tune tells the kernel what the device does to frames now, if that changed.
func (b *Bridge) tune() error {
	if netdev.Feature(b.tuned.Load()) == b.features() {
		return nil
	}
	b.tuneMu.Lock()
	defer b.tuneMu.Unlock()
	want := b.features()
	if _, err := b.ask(Request{Op: opOffload, Offload: uint32(want)}); err != nil {
		return err
	}
	b.tuned.Store(uint32(want))
	return nil
}

// features are what the kernel may leave to the device: what that has on, and buffers are large
// enough for.
func (b *Bridge) features() netdev.Feature {
	o, ok := b.dev.(netdev.Offloader)
	if !ok || b.cfg.NoOffload {
		return 0
	}
	_, on := o.Features()
	on &= netdev.TxCsum | netdev.TxTSO4 | netdev.TxTSO6
	for _, s := range b.tx {
		if on&netdev.TxCsum == 0 || s.pool.BufSize() < maxGSO {
			on &= netdev.TxCsum
		}
	}
	return on
}

// Name is the interface's name when it was opened.
func (b *Bridge) Name() string {
	if b.tap == nil { // not yet
		return b.cfg.Name
	}
	return b.tap.Name()
}

// Device is the device.
func (b *Bridge) Device() netdev.Device { return b.dev }

// Watch makes the bridge show every burst of received frames to f before the kernel gets them; f must neither keep nor
// change them, and runs in the bridge's goroutines, several at a time where there are several queues. nil takes
// it away.
func (b *Bridge) Watch(f func(frames []*dma.Buf)) {
	if f == nil {
		b.watch.Store(nil)
		return
	}
	b.watch.Store(&f)
}

// Stats adds up all queues.
func (b *Bridge) Stats() Stats {
	var s Stats
	for _, q := range b.tx {
		s.TxFrames += q.frames.Load()
		s.TxBytes += q.bytes.Load()
		s.TxGSO += q.gso.Load()
		s.TxDropped += q.dropped.Load()
	}
	for _, q := range b.rx {
		s.RxFrames += q.frames.Load()
		s.RxBytes += q.bytes.Load()
		s.RxWrites += q.writes.Load()
		s.RxJoined += q.joined.Load()
		s.RxDropped += q.dropped.Load()
		s.RxKept += q.kept.Load()
	}
	return s
}

// Done is closed when the bridge has ended, by itself or by Close.
func (b *Bridge) Done() <-chan struct{} { return b.done }

// Err is nil while the bridge lives, then why it ended: it wraps bus.ErrClosed after Close,
// bus.ErrGone where the interface was deleted, or it is the device's.
func (b *Bridge) Err() error {
	b.errMu.Lock()
	defer b.errMu.Unlock()
	return b.err
}

// end ends the bridge and wakes its goroutines, for which it does not wait. It says whether
// this is the first reason to end.
func (b *Bridge) end(err error) bool {
	b.errMu.Lock()
	defer b.errMu.Unlock()
	if b.err != nil {
		return false
	}
	b.err = err
	close(b.done)
	b.cancel()
	b.stop.signal()
	if b.tap != nil {
		for _, q := range b.tap.queues {
			_ = q.f.SetReadDeadline(time.Unix(1, 0))
		}
	}
	return true
}

// fail ends the bridge for a reason that nobody asked for. A device's death is its
// owner's news.
func (b *Bridge) fail(err error) {
	if errors.Is(err, unix.EBADFD) {
		err = b.tap.errGone()
	}
	if b.end(err) && b.dev.Err() == nil {
		b.log.Error(err.Error(), "device", b.dev.Info().Name)
	}
}

// drainTime bounds the wait for frames in flight when a bridge is closed.
const drainTime = time.Second

// Close takes the interface away from the device, whose queues are idle then. It is
// idempotent. A device that died may still hold frames: the first Close after the device's own gives
// their memory back.
func (b *Bridge) Close() error {
	b.closeMu.Lock()
	defer b.closeMu.Unlock()
	b.closeOnce.Do(func() {
		b.end(fmt.Errorf("tap %s: %w", b.tap.Name(), bus.ErrClosed))
		b.wg.Wait()
		var errs []error
		errs = append(errs, b.restoreMode())
		for _, s := range b.tx {
			s.close()
		}
		errs = append(errs, b.tap.Close(), b.stop.close())
		if b.holder != nil {
			errs = append(errs, b.holder.Close())
		}
		b.closeErr = errors.Join(errs...)
	})
	for _, s := range b.tx {
		s.release()
	}
	return b.closeErr
}

// restoreMode gives the device the filters that it had before.
func (b *Bridge) restoreMode() error {
	m, ok := b.dev.(netdev.RxModer)
	if !ok || b.dev.Err() != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if err := m.SetRxMode(ctx, b.mode); err != nil && b.dev.Err() == nil {
		return fmt.Errorf("tap %s: restoring the device's filters: %w", b.tap.Name(), err)
	}
	return nil
}

// ended says whether an error is only that the bridge was told to end.
func (b *Bridge) ended(err error) bool {
	return b.ctx.Err() != nil && (errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed))
}
