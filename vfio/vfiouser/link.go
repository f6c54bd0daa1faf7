package vfiouser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// link is the client's connection: one request and its reply at a time, read by whoever asks.
//
// With a twin socket the server's commands come there, and a goroutine waits for them. Without
// one they come between the replies: whoever reads handles them, and while nobody asks, watch does.
type link struct {
	s        *sock
	timeout  time.Duration
	commands func(m *message) []byte // handles a command of the server's; nil: no reply

	twin  *twin
	kicks kicks

	dead  atomic.Bool
	done  chan struct{}
	errMu sync.Mutex // guards err, and the closing of done
	err   error

	watching sync.WaitGroup

	mu  sync.Mutex // of a request
	id  uint16
	out []byte
	in  message
	// posted says that messages were sent since the last reply, which the server may not have
	// handled.
	posted atomic.Bool
}

// twin is the socket of the server's commands.
type twin struct {
	s     *sock
	ended chan struct{}
}

func newLink(s *sock, timeout time.Duration) *link {
	return &link{s: s, timeout: timeout, done: make(chan struct{}), out: make([]byte, 0, 4096)}
}

// fail records why the link died, once, and wakes everybody.
func (l *link) fail(err error) {
	l.errMu.Lock()
	first := l.err == nil
	if first {
		l.err = err
		l.dead.Store(true)
		close(l.done)
	}
	l.errMu.Unlock()
	if first {
		l.s.shutdown()
		if l.twin != nil {
			l.twin.s.shutdown()
		}
	}
}

// reason is why the link died, nil while it lives.
func (l *link) reason() error {
	l.errMu.Lock()
	defer l.errMu.Unlock()
	return l.err
}

// close ends the link, and waits for its goroutines.
func (l *link) close(err error) {
	l.fail(err)
	l.watching.Wait()
	l.s.close()
	if l.twin != nil {
		l.twin.s.close()
	}
}

// lastWordsTime is how long the server's last words may come after its end was seen.
const lastWordsTime = time.Second

// broken is fail for an error of the socket: the server's last words are the better reason.
func (l *link) broken(err error) {
	if ended(err) {
		if t := l.twin; t != nil {
			select {
			case <-t.ended:
			case <-time.After(lastWordsTime):
			}
		}
		err = fmt.Errorf("the server closed the connection: %w", bus.ErrGone)
	} else if errors.Is(err, errIdle) {
		err = fmt.Errorf("no answer within %v: %w", l.timeout, bus.ErrTimeout)
	}
	l.fail(err)
}

// begin starts a message in the scratch buffer. Called with mu held.
func (l *link) begin() writer {
	return writer(l.out[:headerSize])
}

// finish completes a message and sends it. Called with mu held.
func (l *link) finish(w writer, cmd command, flags uint32, fds []int) error {
	l.id++
	l.out = w
	h := header{id: l.id, cmd: cmd, size: uint32(len(w)), flags: typeCommand | flags}
	h.put(w)
	if err := l.s.send(w, fds...); err != nil {
		l.broken(fmt.Errorf("%s: %w", cmd, err))
		return l.reason()
	}
	return nil
}

// request is what is asked, and what is done with the reply.
type request struct {
	cmd  command
	body func(w *writer)
	fds  []int
	// reply is called with the reply's message while it is valid. It takes descriptors out; the
	// rest are closed. An error is the server's breach of protocol, and ends the link.
	reply func(m *message) error
	limit time.Duration // 0: the link's
}

// ask sends a request and waits for its reply. It fails with the server's refusal, or with why the
// link died.
func (l *link) ask(q request) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead.Load() {
		return l.reason()
	}
	w := l.begin()
	if q.body != nil {
		q.body(&w)
	}
	if err := l.finish(w, q.cmd, 0, q.fds); err != nil {
		return err
	}
	l.posted.Store(false)
	limit := q.limit
	if limit == 0 {
		limit = l.timeout
	}
	if err := l.await(q.cmd, time.Now().Add(limit)); err != nil {
		return err
	}
	defer l.in.closeFDs()
	if l.in.flags&flagError != 0 {
		return refusal(l.in.errno)
	}
	if q.reply == nil {
		return nil
	}
	if err := q.reply(&l.in); err != nil {
		l.fail(fmt.Errorf("%s: the reply: %w", q.cmd, err))
		return l.reason()
	}
	return nil
}

// await reads until the reply to the last message is there. Called with mu held.
func (l *link) await(cmd command, due time.Time) error {
	for {
		err := l.s.receive(&l.in, ownTransfer+accessSize)
		switch {
		case errors.Is(err, errIdle) && time.Now().Before(due):
			continue
		case err != nil:
			l.broken(fmt.Errorf("%s: %w", cmd, err))
			return l.reason()
		case !l.in.isReply():
			if err := l.serve(l.s, &l.in); err != nil {
				l.broken(err)
				return l.reason()
			}
			if time.Now().After(due) {
				l.broken(fmt.Errorf("%s: %w", cmd, errIdle))
				return l.reason()
			}
			continue
		case l.in.id != l.id || !l.in.answers(cmd):
			l.in.closeFDs()
			l.fail(fmt.Errorf("%s: a reply to message %d, %s, want %d: %w", cmd, l.in.id, l.in.cmd, l.id, bus.ErrProtocol))
			return l.reason()
		}
		return nil
	}
}

