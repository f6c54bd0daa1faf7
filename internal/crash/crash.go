// Package crash gives what knows of it a last word when the program panics.
//
// Go runs nothing when a goroutine panics but that goroutine's own deferred functions. So the
// goroutines that run drivers' code defer [Report] at their root, and whoever has something to
// tell about the time before (a device's flight recorder) says so with [Notify].
package crash

import (
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// patience bounds all last words: what is told may be locked by who panicked.
const patience = 2 * time.Second

var (
	mu    sync.Mutex
	calls []*func() // guarded by mu
	once  sync.Once
)

// Notify has f called, once, when the program is about to die of a panic. cancel takes it back.
func Notify(f func()) (cancel func()) {
	mu.Lock()
	defer mu.Unlock()
	p := &f
	calls = append(calls, p)
	return func() {
		mu.Lock()
		defer mu.Unlock()
		calls = slices.DeleteFunc(calls, func(c *func()) bool { return c == p })
	}
}

// Report is to be deferred. In a panic it calls what [Notify] was told, and panics on: the
// trace still shows where it began.
func Report() {
	v := recover()
	if v == nil {
		return
	}
	once.Do(func() {
		cause.Store(&Cause{v, debug.Stack()})
		tell()
	})
	panic(v)
}

// Cause is why the program is about to die.
type Cause struct {
	Value any    // of the panic
	Stack []byte // of its goroutine
}

var cause atomic.Pointer[Cause]

// Why is the cause, for who is called for a last word; nil before that.
func Why() *Cause { return cause.Load() }

func tell() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		mu.Lock()
		defer mu.Unlock()
		for _, f := range calls {
			(*f)()
		}
	}()
	select {
	case <-done:
	case <-time.After(patience):
	}
}
