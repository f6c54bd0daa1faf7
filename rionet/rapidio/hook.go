package rapidio

import (
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// hook is somebody who is called when something happens, until it is let go.
type hook struct {
	mu  sync.Mutex // held while it is called
	off atomic.Bool
}

// run calls f, unless the hook was let go. Its name is what inCallback looks for.
//
//go:noinline
func (h *hook) run(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.off.Load() {
		f()
	}
}

// release lets the hook go: when it returns, the callback does not run and will not, but where it was called from within a callback: then
// it does not wait, since it might wait for itself.
func (h *hook) release() {
	h.off.Store(true)
	if inCallback() {
		return
	}
	h.mu.Lock() // until it has returned
	defer h.mu.Unlock()
}

// inCallback tells whether the caller was called by a callback of this package.
func inCallback() bool {
	var pcs [64]uintptr
	for skip := 2; ; skip += len(pcs) {
		n := runtime.Callers(skip, pcs[:])
		if n == 0 {
			return false
		}
		frames := runtime.CallersFrames(pcs[:n])
		for {
			f, more := frames.Next()
			if strings.HasSuffix(f.Function, "/rapidio.(*hook).run") {
				return true
			}
			if !more {
				break
			}
		}
		if n < len(pcs) {
			return false
		}
	}
}

// hooks are those that are told of something: port-writes, the link.
type hooks[T any] struct {
	mu   sync.Mutex
	list []*toldHook[T] // replaced, never changed
}

type toldHook[T any] struct {
	hook
	f func(T)
}

func (l *hooks[T]) add(f func(T)) (cancel func()) {
	h := &toldHook[T]{f: f}
	l.mu.Lock()
	l.list = append(slices.Clone(l.list), h)
	l.mu.Unlock()
	return func() {
		l.mu.Lock()
		if i := slices.Index(l.list, h); i >= 0 {
			l.list = slices.Delete(slices.Clone(l.list), i, i+1)
		}
		l.mu.Unlock()
		h.release()
	}
}

// call tells all of them, in the order in which they asked, and how many there were.
func (l *hooks[T]) call(what T) int {
	l.mu.Lock()
	list := l.list
	l.mu.Unlock()
	for _, h := range list {
		h.run(func() { h.f(what) })
	}
	return len(list)
}

// drop lets all go.
func (l *hooks[T]) drop() {
	l.mu.Lock()
	list := l.list
	l.list = nil
	l.mu.Unlock()
	for _, h := range list {
		h.release()
	}
}
