package ioctl

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// arphrdEther is the hardware type of Ethernet.
const arphrdEther = 1

// SetHWAddr is ioctl(SIOCSIFHWADDR) on a file of /dev/net/tun: the station address of its
// interface.
func SetHWAddr(fd int, mac [6]byte) error {
	var r struct {
		name   [unix.IFNAMSIZ]byte
		family uint16
		data   [14]byte
		_      [8]byte // struct ifreq has 40 bytes
	}
	r.family = arphrdEther
	copy(r.data[:], mac[:])
	// SAFETY: the kernel reads the 40 bytes of r during the call and keeps no pointer.
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFHWADDR, uintptr(unsafe.Pointer(&r)))
	if e != 0 {
		return e
	}
	return nil
}

// Writev is writev(2) of pieces that the caller has put into v, which must not be empty. It
// allocates nothing.
func Writev(fd int, v []unix.Iovec) (int, error) {
	// SAFETY: the kernel reads v, whose pointers keep the pieces alive, and the pieces
	// during the call, and keeps no pointer.
	n, _, e := unix.Syscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&v[0])), uintptr(len(v)))
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}
