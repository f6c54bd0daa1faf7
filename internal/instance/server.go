package instance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/internal/sockpath"
	"github.com/ring3dev/ring3/internal/unixconn"
)

// Handler does one operation. args is the client's JSON, nil where it gave none, and not
// to be trusted. The result is sent as JSON; before it, send may be called any number of
// times for a stream (dmesg that follows). ctx ends when the client lost interest; what a
// handler returns after that is still sent if anybody listens. An error that carries a
// syscall.Errno keeps it.
type Handler func(ctx context.Context, args json.RawMessage, send func(any) error) (any, error)

// Handlers are the operations by name: small letters and dashes.
type Handlers map[string]Handler

// Server limits. A client that takes nothing for sendWait is cut off, which nobody else
// notices.
const (
	maxConns = 64
	sendWait = 10 * time.Second
	// endWait bounds how long Close waits for handlers whose ctx has ended.
	endWait = 5 * time.Second
)

// Server answers the control socket.
type Server struct {
	ln   *net.UnixListener
	path string
	ops  Handlers
	log  *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	conns map[*net.UnixConn]struct{} // guarded by mu
}

// Serve opens the control socket of the instance and answers it until Close.
func (in *Instance) Serve(ops Handlers) (*Server, error) {
	s, err := serve(in.dir, ops, in.log)
	if err != nil {
		return nil, fmt.Errorf("instance %s: %w", in.name, err)
	}
	return s, nil
}

func serve(dir string, ops Handlers, log *slog.Logger) (*Server, error) {
	path := filepath.Join(dir, sockFile)
	short, done, err := sockpath.Short(path)
	if err != nil {
		return nil, fmt.Errorf("opening the control socket: %w", err)
	}
	defer done()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("opening the control socket %s: %w", path, err)
	}
	ln.SetUnlinkOnClose(false) // by its real name, below
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, fmt.Errorf("opening the control socket: %w", err)
	}
	s := &Server{ln: ln, path: path, ops: ops, log: log, conns: make(map[*net.UnixConn]struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(s.accept)
	return s, nil
}

// Close ends all operations, waits for them, and removes the socket. It is idempotent.
func (s *Server) Close() error {
	s.cancel()
	err := s.ln.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	s.mu.Lock()
	for c := range s.conns {
		c.CloseRead() // its handler ends by ctx, and may still answer
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(endWait):
		s.mu.Lock()
		for c := range s.conns {
			c.Close()
		}
		s.mu.Unlock()
		err = errors.Join(err, fmt.Errorf("closing the control socket: an operation ignores its end after %v: %w", endWait, unix.ETIMEDOUT))
	}
	if rm := os.Remove(s.path); rm != nil && !errors.Is(rm, os.ErrNotExist) {
		err = errors.Join(err, rm)
	}
	return err
}

func (s *Server) accept() {
	for {
		c := unixconn.Accept(s.ctx, s.ln, func(err error) { s.log.Warn("control socket: accepting", "err", err) })
		if c == nil {
			return
		}
		if err := s.admit(c); err != nil {
			_ = reply(c, response{Err: err.Error(), Errno: errnoOf(err)})
			c.Close()
			continue
		}
		s.wg.Go(func() { s.serveConn(c) })
	}
}

// admit checks who calls, and makes c one of the connections.
func (s *Server) admit(c *net.UnixConn) error {
	peer, err := unixconn.Peer(c)
	if err != nil {
		return fmt.Errorf("control: asking who calls: %w", err)
	}
	if uid := peer.Uid; uid != uint32(os.Geteuid()) && uid != 0 {
		return fmt.Errorf("control: uid %d calls, want %d or 0: %w", uid, os.Geteuid(), syscall.EACCES)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return fmt.Errorf("control: the instance ends: %w", syscall.ESHUTDOWN)
	}
	if len(s.conns) >= maxConns {
		return fmt.Errorf("control: %d connections are open, no more are taken: %w", maxConns, syscall.EBUSY)
	}
	s.conns[c] = struct{}{}
	return nil
}

// serveConn answers one client's requests in order. A second goroutine reads, so that
// the client's going away is seen while a handler runs.
func (s *Server) serveConn(c *net.UnixConn) {
	ctx, cancel := context.WithCancel(s.ctx)
	lines := make(chan []byte)
	var readErr error // read after lines is closed
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		defer close(lines)
		r := bufio.NewReader(c)
		for {
			line, err := readLine(r, maxRequest)
			if err != nil {
				readErr = err
				return
			}
			select {
			case lines <- line:
			case <-ctx.Done():
				return
			}
		}
	})
	defer func() {
		cancel()
		c.Close()
		wg.Wait()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	for line := range lines {
		if err := s.answer(ctx, c, line); err != nil {
			return
		}
	}
	if errors.Is(readErr, errTooLong) {
		err := fmt.Errorf("control: request: %w", readErr)
		_ = reply(c, response{Err: err.Error(), Errno: int(syscall.E2BIG)})
	}
}

// answer does one request. An error means that the connection is of no more use.
func (s *Server) answer(ctx context.Context, c net.Conn, line []byte) error {
	q, err := parseRequest(line)
	if err != nil {
		_ = reply(c, response{Err: err.Error(), Errno: int(syscall.EPROTO)})
		return err
	}
	h, ok := s.ops[q.Op]
	if !ok {
		return reply(c, response{Err: fmt.Sprintf("control: no operation %q", q.Op), Errno: int(syscall.EOPNOTSUPP)})
	}
	send := func(v any) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("control: %s: %w", q.Op, err)
		}
		return reply(c, response{More: true, Data: b})
	}
	v, err := s.call(ctx, h, q, send)
	var r response
	if err == nil {
		r.Data, err = json.Marshal(v)
	}
	if err != nil {
		r = response{Err: err.Error(), Errno: errnoOf(err)}
	}
	return reply(c, r)
}

// errnoOf is the number that err carries; 0 where it has none of its own.
func errnoOf(err error) int {
	var e syscall.Errno
	if errors.As(err, &e) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return int(node.Errno(err))
	}
	return 0
}

// call runs a handler. One that panics fails its request and no more; the process's
// other connections, and its devices, are none of the client's business.
func (s *Server) call(ctx context.Context, h Handler, q request, send func(any) error) (v any, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("control socket: a handler panicked", "op", q.Op, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			v, err = nil, fmt.Errorf("control: %s: internal error: %v: %w", q.Op, p, syscall.EIO)
		}
	}()
	return h(ctx, q.Args, send)
}

// reply sends one line within sendWait.
func reply(c net.Conn, r response) error {
	r.V = protocol
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("control: replying: %w", err)
	}
	if err := c.SetWriteDeadline(time.Now().Add(sendWait)); err != nil {
		return fmt.Errorf("control: replying: %w", err)
	}
	if _, err := c.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("control: replying: %w", err)
	}
	return nil
}

// parseArgs reads a handler's arguments into v; none at all leave v as it is.
func parseArgs(op string, args json.RawMessage, v any) error {
	if len(args) == 0 {
		return nil
	}
	if err := json.Unmarshal(args, v); err != nil {
		return fmt.Errorf("control: %s: arguments: %v: %w", op, err, syscall.EINVAL)
	}
	return nil
}

var _ io.Closer = (*Server)(nil)
