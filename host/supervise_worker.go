package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/sandbox"
	"github.com/ring3dev/ring3/internal/uevent"
)

// worker is a process that runs drivers, or waits for some.
type worker struct {
	s     *supervisor
	p     *sandbox.Process
	conn  *link.Conn
	hello workerHello
	since time.Time // when its devices came into service; of run
	// Of watch, ns: how long its threads waited for a CPU, and had one.
	waited, ran uint64

	hi    chan workerHello // its first word
	fatal chan error       // why it is to be ended, by what it said
	logs  bucket
	// doubts are of its watchdog's.
	doubts bucket

	mu     sync.Mutex
	ch     *charge       // nil while it waits
	report *workerReport // its last words
	seen   []suspect     // what its watchdog saw last

	killing sync.Mutex
	closed  chan struct{} // closed when its link is; nil: it was not yet told to
	dead    bool
}

// Bounds of what a worker says.
const (
	maxSuspects = 32
	logBurst    = 2000 // messages at once
	logRate     = 200  // a second, after those
	doubtBurst  = 100
	doubtRate   = 1
)

// startWorker starts one, of a program (nil for this one), and waits until it has given up its rights, or was told to keep them.
func startWorker(ctx context.Context, s *supervisor, program *os.File, bare bool) (_ *worker, err error) {
	ours, theirs, err := link.Pair()
	if err != nil {
		return nil, err
	}
	w := &worker{s: s, hi: make(chan workerHello, 1), fatal: make(chan error, 1), logs: bucket{burst: logBurst, rate: logRate}, doubts: bucket{burst: doubtBurst, rate: doubtRate}}
	w.p, err = sandbox.Start(sandbox.Options{Program: program, Args: s.c.Args, Env: s.c.Env, Files: []*os.File{theirs}, Bare: bare, CPUs: workerCPUs(), Log: slog.New(atLeast{s.log.Handler(), slog.LevelInfo}),
		Started: func(pid int) {
			if s.c.Started != nil {
				s.c.Started(pid, "worker")
			}
		}})
	theirs.Close()
	if err != nil {
		ours.Close()
		return nil, err
	}
	w.conn = link.New(ours, w, link.Options{Name: fmt.Sprintf("worker %d", w.p.PID()), Log: s.log})
	limit := time.NewTimer(helloTime)
	defer limit.Stop()
	select {
	case w.hello = <-w.hi:
		// A program that says hello without having given its rights up gets nothing.
		if err = w.p.Entered(helloTime); err == nil {
			return w, nil
		}
	case <-w.conn.Done():
		err = w.explain(w.conn.Err())
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-limit.C:
		err = fmt.Errorf("it said nothing for %v: %w", helloTime, bus.ErrTimeout)
	}
	if e := w.kill(); e != nil {
		return nil, errors.Join(err, e)
	}
	return nil, err
}

// workerCPUs is how many CPUs a worker may keep busy, where that can be limited: one that spins on all of them leaves a little to others.
func workerCPUs() float64 { return float64(runtime.NumCPU()) - 0.1 }

// speaks says why it cannot be talked to; nil: it can.
func (w *worker) speaks() error {
	if w.hello.Wire == wireVersion {
		return nil
	}
	return fmt.Errorf("its program (version %s) speaks version %d of the protocol, want %d: %w", said(w.hello.Version), w.hello.Wire, wireVersion, bus.ErrNotSupported)
}

// atLeast drops messages below a level: what a system refuses is 'ring3 doctor's to say, if the sandbox holds it for usual.
type atLeast struct {
	slog.Handler
	level slog.Level
}

// Enabled implements slog.Handler.
func (h atLeast) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= h.level && h.Handler.Enabled(ctx, l)
}

// adopt makes it a group's.
func (w *worker) adopt(ch *charge) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ch = ch
}

func (w *worker) charge() *charge {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ch
}

// Call implements [link.Handler]: what it asks the supervisor for.
func (w *worker) Call(ctx context.Context, m link.Method, body []byte, files []*os.File, part func([]byte) error) ([]byte, []*os.File, error) {
	var x link.Mux
	if ch := w.charge(); ch != nil {
		x = link.Mux{linkTree: ch.part, linkOutside: ch.out}
	}
	return x.Call(ctx, m, body, files, part)
}

