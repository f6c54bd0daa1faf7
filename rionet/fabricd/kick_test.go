package fabricd

import (
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/rionet/shm"
)

// bareNode is a node of no server: eventfds and a connection.
func bareNode(t *testing.T) *node {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range pair {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		conns[i] = c.(*net.UnixConn)
	}
	n := &node{conn: conns[0], stop: make(chan struct{}), working: make(chan struct{})}
	fds := make([]int, shm.NumVectors+1)
	for i := range fds {
		if fds[i], err = eventfd(); err != nil {
			t.Fatal(err)
		}
	}
	n.wakeFD = fds[shm.NumVectors]
	n.wake = os.NewFile(uintptr(n.wakeFD), "eventfd")
	copy(n.vec[:], fds)
	return n
}

// TestFinishCounts: whoever sees that a node ends must see that it is being signalled, or it closes the eventfd too early.
func TestFinishCounts(t *testing.T) {
	for i := range 300 {
		n := bareNode(t)
		seen := make(chan bool)
		go func() {
			for !n.ended() { // not by receiving: that takes longer than what is looked for
			}
			seen <- n.kicking.Load() != 0 || n.kicked.Load() != 0
		}()
		n.end("test")
		if !<-seen {
			t.Fatalf("ending node %d: it was seen to end before its signal was counted", i)
		}
		eventually(t, "the signal", func() bool { return n.kicking.Load() == 0 })
		n.closeEventfds()
	}
}

// TestDrainLeavesOthers: once a node's eventfds are closed, their numbers are of other files, which nobody may empty.
func TestDrainLeavesOthers(t *testing.T) {
	n := bareNode(t)
	close(n.working)
	n.kicking.Store(1) // for good
	done := make(chan struct{})
	go func() { n.drain(); close(done) }()
	for range 100 {
		n.kick(1<<shm.NumVectors - 1)
	}
	n.closeEventfds()
	var others []int
	for range shm.NumVectors + 1 {
		fd, err := eventfd()
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		signal(fd)
		others = append(others, fd)
	}
	<-done
	for _, fd := range others {
		var b [8]byte
		if k, err := unix.Read(fd, b[:]); k != 8 {
			t.Errorf("eventfd %d of another: reading what it has = %d, %v, want 8 bytes", fd, k, err)
		}
	}
}

// TestTakeWaitsForNothing: a node may make its eventfd blocking at any time.
func TestTakeWaitsForNothing(t *testing.T) {
	fd, err := eventfd()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	signal(fd)
	take(fd)
	take(fd) // nothing there
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err != unix.EAGAIN {
		t.Errorf("reading what was taken = %v, want %v", err, unix.EAGAIN)
	}
}
