package ioctl

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Getcpu is getcpu(2): the CPU this thread runs on at this moment.
func Getcpu() (int, error) {
	var cpu uint32
	// SAFETY: the kernel writes 4 bytes to cpu during the call and keeps no pointer.
	_, _, e := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(cpu), nil
}
