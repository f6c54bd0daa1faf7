package kernfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/ring3dev/ring3/internal/node"
)

// Sizes of what one request moves: the kernel cuts longer reads and writes.
const (
	maxIO  = 128 << 10
	maxMsg = maxIO + 4096 // with the headers
)

// Bounds of Unmount: how long the kernel may take to tell the end, and running handlers to
// return.
const (
	endWait     = 300 * time.Millisecond
	handlerWait = 2 * time.Second
)

// defaultGrace is Options.Grace when it is 0.
const defaultGrace = 2 * time.Second

// Options say how to mount. The zero value is good for most.
type Options struct {
	// Log gets panics, stuck files and the protocol's complaints; nil discards.
	Log *slog.Logger
	// Source is the first column of /proc/mounts, "" means ring3. The type is fuse.ring3.
	Source string
	// AllowOther lets other users in, as far as the files' modes allow. Without real root it
	// needs user_allow_other in /etc/fuse.conf.
	AllowOther bool
	// Grace is how long Show and Store may go on after their client was interrupted, and
	// before the client gets EINTR; 0 means 2 s.
	Grace time.Duration
	// Guard starts a small process between the kernel and this one, so that a client can be
	// interrupted while this process is stopped. It runs this same binary, whose main must
	// call GuardMain first of all.
	Guard bool
	// Mounter mounts and unmounts, instead of this process or fusermount3. It stays the caller's.
	Mounter *Mounter
}

// Server is a mounted tree. It is safe for concurrent use.
type Server struct {
	dir     string
	mounter *Mounter // nil: we mounted
	log     *slog.Logger
	tree    *tree
	proto   *fuse.ProtocolServer
	conn    *os.File // /dev/fuse, or the socket to the guard
	guard   *guardProc
	stop    context.CancelFunc // ends the context of every Store
	big     sync.Pool          // buffers for the answers to reads
	running sync.WaitGroup     // request handlers
	done    chan struct{}      // closed when no more requests are read

	once sync.Once
	err  error
}

// Mount serves root at dir, an empty directory of the caller's, and returns when the mount
// stands. Errors name dir, what is wrong and what to do. The caller unmounts it.
func Mount(dir string, root *node.Dir, opts Options) (*Server, error) {
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if opts.Grace <= 0 {
		opts.Grace = defaultGrace
	}
	if opts.Source == "" {
		opts.Source = "ring3"
	}
	dir, err := checkDir(dir)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{dir: dir, mounter: opts.Mounter, log: log, stop: stop, done: make(chan struct{}), tree: newTree(ctx, root, log, opts.Grace)}
	s.big.New = func() any { p := make([]byte, maxMsg); return &p }
	s.proto = fuse.NewProtocolServer(s.tree, &fuse.MountOptions{
		Name:                 "ring3",
		MaxWrite:             maxIO,
		MaxBackground:        64,
		DisableXAttrs:        true,
		DisableReadDirPlus:   true, // would make node ids for what only ls wants to see
		ExtraCapabilities:    fuse.CAP_ATOMIC_O_TRUNC,
		EnableSymlinkCaching: true, // a link's node id is never used for another text
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_NO_OPEN_SUPPORT,
		Logger:               slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		PanicHandler: func(p any) fuse.Status {
			log.Error("panic in a request", "panic", fmt.Sprint(p))
			return fuse.EIO
		},
	})
	fd, err := mountFuse(dir, opts)
	if err != nil {
		stop()
		return nil, fmt.Errorf("mounting at %s: %w", dir, err)
	}
	if err := s.start(fd, opts.Guard); err != nil {
		stop()
		_ = s.detach()
		return nil, fmt.Errorf("mounting at %s: %w", dir, err)
	}
	return s, nil
}

// detach takes the mount away.
func (s *Server) detach() error {
	if s.mounter != nil {
		return s.mounter.unmount()
	}
	return Detach(s.dir)
}

// start takes over the descriptor of a mounted file system and answers its first request.
func (s *Server) start(fd int, guarded bool) error {
	if guarded {
		g, conn, err := startGuard(fd)
		syscall.Close(fd)
		if err != nil {
			return err
		}
		s.guard, s.conn = g, conn
	} else {
		if err := syscall.SetNonblock(fd, true); err != nil {
			syscall.Close(fd)
			return err
		}
		s.conn = os.NewFile(uintptr(fd), "/dev/fuse")
	}
	// INIT settles the protocol before anything else may run.
	if err := s.conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		s.drop()
		return err
	}
	buf := make([]byte, maxMsg)
	n, err := s.conn.Read(buf)
	if err != nil {
		s.drop()
		return fmt.Errorf("waiting for the kernel's first message: %w", err)
	}
	s.handle(buf[:n])
	_ = s.conn.SetReadDeadline(time.Time{})
	go s.serve(buf)
	return nil
}

