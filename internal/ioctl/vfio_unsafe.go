package ioctl

import (
	"encoding/binary"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Value is an ioctl whose argument is a number. It returns what the ioctl returns.
func Value(fd int, req, v uintptr) (int, error) {
	n, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, v)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// Bytes is an ioctl whose argument is a structure that holds no address: b, which is not
// empty. It returns what the ioctl returns, and allocates nothing.
func Bytes(fd int, req uintptr, b []byte) (int, error) {
	// SAFETY: the structure begins with its length, or has one length only: the kernel reads and
	// writes within b during the call, and keeps no pointer.
	n, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(&b[0])))
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// Memory is Bytes for a structure that holds the address of mem, at offset at of b. mem must
// be mapped memory, or on the heap; it must stay for as long as the kernel uses it.
func Memory(fd int, req uintptr, b []byte, at int, mem []byte) (int, error) {
	// SAFETY: the address is that of memory that does not move: no stack, as the caller promises,
	// and Go's heap does not move. It lives until the call is over at least.
	binary.NativeEndian.PutUint64(b[at:], uint64(uintptr(unsafe.Pointer(&mem[0]))))
	n, err := Bytes(fd, req, b)
	runtime.KeepAlive(mem)
	return n, err
}

// Out is Memory for an ioctl that fills out, which may be anywhere.
func Out(fd int, req uintptr, b []byte, at int, out []byte) (int, error) {
	var pin runtime.Pinner
	heap := make([]byte, len(out))
	pin.Pin(&heap[0])
	defer pin.Unpin()
	n, err := Memory(fd, req, b, at, heap)
	copy(out, heap)
	return n, err
}

// Address is where memory is, for looking at its alignment.
func Address(mem []byte) uintptr {
	// SAFETY: the address is a number from here on, and never one again.
	return uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
}
