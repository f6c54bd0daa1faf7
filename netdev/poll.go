package netdev

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/crash"
	"github.com/ring3dev/ring3/internal/rt"
)

// Budget is how many frames [Poll] takes at a time, the kernel's NAPI weight.
const Budget = 64

// napiQueue is a receive queue whose device has settings for Poll.
type napiQueue interface {
	NAPI() NAPI
	Done() <-chan struct{} // closed when there will be nothing more
}

// idlePolls is how often Poll looks again, giving way to other goroutines in between,
// before it arms the interrupt: arming costs a register write, and the interrupt a
// wake-up.
const idlePolls = 4

// Poll receives until ctx ends or the device goes away: it polls while there are
// frames, at most Budget at a time, and sleeps until the interrupt when there are none.
// handle owns the frames and frees each of them; the slice is only valid during the
// call. Poll returns nil when ctx ended or the device was closed, and otherwise why
// receiving ended.
//
// A device that is a [NAPIUser] has settings, which Poll looks at anew each time: Weight frames
// at a time instead of Budget; and once there is nothing left, up to DeferHardIRQs times, a
// sleep of GROFlushTimeout and another look, before the interrupt is armed. Each frame that a
// look finds starts that count anew. So under load the device does not interrupt at all, and
// a frame waits GROFlushTimeout at most.
//
// The goroutine that calls Poll owns the queue meanwhile.
func Poll(ctx context.Context, q RxQueue, handle func(frames []*dma.Buf)) error {
	p := poller{ctx: ctx, q: q, bufs: make([]*dma.Buf, Budget)}
	return p.run(handle)
}

// ThreadWaiter is implemented by a receive queue for which a thread of its own can wait in the kernel, where the
// interrupt wakes it with nobody between.
type ThreadWaiter interface {
	// WaitThread is Wait without a context. Wake ends it, or the next one.
	WaitThread() error
	// Wake may be called by any goroutine.
	Wake()
}

// PollThread is Poll for a goroutine on a real-time thread of its own: it does not give way to ordinary
// goroutines, and waits in the kernel if the queue is a [ThreadWaiter].
func PollThread(ctx context.Context, q RxQueue, handle func(frames []*dma.Buf)) error {
	p := poller{ctx: ctx, q: q, bufs: make([]*dma.Buf, Budget), thread: true}
	if w, ok := q.(ThreadWaiter); ok {
		p.waiter = w
		defer context.AfterFunc(ctx, w.Wake)()
	}
	return p.run(handle)
}

func (p *poller) run(handle func(frames []*dma.Buf)) error {
	defer crash.Report()
	ctx, q := p.ctx, p.q
	p.settings, _ = q.(napiQueue)
	defer q.Burst(nil) // tells the queue that no frame is held any more
	defer p.stop()
	for {
		bufs, settings := p.bufs, NAPI{}
		if p.settings != nil {
			if settings = p.settings.NAPI(); settings.Weight > 0 && settings.Weight < len(bufs) {
				bufs = bufs[:settings.Weight]
			}
		}
		if n := q.Burst(bufs); n > 0 {
			handle(bufs[:n])
			p.idle, p.deferred = 0, 0
			if p.thread {
				rt.Yield()
			}
			if ctx.Err() != nil {
				return nil
			}
			continue
		}
		if p.idle++; p.idle <= idlePolls {
			if !p.thread {
				runtime.Gosched()
			}
			continue
		}
		p.idle = 0
		if p.later(settings) {
			if ctx.Err() != nil {
				return nil
			}
			p.idle = idlePolls // one look
			continue
		}
		if err := p.wait(); err != nil {
			if ctx.Err() != nil || errors.Is(err, bus.ErrClosed) {
				return nil
			}
			return err
		}
		if p.waiter != nil && ctx.Err() != nil {
			return nil
		}
	}
}

func (p *poller) wait() error {
	if p.waiter != nil {
		return p.waiter.WaitThread()
	}
	return p.q.Wait(p.ctx)
}

// poller is the state of a Poll.
type poller struct {
	ctx      context.Context
	q        RxQueue
	bufs     []*dma.Buf
	settings napiQueue // nil: none
	idle     int       // looks in a row that found nothing
	deferred int       // sleeps in a row
	timer    *time.Timer
	thread   bool         // the goroutine has a real-time thread
	waiter   ThreadWaiter // of such a thread; nil: Wait
}

// shortSleep is the longest sleep of a real-time thread that is not looked after: who ends the poll waits for it.
const shortSleep = time.Millisecond

