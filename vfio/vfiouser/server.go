package vfiouser

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// ServerOptions say how a device is served. The zero value will do.
type ServerOptions struct {
	Name string // what the user calls the device, for messages
	// Registers is the driver's table: registers with a Ring are doorbells, which clients other than
	// this package's may write through shared memory.
	Registers []bus.Register
	// Reset resets the device where its own Reset says ErrNotSupported; nil: then a client finds
	// registers as the one before left them.
	Reset func(ctx context.Context) error
	// Group is for devices that reach each other, over a wire: what their clients write through shared memory
	// is done in the order in which they wrote it, whichever device it is for. It may be nil.
	Group   *Group
	Timeout time.Duration // of a message that began; half of it, of a client's answer; 0 means DefaultTimeout
	Log     *slog.Logger  // nil discards
}

// Server serves one device to one client at a time. The device is used by nobody else meanwhile,
// and stays the caller's. Safe for concurrent use.
type Server struct {
	dev    bus.Device
	o      ServerOptions
	resets bool // the device can be reset

	mu     sync.Mutex
	client *visit // the client that there is; nil: none
}

// visit is the time that a client has the device.
type visit struct {
	leaving chan struct{} // closed when it is seen to be gone, and the device is being put in order
	over    chan struct{} // closed when that is done
}

// goTime is how long it may take until a client that has gone is seen to be.
const goTime = 100 * time.Millisecond

// enter has the device for one client; nil where another has it. One that is just leaving is waited for.
func (s *Server) enter(ctx context.Context) *visit {
	for {
		s.mu.Lock()
		other := s.client
		if other == nil {
			s.client = &visit{make(chan struct{}), make(chan struct{})}
			defer s.mu.Unlock()
			return s.client
		}
		s.mu.Unlock()
		select {
		case <-other.leaving:
		case <-time.After(goTime):
			return nil
		case <-ctx.Done():
			return nil
		}
		select {
		case <-other.over:
		case <-time.After(s.patience()):
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// exit ends a visit.
func (s *Server) exit(v *visit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client = nil
	close(v.over)
}

// patience is how long a client may take to answer, with a whole message. The device stands still meanwhile, and with
// it devices that are wired to it: their clients, who wait for DefaultTimeout, must not give them up.
func (s *Server) patience() time.Duration { return min(s.o.Timeout, DefaultTimeout) / 2 }

// NewServer makes a server of a device, and resets that where it can be reset. It fails with
// ErrNotSupported for what is no ordinary function.
func NewServer(dev bus.Device, o ServerOptions) (*Server, error) {
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := dev.Err(); err != nil {
		return nil, fmt.Errorf("serving: %w", err)
	}
	if h := dev.Config().Read8(pci.CfgHeader) & 0x7f; h != pci.HeaderDevice {
		return nil, fmt.Errorf("serving %s: header type %d: only devices can be served, not bridges: %w", dev.Address(), h, bus.ErrNotSupported)
	}
	s := &Server{dev: dev, o: o}
	ctx, cancel := context.WithTimeout(context.Background(), resetTimeout)
	defer cancel()
	err := s.reset(ctx)
	if err != nil && !errors.Is(err, bus.ErrNotSupported) {
		return nil, fmt.Errorf("serving: resetting the device: %w", err)
	}
	s.resets = err == nil
	return s, nil
}

// Listen makes a socket that only its owner may connect to. A socket that nobody serves any more is
// replaced; one that somebody serves is an error that wraps ErrBusy.
func Listen(path string) (*net.UnixListener, error) {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("listening: %w", err)
	case st.Mode()&fs.ModeSocket == 0:
		return nil, fmt.Errorf("listening at %s: there is a file that is no socket: %w", path, fs.ErrExist)
	default:
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			return nil, fmt.Errorf("listening at %s: somebody serves a device there: %w", path, bus.ErrBusy)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("listening: removing an old socket: %w", err)
		}
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		// The mode of the socket's file: nobody else connects between bind and chmod.
		if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); e != nil {
			return e
		}
		return err
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening at %s: %w", path, err)
	}
	return l.(*net.UnixListener), nil
}

// maxRefusals is how many clients are told at once that there is one already. Those above wait.
const maxRefusals = 16

// acceptPause is how long to wait where clients cannot be accepted at the moment.
const acceptPause = 100 * time.Millisecond

// passing says whether the next Accept may do better: what is short comes back, and who gave up is gone.
func passing(err error) bool {
	for _, e := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Serve accepts clients until ctx ends or the device dies, whose reason it returns then. It
// closes the listener, and returns when the last client is gone.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	clients.Go(func() {
		select {
		case <-s.dev.Done():
			l.Close()
		case <-ctx.Done():
		}
	})
	room, told := make(chan struct{}, maxRefusals), false
	for {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			l.Close()
		case <-s.dev.Done():
			l.Close()
		}
		c, err := l.AcceptUnix()
		switch {
		case err == nil:
			told = false
		case s.dev.Err() != nil:
			return fmt.Errorf("serving %s: %w", s.dev.Address(), s.dev.Err())
		case ctx.Err() != nil:
			return nil
		case passing(err):
			if !told {
				s.o.Log.Warn(s.errorf("accepting a client, again and again: %w", err).Error())
				told = true
			}
			<-room
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			case <-s.dev.Done():
			}
			continue
		default:
			return fmt.Errorf("serving %s: accepting a client: %w", s.dev.Address(), err)
		}
		clients.Go(func() {
			defer func() { <-room }()
			if err := s.ServeConn(ctx, c); err != nil && !errors.Is(err, bus.ErrClosed) {
				s.o.Log.Warn(err.Error())
			}
		})
	}
}

// ServeConn serves one client, until it leaves, breaks the protocol, or ctx ends, or the device dies.
// The error says which: nil is a client that left. A second client at a time is told that there is one
// (ErrBusy). When it returns the device is as no client had been there: reset, without interrupts and
// DMA memory.
func (s *Server) ServeConn(ctx context.Context, c *net.UnixConn) error {
	k, err := takeConn(c, s.o.Timeout)
	if err != nil {
		return s.errorf("%w", err)
	}
	stop := context.AfterFunc(ctx, k.shutdown) // before the session looks after it, too
	defer stop()
	v := s.enter(ctx)
	if v == nil {
		defer k.close()
		return s.refuse(ctx, k)
	}
	defer s.exit(v)
	x := newSession(s, k)
	return x.run(ctx, v)
}

// refuse answers the version message of a client that is one too many.
func (s *Server) refuse(ctx context.Context, k *sock) error {
	var m message
	defer m.closeFDs()
	err := k.receive(&m, maxVersion)
	if err == nil {
		err = k.send(reply(&m, nil, unix.EBUSY))
	}
	switch {
	case err == nil:
		err = bus.ErrBusy
	case ctx.Err() != nil:
		err = bus.ErrClosed
	}
	return s.errorf("a second client is refused: %w", err)
}

func (s *Server) errorf(format string, args ...any) error {
	who := s.dev.Address()
	if s.o.Name != "" {
		who += " " + s.o.Name
	}
	return fmt.Errorf(who+": serving: "+format, args...)
}

// reset makes the device as no client had been there, as far as that can be done.
func (s *Server) reset(ctx context.Context) error {
	err := s.dev.Reset(ctx)
	if errors.Is(err, bus.ErrNotSupported) && s.o.Reset != nil {
		err = s.o.Reset(ctx)
	}
	return err
}
