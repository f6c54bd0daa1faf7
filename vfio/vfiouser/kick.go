package vfiouser

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/ioctl"
)

// Whether an eventfd blocks is not the descriptor's, but everybody's who has it: a peer can have a write to it
// block at any time, and the eventfd full. There is no write that does not block whatever the flag says, as
// there is such a read (ioctl.ReadNow). So who might be held up in a write is let go by somebody else, who
// empties the eventfd.

// sink is a new eventfd.
func sink() (int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("creating an eventfd: %w", err)
	}
	return fd, nil
}

// drainEventfd empties an eventfd, and never blocks, whatever the descriptor says.
func drainEventfd(fd int) bool {
	if fd < 0 {
		return false
	}
	var b [8]byte
	n, err := ioctl.ReadNow(fd, b[:])
	return err == nil && n == len(b)
}

// full says whether an eventfd takes no more, which after 2^64 events is no accident.
func full(fd int) bool {
	if fd < 0 {
		return false
	}
	p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(p[:], 0)
	return err == nil && n == 0
}

// kick is an eventfd of the server's that the client writes to.
type kick struct {
	fd           int
	begun, ended atomic.Uint64 // writes
}

// ring adds to the eventfd. What is full was rung already.
func (k *kick) ring(dead func() bool) {
	k.begun.Add(1)
	if !dead() { // else nobody would let it go
		_, _ = unix.Write(k.fd, oneEvent[:])
	}
	k.ended.Add(1)
}

// under says whether a write is under way.
func (k *kick) under() bool {
	ended := k.ended.Load()
	return k.begun.Load() != ended
}

func (k *kick) close() { closeFD(&k.fd) }

// kicks are all of a client's.
type kicks struct {
	mu  sync.Mutex
	all []*kick
}

func (s *kicks) add(k *kick) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, k)
}

// check is for whoever listens to the server, now and then: it fails where that holds up a write.
func (s *kicks) check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.all {
		if k.under() && full(k.fd) {
			return fmt.Errorf("the server keeps a doorbell's eventfd full: %w", bus.ErrProtocol)
		}
	}
	return nil
}

// letGo returns when no write is under way, nor will one be that is held up: the link is dead.
func (s *kicks) letGo() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.all {
		for k.under() {
			drainEventfd(k.fd)
			time.Sleep(time.Millisecond)
		}
	}
}
