package bus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/ioctl"
	"github.com/ring3dev/ring3/internal/rt"
)

// SetPolicy is for hosts, before anybody else has the IRQ: a Handler of it runs on a real-time thread.
func (q *IRQ) SetPolicy(p *rt.Policy) { q.policy = p }

// threadWait waits for a vector as Wait does, but blocks the calling thread in the kernel, where the
// interrupt wakes it. One goroutine uses it.
type threadWait struct {
	q    *IRQ
	fds  [2]unix.PollFd // the vector's, and the one that ends it
	n    uint64
	err  error
	read func(fd uintptr) bool
}

func newThreadWait(q *IRQ) (*threadWait, error) {
	stop, err := q.thread.get()
	if err != nil {
		return nil, fmt.Errorf("waiting for %s vector %d: %w", q.mode, q.vector, err)
	}
	w := &threadWait{q: q}
	w.fds[0].Events = unix.POLLIN
	w.fds[1] = unix.PollFd{Fd: int32(stop), Events: unix.POLLIN}
	w.read = w.readEvent
	return w, nil
}

// wait blocks until the vector fired, and returns how often; it fails with ErrClosed after Close.
func (w *threadWait) wait() (uint64, error) {
	q := w.q
	// The descriptor stays open during the call, also when Close is called.
	err := q.raw.Read(w.read)
	if errors.Is(err, os.ErrDeadlineExceeded) { // left over by a Wait whose context ended late
		if err = q.file.SetReadDeadline(time.Time{}); err == nil {
			err = q.raw.Read(w.read)
		}
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("waiting for %s vector %d: %w", q.mode, q.vector, ErrClosed)
	case w.err != nil:
		return 0, fmt.Errorf("waiting for %s vector %d: %w", q.mode, q.vector, w.err)
	}
	if q.seen != nil {
		q.seen(w.n)
	}
	return w.n, nil
}

// readEvent waits for the eventfd and reads it.
func (w *threadWait) readEvent(fd uintptr) bool {
	w.fds[0].Fd = int32(fd)
	var b [8]byte
	for {
		_, err := unix.Poll(w.fds[:], -1)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			w.err = err
			return true
		case w.fds[1].Revents != 0:
			w.err = ErrClosed
			return true
		}
		_, w.err = ioctl.ReadNow(int(fd), b[:]) // somebody else who has it may empty it just now, and have it block
		if w.err == unix.EAGAIN || w.err == unix.EINTR {
			continue
		}
		w.n = binary.NativeEndian.Uint64(b[:])
		return true
	}
}

// stopper ends the wait of a thread. The zero value is ready, and stops nobody.
type stopper struct {
	mu      sync.Mutex
	fd      int // an eventfd, if made is set
	made    bool
	stopped bool
}

// get is the eventfd to wait for beside one's own. It fails with ErrClosed once stop was called.
func (s *stopper) get() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return -1, ErrClosed
	}
	if !s.made {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			return -1, fmt.Errorf("creating an eventfd: %w", err)
		}
		s.fd, s.made = fd, true
	}
	return s.fd, nil
}

// stop wakes who waits, and lets nobody wait any more.
func (s *stopper) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	if s.made {
		var b [8]byte
		binary.NativeEndian.PutUint64(b[:], 1)
		_, _ = unix.Write(s.fd, b[:])
	}
}

// close releases the eventfd, once nobody waits.
func (s *stopper) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.made {
		return nil
	}
	s.made = false
	return unix.Close(s.fd)
}
