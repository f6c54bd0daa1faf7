package ioctl

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// RecvNow is recv(2) with MSG_DONTWAIT: what is there now, or EAGAIN. It allocates
// nothing. p must not be empty.
func RecvNow(fd int, p []byte) (int, error) {
	// SAFETY: the kernel writes at most len(p) bytes to p during the call, which never
	// blocks, and keeps no pointer.
	n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}
