package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/crash"
	"github.com/ring3dev/ring3/internal/instance"
	"github.com/ring3dev/ring3/internal/klog"
	"github.com/ring3dev/ring3/internal/ledger"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/mirror"
	"github.com/ring3dev/ring3/internal/sandbox"
	"github.com/ring3dev/ring3/internal/uevent"
)

// A worker is a process that runs the drivers of one group of devices for its supervisor, and may do nothing else. It has given up its rights
// before it is told which devices; all that it has of the world comes over one link. Only one whose devices nothing confines keeps its user's rights, and opens them itself.

// How a worker is started: with this argument, and the link at this descriptor.
const (
	workerArg = "worker"
	workerFD  = 3
)

// workerMain is a worker's life, if this process was started as one. It does not return then.
func (p *Program) workerMain() {
	if len(os.Args) != 2 || os.Args[1] != workerArg {
		return
	}
	// They are for who looks after it, and decides when it ends.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if err := sandbox.Enter(); err != nil {
		fmt.Fprintf(os.Stderr, "ring3: worker: %v ('ring3 up' starts workers, and nobody else does)\n", err)
		os.Exit(1)
	}
	runtime.GOMAXPROCS(runtime.NumCPU() + 2) // as in Main
	unix.CloseOnExec(workerFD)
	f := os.NewFile(workerFD, "link")
	c, err := link.Open(f)
	if err != nil {
		fmt.Fprintf(os.Stderr, "ring3: worker: descriptor %d: %v\n", workerFD, err)
		os.Exit(1)
	}
	f.Close()
	w := newWorkerSide(p)
	// It exits at once where the supervisor goes: what there is to clean up is that one's to do. And before calls are cancelled: a run of pktgen's whose `start` is would be
	// stopped, and not go on in the next worker.
	w.start(link.New(c, w, link.Options{Name: "the supervisor", Panics: true, Ended: func(error) { os.Exit(0) }}))
	select {}
}

// workerSide is the worker's end of the conversation.
type workerSide struct {
	p    *Program
	conn *link.Conn
	said sync.WaitGroup // hello
	log  *klog.Ring
	logs pump[klog.Record]
	evs  pump[uevent.Event]

	calls  openCalls
	busy   atomic.Bool // it was configured
	ending atomic.Bool // it ends in order

	mu       sync.Mutex // guards what follows
	sys      *System
	tree     *mirror.Export
	handlers instance.Handlers
	watch    *watchdog
	ledger   *ledger.Ledger
}

func newWorkerSide(p *Program) *workerSide {
	w := &workerSide{p: p, log: klog.New(klog.Options{})}
	w.said.Add(1)
	return w
}

// violation is an event that nobody takes.
const violation link.Method = 0xff00

// start begins the conversation.
func (w *workerSide) start(c *link.Conn) {
	w.conn = c
	w.logs = pump[klog.Record]{read: w.log.Read, send: func(r klog.Record) {
		w.tell(lifeLog, workerRecord{Level: int(levelOf(r.Prio)), Text: r.Text, Time: r.Time})
	}}
	crash.Notify(w.lastWords)
	go func() {
		_ = w.log.Follow(context.Background(), 0, func([]klog.Record, uint64) error { w.logs.flush(); return nil })
	}()
	w.tell(lifeHello, workerHello{Wire: wireVersion, Version: version(), PID: os.Getpid()})
	w.said.Done()
}

