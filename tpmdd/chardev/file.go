package chardev

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
)

// keep is how long an answer waits for its reader.
const keep = 120 * time.Second

// minWrite is the part of a header that has the length in it.
const minWrite = 6

// File is an open /dev/tpm0 or /dev/tpmrm0. It is safe for concurrent use.
type File struct {
	d       *Device
	send    func(ctx context.Context, cmd []byte) ([]byte, error)
	release func()
	timers  sync.WaitGroup // those that run, or will

	mu      sync.Mutex
	running chan struct{} // a command is on its way; closed when it is done. nil: none is
	async   bool          // it was written with O_NONBLOCK
	answer  []byte        // what was not read yet
	err     error         // in place of an answer, after O_NONBLOCK
	fresh   bool          // nothing was read of it
	timer   *time.Timer   // discards the answer
	changed chan struct{} // closed when Poll may say something else; nil: nobody asked
	closed  bool
}

func newFile(d *Device, send func(context.Context, []byte) ([]byte, error), release func()) *File {
	return &File{d: d, send: send, release: release}
}

// errClosed is what a closed file says.
func errClosed() error { return fmt.Errorf("tpm: %w: %w", unix.EBADF, bus.ErrClosed) }

// idle locks f.mu when no command is on its way, or fails with it unlocked. It waits for a command, but where
// busy is set not for one that was written with O_NONBLOCK: that is EBUSY.
func (f *File) idle(ctx context.Context, busy bool) error {
	for {
		f.mu.Lock()
		running, async := f.running, f.async
		switch {
		case f.closed:
			f.mu.Unlock()
			return errClosed()
		case running == nil:
			return nil
		}
		f.mu.Unlock()
		if async && busy {
			return fmt.Errorf("tpm: a command is on its way: %w: %w", unix.EBUSY, bus.ErrBusy)
		}
		select {
		case <-running:
		case <-ctx.Done():
			return fmt.Errorf("tpm: waiting for a command: %w: %w", unix.EINTR, ctx.Err())
		}
	}
}

// Write takes one command.
func (f *File) Write(ctx context.Context, p []byte, flags int) (int, error) {
	if len(p) > tpmdd.MaxCommand {
		return 0, fmt.Errorf("tpm: a command of %d bytes: %w", len(p), unix.E2BIG)
	}
	if err := f.idle(ctx, true); err != nil {
		return 0, err
	}
	cmd, err := f.accept(p)
	if err != nil {
		f.mu.Unlock()
		return 0, err
	}
	async := flags&unix.O_NONBLOCK != 0
	f.forget()
	f.running, f.async, f.fresh = make(chan struct{}), async, true
	f.notify()
	f.mu.Unlock()
	if async {
		go func() { // Close waits for it
			rsp, err := f.execute(context.Background(), cmd)
			f.finish(rsp, err)
		}()
		return len(p), nil
	}
	rsp, err := f.execute(ctx, cmd)
	f.finish(rsp, nil)
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// accept checks a write, with f.mu held, and returns the command in it.
func (f *File) accept(p []byte) ([]byte, error) {
	if f.pending() && f.fresh {
		return nil, fmt.Errorf("tpm: an answer was not read: %w: %w", unix.EBUSY, bus.ErrBusy)
	}
	if len(p) < minWrite {
		return nil, fmt.Errorf("tpm: a command of %d bytes: %w", len(p), unix.EINVAL)
	}
	n := binary.BigEndian.Uint32(p[2:])
	if n > uint32(len(p)) {
		return nil, fmt.Errorf("tpm: a command of %d bytes says that it has %d: %w", len(p), n, unix.EINVAL)
	}
	return slices.Clone(p[:n]), nil
}

// execute has a command answered.
func (f *File) execute(ctx context.Context, cmd []byte) ([]byte, error) {
	if len(cmd) == 0 {
		return nil, fmt.Errorf("tpm: a command says that it has 0 bytes: %w", unix.ENODATA)
	}
	var rsp []byte
	if f.d.opt.Refuse != nil && len(cmd) >= tpmdd.HeaderSize {
		rsp = f.d.opt.Refuse(cmd)
	}
	if rsp == nil {
		var err error
		if rsp, err = f.send(ctx, cmd); err != nil {
			return nil, withErrno(err)
		}
	}
	if len(rsp) == 0 || len(rsp) > tpmdd.MaxCommand {
		return nil, fmt.Errorf("tpm: an answer of %d bytes: %w: %w", len(rsp), unix.EIO, bus.ErrProtocol)
	}
	return slices.Clone(rsp), nil // it is zeroed when read
}

// withErrno gives an error what a program is to see of it. That a ctx has ended can only mean the wait for the turn.
func withErrno(err error) error {
	var errno unix.Errno
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("tpm: waiting for the TPM: %w: %w", unix.EINTR, err)
	case !errors.As(err, &errno):
		return fmt.Errorf("tpm: %w: %w", unix.EIO, err)
	}
	return err
}

