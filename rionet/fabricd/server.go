package fabricd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/unixconn"
	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Config says what to serve, and where.
type Config struct {
	Topology *fabric.Topology
	Socket   string       // path of the control socket
	Log      *slog.Logger // nil discards
	Ready    func()       // is called once the sockets answer; nil: nobody waits
}

// Server is a fabric in service.
type Server struct {
	topo    *fabric.Topology
	log     *slog.Logger
	path    string
	started time.Time
	fab     *fabric.Fabric
	folder  *folder
	windows *windows
	index   map[string]int // endpoints by name
	groups  []*group       // by endpoint
	refused refusals

	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	quiet    chan struct{}  // closed when no node is left
	watching sync.WaitGroup // the watchdog, which looks after nodes that end, too
	sockets  []socket
	closing  sync.Once
	failed   error // of closing

	mu       sync.Mutex
	nodes    []*node                    // by endpoint; guarded by mu
	warned   []time.Time                // when an end of its node was last a warning, by endpoint; guarded by mu
	conns    map[*net.UnixConn]struct{} // that are not nodes; guarded by mu
	watchers map[*watcher]struct{}      // guarded by mu
}

// socket is a listening one and what it is called.
type socket struct {
	ln   *net.UnixListener
	path string
}

// Serve runs a fabric until ctx ends.
func Serve(ctx context.Context, c Config) error {
	s, err := Open(c)
	if err != nil {
		return err
	}
	if c.Ready != nil {
		c.Ready()
	}
	<-ctx.Done()
	return s.Close()
}

// Open puts a fabric into service. Close ends it.
func Open(c Config) (*Server, error) {
	path, err := filepath.Abs(c.Socket)
	if err != nil {
		return nil, fmt.Errorf("fabric at %s: %w", c.Socket, err)
	}
	s := &Server{topo: c.Topology, log: c.Log, path: path, started: time.Now(), index: make(map[string]int),
		nodes: make([]*node, len(c.Topology.Endpoints)), warned: make([]time.Time, len(c.Topology.Endpoints)), quiet: make(chan struct{}), conns: make(map[*net.UnixConn]struct{}), watchers: make(map[*watcher]struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.topo.Check(); err != nil {
		return nil, fmt.Errorf("fabric at %s: %w", path, err)
	}
	for i, e := range s.topo.Endpoints {
		s.index[e.Name] = i
	}
	if s.groups, err = groups(s.topo, idSize(s.topo)); err != nil {
		return nil, err
	}
	if s.folder, err = takeFolder(path); err != nil {
		return nil, err
	}
	s.windows = newWindows(path, s.folder.path)
	s.fab = fabric.New(s.topo, fabric.Options{Log: s.log, LinkChanged: s.linkChanged})
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.watching.Go(s.watchdog)
	if err := s.listen(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// listen opens the sockets: those for QEMU first, so that who finds the fabric's finds all.
func (s *Server) listen() error {
	for i, e := range s.topo.Endpoints {
		path := filepath.Join(s.folder.path, e.Name)
		ln, err := s.folder.listen(path)
		if err != nil {
			if errors.Is(err, unix.EMFILE) {
				err = fmt.Errorf("%w: a fabric needs one for each of its %d endpoints, and 10 for each node", err, len(s.topo.Endpoints))
			}
			return err
		}
		s.sockets = append(s.sockets, socket{ln, path})
		s.wg.Go(func() { s.accept(ln, func(c *net.UnixConn) { s.serveQEMU(c, i) }, func(*net.UnixConn, error) {}) })
	}
	ln, err := s.folder.listen(s.path)
	if err != nil {
		return err
	}
	s.sockets = append(s.sockets, socket{ln, s.path})
	s.wg.Go(func() { s.accept(ln, s.serveConn, func(c *net.UnixConn, err error) { _ = s.refuse(c, err) }) })
	return nil
}

// Close takes the fabric out of service: nodes lose it, sockets and files are removed. It is idempotent.
func (s *Server) Close() error {
	s.closing.Do(func() { s.failed = s.close() })
	return s.failed
}

func (s *Server) close() error {
	s.cancel()
	var errs []error
	for _, l := range s.sockets {
		if err := os.Remove(l.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		errs = append(errs, l.ln.Close())
	}
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	for _, n := range s.nodes {
		if n != nil {
			n.end("the fabric ends")
		}
	}
	s.mu.Unlock()
	s.wg.Wait()
	close(s.quiet)
	s.watching.Wait()
	errs = append(errs, s.windows.close(), s.folder.close())
	return errors.Join(errs...)
}

// idSize is the width of a topology's device IDs.
func idSize(t *fabric.Topology) rapidio.IDSize {
	if t.IDs == 0 {
		return rapidio.Small
	}
	return t.IDs
}

// Fabric is the model that is served.
func (s *Server) Fabric() *fabric.Fabric { return s.fab }

// accept takes connections, and serves them, or refuses what is too many.
func (s *Server) accept(ln *net.UnixListener, serve func(*net.UnixConn), refuse func(*net.UnixConn, error)) {
	for {
		c := unixconn.Accept(s.ctx, ln, func(err error) { s.log.Warn("fabric: taking a connection", "err", err) })
		if c == nil {
			return
		}
		if err := s.admit(c); err != nil {
			refuse(c, err)
			c.Close()
			continue
		}
		s.wg.Go(func() { serve(c) })
	}
}

// maxConns is how many connections are taken beside nodes: a node's process may watch the fabric, and ask it things.
func (s *Server) maxConns() int { return extraConns + 2*len(s.topo.Endpoints) }

// admit makes c one of the connections.
func (s *Server) admit(c *net.UnixConn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return &Error{Code: codeClosed, Msg: fmt.Sprintf("the fabric at %s ends", s.path)}
	}
	if most := s.maxConns(); len(s.conns) >= most {
		return &Error{Code: codeBusy, Msg: fmt.Sprintf("the fabric at %s has %d connections, no more are taken", s.path, most)}
	}
	s.conns[c] = struct{}{}
	return nil
}

// forget takes c out of the connections: it ended, or became a node.
func (s *Server) forget(c *net.UnixConn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// peerPID is the process at the other end of a connection; 0: unknown, as of another PID namespace.
func peerPID(c *net.UnixConn) int {
	if cred, err := unixconn.Peer(c); err == nil {
		return int(cred.Pid)
	}
	return 0
}
