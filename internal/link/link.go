package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/crash"
)

// Method is what is asked for. Its high byte says whose it is: see [Mux].
type Method uint16

// Handler answers what the other side asks.
type Handler interface {
	// Call answers a call, on a goroutine of its own. ctx ends when the caller lost interest, and with the connection. part sends a part
	// of the reply before its end. files are the handler's to close; those that it returns are closed once they were sent.
	Call(ctx context.Context, m Method, body []byte, files []*os.File, part func([]byte) error) (reply []byte, pass []*os.File, err error)
	// Event takes what needs no answer, in order, on the goroutine that reads: it must not block. An error ends the connection. files are the handler's to close.
	Event(m Method, body []byte, files []*os.File) error
}

// EventHandler is a Handler that wants to know whose event it is. Its EventFrom is called in place of Event.
type EventHandler interface {
	Handler
	EventFrom(c *Conn, m Method, body []byte, files []*os.File) error
}

// SentHandler is a Handler that wants its replies back when they have been sent, or could not be: one may have been a key.
type SentHandler interface {
	Handler
	Sent(m Method, reply []byte)
}

// Mux gives each call to the handler of its method's high byte. One that is nobody's is answered with ENOSYS; such an event ends the connection.
type Mux map[uint8]Handler

// Call implements [Handler].
func (x Mux) Call(ctx context.Context, m Method, body []byte, files []*os.File, part func([]byte) error) ([]byte, []*os.File, error) {
	h := x[uint8(m>>8)]
	if h == nil {
		closeAll(files)
		return nil, nil, fmt.Errorf("method %#x: %w", uint16(m), syscall.ENOSYS)
	}
	return h.Call(ctx, m, body, files, part)
}

// Event implements [Handler].
func (x Mux) Event(m Method, body []byte, files []*os.File) error {
	return x.EventFrom(nil, m, body, files)
}

// EventFrom implements [EventHandler].
func (x Mux) EventFrom(c *Conn, m Method, body []byte, files []*os.File) error {
	h := x[uint8(m>>8)]
	if h == nil {
		closeAll(files)
		return fmt.Errorf("event %#x is nobody's: %w", uint16(m), bus.ErrProtocol)
	}
	if h, ok := h.(EventHandler); ok {
		return h.EventFrom(c, m, body, files)
	}
	return h.Event(m, body, files)
}

// Sent implements [SentHandler].
func (x Mux) Sent(m Method, reply []byte) {
	if s, ok := x[uint8(m>>8)].(SentHandler); ok {
		s.Sent(m, reply)
	}
}

// Options bound a connection. The zero value has the bounds below.
type Options struct {
	Name     string        // of the other side, for messages
	MaxBody  int           // of a frame, in bytes; 4 MiB
	MaxCalls int           // that the other side may have open at a time; 1024
	MaxHeld  int           // bytes of the bodies of those calls together; 64 MiB
	MaxFiles int           // descriptors that came with those calls; 1024
	Rate     int           // calls, cancellations and events that the other side may send in a second; 4 KiB of a body count as another. More wait; 50,000
	SendWait time.Duration // how long the other side may take nothing; 10 s
	Log      *slog.Logger  // nil discards
	// Panics: a handler's panic ends the process, after the last words that package crash collects. Otherwise it is the call's answer, EIO: which is for who must outlive
	// what it calls, and has nothing half done that others would meet.
	Panics bool
	// Ended is called when the connection ends, once, and returns before the calls that the other side has open are cancelled: for who is not to do then what a caller's
	// cancellation has it do. It must not use the connection. nil: nothing is called.
	Ended func(err error)
}

// pending is a call that was made and has no reply yet.
type pending struct {
	part func([]byte)
	done chan struct{}
	body []byte
	pass []*os.File
	err  error
}