// later sleeps instead of arming the interrupt, if that is wanted and was not done too often.
func (p *poller) later(s NAPI) bool {
	if p.deferred >= s.DeferHardIRQs || s.GROFlushTimeout <= 0 {
		p.deferred = 0
		return false
	}
	p.deferred++
	if p.thread && s.GROFlushTimeout <= shortSleep {
		rt.Sleep(s.GROFlushTimeout)
		return true
	}
	if p.timer == nil {
		p.timer = time.NewTimer(s.GROFlushTimeout)
	} else {
		p.timer.Reset(s.GROFlushTimeout)
	}
	select {
	case <-p.timer.C:
	case <-p.ctx.Done():
	case <-p.settings.Done():
		p.deferred = s.DeferHardIRQs // Wait says why
	}
	return true
}

func (p *poller) stop() {
	if p.timer != nil {
		p.timer.Stop()
	}
}

// Sink receives all frames of a device, counts them and frees them: what the far end
// of a measurement runs.
type Sink struct {
	frames, bytes atomic.Uint64
	tap           atomic.Pointer[func(frame []byte)]
	tapMu         sync.Mutex // held while it runs
	pollers
}

// pollers poll all receive queues of a device.
type pollers struct {
	watch  atomic.Pointer[func(frames []*dma.Buf)]
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	err    error // read after done
}

// start gives the frames of each queue to what takes them, on real-time threads under a policy.
func (p *pollers) start(d Device, policy *rt.Policy, taker func(queue int) func(frames []*dma.Buf)) {
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.done = make(chan struct{})
	queues, ended := d.Info().RxQueues, make(chan error)
	poll := Poll
	if policy != nil {
		poll = PollThread
	}
	for q := range queues {
		take := taker(q)
		policy.Go(fmt.Sprintf("napi/%s-%d", d.Info().Name, q), func() { ended <- poll(p.ctx, d.Rx(q), take) })
	}
	go func() {
		defer close(p.done)
		for range queues {
			if err := <-ended; p.err == nil {
				p.err = err
			}
		}
	}()
}

// Watch shows every burst of frames to f, before anything else is done with them; f must neither keep nor change
// them, and runs in several goroutines at a time where there are several queues. nil takes it away. Safe for
// concurrent use.
func (p *pollers) Watch(f func(frames []*dma.Buf)) {
	if f == nil {
		p.watch.Store(nil)
		return
	}
	p.watch.Store(&f)
}

// show shows frames to who watches.
func (p *pollers) show(frames []*dma.Buf) {
	if watch := p.watch.Load(); watch != nil {
		(*watch)(frames)
	}
}

// Done is closed when receiving has ended.
func (p *pollers) Done() <-chan struct{} { return p.done }

// NewSink starts a Sink on all receive queues of d, which it owns until it is closed.
func NewSink(d Device) (*Sink, error) { return NewSinkOn(d, nil) }

// NewSinkOn is NewSink whose goroutines run under a policy, one on a real-time thread for each queue.
func NewSinkOn(d Device, p *rt.Policy) (*Sink, error) {
	queues := d.Info().RxQueues
	if queues < 1 || d.Rx(0) == nil {
		return nil, fmt.Errorf("starting a sink on %s: no receive queue: %w", d.Info().Name, bus.ErrNotSupported)
	}
	s := &Sink{}
	s.start(d, p, func(int) func([]*dma.Buf) { return s.take })
	return s, nil
}

// Receive takes frames as if the device had received them. Other than most of a Sink it may be called in a goroutine of
// the caller's, which must own their pool.
func (s *Sink) Receive(frames []*dma.Buf) int {
	s.take(frames)
	return len(frames)
}

func (s *Sink) take(frames []*dma.Buf) {
	s.show(frames)
	tap := s.tap.Load()
	if tap != nil {
		s.tapMu.Lock()
		defer s.tapMu.Unlock()
	}
	var bytes uint64
	for _, b := range frames {
		bytes += uint64(len(b.Data))
		if tap != nil {
			(*tap)(b.Data)
		}
		b.Free()
	}
	s.frames.Add(uint64(len(frames)))
	s.bytes.Add(bytes)
}

// SetTap makes the sink show every frame to f, which must neither keep nor change it and
// runs in the sink's goroutines, one call at a time; nil takes it away. Safe for concurrent use.
func (s *Sink) SetTap(f func(frame []byte)) {
	if f == nil {
		s.tap.Store(nil)
		return
	}
	s.tap.Store(&f)
}

// Frames is how many frames were received.
func (s *Sink) Frames() uint64 { return s.frames.Load() }

// Bytes is their length in all, without frame check sequences.
func (s *Sink) Bytes() uint64 { return s.bytes.Load() }

// Close ends the sink and waits for it. It returns why receiving had ended by itself, nil
// otherwise. It is idempotent.
func (s *Sink) Close() error {
	s.cancel()
	<-s.done
	return s.err
}
