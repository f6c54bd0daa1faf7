package kernfs

import (
	"context"
	"fmt"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/ring3dev/ring3/internal/node"
)

// call runs f, which may block, for a request that may be interrupted. f's context ends at
// an interrupt that counts and when the tree is unmounted; f then has the grace time to return, after
// which it is left to itself. A panic becomes EIO and a line in the log.
func call[T any](t *tree, by interrupt, what string, f func(context.Context) (T, error)) (T, fuse.Status) {
	return callCare(t, by, what, care[T]{}, f)
}

// care is what a call does for an f whose result must not be lost.
type care[T any] struct {
	wait bool    // after an interrupt there is no grace time but only the end of the tree
	late func(T) // gets what an f that was left to itself returned in the end; nil: nobody does
}

// callCare is call with care.
func callCare[T any](t *tree, by interrupt, what string, c care[T], f func(context.Context) (T, error)) (T, fuse.Status) {
	type result struct {
		v   T
		err error
	}
	ctx, stop := context.WithCancel(t.ctx)
	defer stop()
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil {
				t.log.Error("panic in a file's code", "file", what, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				r.err = syscall.EIO
			}
			done <- r
		}()
		r.v, r.err = f(ctx)
	}()
	for given := false; !given; {
		select {
		case r := <-done:
			return r.v, fuse.Status(node.Errno(r.err))
		case <-by.cancel:
		case <-by.again:
		case <-t.ctx.Done():
			given = true
			continue
		}
		if by.heed() {
			stop()
			given = !c.wait
		}
	}
	timer := time.NewTimer(t.grace)
	defer timer.Stop()
	select {
	case r := <-done:
		return r.v, fuse.Status(node.Errno(r.err))
	case <-timer.C:
		t.log.Warn("interrupted, but still busy: left to itself", "file", what, "after", t.grace)
		if c.late != nil {
			go func() { c.late((<-done).v) }()
		}
		var none T
		return none, fuse.EINTR
	}
}