// Conn is one end. Safe for concurrent use.
type Conn struct {
	c    *net.UnixConn
	h    Handler
	o    Options
	done chan struct{}

	ctx    context.Context // of all handlers
	cancel context.CancelFunc
	wg     sync.WaitGroup
	ended  sync.Once

	sending sync.Mutex
	pace    pace // of the goroutine that reads

	mu    sync.Mutex
	next  uint64
	calls map[uint64]*pending           // ours
	open  map[uint64]context.CancelFunc // theirs
	held  int                           // bytes of bodies of theirs
	files int                           // descriptors that came with theirs
	err   error                         // valid after done
}

// Pair makes a connection's two ends; theirs is for another process, and the caller's to close.
func Pair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "link")
	defer f.Close()
	theirs = os.NewFile(uintptr(fds[1]), "link")
	if ours, err = Open(f); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// Open makes a connection of a socket; f stays the caller's.
func Open(f *os.File) (*net.UnixConn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("opening the socket: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("opening the socket: it is no Unix socket: %w", bus.ErrProtocol)
	}
	return u, nil
}

// New takes c over, and answers what comes with h.
func New(c *net.UnixConn, h Handler, o Options) *Conn {
	if o.MaxBody == 0 {
		o.MaxBody = 4 << 20
	}
	if o.MaxCalls == 0 {
		o.MaxCalls = 1024
	}
	if o.MaxHeld == 0 {
		o.MaxHeld = 64 << 20
	}
	if o.MaxFiles == 0 {
		o.MaxFiles = 1024
	}
	if o.Rate == 0 {
		o.Rate = 50_000
	}
	if o.SendWait == 0 {
		o.SendWait = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l := &Conn{c: c, h: h, o: o, done: make(chan struct{}), calls: map[uint64]*pending{}, open: map[uint64]context.CancelFunc{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.pace = pace{rate: o.Rate, left: o.Rate, since: time.Now()}
	go l.read()
	return l
}

// Done is closed when the connection has ended, for whatever reason.
func (l *Conn) Done() <-chan struct{} { return l.done }

// Err says why it has ended: bus.ErrGone where the other side closed it, bus.ErrClosed after Close, bus.ErrProtocol; nil while it has not.
func (l *Conn) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Close ends the connection, and waits for the handlers of calls to return; so none of them may call it.
func (l *Conn) Close() error {
	l.fail(fmt.Errorf("%s: %w", l.o.Name, bus.ErrClosed))
	<-l.done
	l.wg.Wait()
	return nil
}

// End is Close for who must not wait, with the reason: calls that are open fail with it.
func (l *Conn) End(cause error) {
	l.fail(fmt.Errorf("%s: %w (%w)", l.o.Name, cause, bus.ErrClosed))
}

// fail ends the connection, once.
func (l *Conn) fail(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	l.mu.Unlock()
	l.ended.Do(func() { // whoever else finds that it has ended waits
		if l.o.Ended != nil {
			l.o.Ended(err)
		}
	})
	l.cancel()
	l.c.Close()
}

// Call asks, and waits for the answer. files stay the caller's; those that it returns are the caller's as well.
func (l *Conn) Call(ctx context.Context, m Method, body []byte, files ...*os.File) ([]byte, []*os.File, error) {
	return l.CallParts(ctx, m, body, nil, files...)
}

// CallParts is Call with what takes the parts of the reply that come before its end, in order, on the goroutine that reads: it must not block.
func (l *Conn) CallParts(ctx context.Context, m Method, body []byte, part func([]byte), files ...*os.File) ([]byte, []*os.File, error) {
	return l.call(ctx, m, body, part, cancelWait, files)
}

// Finish is Call for what must not be left half done: when ctx ends the other side is told, as by Call, but its answer is waited for as long as
// the connection lasts.
func (l *Conn) Finish(ctx context.Context, m Method, body []byte) ([]byte, error) {
	reply, files, err := l.call(ctx, m, body, nil, 0, nil)
	closeAll(files)
	return reply, err
}

// What is in the error of a call besides the reason.
var (
	ErrEnded  = errors.New("the link ended")   // before there was an answer
	ErrUnsent = errors.New("nothing was sent") // the other side has not seen the call, and will not; ErrEnded is there too
)

// call makes a call. wait is how long it may take after its ctx ended, 0 as long as it likes.
func (l *Conn) call(ctx context.Context, m Method, body []byte, part func([]byte), wait time.Duration, files []*os.File) ([]byte, []*os.File, error) {
	p := &pending{part: part, done: make(chan struct{})}
	l.mu.Lock()
	if err := l.err; err != nil {
		l.mu.Unlock()
		return nil, nil, fmt.Errorf("%w: %w: %w", ErrUnsent, ErrEnded, err)
	}
	l.next++
	id := l.next
	l.calls[id] = p
	l.mu.Unlock()
	if err := l.send(header{kind: kindCall, method: m, id: id}, body, files); err != nil {
		l.forget(id)
		if l.Err() == nil { // it is the message
			return nil, nil, err
		}
		return nil, nil, fmt.Errorf("%w: %w: %w", ErrUnsent, ErrEnded, err)
	}
	select {
	case <-p.done:
		return p.body, p.pass, p.err
	case <-ctx.Done():
	}
	// The other side may have begun; its answer to the cancellation is the answer.
	var late <-chan time.Time
	if l.send(header{kind: kindCancel, id: id}, nil, nil) == nil && wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-p.done:
	case <-late:
		if l.forget(id) {
			return nil, nil, context.Cause(ctx)
		}
		<-p.done
	}
	return p.body, p.pass, p.err
}

// cancelWait is how long a call that was cancelled may still take.
const cancelWait = time.Second

// forget gives a call up; false if its answer is there.
func (l *Conn) forget(id uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.calls[id]
	delete(l.calls, id)
	return ok
}

// Send tells the other side what needs no answer. files stay the caller's.
func (l *Conn) Send(m Method, body []byte, files ...*os.File) error {
	return l.send(header{kind: kindEvent, method: m}, body, files)
}

// readSize is how much is read at a time.
const readSize = 64 << 10

// buffers are for frames on their way out; zeroed.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// send writes one frame.
func (l *Conn) send(h header, body []byte, files []*os.File) error {
	if len(body) > l.o.MaxBody || len(files) > maxFiles {
		return fmt.Errorf("%s: a message of %d bytes and %d descriptors, want at most %d and %d: %w", l.o.Name, len(body), len(files), l.o.MaxBody, maxFiles, syscall.EMSGSIZE)
	}
	h.size, h.files = uint32(len(body)), uint8(len(files))
	pooled := buffers.Get().(*[]byte)
	b := append((*pooled)[:0], make([]byte, headerSize)...)
	h.put(b)
	b = append(b, body...)
	defer func() {
		clear(b) // it may have been a key
		if *pooled = b; cap(b) <= readSize {
			buffers.Put(pooled)
		}
	}()
	oob, err := rights(files)
	if err != nil {
		return fmt.Errorf("%s: %w", l.o.Name, err)
	}
	l.sending.Lock()
	defer l.sending.Unlock()
	if err := l.Err(); err != nil {
		return err
	}
	_ = l.c.SetWriteDeadline(time.Now().Add(l.o.SendWait))
	n := 0
	if oob != nil {
		n, _, err = l.c.WriteMsgUnix(b, oob, nil)
	}
	if err == nil && n < len(b) {
		_, err = l.c.Write(b[n:])
	}
	if err != nil {
		cause := bus.ErrGone
		if errors.Is(err, os.ErrDeadlineExceeded) {
			cause = bus.ErrTimeout
		}
		l.fail(fmt.Errorf("%s: sending: %w (%w)", l.o.Name, err, cause))
		return l.Err()
	}
	return nil
}

// read takes frames until the connection ends.
func (l *Conn) read() {
	err := l.frames()
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) {
		err = fmt.Errorf("%s: it closed its end: %w", l.o.Name, bus.ErrGone)
	} else if err != nil {
		err = fmt.Errorf("%s: %w", l.o.Name, err)
	}
	l.fail(err)
	l.mu.Lock()
	for id, p := range l.calls {
		p.err = fmt.Errorf("%w: %w", ErrEnded, l.err)
		close(p.done)
		delete(l.calls, id)
	}
	l.mu.Unlock()
	close(l.done)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// handle does what one frame wants.
func (l *Conn) handle(h header, body []byte, files []*os.File) error {
	switch h.kind {
	case kindCall:
		return l.called(h, body, files)
	case kindEvent:
		if e, ok := l.h.(EventHandler); ok {
			return e.EventFrom(l, h.method, body, files)
		}
		return l.h.Event(h.method, body, files)
	case kindCancel:
		closeAll(files)
		l.mu.Lock()
		cancel := l.open[h.id]
		l.mu.Unlock()
		if cancel != nil {
			cancel()
		}
		return nil
	case kindPart:
		closeAll(files)
		l.mu.Lock()
		p := l.calls[h.id]
		l.mu.Unlock()
		if p != nil && p.part != nil {
			p.part(body)
		}
		return nil
	case kindReply, kindError:
		l.mu.Lock()
		p := l.calls[h.id]
		delete(l.calls, h.id)
		l.mu.Unlock()
		if p == nil { // nobody waits any more
			closeAll(files)
			return nil
		}
		p.body, p.pass = body, files
		if h.kind == kindError {
			closeAll(files)
			p.body, p.pass = nil, nil
			p.err = errorOf(body)
		}
		close(p.done)
		return nil
	}
	closeAll(files)
	return fmt.Errorf("a frame of kind %d: %w", h.kind, bus.ErrProtocol)
}

// called starts what answers a call.
func (l *Conn) called(h header, body []byte, files []*os.File) error {
	ctx, cancel := context.WithCancel(l.ctx)
	l.mu.Lock()
	_, twice := l.open[h.id]
	many := len(l.open) >= l.o.MaxCalls || l.held+len(body) > l.o.MaxHeld || l.files+len(files) > l.o.MaxFiles
	if !twice && !many {
		l.open[h.id] = cancel
		l.held += len(body)
		l.files += len(files)
		l.wg.Add(1)
	}
	l.mu.Unlock()
	if twice || many {
		cancel()
		closeAll(files)
		if twice {
			return fmt.Errorf("call %d is open already: %w", h.id, bus.ErrProtocol)
		}
		return fmt.Errorf("more than %d calls, %d bytes or %d descriptors in them at a time: %w", l.o.MaxCalls, l.o.MaxHeld, l.o.MaxFiles, bus.ErrProtocol)
	}
	size, passed := len(body), len(files)
	go func() {
		defer l.wg.Done()
		reply, pass, err := l.answer(ctx, h, body, files)
		l.mu.Lock()
		delete(l.open, h.id)
		l.held -= size
		l.files -= passed
		l.mu.Unlock()
		cancel()
		r := header{kind: kindReply, method: h.method, id: h.id}
		if err != nil {
			closeAll(pass)
			r.kind, reply, pass = kindError, errorBody(err), nil
		}
		if e := l.send(r, reply, pass); e != nil && l.Err() == nil { // it is the message
			r.kind = kindError
			_ = l.send(r, errorBody(e), nil)
		}
		closeAll(pass)
		if s, ok := l.h.(SentHandler); ok && r.kind == kindReply {
			s.Sent(h.method, reply)
		}
	}()
	return nil
}

// answer calls the handler. Its panic is an answer as well, or the end.
func (l *Conn) answer(ctx context.Context, h header, body []byte, files []*os.File) (reply []byte, pass []*os.File, err error) {
	if l.o.Panics {
		defer crash.Report()
	} else {
		defer func() {
			if v := recover(); v != nil {
				l.o.Log.Error(fmt.Sprintf("%s: method %#x: panic: %v", l.o.Name, uint16(h.method), v), "stack", string(debug.Stack()))
				err = fmt.Errorf("method %#x: panic: %v: %w", uint16(h.method), v, syscall.EIO)
			}
		}()
	}
	return l.h.Call(ctx, h.method, body, files, func(b []byte) error {
		return l.send(header{kind: kindPart, method: h.method, id: h.id}, b, nil)
	})
}
