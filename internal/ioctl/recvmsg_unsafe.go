package ioctl

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// RecvMsg is recvmsg(2) on a connected socket, with MSG_CMSG_CLOEXEC: the bytes go to p, control
// messages to oob. It allocates nothing. p and oob must not be empty.
func RecvMsg(fd int, p, oob []byte) (n, oobn, flags int, err error) {
	v := unix.Iovec{Base: &p[0], Len: uint64(len(p))}
	m := unix.Msghdr{Iov: &v, Iovlen: 1, Control: &oob[0], Controllen: uint64(len(oob))}
	// SAFETY: the kernel reads m and v, whose pointers keep p and oob alive, writes to those within their
	// lengths and to m during the call, and keeps no pointer.
	r, _, e := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&m)), unix.MSG_CMSG_CLOEXEC)
	if e != 0 {
		return 0, 0, 0, e
	}
	return int(r), int(m.Controllen), int(m.Flags), nil
}
