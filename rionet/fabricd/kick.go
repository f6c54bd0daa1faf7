package fabricd

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// A node's eventfds are its as well as ours: it can make them blocking, and fill them. Then whoever signals it waits, which may be the
// worker of another node. So all signals are counted, and a watchdog looks after those that do not come to an end.

// kick signals those vectors of a node whose bits are set.
func (n *node) kick(vectors uint32) {
	n.kicking.Add(1)
	for v := 0; vectors != 0; v++ {
		if vectors&1 != 0 {
			signal(n.vec[v])
		}
		vectors >>= 1
	}
	n.kickDone()
}

// poke has the node's worker look around.
func (n *node) poke() {
	n.kicking.Add(1)
	signal(n.wakeFD)
	n.kickDone()
}

func (n *node) kickDone() {
	n.kicked.Add(1)
	n.kicking.Add(-1)
}

// watchInterval is how often the watchdog looks: a signal that takes longer than two is stuck.
const watchInterval = time.Second

// watchdog frees who signals a node that does not let itself be signalled. Such a node ends.
func (s *Server) watchdog() {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.rescue()
		case <-s.quiet:
			return
		}
	}
}

// rescue looks at all nodes once.
func (s *Server) rescue() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		if n == nil || n.kicking.Load() == 0 {
			continue
		}
		if k := n.kicked.Load(); n.stuck.Swap(k) == k {
			n.expel("it does not let itself be signalled")
			s.watching.Go(n.drain)
		}
	}
}

// drain makes room in a node's eventfds, until nobody is stuck.
func (n *node) drain() {
	for n.kicking.Load() != 0 && n.empty() {
		time.Sleep(time.Millisecond)
	}
}

// empty empties them once; false: they are closed. The one that the worker reads is the worker's, as long as there is one: it may need the
// signal to end.
func (n *node) empty() bool {
	n.eventfds.Lock()
	defer n.eventfds.Unlock()
	if n.closed {
		return false
	}
	fds := n.vec[:]
	select {
	case <-n.working:
		fds = append(fds, n.wakeFD)
	default:
	}
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.SetNonblock(fd, true)
			take(fd)
		}
	}
	return true
}

// take takes what an eventfd has, and waits for nothing, though the node makes it blocking again just now.
func take(fd int) {
	var b [8]byte
	if _, err := unix.Preadv2(fd, [][]byte{b[:]}, -1, unix.RWF_NOWAIT); errors.Is(err, unix.EOPNOTSUPP) {
		_, _ = unix.Read(fd, b[:]) // a kernel before 5.10
	}
}