// finish puts what became of a command where Read finds it.
func (f *File) finish(rsp []byte, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.running)
	f.running = nil
	if f.closed {
		clear(rsp)
		return
	}
	f.answer, f.err = rsp, err
	if f.pending() {
		f.arm()
	}
	f.notify()
}

// Read gives what there is of the answer.
func (f *File) Read(ctx context.Context, p []byte, flags int) (int, error) {
	if err := f.idle(ctx, false); err != nil {
		return 0, err
	}
	defer f.mu.Unlock()
	if !f.pending() {
		return 0, nil
	}
	f.fresh = false
	if err := f.err; err != nil {
		f.forget()
		f.notify()
		return 0, err
	}
	n := copy(p, f.answer)
	clear(f.answer[:n])
	f.answer = f.answer[n:]
	if n == 0 || len(f.answer) == 0 {
		f.forget()
		f.notify()
	}
	return n, nil
}

// Poll tells what is possible (POLLIN and so on). changed is closed when that may have changed.
func (f *File) Poll() (events uint32, changed <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	switch {
	case f.closed:
		events = unix.POLLNVAL
	case f.pending():
		events = unix.EPOLLIN | unix.EPOLLRDNORM
	case f.running == nil:
		events = unix.EPOLLOUT | unix.EPOLLWRNORM
	}
	return events, f.changed
}

// Close ends the file, after the command that is on its way.
func (f *File) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return errClosed()
	}
	f.closed = true
	running := f.running
	f.forget()
	f.notify()
	f.mu.Unlock()
	if running != nil {
		<-running
	}
	f.timers.Wait()
	f.release()
	return nil
}

// What follows is called with f.mu held.

// pending tells whether there is something for Read.
func (f *File) pending() bool { return len(f.answer) > 0 || f.err != nil }

// notify wakes who polls.
func (f *File) notify() {
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// forget drops the answer and its timer.
func (f *File) forget() {
	clear(f.answer)
	f.answer, f.err = nil, nil
	if f.timer != nil && f.timer.Stop() {
		f.timers.Done()
	}
	f.timer = nil
}

// arm starts the time that an answer has.
func (f *File) arm() {
	f.timers.Add(1)
	var t *time.Timer
	t = time.AfterFunc(keep, func() {
		defer f.timers.Done()
		f.expire(&t)
	})
	f.timer = t
}

// expire discards the answer of which t is the timer, unless it was read meanwhile. It takes f.mu; t is read with it.
func (f *File) expire(t **time.Timer) {
	f.mu.Lock()
	stale := f.timer != *t
	if !stale {
		f.timer = nil
		f.forget()
		f.fresh = false
		f.notify()
	}
	f.mu.Unlock()
	if !stale {
		f.d.opt.Warn("TPM user space timeout is deprecated (pid=0)")
	}
}
