package fabricd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// node is an endpoint's node: the process or machine at the other end of a connection, and the memory shared with it.
type node struct {
	s      *Server
	index  int // of its endpoint
	name   string
	pid    int // 0: unknown
	qemu   bool
	since  time.Time
	conn   *net.UnixConn
	group  *group
	d      *shm.Daemon
	port   *fabric.Port // the worker's; another after the node began anew
	wins   []*window
	wake   *os.File // that the node signals: the worker waits for it
	wakeFD int
	vec    [shm.NumVectors]int // that the node waits for
	id     atomic.Uint32       // its device ID
	ready  atomic.Bool         // all of the above is there
	config atomic.Bool         // its registers were written: the ID may be another

	boxes sync.Mutex
	// open tells which mailboxes are, and full which of them refused the last message; guarded by boxes, but full may be looked at.
	open [rapidio.MaxMboxes]bool
	full [rapidio.MaxMboxes]atomic.Bool

	// life is held, shared, by other nodes' workers that look at d: after cleaning up nobody does.
	life sync.RWMutex
	dead bool // guarded by life

	// eventfds is held while somebody empties them, and while they are closed.
	eventfds sync.Mutex
	closed   bool // guarded by eventfds: their numbers are others' by now

	kicking atomic.Int32  // calls that signal the node and have not returned
	kicked  atomic.Uint32 // calls that have
	stuck   atomic.Uint32 // what kicked was when the watchdog saw one in progress

	ending sync.Once
	stop   chan struct{} // closed when it is to end
	why    string        // read after stop is closed
	// expelled says that it did what it must not; read after stop is closed.
	expelled bool
	left     chan struct{} // closed when it has ended
	working  chan struct{} // closed when the worker has returned

	// of the worker
	used     bool // there was traffic since it began
	restarts pace
	timer    *time.Timer
	// patience is how long a message is held for a destination; absent: holdWait, 0: it has stalled.
	patience map[mailbox]time.Duration
	run      run
	// portWrite is one on its way: the node may change what it wrote.
	portWrite [rapidio.MaxPortWrite]byte
	signals   [8]byte // what wake had
}

// Waits of one that wants to join: for one that is about to leave, and for one that may be dead without our having been told.
const (
	leaveWait = 10 * time.Second
	deathWait = 200 * time.Millisecond
)

// join makes the process at c the node that it wants to be. It has told it nothing yet.
func (s *Server) join(c *net.UnixConn, q request, qemu bool) (*node, error) {
	i, ok := s.index[q.Join]
	if !ok {
		return nil, &Error{Code: codeUnknown, Msg: fmt.Sprintf("no endpoint %q in the fabric at %s; it has %s", clip(q.Join), s.path, s.someNames())}
	}
	if ids := idSize(s.topo); q.IDs != 0 && q.IDs != ids {
		return nil, &Error{Code: codeWidth, Msg: fmt.Sprintf("%s: the fabric at %s has %v, wanted %v", q.Join, s.path, ids, q.IDs)}
	}
	n := &node{s: s, index: i, name: q.Join, pid: peerPID(c), qemu: qemu, since: time.Now(), conn: c, group: s.groups[i], wakeFD: -1,
		stop: make(chan struct{}), left: make(chan struct{}), working: make(chan struct{}), patience: make(map[mailbox]time.Duration)}
	n.id.Store(uint32(idSize(s.topo).Any()))
	n.stuck.Store(^uint32(0))
	for v := range n.vec {
		n.vec[v] = -1
	}
	var err error
	if n.wakeFD, err = eventfd(); err != nil {
		return nil, fmt.Errorf("%s: %w", q.Join, err)
	}
	n.wake = os.NewFile(uintptr(n.wakeFD), "eventfd of "+n.name)
	if err := s.reserve(n); err != nil {
		n.wake.Close()
		return nil, err
	}
	if err := n.equip(q.Window); err != nil {
		n.ending.Do(func() { close(n.stop) }) // the connection stays, to be told
		n.clean()
		return nil, fmt.Errorf("%s: %w", q.Join, err)
	}
	n.ready.Store(true)
	return n, nil
}

// clip makes of a foreign name one that fits into a line.
func clip(name string) string {
	if len(name) > 40 {
		return name[:40] + "..."
	}
	return name
}

func (s *Server) someNames() string {
	out := ""
	for i, e := range s.topo.Endpoints {
		if i == 4 && len(s.topo.Endpoints) > 5 {
			return out + fmt.Sprintf(", and %d more", len(s.topo.Endpoints)-i)
		}
		if i > 0 {
			out += ", "
		}
		out += e.Name
	}
	return out
}

