package kernfs

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// guardArg is the hidden first argument that makes a program built on this package a guard.
const guardArg = "--internal-fuse-guard"

// The guard's descriptors.
const (
	guardDevFD  = 3 // /dev/fuse
	guardSockFD = 4 // to the server, one message a packet
)

// guardEnd bounds the wait for a guard to end after its socket closed.
const guardEnd = time.Second

// guardProc is the server's end. A nil one is none.
type guardProc struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process was reaped
}

// startGuard starts a guard for the mounted descriptor fd, and returns the connection that
// takes the descriptor's place. The caller may close fd then.
func startGuard(fd int) (*guardProc, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("starting the guard: socketpair: %w", err)
	}
	conn, theirs := os.NewFile(uintptr(pair[0]), "fuse-guard"), os.NewFile(uintptr(pair[1]), "fuse-guard")
	defer theirs.Close()
	for _, s := range pair { // a packet must fit whole
		_ = unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_SNDBUF, 2*maxMsg)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	defer null.Close()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("starting the guard: %w", err)
	}
	dev := os.NewFile(uintptr(dup), fuseDev)
	defer dev.Close()
	g := &guardProc{done: make(chan struct{}), cmd: &exec.Cmd{
		Path:        "/proc/self/exe", // also after the file was replaced by a new build
		Args:        []string{filepath.Base(os.Args[0]), guardArg},
		Dir:         "/",
		Stdin:       null,
		Stdout:      null,
		Stderr:      null,
		ExtraFiles:  []*os.File{dev, theirs},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true}, // neither Ctrl-C nor Ctrl-Z reach it
	}}
	if err := g.cmd.Start(); err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("starting the guard: %w", err)
	}
	go func() {
		_ = g.cmd.Wait() // how it ended changes nothing
		close(g.done)
	}()
	return g, conn, nil
}

// finish waits until the guard, whose socket was closed, is gone.
func (g *guardProc) finish() {
	if g == nil {
		return
	}
	select {
	case <-g.done:
	case <-time.After(guardEnd):
		_ = g.cmd.Process.Kill() // ours and not yet reaped, so no other process
		<-g.done
	}
}

// GuardMain turns the process into a guard if it was started as one, and then does not
// return. A main function calls it first of all.
func GuardMain() {
	if len(os.Args) != 2 || os.Args[1] != guardArg {
		return
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	log.SetOutput(io.Discard)
	for _, fd := range []int{guardDevFD, guardSockFD} {
		if err := syscall.SetNonblock(fd, true); err != nil {
			os.Exit(1)
		}
		syscall.CloseOnExec(fd)
	}
	newGuard(os.NewFile(guardDevFD, fuseDev), os.NewFile(guardSockFD, "server"), os.Getppid()).run()
	os.Exit(0)
}

// guard passes requests from the kernel to the server and answers back. It answers itself
// only for a server that is stopped and a client that was interrupted by what counts.
type guard struct {
	dev, srv io.ReadWriter
	stopped  func() bool // whether the server is stopped now

	mu      sync.Mutex
	waiting map[uint64]*waiter // requests without an answer, by their unique number
	streams map[uint64]bool    // open files that the server is to be asked about when they are polled
	queue   [][]byte           // for the server, oldest first
	more    *sync.Cond         // queue grew
	quitPid uint32             // the client that was interrupted last
	quitEnd time.Time          // until when its requests fail
}

// waiter is one request that the server has not answered.
type waiter struct {
	opcode uint32
	by     cause // of an interrupt; it names the client
	node   uint64
	asked  bool // an interrupt arrived
	gone   bool // we answered; a late answer is undone, not passed on
	timer  *time.Timer
}

func newGuard(dev, srv io.ReadWriter, server int) *guard {
	g := &guard{dev: dev, srv: srv, waiting: make(map[uint64]*waiter), streams: make(map[uint64]bool), stopped: func() bool { return isStopped(server) }}
	g.more = sync.NewCond(&g.mu)
	return g
}

// run works until the kernel or the server is gone.
func (g *guard) run() {
	end := make(chan struct{}, 3)
	for _, f := range []func() error{g.fromKernel, g.toServer, g.fromServer} {
		go func() {
			_ = f() // any error is the end of one side
			end <- struct{}{}
		}()
	}
	<-end
}

// fromKernel reads requests.
func (g *guard) fromKernel() error {
	buf := make([]byte, maxMsg)
	for {
		n, err := g.dev.Read(buf)
		switch {
		case errors.Is(err, syscall.ENOENT): // interrupted before we saw it
			continue
		case err != nil:
			return err
		}
		g.request(append([]byte(nil), buf[:n]...))
		clear(buf[:n]) // here and below: what passes may be a secret
	}
}

// toServer sends what waits for the server, which may take long while it is stopped.
func (g *guard) toServer() error {
	for {
		g.mu.Lock()
		for len(g.queue) == 0 {
			g.more.Wait()
		}
		m := g.queue[0]
		g.queue = g.queue[1:]
		g.mu.Unlock()
		_, err := g.srv.Write(m)
		clear(m)
		if err != nil {
			return err
		}
	}
}

// fromServer reads answers.
func (g *guard) fromServer() error {
	buf := make([]byte, maxMsg)
	for {
		n, err := g.srv.Read(buf)
		if err != nil {
			return err
		}
		if g.answer(buf[:n]) {
			_, _ = g.dev.Write(buf[:n]) // ENOENT: nobody waits any more
		}
		clear(buf[:n])
	}
}

// isStopped says whether a process is stopped by a signal or a debugger.
func isStopped(pid int) bool {
	return isStoppedAt(fmt.Sprintf("/proc/%d/stat", pid))
}

// isStoppedAt reads that of a process, or of a thread.
func isStoppedAt(stat string) bool {
	p, err := os.ReadFile(stat)
	if err != nil {
		return false
	}
	for i := len(p) - 1; i > 0; i-- { // the name may contain anything, also ")"
		if p[i] == ')' {
			return i+2 < len(p) && (p[i+2] == 'T' || p[i+2] == 't')
		}
	}
	return false
}
