package fabricd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// The ivshmem server's side of its protocol (QEMU docs/specs/ivshmem-spec, "Client-Server protocol"): 8-byte little-endian signed messages,
// some with a descriptor. A client sends nothing.
const (
	ivVersion = 0
	ivShmem   = -1 // carries the shared memory
	ivDaemon  = 0  // the daemon's peer ID; an endpoint's is its index and 1
)

// ivmsg is a message of it.
type ivmsg struct {
	v  int64
	fd int // -1: none
}

// sendIV sends messages within wait, each in a call of its own: one descriptor comes with one message.
func sendIV(c *net.UnixConn, wait time.Duration, msgs ...ivmsg) error {
	if err := c.SetWriteDeadline(time.Now().Add(wait)); err != nil {
		return fmt.Errorf("sending to the node: %w", err)
	}
	for _, m := range msgs {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(m.v))
		var oob []byte
		if m.fd >= 0 {
			oob = unix.UnixRights(m.fd)
		}
		n, _, err := c.WriteMsgUnix(b[:], oob, nil)
		if err == nil && n < len(b) {
			// The descriptor has gone with the first part.
			_, err = c.Write(b[n:])
		}
		if err != nil {
			return fmt.Errorf("sending to the node: %w", err)
		}
	}
	return nil
}

// eventfd makes one that nobody waits for in a system call.
func eventfd() (int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("making an eventfd: %w", err)
	}
	return fd, nil
}

// one is what a signal adds to an eventfd. Nobody changes it.
var one = binary.NativeEndian.AppendUint64(nil, 1)

// signal adds 1 to an eventfd. One that is full has been signalled enough.
func signal(fd int) {
	for {
		if _, err := unix.Write(fd, one); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// sharedMemory makes memory to share: a memfd that nobody can shrink, so that whoever maps it never loses a page, of a size that can be that
// of a BAR (a power of two), and its mapping here.
func sharedMemory(name string, size int) (fd int, mem []byte, err error) {
	n := 4096
	for n < size {
		n <<= 1
	}
	fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, nil, fmt.Errorf("making shared memory: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(n)); err != nil {
		unix.Close(fd)
		return -1, nil, fmt.Errorf("making %d bytes of shared memory: %w", n, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		unix.Close(fd)
		return -1, nil, fmt.Errorf("sealing shared memory: %w", err)
	}
	mem, err = unix.Mmap(fd, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return -1, nil, fmt.Errorf("mapping %d bytes of shared memory: %w", n, err)
	}
	return fd, mem, nil
}