// Event implements [link.Handler].
func (w *worker) Event(m link.Method, body []byte, files []*os.File) error {
	return w.EventFrom(nil, m, body, files)
}

// EventFrom implements [link.EventHandler].
func (w *worker) EventFrom(c *link.Conn, m link.Method, body []byte, files []*os.File) error {
	ch := w.charge()
	x := link.Mux{linkLife: life{w}}
	if ch != nil {
		x[linkTree], x[linkOutside] = ch.part, ch.out
	}
	return x.EventFrom(c, m, body, files)
}

// life takes what a worker tells of itself.
type life struct{ w *worker }

// Call implements [link.Handler]: there is nothing to ask.
func (life) Call(_ context.Context, m link.Method, _ []byte, files []*os.File, _ func([]byte) error) ([]byte, []*os.File, error) {
	closeFiles(files)
	return nil, nil, fmt.Errorf("method %#x: %w", uint16(m), bus.ErrProtocol)
}

// Event implements [link.Handler].
func (l life) Event(m link.Method, body []byte, files []*os.File) error {
	closeFiles(files)
	w := l.w
	ch := w.charge()
	switch m {
	case lifeHello:
		var h workerHello
		if err := told(m, body, &h); err != nil {
			return err
		}
		select {
		case w.hi <- h:
			return nil
		default:
			return fmt.Errorf("a second hello: %w", bus.ErrProtocol)
		}
	case lifeLog:
		var r workerRecord
		if err := told(m, body, &r); err != nil {
			return err
		}
		w.log(r)
	case lifeReport:
		var r workerReport
		if err := told(m, body, &r); err != nil {
			return err
		}
		w.mu.Lock()
		w.report = &r
		w.mu.Unlock()
	case lifeState:
		if ch == nil || !json.Valid(body) {
			return fmt.Errorf("event %#x: %w", uint16(m), bus.ErrProtocol)
		}
		ch.mu.Lock()
		if ch.speaker == w { // what one that is ended had under way is not its successor's
			ch.saved = body
		}
		ch.mu.Unlock()
	case lifeUevent:
		var e uevent.Event
		if err := told(m, body, &e); err != nil {
			return err
		}
		w.s.events.Publish(e.Action, e.Devpath, e.Subsystem, e.Env[:min(len(e.Env), maxEnv)]...)
	case lifeGone:
		var why string
		if err := told(m, body, &why); err != nil {
			return err
		}
		if ch == nil {
			return fmt.Errorf("event %#x: %w", uint16(m), bus.ErrProtocol)
		}
		if renewable(ch.out) {
			w.condemn(errors.New(line(why)))
			break
		}
		ch.set(func() { ch.gone = ch.gone || ch.speaker == w }) // why was said when it happened
	case lifeSuspect:
		var v suspect
		if err := told(m, body, &v); err != nil {
			return err
		}
		w.suspects(v)
	default:
		return fmt.Errorf("event %#x is nobody's: %w", uint16(m), bus.ErrProtocol)
	}
	return nil
}

// maxEnv is how many variables an event may have.
const maxEnv = 64

// told reads what a worker says.
func told(m link.Method, body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("event %#x: %v: %w", uint16(m), err, bus.ErrProtocol)
	}
	return nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// heard says whether one more is taken over of what b bounds. A worker that says too much is cut short.
func (w *worker) heard(b *bucket) bool {
	ok, missed := b.take(time.Now())
	if missed > 0 {
		w.s.log.Warn(fmt.Sprintf("%s: %d messages of its worker's are left out: they came faster than %.0f a second", w.name(), missed, b.rate))
	}
	return ok
}

// log takes a message over.
func (w *worker) log(r workerRecord) {
	if w.heard(&w.logs) {
		w.s.log.Log(context.Background(), slog.Level(r.Level), printable(r.Text))
	}
}

// name is what messages call it.
func (w *worker) name() string {
	if ch := w.charge(); ch != nil {
		return ch.Name
	}
	return "worker"
}

// suspects takes what its watchdog saw.
func (w *worker) suspects(v suspect) {
	v.Text = said(v.Text)
	w.mu.Lock()
	w.seen = append(w.seen, v)
	w.seen = w.seen[max(0, len(w.seen)-maxSuspects):]
	w.mu.Unlock()
	switch {
	case v.Fatal && !w.p.Traced(): // in a debugger everything stands still
		w.condemn(errors.New(v.Text))
	case !w.heard(&w.doubts):
	case v.Over:
		w.s.log.Info(v.Text)
	default:
		w.s.log.Warn(v.Text)
	}
}