// readRegion is REGION_READ, and writeRegion a REGION_WRITE without a reply, of one register: what
// drivers do most. They allocate nothing.
func (l *link) readRegion(a access) (v uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead.Load() {
		return 0, false
	}
	w := l.begin()
	w.access(a)
	if err := l.finish(w, cmdRegionRead, 0, nil); err != nil {
		return 0, false
	}
	l.posted.Store(false)
	if err := l.await(cmdRegionRead, time.Now().Add(l.timeout)); err != nil {
		return 0, false
	}
	l.in.closeFDs()
	b := l.in.body
	if l.in.flags&flagError != 0 {
		return 0, false
	}
	if len(b) != accessSize+int(a.count) || binary.LittleEndian.Uint32(b[12:]) != a.count {
		l.fail(fmt.Errorf("%s: the reply: %d bytes, want %d of data: %w", cmdRegionRead, len(b), a.count, bus.ErrProtocol))
		return 0, false
	}
	for i, x := range b[accessSize:] {
		v |= uint64(x) << (8 * i)
	}
	return v, true
}

func (l *link) writeRegion(a access, v uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead.Load() {
		return
	}
	w := l.begin()
	w.access(a)
	w.u64(v)
	l.posted.Store(true)
	_ = l.finish(w[:headerSize+accessSize+int(a.count)], cmdRegionWrite, flagNoReply, nil) // an error ends the link
}

// post sends a message without a reply.
func (l *link) post(cmd command, body func(w *writer)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead.Load() {
		return
	}
	w := l.begin()
	body(&w)
	l.posted.Store(true)
	_ = l.finish(w, cmd, flagNoReply, nil) // an error ends the link
}

// serve handles a command of the server's, and replies on the socket that it came by.
func (l *link) serve(s *sock, m *message) error {
	if len(m.fds) > 0 {
		m.closeFDs()
		return fmt.Errorf("%s from the server with descriptors: %w", m.cmd, bus.ErrProtocol)
	}
	if m.isReply() {
		return fmt.Errorf("a reply to message %d, which asked for none: %w", m.id, bus.ErrProtocol)
	}
	if b := l.commands(m); b != nil && m.flags&flagNoReply == 0 {
		return s.send(b)
	}
	return nil
}

// start has somebody wait for the server's commands and for its end.
func (l *link) start() {
	if t := l.twin; t != nil {
		l.watching.Go(func() {
			defer close(t.ended)
			l.listen(t.s)
		})
		return
	}
	l.watching.Go(l.watch)
}

// listen handles the commands on the twin socket until it ends.
func (l *link) listen(s *sock) {
	defer l.kicks.letGo()
	var m message
	for {
		err := s.receive(&m, ownTransfer+dmaAccessSize)
		switch {
		case err == nil:
			err = l.serve(s, &m)
		case errors.Is(err, errIdle) && !l.dead.Load():
			err = nil
		}
		if err == nil {
			err = l.kicks.check()
		}
		if ended(err) {
			err = fmt.Errorf("the server closed the connection: %w", bus.ErrGone)
		}
		if err != nil {
			l.fail(err)
			return
		}
	}
}

// watch handles commands that come while nobody asks. It waits without reading: what is there
// belongs to whoever asks, where somebody does. Each time that somebody was there already it
// pauses longer, so that a stream of requests is not slowed down.
func (l *link) watch() {
	const pauseMax = 200 * time.Microsecond
	defer l.kicks.letGo()
	pause := time.Duration(0)
	for !l.dead.Load() {
		ready, err := l.s.readable(time.Second)
		if err != nil {
			l.fail(err) // if it was not closed
			return
		}
		if ready && pause > 0 {
			time.Sleep(pause)
		}
		if ready {
			pause = l.attend(min(pauseMax, 2*pause+10*time.Microsecond))
		}
		if err := l.kicks.check(); err != nil {
			l.fail(err) // unless it failed before
		}
	}
}

// attend handles a message, unless somebody reads already: then it returns how long to pause.
func (l *link) attend(pause time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ready, _ := l.s.readable(0); !ready || l.dead.Load() {
		return pause
	}
	err := l.s.receive(&l.in, ownTransfer+accessSize)
	if err == nil {
		err = l.serve(l.s, &l.in)
	}
	if err != nil {
		l.broken(err)
	}
	return 0
}

// readable waits until there is something to read.
func (s *sock) readable(limit time.Duration) (bool, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return false, bus.ErrClosed
	}
	p := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN | unix.POLLRDHUP}}
	n, err := unix.Poll(p, int(limit.Milliseconds()))
	if err != nil && err != unix.EINTR {
		return false, err
	}
	return n > 0, nil
}
