package ioctl

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SeccompFilter is seccomp(SECCOMP_SET_MODE_FILTER): from now on the filter decides every system call of this thread, or of all with
// SECCOMP_FILTER_FLAG_TSYNC. With SECCOMP_FILTER_FLAG_NEW_LISTENER it returns the descriptor of the listener.
func SeccompFilter(flags uint, filter []unix.SockFilter) (int, error) {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// SAFETY: the kernel copies prog and the filter that it points to, which prog keeps alive, during the call.
	r, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if e != 0 {
		return -1, e
	}
	return int(r), nil
}

// SeccompNotice is struct seccomp_notif: a system call that waits for an answer.
type SeccompNotice struct {
	ID    uint64
	PID   uint32 // of the thread
	Flags uint32
	Nr    int32
	Arch  uint32
	IP    uint64
	Args  [6]uint64
}

// SeccompReceive is ioctl(SECCOMP_IOCTL_NOTIF_RECV) on a listener. It blocks where no call waits, unless all threads are gone.
func SeccompReceive(fd int) (n SeccompNotice, err error) {
	// SAFETY: the kernel writes 80 bytes, which n has, during the call.
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n)))
	if e != 0 {
		return n, e
	}
	return n, nil
}

// DropCapabilities is capset(2) with none, on all threads of this process. It fails with ENOTSUP in a program that uses cgo, whose other threads
// it does not reach: then only the calling thread has none.
func DropCapabilities() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	// SAFETY: hdr and data escape (AllThreadsSyscall is marked uintptrescapes), so they stay where they are; the kernel only reads them.
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0)
	if e == 0 {
		return nil
	}
	if e == unix.ENOTSUP {
		_ = unix.Capset(&hdr, &data[0])
	}
	return e
}
