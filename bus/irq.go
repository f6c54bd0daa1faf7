package bus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/ioctl"
	"github.com/ring3dev/ring3/internal/rt"
)

// IRQMode is a way of interrupting.
type IRQMode uint8

// Interrupt modes of PCI.
const (
	INTx IRQMode = iota // a level-triggered line, shared; masked when it fires until Unmask
	MSI
	MSIX
)

func (m IRQMode) String() string {
	switch m {
	case INTx:
		return "INTx"
	case MSI:
		return "MSI"
	case MSIX:
		return "MSI-X"
	}
	return fmt.Sprintf("IRQMode(%d)", uint8(m))
}

// IRQ is one interrupt vector: an eventfd in the runtime's poller. One goroutine
// waits; any may Signal, Unmask or Close.
type IRQ struct {
	file   *os.File
	fd     int
	mode   IRQMode
	vector int
	line   int // of INTx
	number int // the system's; 0: it gave none
	unmask func()
	seen   func(n uint64) // of a wrapper: Observe
	others atomic.Bool    // something else signals the eventfd, or may: WrapIRQ, FD
	once   sync.Once
	err    error

	raw  syscall.RawConn // of file; what follows is the waiter's
	read func(fd uintptr) bool
	got  [8]byte
	fail error

	divert sync.RWMutex // guards what follows; held for reading while to is written to
	to     int          // instead of fd: Divert; -1: fd
	closed bool

	policy *rt.Policy // of its handler's thread; nil: it has none
	thread stopper    // ends the wait of such a thread
}

// NewIRQ makes a vector, for backends. unmask is called by Unmask and may be nil. The
// descriptor to pass on is FD.
func NewIRQ(mode IRQMode, vector int, unmask func()) (*IRQ, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("creating an eventfd: %w", err)
	}
	return newIRQ(mode, vector, fd, unmask)
}

// WrapIRQ makes a vector of an eventfd that something else (QEMU, the kernel, a peer)
// already signals, for backends. It duplicates fd, which stays the caller's, and
// forgets what was signalled before.
func WrapIRQ(mode IRQMode, vector, fd int, unmask func()) (*IRQ, error) {
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicating an eventfd: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("making an eventfd non-blocking: %w", err)
	}
	var b [8]byte
	_, _ = ioctl.ReadNow(fd, b[:])
	q, err := newIRQ(mode, vector, fd, unmask)
	if err != nil {
		return nil, err
	}
	q.others.Store(true)
	return q, nil
}

// newIRQ takes fd over.
func newIRQ(mode IRQMode, vector, fd int, unmask func()) (*IRQ, error) {
	q := &IRQ{
		file: os.NewFile(uintptr(fd), fmt.Sprintf("%s vector %d", mode, vector)),
		fd:   fd, mode: mode, vector: vector, unmask: unmask, to: -1,
	}
	q.read = q.readEvent
	var err error
	if q.raw, err = q.file.SyscallConn(); err == nil {
		err = q.file.SetReadDeadline(time.Time{}) // it cannot be where a peer made it block just now
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("waiting for an eventfd: %w", err), q.Close())
	}
	return q, nil
}

// readEvent is one look at the eventfd. Whether that blocks, somebody else who has it may change at any time.
func (q *IRQ) readEvent(fd uintptr) bool {
	_, q.fail = ioctl.ReadNow(int(fd), q.got[:])
	return q.fail != unix.EAGAIN
}

// FD is the eventfd, for passing to the kernel or another process while the IRQ is
// open. It stays the IRQ's own.
func (q *IRQ) FD() int {
	q.others.Store(true)
	return q.fd
}

// Mode is the vector's mode.
func (q *IRQ) Mode() IRQMode { return q.mode }

// Vector is the vector's number, from 0.
func (q *IRQ) Vector() int { return q.vector }

// SetLine is for backends: it tells the input of the interrupt controller that an INTx
// stands for, before anybody else has the IRQ.
func (q *IRQ) SetLine(n int) { q.line = n }

// SetNumber is for hosts: it tells the number that the interrupt has in /proc/interrupts, before a driver has it.
func (q *IRQ) SetNumber(n int) { q.number = n }

// Number is what SetNumber told, 0 where nobody did: what a driver's messages name.
func (q *IRQ) Number() int { return q.number }

