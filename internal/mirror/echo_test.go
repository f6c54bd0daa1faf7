package mirror

import (
	"context"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/node"
)

// echo is a stream whose reads give what was written, after the worker's generation; it is a node.Poller.
type echo struct {
	release func()
	gen     string

	mu      sync.Mutex
	have    []byte
	changed chan struct{}
}

// openEcho makes the Open of a file that one program at a time may have.
func openEcho(generation string) func(int) (node.Stream, error) {
	var mu sync.Mutex
	busy := false
	return func(int) (node.Stream, error) {
		mu.Lock()
		defer mu.Unlock()
		if busy {
			return nil, syscall.EBUSY
		}
		busy = true
		return &echo{gen: generation, changed: make(chan struct{}), release: func() {
			mu.Lock()
			defer mu.Unlock()
			busy = false
		}}, nil
	}
}

func (x *echo) change() {
	close(x.changed)
	x.changed = make(chan struct{})
}

func (x *echo) Read(ctx context.Context, p []byte, flags int) (int, error) {
	for {
		x.mu.Lock()
		if len(x.have) > 0 {
			defer x.mu.Unlock()
			n := copy(p, x.have)
			x.have = x.have[n:]
			x.change()
			return n, nil
		}
		changed := x.changed
		x.mu.Unlock()
		if flags&unix.O_NONBLOCK != 0 {
			return 0, syscall.EAGAIN
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (x *echo) Write(_ context.Context, p []byte, _ int) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.have = append(append(x.have, x.gen+":"...), p...)
	x.change()
	return len(p), nil
}

func (x *echo) Poll() (uint32, <-chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	events := uint32(unix.POLLOUT)
	if len(x.have) > 0 {
		events |= unix.POLLIN
	}
	return events, x.changed
}

func (x *echo) Close() error {
	x.release()
	return nil
}
