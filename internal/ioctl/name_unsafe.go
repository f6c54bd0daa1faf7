package ioctl

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// SetThreadName names the calling thread, for ps, top and gdb: at most 15 bytes. It needs no /proc.
func SetThreadName(name string) error {
	var b [16]byte // with the zero that ends it
	copy(b[:len(b)-1], name)
	// SAFETY: the kernel reads the 16 bytes of b during the call only.
	if _, _, errno := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b)), 0); errno != 0 {
		return errno
	}
	return nil
}
