// Package osthread runs code on operating system threads of its own, whose affinity and
// name it may change.
package osthread

import (
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
