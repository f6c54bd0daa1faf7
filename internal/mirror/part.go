package mirror

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/link"
)

// Part is the tree of one worker after the other. It is the [link.Handler] of [Class] for the links to all of them, and safe for concurrent use.
type Part struct {
	t     *Tree
	name  string
	order int
	calls chan struct{} // one for each call that is open
	hides bool          // it was logged that something is not shown; guarded by Tree.mu
	late  atomic.Int32  // shows of joined files that went on without it, and that it has not answered

	sessions map[*link.Conn]*session // of links that have not ended; guarded by Tree.mu

	mu      sync.Mutex // it may be taken with Tree.mu held
	next    *session   // attached; it becomes cur when it is whole
	cur     *session   // whose entries are in the tree
	failed  error      // given up
	removed bool
	changed chan struct{} // closed when any of these changes
}

// Bounds of what is open at a time in one worker, well below what its link takes.
const (
	maxCalls    = 512
	maxOpens    = 1024
	maxSessions = 4
)

func newPart(t *Tree, name string, order int) *Part {
	return &Part{t: t, name: name, order: order, calls: make(chan struct{}, maxCalls), sessions: map[*link.Conn]*session{}, changed: make(chan struct{})}
}

// Call implements [link.Handler]: a worker asks nothing of this class.
func (p *Part) Call(_ context.Context, m link.Method, _ []byte, files []*os.File, _ func([]byte) error) ([]byte, []*os.File, error) {
	closeAll(files)
	return nil, nil, fmt.Errorf("tree: method %#x: %w", uint16(m), syscall.ENOSYS)
}

// Event implements [link.Handler]: there must be somebody whose event it is.
func (p *Part) Event(m link.Method, _ []byte, files []*os.File) error {
	closeAll(files)
	return protocol("event %#x of nobody", uint16(m))
}

// EventFrom implements [link.EventHandler].
func (p *Part) EventFrom(c *link.Conn, m link.Method, body []byte, files []*os.File) error {
	closeAll(files)
	if m == eventRecords {
		return p.records(c, body)
	}
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	s, err := p.session(c)
	if err != nil {
		return err
	}
	switch m {
	case eventWhole:
		if s.whole {
			return protocol("the tree is whole a second time")
		}
		s.whole = true
		p.settle()
		return nil
	case eventChanged:
		if len(body) != 8 {
			return protocol("event %#x of %d bytes", uint16(m), len(body))
		}
		s.wake(wire.Uint64(body))
		return nil
	}
	return protocol("event %#x", uint16(m))
}

// recordsAtOnce bounds how long one worker's changes hold up the others'.
const recordsAtOnce = 256

// records takes an event's records.
func (p *Part) records(c *link.Conn, body []byte) error {
	for len(body) > 0 {
		n, rest, err := p.some(c, body)
		if err != nil {
			return err
		}
		if body = rest; !c.Charge(n) {
			return nil // the link's own end says why
		}
	}
	return nil
}

// some takes the first records, and returns how many.
func (p *Part) some(c *link.Conn, body []byte) (n int, rest []byte, err error) {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	s, err := p.session(c)
	if err != nil {
		return 0, nil, err
	}
	for n < recordsAtOnce && len(body) > 0 {
		var r record
		if r, body, err = parseRecord(body); err != nil {
			return 0, nil, protocol("%w", err)
		}
		if err := s.take(&r); err != nil {
			return 0, nil, err
		}
		n++
	}
	return n, body, nil
}

// session finds what a link's worker told, or begins it. Tree.mu is held.
func (p *Part) session(c *link.Conn) (*session, error) {
	if s := p.sessions[c]; s != nil {
		return s, nil
	}
	if len(p.sessions) >= maxSessions {
		return nil, fmt.Errorf("tree: %d other workers of %s: %w", maxSessions, p.name, bus.ErrBusy)
	}
	s := &session{part: p, c: c, nodes: map[uint64]*seen{}, opens: map[uint64]*stream{}}
	s.nodes[0] = &seen{of: s, kindInfo: kindInfo{kind: kindDir}, kids: map[string]*seen{}}
	p.sessions[c] = s
	go func() {
		<-c.Done()
		p.t.mu.Lock()
		delete(p.sessions, c)
		p.t.mu.Unlock()
		p.mu.Lock()
		p.tell()
		p.mu.Unlock()
		s.wakeAll()
	}()
	return s, nil
}

