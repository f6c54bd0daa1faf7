package ioctl

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FUTEX_WAIT and FUTEX_WAKE within one process (linux/futex.h).
const (
	futexWaitPrivate = 0 | 128
	futexWakePrivate = 1 | 128
)

// FutexWait is futex(2), FUTEX_WAIT: it blocks this thread while *word is v, until FutexWake, a signal, or d has
// passed; 0 means without end. It may return for no reason.
func FutexWait(word *atomic.Uint32, v uint32, d time.Duration) {
	var limit *unix.Timespec
	if d > 0 {
		ts := unix.NsecToTimespec(d.Nanoseconds())
		limit = &ts
	}
	// SAFETY: both pointers are live during the call, in which stacks do not move; the kernel reads
	// four bytes of word and a timespec, and keeps neither.
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWaitPrivate, uintptr(v), uintptr(unsafe.Pointer(limit)), 0, 0)
}

// FutexWake is futex(2), FUTEX_WAKE: it wakes one thread that waits for word.
func FutexWake(word *atomic.Uint32) {
	// SAFETY: word is live during the call; the kernel uses only its address.
	_, _, _ = unix.RawSyscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWakePrivate, 1)
}
