package ivshmem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// The protocol's numbers.
const (
	protocolVersion = 0
	memoryMessage   = -1
	maxID           = 0xffff
)

// What a server may make this process keep.
const (
	maxVectors     = 64   // of a peer
	maxDescriptors = 4096 // of all peers together
	maxMemory      = 1<<31 - 1
)

// message is one from the server.
type message struct {
	v  int64
	fd int // the receiver's; -1: none
}

// receive reads a message, the first of whose bytes must come before the deadline (zero: whenever), and the rest soon after.
func receive(c *net.UnixConn, deadline time.Time, rest time.Duration) (message, error) {
	var b [8]byte
	oob := make([]byte, unix.CmsgSpace(4))
	m := message{fd: -1}
	if err := c.SetReadDeadline(deadline); err != nil {
		return m, err
	}
	for n := 0; n < len(b); {
		k, oobn, flags, _, err := c.ReadMsgUnix(b[n:], oob)
		if e := m.take(oob[:oobn], flags); e != nil {
			return m.drop(), e
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return m.drop(), fmt.Errorf("%d bytes of a message came in time, want %d: %w", n, len(b), bus.ErrTimeout)
		case err != nil:
			return m.drop(), err
		case k == 0:
			return m.drop(), io.EOF
		}
		if n += k; n < len(b) {
			_ = c.SetReadDeadline(time.Now().Add(rest))
		}
	}
	m.v = int64(binary.LittleEndian.Uint64(b[:]))
	return m, nil
}

// take takes the descriptor that came with some bytes of a message.
func (m *message) take(oob []byte, flags int) error {
	var fds []int
	if cs, err := unix.ParseSocketControlMessage(oob); err == nil {
		for i := range cs {
			if f, err := unix.ParseUnixRights(&cs[i]); err == nil {
				fds = append(fds, f...)
			}
		}
	}
	if len(fds) == 1 && m.fd < 0 && flags&unix.MSG_CTRUNC == 0 {
		m.fd = fds[0]
		return nil
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	if len(fds) > 0 || flags&unix.MSG_CTRUNC != 0 {
		return fmt.Errorf("a message with more than one descriptor: %w", bus.ErrProtocol)
	}
	return nil
}

// drop closes the descriptor.
func (m message) drop() message {
	if m.fd >= 0 {
		_ = unix.Close(m.fd)
	}
	m.fd = -1
	return m
}

// checkEventfd says whether a descriptor is an eventfd, and has writes to it not block.
func checkEventfd(fd int) error {
	const want = "anon_inode:[eventfd]"
	is, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if errors.Is(err, fs.ErrNotExist) {
		// A process that sees no /proc, and nothing that could be harmed: of no file system at all is what it can tell.
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == 0 {
			is = want
		}
	}
	if err != nil {
		return fmt.Errorf("looking at a descriptor: %w", err)
	}
	if is != want {
		return fmt.Errorf("a descriptor of %q, want %q: %w", is, want, bus.ErrProtocol)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("making an eventfd non-blocking: %w", err)
	}
	return nil
}

// mapMemory maps the shared memory.
func mapMemory(fd int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("looking at the memory: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size <= 0 || st.Size > maxMemory || st.Size%int64(os.Getpagesize()) != 0 {
		return nil, fmt.Errorf("the memory is a file of mode %#o and %d bytes, want a regular file of whole pages, at most %d bytes: %w", st.Mode, st.Size, maxMemory, bus.ErrProtocol)
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return nil, fmt.Errorf("the memory's file may shrink, want it sealed against that (F_SEAL_SHRINK): %w", bus.ErrProtocol)
	}
	b, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping the memory: %w", os.NewSyscallError("mmap", err))
	}
	return b, nil
}