// levelOf is the slog level of a kernel's priority.
func levelOf(prio int) slog.Level {
	switch {
	case prio <= klog.PrioErr:
		return slog.LevelError
	case prio <= klog.PrioWarning:
		return slog.LevelWarn
	case prio <= klog.PrioInfo:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// tell sends an event. Where that fails the link has ended, and the process with it.
func (w *workerSide) tell(m link.Method, v any) {
	if b, err := json.Marshal(v); err == nil {
		_ = w.conn.Send(m, b)
	}
}

// pump sends what a journal has and was not sent yet, in order: when somebody sees that it grew, or before an answer that is about what it says.
type pump[T any] struct {
	read func(seq uint64) (entries []T, lost uint64)
	send func(T)

	mu   sync.Mutex
	next uint64
}

func (p *pump[T]) flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.read == nil {
		return
	}
	l, lost := p.read(p.next)
	p.next += lost + uint64(len(l))
	for _, v := range l {
		p.send(v)
	}
}

// flush tells all that was to be told before an answer.
func (w *workerSide) flush() {
	w.logs.flush()
	w.evs.flush()
}

// Call implements [link.Handler].
func (w *workerSide) Call(ctx context.Context, m link.Method, body []byte, files []*os.File, part func([]byte) error) ([]byte, []*os.File, error) {
	w.said.Wait()
	w.mu.Lock()
	tree := w.tree
	w.mu.Unlock()
	if uint8(m>>8) == linkTree && tree != nil {
		reply, pass, err := tree.Call(ctx, m, body, files, part)
		if w.ending.Load() { // what that says is of a System that ends: the next worker is asked once more
			<-ctx.Done()
		}
		return reply, pass, err
	}
	defer closeOpen(files)
	var result any
	var err error
	switch m {
	case controlCall:
		result, err = w.control(ctx, body, part)
	case lifeConfigure:
		result, err = w.configure(ctx, body, files)
	case lifeStop:
		result, err = w.stop()
	case lifeAsk:
		result = w.report("asked", allStacks())
	default:
		return nil, nil, fmt.Errorf("method %#x: %w", uint16(m), syscall.ENOSYS)
	}
	w.flush()
	if err != nil {
		return nil, nil, err
	}
	reply, err := json.Marshal(result)
	return reply, nil, err
}

// Sent implements [link.SentHandler].
func (w *workerSide) Sent(m link.Method, reply []byte) {
	w.mu.Lock()
	tree := w.tree
	w.mu.Unlock()
	if uint8(m>>8) == linkTree && tree != nil {
		tree.Sent(m, reply)
	}
}

// Event implements [link.Handler]: a supervisor tells nothing without being asked.
func (w *workerSide) Event(m link.Method, _ []byte, files []*os.File) error {
	closeOpen(files)
	return fmt.Errorf("event %#x is nobody's: %w", uint16(m), bus.ErrProtocol)
}

// configure brings the group's devices up.
func (w *workerSide) configure(ctx context.Context, body []byte, files []*os.File) (any, error) {
	var c workerConfig
	if err := asked(body, &c); err != nil {
		return nil, err
	}
	if c.Wire != wireVersion {
		return nil, fmt.Errorf("the supervisor speaks version %d of the protocol, and this program (version %s) %d: %w", c.Wire, version(), wireVersion, bus.ErrNotSupported)
	}
	if w.busy.Swap(true) {
		return nil, fmt.Errorf("it is configured already: %w", syscall.EBUSY)
	}
	plan, err := c.Plan.plan()
	if err == nil {
		err = c.Facts.tell()
	}
	if err != nil {
		return nil, err
	}
	var book *ledger.Ledger
	if len(files) > 0 {
		if book, err = ledger.Open(files[0]); err != nil {
			return nil, err
		}
	}
	beat(book)
	config := Config{Plan: plan, Drivers: w.p.Drivers, Services: w.p.Services, Log: w.log.Logger(), Stderr: os.Stderr,
		Outside: &farOutside{w.conn}, Numbers: c.Numbers, Facts: c.Facts, Saved: c.Saved, Ledger: book, Watched: true,
		Changed: func(v Saved) { w.tell(lifeState, v) },
		Violate: func() { _ = w.conn.Send(violation, nil) },
		// Only a worker anew, whose devices were reset, has the device again.
		Strayed: func(device string, why error) {
			w.tell(lifeSuspect, suspect{Kind: suspectDMA, Device: device, Text: why.Error(), Fatal: true})
		}}
	sys := newSystem(config)
	var watch *watchdog
	if !c.Debug {
		defer w.calls.begin(openCall{kind: callSlow, op: "bringing the devices up"})()
		watch = newWatchdog(sys, &w.calls, watchTick, func(v suspect) { w.tell(lifeSuspect, v) })
	}
	if err := sys.start(ctx, config); err != nil {
		watch.stop()
		return nil, startText(errors.Join(err, sys.Close()))
	}
	tree := mirror.NewExport(sys.Tree(), "ns")
	tree.Stored, tree.Begun = sys.storedIn, w.called
	w.mu.Lock()
	w.sys, w.tree, w.handlers, w.ledger = sys, tree, sys.handlers(), book
	w.mu.Unlock()
	w.evs.mu.Lock()
	w.evs.read, w.evs.send = sys.events.Read, func(e uevent.Event) { w.tell(lifeUevent, e) }
	w.evs.mu.Unlock()
	go func() {
		_ = sys.events.Follow(sys.ctx, 0, func([]uevent.Event, uint64) error { w.evs.flush(); return nil })
	}()
	if err := tree.Start(w.conn); err != nil {
		return nil, err
	}
	if watch != nil {
		watch.up.Store(true)
		w.mu.Lock()
		w.watch = watch
		w.mu.Unlock()
	}
	go func() {
		if <-sys.Done(); w.ending.Load() {
			return
		}
		text := "no device is left alive"
		if err := sys.Err(); err != nil {
			text = err.Error()
		}
		w.tell(lifeGone, text)
	}()
	return workerUp{Wire: wireVersion, Version: version(), Devices: sys.Devices(), Lost: sys.Lost()}, nil
}

// startError is why the devices did not come up, in lines, of which each that is the user's mistake says so.
type startError struct {
	text string
	err  error
}

func (e *startError) Error() string { return e.text }
func (e *startError) Unwrap() error { return e.err }

func startText(err error) error {
	var lines []string
	for _, e := range flatten(err) {
		var usage *usageError
		line := strings.ReplaceAll(e.Error(), "\n", "; ")
		if errors.As(e, &usage) {
			line = usagePrefix + line
		}
		lines = append(lines, line)
	}
	return &startError{strings.Join(lines, "\n"), err}
}

// beatTime is how often a worker says that it lives, to who shares its ledger.
const beatTime = 50 * time.Millisecond

// beat counts for as long as goroutines are run in time. What else stands still is seen by what it does not do.
func beat(l *ledger.Ledger) {
	if l == nil {
		return
	}
	c, err := l.Counter("beat")
	if err != nil {
		return // somebody else filled it
	}
	go func() {
		for range time.Tick(beatTime) {
			c.Add(1)
		}
	}()
}

// control is one operation of instance.Handlers.
func (w *workerSide) control(ctx context.Context, body []byte, part func([]byte) error) (any, error) {
	var q controlRequest
	if err := asked(body, &q); err != nil {
		return nil, err
	}
	w.mu.Lock()
	sys, tree, h := w.sys, w.tree, w.handlers[q.Op]
	w.mu.Unlock()
	switch {
	case sys == nil:
		return nil, fmt.Errorf("%s: it has no devices yet: %w", q.Op, syscall.EAGAIN)
	case h == nil:
		return nil, fmt.Errorf("no operation %q: %w", q.Op, syscall.ENOSYS)
	}
	defer w.controlled(q.Op, q.Args)()
	result, err := h(ctx, q.Args, func(v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		w.flush()
		return part(b)
	})
	sys.tell()
	if f := tree.Flush(); err == nil {
		err = f
	}
	return result, err
}

// stop ends the devices in order. The process goes on until the supervisor has heard of it, and ends the link.
func (w *workerSide) stop() (any, error) {
	w.mu.Lock()
	sys, watch := w.sys, w.watch
	w.mu.Unlock()
	if sys == nil {
		return workerStopped{}, nil
	}
	watch.stop()
	w.ending.Store(true)
	sys.pktgen.Leave() // runs go on, in the next worker
	r := workerStopped{Saved: sys.Save()}
	sys.Stop()
	if err := sys.Close(); err != nil {
		r.Error = startText(err).Error()
	}
	r.Unmade = sys.unmade
	return r, nil
}