// reserve makes n the endpoint's node, unless it has one.
func (s *Server) reserve(n *node) error {
	for patience := time.Now(); ; {
		s.mu.Lock()
		if s.ctx.Err() != nil {
			s.mu.Unlock()
			return &Error{Code: codeClosed, Msg: fmt.Sprintf("the fabric at %s ends", s.path)}
		}
		old := s.nodes[n.index]
		if old == nil {
			s.nodes[n.index] = n
			delete(s.conns, n.conn)
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		wait := deathWait - time.Since(patience)
		if old.ended() || old.hungUp() {
			wait = leaveWait - time.Since(patience)
		}
		if wait <= 0 {
			who := "by another"
			if old.pid != 0 {
				who = fmt.Sprintf("by process %d", old.pid)
			}
			return &Error{Code: codeBusy, Msg: fmt.Sprintf("%s: joined already %s", n.name, who)}
		}
		select {
		case <-old.left:
		case <-time.After(min(wait, deathWait)):
		case <-s.ctx.Done():
		}
	}
}

// equip makes all that a node has: whatever can go wrong does so before it is told that it joined.
func (n *node) equip(sizes Sizes) (err error) {
	if n.wins, err = n.s.windows.open(n.name, sizes); err != nil {
		return err
	}
	for v := range n.vec {
		if n.vec[v], err = eventfd(); err != nil {
			return err
		}
	}
	if err := n.group.enter(n); err != nil {
		return err
	}
	n.timer = time.NewTimer(time.Hour)
	n.timer.Stop()
	n.port, err = n.s.fab.Attach(n.name, n)
	return err
}

// serveJoin is a connection that asks to be a node.
func (s *Server) serveJoin(c *net.UnixConn, q request) {
	n, err := s.join(c, q, false)
	if err != nil {
		_ = s.refuse(c, err)
		c.Close()
		s.forget(c)
		return
	}
	if err := s.reply(c, response{OK: true, IDs: idSize(s.topo), Peer: n.index + 1}); err != nil {
		n.end(err.Error())
	}
	n.serve()
}

// serveQEMU is a connection of QEMU's, or of anything that knows the ivshmem server's protocol.
func (s *Server) serveQEMU(c *net.UnixConn, endpoint int) {
	n, err := s.join(c, request{Join: s.topo.Endpoints[endpoint].Name}, true)
	if err != nil {
		s.log.Warn("fabric: a machine is refused", "pid", peerPID(c), "err", err)
		c.Close()
		s.forget(c)
		return
	}
	n.serve()
}

// serve is a node's life, until its connection ends or it is ended.
func (n *node) serve() {
	if !n.ended() {
		if err := n.group.introduce(n); err != nil {
			n.end(err.Error())
		}
	}
	started := !n.ended()
	if started {
		n.s.log.Info("fabric: joined", "node", n.name, "pid", n.pid)
		n.s.tell(Event{What: EventJoined, Node: n.name, PID: n.pid})
		n.s.wg.Go(n.work)
		n.listen()
		<-n.working
	} else {
		close(n.working)
	}
	n.clean()
	n.s.log.Log(context.Background(), n.farewell(), "fabric: left", "node", n.name, "pid", n.pid, "why", n.why)
	if started {
		n.s.tell(Event{What: EventLeft, Node: n.name, PID: n.pid, Why: n.why})
	}
}

// listen waits for the end of the connection: a node says nothing.
func (n *node) listen() {
	_ = n.conn.SetReadDeadline(time.Time{})
	var b [1]byte
	k, err := n.conn.Read(b[:])
	switch {
	case k > 0:
		n.expel("it sent what no ivshmem client sends")
	case errors.Is(err, net.ErrClosed):
		n.end("the fabric ended it") // or so: whoever closed it said why
	default:
		n.end("its connection ended")
	}
}

// farewell is how loud its end is told: one that was expelled is worth a warning, but not each time if it joins again and again.
func (n *node) farewell() slog.Level {
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	if !n.expelled || time.Since(n.s.warned[n.index]) < warnEvery {
		return slog.LevelInfo
	}
	n.s.warned[n.index] = time.Now()
	return slog.LevelWarn
}

// warnEvery is how often the end of one endpoint's node is a warning.
const warnEvery = 10 * time.Second

// end has a node end, for a reason. It waits for nothing.
func (n *node) end(why string) { n.finish(why, false) }

// expel has a node end that did what it must not.
func (n *node) expel(why string) { n.finish(why, true) }

func (n *node) finish(why string, expelled bool) {
	n.ending.Do(func() {
		n.why, n.expelled = why, expelled
		n.kicking.Add(1) // first: as soon as it is known that the node ends, clean waits only for what is counted
		close(n.stop)
		n.conn.Close()
		// The worker waits in the runtime's poller or, if the node made its eventfd blocking, in the kernel.
		_ = n.wake.SetReadDeadline(time.Unix(1, 0))
		go func() { // it may have to wait for the watchdog
			signal(n.wakeFD)
			n.kickDone()
		}()
	})
}

// hungUp tells whether the other side closed the connection, which listen may not have seen yet.
func (n *node) hungUp() bool {
	up := false
	if rc, err := n.conn.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
			k, err := unix.Poll(p, 0)
			up = err == nil && k == 1 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP) != 0
		})
	}
	return up
}

func (n *node) ended() bool {
	select {
	case <-n.stop:
		return true
	default:
		return false
	}
}

// clean takes apart what join made. The worker has returned.
func (n *node) clean() {
	if n.port != nil {
		n.port.Detach() // from here on nobody calls us as a Sink
	}
	n.s.refused.forget(n)
	n.life.Lock()
	n.dead = true
	n.life.Unlock()
	for n.kicking.Load() != 0 { // or a descriptor would be closed that somebody writes to
		time.Sleep(time.Millisecond)
	}
	if n.d != nil {
		n.group.leave(n)
	}
	if err := n.s.windows.closeAll(n.wins); err != nil {
		n.s.log.Warn("fabric: memory windows", "node", n.name, "err", err)
	}
	n.closeEventfds()
	n.s.mu.Lock()
	n.s.nodes[n.index] = nil
	n.s.mu.Unlock()
	close(n.left)
}

// closeEventfds gives them up. Nobody signals the node any more.
func (n *node) closeEventfds() {
	n.eventfds.Lock()
	defer n.eventfds.Unlock()
	n.closed = true
	for _, fd := range n.vec {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	n.wake.Close()
}

func (n *node) destID() rapidio.DestID { return rapidio.DestID(n.id.Load()) }

var _ fabric.BurstSink = (*node)(nil)

// vectors are the messages that introduce the node: its ID with each eventfd.
func (n *node) vectors() []ivmsg {
	var out []ivmsg
	for _, fd := range n.vec {
		out = append(out, ivmsg{int64(n.index + 1), fd})
	}
	return out
}