// condemn has it ended.
func (w *worker) condemn(why error) {
	select {
	case w.fatal <- plain(why):
	default: // it is
	}
}

// bucket bounds a rate.
type bucket struct {
	burst, rate float64

	mu     sync.Mutex
	used   float64
	at     time.Time
	missed int
}

// take says whether there is room for one more, and how many were refused since it said so last.
func (b *bucket) take(now time.Time) (ok bool, missed int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used = max(0, b.used-now.Sub(b.at).Seconds()*b.rate)
	b.at = now
	if b.used+1 > b.burst {
		b.missed++
		return false, 0
	}
	b.used++
	missed, b.missed = b.missed, 0
	return true, missed
}

// configure tells it what it has to do, and waits until it is done.
func (w *worker) configure(ctx context.Context, config []byte, book *os.File) (up workerUp, err error) {
	ctx, cancel := context.WithTimeout(ctx, configureTime)
	defer cancel()
	stop := context.AfterFunc(w.context(), cancel) // also where it is to be ended
	defer stop()
	reply, files, err := w.conn.Call(ctx, lifeConfigure, config, book)
	closeFiles(files)
	var remote *link.RemoteError
	switch {
	case errors.As(err, &remote):
		return up, err
	case err != nil:
		return up, fmt.Errorf("%w%w", w.explain(err), silent{errDied})
	}
	if err := json.Unmarshal(reply, &up); err != nil {
		return up, fmt.Errorf("its answer: %v: %w%w", err, bus.ErrProtocol, silent{errDied})
	}
	return up, nil
}

// stop ends it in order.
func (w *worker) stop(ctx context.Context) (done workerStopped, err error) {
	reply, files, err := w.conn.Call(ctx, lifeStop, nil)
	closeFiles(files)
	if err == nil {
		err = json.Unmarshal(reply, &done)
	}
	return done, err
}

// control has it do an operation of the control socket. part takes what the operation streams.
func (w *worker) control(ctx context.Context, op string, args json.RawMessage, part func([]byte)) (json.RawMessage, error) {
	body, err := json.Marshal(controlRequest{Op: op, Args: args})
	if err != nil {
		return nil, err
	}
	reply, files, err := w.conn.CallParts(ctx, controlCall, body, part)
	closeFiles(files)
	return reply, err
}

// context ends when the worker is to be ended.
func (w *worker) context() context.Context { return doneContext{w.conn.Done()} }

// doneContext is a channel as a context.
type doneContext struct{ done <-chan struct{} }

func (doneContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (doneContext) Value(any) any               { return nil }
func (c doneContext) Done() <-chan struct{}     { return c.done }
func (c doneContext) Err() error {
	select {
	case <-c.done:
		return context.Canceled
	default:
		return nil
	}
}

// kill ends it, and waits until it is no more and nobody answers it any more. It is idempotent; after an error it tries again.
func (w *worker) kill() error {
	w.killing.Lock()
	defer w.killing.Unlock()
	if w.dead {
		return nil
	}
	w.p.Kill()
	limit := time.NewTimer(killTime)
	defer limit.Stop()
	select {
	case <-w.p.Done():
	case <-limit.C:
		return fmt.Errorf("worker %d: it is still there %v after SIGKILL: %w", w.p.PID(), killTime, bus.ErrTimeout)
	}
	if w.closed == nil {
		w.closed = make(chan struct{})
		go func() { w.conn.Close(); close(w.closed) }()
	}
	select {
	case <-w.closed:
	case <-limit.C:
		return fmt.Errorf("worker %d: what it asked for does not end: %w", w.p.PID(), bus.ErrTimeout)
	}
	w.dead = true
	_ = w.p.Close()
	if w.s.c.Ended != nil {
		w.s.c.Ended(w.p.PID())
	}
	return nil
}

// over says whether it ended.
func (w *worker) over() bool {
	select {
	case <-w.conn.Done():
		return true
	case <-w.p.Done():
		return true
	default:
		return false
	}
}
