// Package osthread runs code on operating system threads of its own, whose affinity and
// name it may change.
package osthread

import (
	"errors"
	"fmt"
	"math"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/ioctl"
)

// Name names the calling thread, which is the goroutine's own, for ps, top and gdb: at most 15 bytes.
func Name(s string) { _ = ioctl.SetThreadName(s) }

// Go runs f in a new goroutine on a thread that is f's alone, and ends with it. It is
// never the main thread: that one never ends, and its affinity and name are the process's in
// the eyes of others.
func Go(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		// While the main thread is locked here, a new goroutine gets another.
		other := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(other)
			f()
		}()
		<-other
		runtime.UnlockOSThread()
	}()
}

// Undisturbed makes a call that a signal would end, on a thread that gets none meanwhile. Go's runtime sends SIGURG to a thread that it wants to have another
// goroutine, which may be in the call by then; SIGCHLD goes to any; and package os begins a read or write anew that a signal ended. The signals of but still come.
func Undisturbed(f func() error, but ...unix.Signal) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var set, old unix.Sigset_t
	for i := range set.Val {
		set.Val[i] = math.MaxUint64
	}
	for _, s := range but {
		set.Val[(s-1)/64] &^= 1 << ((s - 1) % 64)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, &old); err != nil {
		return fmt.Errorf("blocking signals: %w", err)
	}
	return errors.Join(f(), unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil))
}