// tell wakes who waits. mu is held.
func (p *Part) tell() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// Attach gives the part a worker: what it told, and tells, is shown from when it is whole, and gets the calls. One that was attached before is
// taken to be gone: its link ends.
func (p *Part) Attach(c *link.Conn) {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	s, err := p.session(c)
	if err != nil {
		c.End(err)
		return
	}
	p.mu.Lock()
	old, removed := p.next, p.removed
	if !removed {
		p.next, p.failed = s, nil
		p.tell()
	}
	p.mu.Unlock()
	switch {
	case removed:
		c.End(fmt.Errorf("%s was removed", p.name))
		return
	case old != nil && old != s:
		old.c.End(errors.New("another worker took its place"))
	}
	p.settle()
}

// settle shows the tree of the worker that is attached, if it is whole and not shown yet. Tree.mu is held.
func (p *Part) settle() {
	p.mu.Lock()
	s, old := p.next, p.cur
	p.mu.Unlock()
	if s == nil || !s.whole || s == old {
		return
	}
	top := s.nodes[0]
	top.at = p.t.top
	for _, k := range top.kids {
		s.show(k, old)
	}
	if old != nil {
		old.hide(old.nodes[0])
	}
	p.mu.Lock()
	p.cur = s
	p.tell()
	p.mu.Unlock()
	if old != nil {
		old.wakeAll()
	}
}

// Sync returns when the tree of the worker that is attached is shown, or cannot be any more: its link ended, or ctx.
func (p *Part) Sync(ctx context.Context) error {
	for {
		p.mu.Lock()
		s, changed := p.next, p.changed
		there := s != nil && s == p.cur
		p.mu.Unlock()
		switch {
		case s == nil:
			return fmt.Errorf("tree of %s: no worker is attached: %w", p.name, bus.ErrGone)
		case there:
			return nil
		}
		select {
		case <-changed:
		case <-s.c.Done():
			return fmt.Errorf("tree of %s: waiting for the whole: %w", p.name, s.c.Err())
		case <-ctx.Done():
			return fmt.Errorf("tree of %s: waiting for the whole: %w", p.name, context.Cause(ctx))
		}
	}
}

// Detach says that the worker is dead, and ends its link. Its entries stay; calls wait for the next one.
func (p *Part) Detach(cause error) { p.leave(cause, nil) }

// Fail says that there will be no other worker, until Attach: calls get EIO.
func (p *Part) Fail(cause error) {
	if cause == nil {
		cause = bus.ErrGone
	}
	p.leave(cause, cause)
}

func (p *Part) leave(cause, failed error) {
	p.mu.Lock()
	s := p.next
	p.next = nil
	if failed != nil {
		p.failed = failed
	}
	p.tell()
	p.mu.Unlock()
	if s != nil {
		s.c.End(fmt.Errorf("tree of %s: %w", p.name, cause))
		s.wakeAll()
	}
}

// Remove takes the part's entries away, for good.
func (p *Part) Remove() {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	p.mu.Lock()
	s := p.cur
	p.removed, p.cur = true, nil
	p.mu.Unlock()
	p.leave(bus.ErrClosed, nil)
	if s != nil {
		s.hide(s.nodes[0])
	}
	if p.t.parts[p.name] == p {
		delete(p.t.parts, p.name)
	}
}

// ready says whom a call of a node that s told of goes to, or what to wait for.
func (p *Part) ready(s *session, gone bool) (c *link.Conn, changed <-chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.removed:
		return nil, nil, fmt.Errorf("%s: removed: %w", p.name, syscall.ENODEV)
	case p.failed != nil:
		return nil, nil, fmt.Errorf("%s: its driver failed: %w (%w)", p.name, p.failed, syscall.EIO)
	}
	if p.next != nil && p.cur == p.next && p.cur == s {
		select {
		case <-s.c.Done():
		default:
			return s.c, nil, nil
		}
	}
	if gone {
		return nil, nil, fmt.Errorf("%s: gone: %w", p.name, syscall.ENODEV)
	}
	return nil, p.changed, nil
}

// patience is a context that ends after the tree's Patience.
func (t *Tree) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, t.o.Patience, fmt.Errorf("no answer after %v: %w", t.o.Patience.Round(time.Millisecond), syscall.EIO))
}