// drop closes the connection, which makes the kernel end every wait of every client.
func (s *Server) drop() {
	_ = s.conn.Close()
	s.guard.finish()
}

// serve reads requests until the file system is gone; each has its goroutine.
func (s *Server) serve(buf []byte) {
	defer close(s.done)
	for {
		n, err := s.conn.Read(buf)
		switch {
		case err == nil:
		case errors.Is(err, syscall.ENOENT): // interrupted before we saw it
			continue
		default: // ENODEV: unmounted; EOF: the guard ended; ErrClosed: we did
			s.stop()
			s.running.Add(1)
			go func() {
				defer s.running.Done()
				s.tree.finishAll()
			}()
			return
		}
		req := append([]byte(nil), buf[:n]...) // most are short
		if len(req) >= inHeader && wire.Uint32(req[4:]) == opWrite {
			clear(buf[:n]) // the next request may be shorter
		}
		if len(req) >= inHeader+8 && wire.Uint32(req[4:]) == opRelease {
			s.tree.leaving(wire.Uint64(req[inHeader:])) // before an open that comes after it
		}
		s.running.Add(1)
		go func() {
			defer s.running.Done()
			s.handle(req)
		}()
	}
}

// Requests whose answers are as long as the client wants, up to maxIO, and where in the
// request its wish stands.
const (
	opRead    = 15
	opWrite   = 16
	opReaddir = 28
	readSize  = inHeader + 16 // after handle and offset
)

// smallAnswer is room for the answer to any other request: a path at most.
const smallAnswer = 4096 + 256

// handle answers a request.
func (s *Server) handle(req []byte) {
	switch wire.Uint32(req[4:]) {
	case opPoll:
		_, _ = s.conn.Write(s.answerPoll(req))
		return
	case opIoctl: // whatever room for an answer it asks for
		_, _ = s.conn.Write(errorAnswer(req, syscall.ENOTTY))
		return
	}
	var small [smallAnswer]byte
	out := small[:]
	if len(req) >= readSize+4 {
		op := wire.Uint32(req[4:])
		if (op == opRead || op == opReaddir) && wire.Uint32(req[readSize:]) > smallAnswer-256 {
			p := s.big.Get().(*[]byte)
			defer s.big.Put(p)
			out = *p
		}
	}
	m, st := s.proto.HandleRequest([][]byte{req}, [][]byte{out})
	switch wire.Uint32(req[4:]) { // what passed may be a secret
	case opRead:
		defer func() { clear(out[:m]) }()
	case opWrite:
		clear(req[inHeader:])
	}
	if st != fuse.OK {
		s.log.Error("a request could not be answered", "status", st)
		_, _ = s.conn.Write(errorAnswer(req, syscall.EIO))
		return
	}
	if m == 0 {
		return // FORGET and INTERRUPT have no answer
	}
	// ENOENT: nobody waits for the answer any more. Every other error is the end of the
	// connection, which serve sees too.
	_, _ = s.conn.Write(out[:m])
}

// Dir is the absolute path of the mount point.
func (s *Server) Dir() string { return s.dir }

// Done is closed when the file system is gone: after Unmount, or because somebody else
// unmounted it.
func (s *Server) Done() <-chan struct{} { return s.done }

// Wait waits for Done.
func (s *Server) Wait() { <-s.done }

// Unmount takes the mount away, also while files are open (their owners get ENOTCONN from
// then on), ends the context of every Store, and closes all streams. It is idempotent and takes 3 s at most. An
// error means that the mount may still stand.
func (s *Server) Unmount() error {
	s.once.Do(func() {
		s.tree.dead.Store(true) // what comes now gets ENODEV
		s.stop()
		select {
		case <-s.done: // the kernel was faster
		default:
			s.err = s.detach()
			select {
			case <-s.done:
			case <-time.After(endWait): // open files, or copies in other namespaces
			}
		}
		s.drop()
		<-s.done
		ended := make(chan struct{})
		go func() {
			s.running.Wait()
			close(ended)
		}()
		select {
		case <-ended:
		case <-time.After(handlerWait):
			s.log.Warn("a file's code does not return; unmounted all the same", "dir", s.dir)
		}
	})
	return s.err
}
