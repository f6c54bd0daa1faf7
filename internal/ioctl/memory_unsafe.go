package ioctl

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// MapOver is mmap(2) with MAP_FIXED: it replaces area, which must be whole pages of a mapping of
// the caller's, by what stands at off in the file fd, to be read and written. area, and the
// mapping that it is a part of, are unmapped as before.
func MapOver(area []byte, fd int, off int64) error {
	// SAFETY: the pages replaced are the caller's own mapping, which area keeps referring to: they
	// are not Go's heap or stack. The kernel keeps no pointer.
	_, _, e := unix.Syscall6(unix.SYS_MMAP, uintptr(unsafe.Pointer(&area[0])), uintptr(len(area)),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED, uintptr(fd), uintptr(off))
	if e != 0 {
		return e
	}
	return nil
}

// MapEmpty is mmap(2) with MAP_FIXED too: it replaces area by memory of this process's own that is 0.
func MapEmpty(area []byte) error {
	// SAFETY: as in MapOver.
	_, _, e := unix.Syscall6(unix.SYS_MMAP, uintptr(unsafe.Pointer(&area[0])), uintptr(len(area)),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE|unix.MAP_FIXED, ^uintptr(0), 0)
	if e != 0 {
		return e
	}
	return nil
}

// Pin keeps the pages of b, a mapping, where they are in physical memory until the descriptor that
// it returns is closed. io_uring pins a registered buffer for as long as it likes, and needs no
// privilege but RLIMIT_MEMLOCK; this is a ring that is used for nothing else.
func Pin(b []byte) (fd int, err error) {
	const registerBuffers = 0 // IORING_REGISTER_BUFFERS
	var params [120]byte      // struct io_uring_params, all defaults
	// SAFETY: the kernel reads and writes the 120 bytes of params during the call and keeps no
	// pointer.
	r, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	if e != 0 {
		return -1, e
	}
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	// SAFETY: the kernel reads v during the call. It keeps the pages of b, not its address: they
	// are a mapping, and outlive an unmapping until fd is closed.
	_, _, e = unix.Syscall6(unix.SYS_IO_URING_REGISTER, r, registerBuffers, uintptr(unsafe.Pointer(&v)), 1, 0, 0)
	if e != 0 {
		_ = unix.Close(int(r))
		return -1, e
	}
	return int(r), nil
}
