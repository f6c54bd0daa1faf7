package tap

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// stop lets threads wait in the kernel for a descriptor, and all of them be woken. A nil stop is never waited for.
type stop struct{ fd int }

func newStop() (*stop, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("creating an eventfd: %w", err)
	}
	return &stop{fd}, nil
}

// signal ends all waits, and those to come.
func (s *stop) signal() {
	if s == nil {
		return
	}
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], 1)
	_, _ = unix.Write(s.fd, b[:])
}

// wait blocks the calling thread until there is something to read from fd. It fails with os.ErrClosed after signal.
func (s *stop) wait(fd int) error {
	fds := [2]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(s.fd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds[:], -1)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case fds[1].Revents != 0:
			return os.ErrClosed
		default:
			return nil
		}
	}
}

// close is called when nobody waits any more.
func (s *stop) close() error {
	if s == nil {
		return nil
	}
	return unix.Close(s.fd)
}
