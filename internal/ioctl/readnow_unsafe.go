package ioctl

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ReadNow is preadv2(2) at the file's position with RWF_NOWAIT: what is there now, or EAGAIN,
// whether or not the descriptor blocks. An eventfd can be read so. It allocates nothing. p must not
// be empty.
func ReadNow(fd int, p []byte) (int, error) {
	v := unix.Iovec{Base: &p[0], Len: uint64(len(p))}
	// SAFETY: the kernel reads v, which keeps p alive, and writes at most len(p) bytes to p during the
	// call, and keeps no pointer. The offset -1, in two halves, is the file's position.
	n, _, e := unix.Syscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&v)), 1, ^uintptr(0), ^uintptr(0), unix.RWF_NOWAIT)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}
