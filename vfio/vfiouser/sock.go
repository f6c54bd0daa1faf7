package vfiouser

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/ioctl"
)

// sock is one end of a connection: a blocking stream socket whose receive and send time-outs are
// set. Whoever waits for something reads it himself, so that no message wakes two goroutines.
type sock struct {
	limit time.Duration // for the rest of a message, once it began, and for sending one

	mu sync.RWMutex // held for reading during each system call
	fd int          // -1: closed

	sending sync.Mutex // a message is sent whole
}

// newSock takes a connected socket over, where there is no error.
func newSock(fd int, limit time.Duration) (*sock, error) {
	if err := unix.SetNonblock(fd, false); err != nil {
		return nil, fmt.Errorf("preparing the socket: %w", err)
	}
	tv := unix.NsecToTimeval(limit.Nanoseconds())
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &tv); err != nil {
			return nil, fmt.Errorf("preparing the socket: %w", err)
		}
	}
	return &sock{fd: fd, limit: limit}, nil
}

// takeConn takes the descriptor out of a connection, which is closed.
func takeConn(c *net.UnixConn, limit time.Duration) (*sock, error) {
	f, err := c.File()
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("preparing the socket: %w", err)
	}
	defer f.Close()
	if err := c.Close(); err != nil {
		return nil, fmt.Errorf("preparing the socket: %w", err)
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("preparing the socket: %w", err)
	}
	s, err := newSock(fd, limit)
	if err != nil {
		unix.Close(fd)
	}
	return s, err
}

// shutdown ends what is under way on either side; close is still to come.
func (s *sock) shutdown() {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd >= 0 {
		_ = unix.Shutdown(s.fd, unix.SHUT_RDWR)
	}
}

// close waits for what is under way. It is idempotent.
func (s *sock) close() {
	s.shutdown()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd >= 0 {
		_ = unix.Close(s.fd)
		s.fd = -1
	}
}

// message is one that was received. Its buffers are used again.
type message struct {
	header
	body []byte
	fds  []int // the receiver's, to close or to take

	head [headerSize]byte
	buf  []byte
	oob  []byte
}

// closeFDs closes descriptors that nobody took.
func (m *message) closeFDs() {
	for _, fd := range m.fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	m.fds = m.fds[:0]
}

// take takes descriptor i out of a message, as a file.
func (m *message) take(i int, name string) *os.File {
	fd := m.fds[i]
	m.fds[i] = -1
	return os.NewFile(uintptr(fd), name)
}

// maxOOB is more descriptors than anybody may send: those above are closed by the kernel.
const maxOOB = ownFDs + 2

// errIdle is a receive that waited in vain for a message to begin.
var errIdle = fmt.Errorf("no message came: %w", bus.ErrTimeout)

// receive reads one message, whose body has at most maxBody bytes. It fails with errIdle where
// none began within the socket's time-out; once begun a message must be whole within it, or twice that
// where it stops coming at the last moment.
func (s *sock) receive(m *message, maxBody int) error {
	m.closeFDs()
	m.body = nil
	due, err := s.fill(m, m.head[:], time.Time{})
	if err == nil {
		err = m.parse(m.head[:], maxBody)
	}
	if err != nil {
		m.closeFDs()
		return err
	}
	n := int(m.size) - headerSize
	if cap(m.buf) < n {
		m.buf = make([]byte, n)
	}
	m.body = m.buf[:n]
	if n == 0 {
		return nil
	}
	if due.IsZero() {
		due = time.Now().Add(s.limit)
	}
	if _, err := s.fill(m, m.body, due); err != nil {
		m.closeFDs()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// fill reads len(p) bytes, until due. A zero due lets the first wait as long as the socket does, and
// only the rest is due: fill returns when.
func (s *sock) fill(m *message, p []byte, due time.Time) (time.Time, error) {
	for done := 0; ; {
		n, err := s.some(m, p[done:])
		if done += n; done == len(p) {
			return due, nil
		}
		switch {
		case err == nil && n == 0 && done == 0:
			return due, io.EOF
		case err == nil && n == 0:
			return due, io.ErrUnexpectedEOF
		case err == unix.EAGAIN && due.IsZero():
			return due, errIdle
		case err != nil && err != unix.EAGAIN && err != unix.EINTR:
			return due, err
		case due.IsZero() && done > 0:
			due = time.Now().Add(s.limit)
		case !due.IsZero() && time.Now().After(due): // also of one that comes a byte at a time
			return due, fmt.Errorf("the rest of a message did not come within %v: %w", s.limit, bus.ErrTimeout)
		}
	}
}

// some is one recvmsg(2), whose descriptors are added to the message's.
func (s *sock) some(m *message, p []byte) (int, error) {
	if m.oob == nil {
		m.oob = make([]byte, unix.CmsgSpace(4*maxOOB))
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return 0, fmt.Errorf("receiving: %w", bus.ErrClosed)
	}
	n, oobn, flags, err := ioctl.RecvMsg(s.fd, p, m.oob)
	if oobn > 0 {
		if e := m.addFDs(m.oob[:oobn]); e != nil {
			return 0, e
		}
	}
	if err == nil && (flags&unix.MSG_CTRUNC != 0 || len(m.fds) > ownFDs) {
		return 0, fmt.Errorf("more than %d descriptors in a message: %w", ownFDs, bus.ErrProtocol)
	}
	return n, err
}

// addFDs takes descriptors out of control messages.
func (m *message) addFDs(oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("reading a control message: %w (%w)", err, bus.ErrProtocol)
	}
	for i := range msgs {
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			m.fds = append(m.fds, fds...)
		}
	}
	return nil
}

// send sends a message that begins with its header.
func (s *sock) send(b []byte, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	s.sending.Lock()
	defer s.sending.Unlock()
	s.mu.RLock()
	defer s.mu.RUnlock()
	var due time.Time
	for {
		if s.fd < 0 {
			return fmt.Errorf("sending: %w", bus.ErrClosed)
		}
		n, err := s.write(b, oob)
		switch {
		case err == nil:
			if b, oob = b[n:], nil; len(b) == 0 {
				return nil
			}
		case err != unix.EINTR && err != unix.EAGAIN:
			return fmt.Errorf("sending a message: %w (%w)", err, bus.ErrGone)
		}
		switch {
		case due.IsZero() && err != unix.EAGAIN:
			due = time.Now().Add(s.limit)
		case due.IsZero() || time.Now().After(due):
			return fmt.Errorf("sending a message: the peer did not take it within %v: %w", s.limit, bus.ErrTimeout)
		}
	}
}

// mostAtOnce is what the kernel queues at once: of more it would wait for each part anew, as long as the
// socket's time-out, and a peer that reads slowly could draw one call out.
const mostAtOnce = 32 << 10

// write is one system call. Called with mu held.
func (s *sock) write(b, oob []byte) (int, error) {
	b = b[:min(len(b), mostAtOnce)]
	if oob == nil {
		return unix.Write(s.fd, b) // Go's runtime lets no SIGPIPE pass
	}
	return unix.SendmsgN(s.fd, b, oob, nil, unix.MSG_NOSIGNAL)
}

// ended says whether an error of receive is the peer's end, or this one's.
func ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) || errors.Is(err, bus.ErrClosed)
}
