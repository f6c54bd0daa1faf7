package mirror

import (
	"context"
	"fmt"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/node"
)

// stream is one open of a worker's file with Open.
type stream struct {
	e     *entry
	part  *Part
	flags int // of open(2)

	opening sync.Mutex // held while it is opened again

	mu      sync.Mutex
	s       *session // that has it open; nil: none, it is to be opened again
	id      uint64   // the worker's
	poller  bool
	closed  bool
	changed chan struct{} // closed by wake; nil: nobody polls
}

// polled is a stream of a Poller.
type polled struct{ *stream }

// open is File.Open.
func (e *entry) open(flags int) (node.Stream, error) {
	part, err := e.only()
	if err != nil {
		return nil, err
	}
	x := &stream{e: e, part: part, flags: flags}
	if err := x.reopen(context.Background()); err != nil {
		return nil, err
	}
	if x.poller {
		return polled{x}, nil
	}
	return x, nil
}

// reopen opens the stream in the worker that is there, or comes.
func (x *stream) reopen(ctx context.Context) error {
	var s *seen
	var reply []byte
	for deaths := 0; ; {
		var c *link.Conn
		var err error
		if s, c, err = x.e.await(ctx, x.part, true); err != nil {
			return err
		}
		if reply, err = x.part.ask(ctx, c, methodOpen, s.id, wire.AppendUint32(nil, uint32(x.flags)), bounded); err == nil {
			break
		}
		if !died(err) {
			return outcome(err)
		}
		<-c.Done() // await finds it dead then; what it had opened went with it
		if deaths++; deaths > maxRetries {
			return outcome(err)
		}
	}
	if len(reply) != 9 {
		return fmt.Errorf("its driver opened it with %d bytes: %w", len(reply), syscall.EIO)
	}
	id := wire.Uint64(reply)
	if err := s.of.add(id, x); err != nil {
		return err
	}
	x.mu.Lock()
	x.s, x.id, x.poller = s.of, id, reply[8] != 0
	closed := x.closed
	x.mu.Unlock()
	if closed {
		_ = x.end(s.of, id)
	}
	return nil
}

// add notes who has a worker's stream.
func (s *session) add(id uint64, x *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.opens[id] != nil:
		return fmt.Errorf("its driver opened one stream twice: %w", syscall.EIO)
	case len(s.opens) >= maxOpens:
		return fmt.Errorf("%d files are open: %w", maxOpens, syscall.EMFILE)
	}
	s.opens[id] = x
	return nil
}

// use finds the worker for a call. The first call after a worker's death is told of it; the next one gets the next worker.
func (x *stream) use(ctx context.Context) (*link.Conn, *session, uint64, error) {
	for {
		x.mu.Lock()
		s, id := x.s, x.id
		if s != nil && s.dead() {
			x.s = nil
			x.mu.Unlock()
			return nil, nil, 0, fmt.Errorf("its driver died: %w", syscall.EIO)
		}
		x.mu.Unlock()
		if s != nil {
			return s.c, s, id, nil
		}
		if err := x.again(ctx); err != nil {
			return nil, nil, 0, err
		}
	}
}

// again is reopen, once for all who want it.
func (x *stream) again(ctx context.Context) error {
	x.opening.Lock()
	defer x.opening.Unlock()
	x.mu.Lock()
	there := x.s != nil
	x.mu.Unlock()
	if there {
		return nil
	}
	return x.reopen(ctx)
}

// dead says whether a session's worker takes no calls any more.
func (s *session) dead() bool {
	select {
	case <-s.c.Done():
		return true
	default:
		return false
	}
}

// call asks the worker. That it died under the call is told by this call.
func (x *stream) call(ctx context.Context, m link.Method, body []byte, how int) ([]byte, error) {
	c, s, id, err := x.use(ctx)
	if err != nil {
		return nil, err
	}
	reply, err := x.part.ask(ctx, c, m, id, body, how)
	if err != nil && died(err) {
		<-c.Done()
		x.mu.Lock()
		if x.s == s {
			x.s = nil
		}
		x.mu.Unlock()
	}
	if err != nil {
		return nil, outcome(err)
	}
	return reply, nil
}

// Read implements [node.Stream].
func (x *stream) Read(ctx context.Context, p []byte, flags int) (int, error) {
	n := min(len(p), maxIO)
	reply, err := x.call(ctx, methodRead, wire.AppendUint32(wire.AppendUint32(nil, uint32(flags)), uint32(n)), 0)
	if err != nil {
		return 0, err
	}
	defer clear(reply) // it may be a key
	if len(reply) > n {
		return 0, fmt.Errorf("its driver gave %d bytes of %d: %w", len(reply), n, syscall.EIO)
	}
	return copy(p, reply), nil
}

// Write implements [node.Stream].
func (x *stream) Write(ctx context.Context, p []byte, flags int) (int, error) {
	p = p[:min(len(p), maxIO)]
	body := append(wire.AppendUint32(make([]byte, 0, 4+len(p)), uint32(flags)), p...)
	defer clear(body)
	reply, err := x.call(ctx, methodWrite, body, finish)
	if err != nil {
		return 0, err
	}
	return taken(reply, len(p))
}

// Close implements [node.Stream].
func (x *stream) Close() error {
	x.mu.Lock()
	s, id := x.s, x.id
	x.s, x.closed = nil, true
	x.mu.Unlock()
	if s == nil {
		return nil
	}
	return x.end(s, id)
}

// end closes a worker's stream.
func (x *stream) end(s *session, id uint64) error {
	s.mu.Lock()
	delete(s.opens, id)
	s.mu.Unlock()
	if s.dead() {
		return nil
	}
	_, err := x.part.ask(context.Background(), s.c, methodClose, id, nil, bounded)
	if err != nil && died(err) {
		return nil // so it is closed
	}
	return err
}

// failing is what poll says of a stream whose next call gives an error.
const failing = unix.POLLERR | unix.POLLIN | unix.POLLOUT

// Poll implements [node.Poller]. That the worker died is said, but it is a Read or a Write that tells it, and goes on.
func (x polled) Poll() (events uint32, changed <-chan struct{}) {
	x.mu.Lock()
	if x.changed == nil {
		x.changed = make(chan struct{})
	}
	changed = x.changed // before the question: what changes after the answer closes it
	s, id := x.s, x.id
	x.mu.Unlock()
	if s == nil { // its worker died, which was told
		c, again, err := x.part.ready(x.e.session(x.part), x.e.gone.Load())
		switch {
		case err != nil:
			return failing, changed
		case c == nil:
			return 0, again
		}
		ctx, cancel := x.part.t.patience(context.Background())
		defer cancel()
		if x.again(ctx) != nil {
			return failing, changed
		}
		x.mu.Lock()
		s, id = x.s, x.id
		x.mu.Unlock()
	}
	if s == nil || s.dead() {
		return failing, changed
	}
	reply, err := x.part.ask(context.Background(), s.c, methodPoll, id, nil, bounded)
	if err != nil || len(reply) != 5 {
		return failing, changed
	}
	return wire.Uint32(reply), changed
}

// session is the part's session that told of the entry.
func (e *entry) session(p *Part) *session {
	if s := e.of(p); s != nil {
		return s.of
	}
	return nil
}

// wake has whoever polls look again.
func (x *stream) wake() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.changed != nil {
		close(x.changed)
		x.changed = nil
	}
}