// Observe is for wrappers of devices, before anybody else has the IRQ: fired is called in each
// Wait that consumed interrupts, with how often the vector fired, before Wait returns; with
// n = 0 it is called in each Unmask. Wrappers of wrappers are called in the order in which
// they asked. It must neither block nor wait for the IRQ.
func (q *IRQ) Observe(fired func(n uint64)) {
	if first := q.seen; first != nil {
		q.seen = func(n uint64) { first(n); fired(n) }
		return
	}
	q.seen = fired
}

// HWIRQ is the number that the interrupt has in hardware, as /proc/interrupts shows it: the
// vector's, or for INTx the input of the interrupt controller, 0 where nobody told.
func (q *IRQ) HWIRQ() int { return q.vector + q.line }

// Wait blocks until the vector fired since the last Wait, and returns how often. It
// fails with ErrClosed after Close, and with the context's error when ctx ends. A
// context that never ends costs nothing.
func (q *IRQ) Wait(ctx context.Context) (uint64, error) {
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, func() { _ = q.file.SetReadDeadline(time.Unix(1, 0)) })
		defer func() {
			if !stop() {
				_ = q.file.SetReadDeadline(time.Time{})
			}
		}()
	}
	for {
		err := q.raw.Read(q.read)
		switch {
		case err == nil && q.fail == nil:
			n := binary.NativeEndian.Uint64(q.got[:])
			if q.seen != nil {
				q.seen(n)
			}
			return n, nil
		case err == nil:
			return 0, fmt.Errorf("waiting for %s vector %d: %w", q.mode, q.vector, q.fail)
		case errors.Is(err, os.ErrDeadlineExceeded):
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			// A deadline left over by an earlier Wait whose context ended late.
			if err := q.file.SetReadDeadline(time.Time{}); err != nil {
				return 0, fmt.Errorf("waiting for %s vector %d: %w", q.mode, q.vector, ErrClosed)
			}
		default: // a RawConn fails with nothing else, once there is a deadline to set
			return 0, fmt.Errorf("waiting for %s vector %d: %w", q.mode, q.vector, ErrClosed)
		}
	}
}

// Signal fires the vector: what a backend does for an interrupt that did not arrive
// as an eventfd, and a test for one that never came.
func (q *IRQ) Signal() { q.SignalN(1) }

// SignalN fires the vector n times at once: what a backend does that is told a count.
func (q *IRQ) SignalN(n uint64) {
	if n == 0 {
		return
	}
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], n)
	q.divert.RLock()
	defer q.divert.RUnlock()
	if q.to >= 0 {
		_, _ = unix.Write(q.to, b[:]) // full: it is signalled already
		return
	}
	_, _ = q.file.Write(b[:])
}

// Divert is for servers of devices, before anybody waits: from now on what fires the vector
// signals the eventfd fd, and nobody need carry it there. It says false, and changes nothing,
// where something else signals the vector's own eventfd, or could since it took FD, or a wrapper observes it: then somebody
// must wait, and pass on. It duplicates fd, which should not block.
func (q *IRQ) Divert(fd int) bool {
	if q.others.Load() || q.seen != nil {
		return false
	}
	to, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return false
	}
	q.divert.Lock()
	defer q.divert.Unlock()
	if q.closed {
		_ = unix.Close(to)
		return true // nothing fires any more
	}
	if q.to >= 0 {
		_ = unix.Close(q.to)
	}
	q.to = to
	// What was signalled before.
	var b [8]byte
	if n, err := unix.Read(q.fd, b[:]); err == nil && n == len(b) {
		_, _ = unix.Write(q.to, b[:])
	}
	return true
}

// Unmask lets a level-triggered line fire again; a handler calls it after it made the
// device lower the line. For the other modes it does nothing.
func (q *IRQ) Unmask() {
	if q.seen != nil {
		q.seen(0)
	}
	if q.unmask != nil {
		q.unmask()
	}
}

// Closed says whether Close was called.
func (q *IRQ) Closed() bool {
	q.divert.RLock()
	defer q.divert.RUnlock()
	return q.closed
}

// Close closes the eventfd and wakes whoever waits. It is idempotent.
func (q *IRQ) Close() error {
	q.once.Do(func() {
		q.divert.Lock()
		if q.to >= 0 {
			_ = unix.Close(q.to)
		}
		q.to, q.closed = -1, true
		q.divert.Unlock()
		q.thread.stop()
		q.err = errors.Join(q.file.Close(), q.thread.close()) // the first returns when nobody waits any more
	})
	return q.err
}
