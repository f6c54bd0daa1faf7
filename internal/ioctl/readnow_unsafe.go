package ioctl

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ReadNow is preadv2(2) at the file's position with RWF_NOWAIT: what is there now, or EAGAIN,
// whether or not the descriptor blocks. An eventfd can be read so, from Linux 5.8 on; where it cannot,
// what is there is asked for first, and it blocks if somebody else takes that just then. It allocates
// nothing. p must not be empty.
func ReadNow(fd int, p []byte) (int, error) {
	v := unix.Iovec{Base: &p[0], Len: uint64(len(p))}
	// SAFETY: the kernel reads v, which keeps p alive, and writes at most len(p) bytes to p during the
	// call, and keeps no pointer. The offset -1, in two halves, is the file's position.
	n, _, e := unix.Syscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&v)), 1, ^uintptr(0), ^uintptr(0), unix.RWF_NOWAIT)
	switch e {
	case 0:
		return int(n), nil
	case unix.EOPNOTSUPP, unix.ENOSYS:
		return readReady(fd, p)
	}
	return 0, e
}

// readReady is read(2) of what poll(2) says is there.
func readReady(fd int, p []byte) (int, error) {
	f := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(f[:], 0)
	for err == unix.EINTR {
		n, err = unix.Poll(f[:], 0)
	}
	switch {
	case err != nil:
		return 0, err
	case n == 0:
		return 0, unix.EAGAIN
	}
	// unix.Read has p escape, in a program with the race detector.
	// SAFETY: the kernel writes at most len(p) bytes to p during the call, and keeps no pointer.
	r, _, e := unix.Syscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	if e != 0 {
		return 0, e
	}
	return int(r), nil
}
