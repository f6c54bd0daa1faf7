//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/integration/vm/wire"
)

// worker does what the host asks.
type worker struct {
	host *wire.Conn

	mu      sync.Mutex
	running map[int]*exec.Cmd           // by the host's number
	asked   map[int]chan<- *wire.Answer // of the host, by our number
	lastAsk int

	start sync.Mutex // held over a change of our own limits and a start that inherits them
}

func work() error {
	port, err := openPort()
	if err != nil {
		return err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	w := &worker{host: wire.NewConn(port), running: map[int]*exec.Cmd{}, asked: map[int]chan<- *wire.Answer{}}
	if err := w.host.Send(wire.Message{Hello: &wire.Hello{Release: unix.ByteSliceToString(uts.Release[:])}}); err != nil {
		return err
	}
	for {
		m, err := w.host.Receive()
		if err != nil {
			return err
		}
		switch {
		case m.Run != nil:
			go w.run(m.ID, m.Run)
		case m.Kill:
			w.mu.Lock()
			if c := w.running[m.ID]; c != nil {
				_ = unix.Kill(-c.Process.Pid, unix.SIGKILL)
			}
			w.mu.Unlock()
		case m.Answer != nil:
			w.mu.Lock()
			if c := w.asked[m.ID]; c != nil {
				c <- m.Answer
				delete(w.asked, m.ID)
			}
			w.mu.Unlock()
		}
	}
}

// run runs a program of the host's and tells the host how it ended.
func (w *worker) run(id int, c *wire.Command) {
	e := w.serve(id, c, output{w, id})
	_ = w.host.Send(wire.Message{ID: id, Exit: &e})
}

// exitOf says how a program ended.
func exitOf(err error) wire.Exit {
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return wire.Exit{}
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return wire.Exit{Code: exit.ExitCode()}
	}
	return wire.Exit{Code: -1, Err: err.Error()}
}

// output passes on what a program says.
type output struct {
	w  *worker
	id int
}

func (o output) Write(b []byte) (int, error) {
	return len(b), o.w.host.Send(wire.Message{ID: o.id, Output: b})
}

// command prepares a program.
func command(c *wire.Command) (*exec.Cmd, error) {
	if len(c.Argv) == 0 {
		return nil, errors.New("which program?")
	}
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Dir = "/tmp"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if !c.Root {
		// The kernel takes all capabilities away with this.
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: wire.Nobody, Gid: wire.Nobody}
		cmd.Env = append(cmd.Env, "HOME="+home, "XDG_RUNTIME_DIR="+home, "USER=nobody")
		cmd.Dir = home
	}
	if c.Dir != "" {
		cmd.Dir = c.Dir
	}
	cmd.WaitDelay = leftTime // what it left running may hold its output
	return cmd, nil
}

// startLimited starts a program with its limit of locked memory.
func (w *worker) startLimited(cmd *exec.Cmd, memlock uint64) error {
	if memlock == 0 {
		memlock = wire.DefaultMemlock
	}
	w.start.Lock()
	defer w.start.Unlock()
	if err := setMemlock(0, memlock); err != nil {
		return err
	}
	return cmd.Start()
}

func setMemlock(pid int, n uint64) error {
	lim := unix.Rlimit{Cur: n, Max: n}
	if err := unix.Prlimit(pid, unix.RLIMIT_MEMLOCK, &lim, nil); err != nil {
		return fmt.Errorf("setting the limit of locked memory to %d: %w", n, err)
	}
	return nil
}

// serve runs a program and does what it asks for. At the end whatever it bound is as it was
// before, and nothing that it started runs.
func (w *worker) serve(id int, c *wire.Command, out output) wire.Exit {
	before := look()
	cmd, err := command(c)
	if err != nil {
		return exitOf(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return exitOf(fmt.Errorf("making a socket: %w", err))
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "test"), os.NewFile(uintptr(fds[1]), "init")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = append(cmd.Env, wire.FD+"=3")
	cmd.Stdout, cmd.Stderr = out, out
	err = w.startLimited(cmd, c.Memlock)
	theirs.Close()
	if err != nil {
		ours.Close()
		return exitOf(err)
	}
	w.mu.Lock()
	w.running[id] = cmd
	w.mu.Unlock()
	s := session{w: w, pid: cmd.Process.Pid}
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.serve(wire.NewConn(ours))
	}()
	exit := exitOf(cmd.Wait())
	w.mu.Lock()
	delete(w.running, id)
	w.mu.Unlock()
	// The test is gone; what it asked for last is still done.
	_ = unix.Shutdown(fds[0], unix.SHUT_RDWR)
	<-served
	ours.Close()
	exit.Left = before.cleanUp()
	if err := s.undo(); err != nil {
		exit.Left = strings.TrimSpace(exit.Left + "\n" + err.Error())
	}
	return exit
}

// askHost passes a request on.
func (w *worker) askHost(a *wire.Ask) *wire.Answer {
	c := make(chan *wire.Answer, 1)
	w.mu.Lock()
	w.lastAsk++
	id := w.lastAsk
	w.asked[id] = c
	w.mu.Unlock()
	if err := w.host.Send(wire.Message{ID: id, Ask: a}); err != nil {
		return &wire.Answer{Err: err.Error()}
	}
	return <-c
}

// session is one test's requests.
type session struct {
	w     *worker
	pid   int
	undos []func() error // of what it bound, oldest first
}

func (s *session) serve(c *wire.Conn) {
	for {
		m, err := c.Receive()
		if err != nil || m.Ask == nil {
			return
		}
		var a *wire.Answer
		if strings.HasPrefix(m.Ask.Op, wire.OpHost) {
			a = s.w.askHost(m.Ask)
		} else {
			a = s.answer(m.Ask)
		}
		if c.Send(wire.Message{Answer: a}) != nil {
			return
		}
	}
}

// answer does what is asked.
func (s *session) answer(a *wire.Ask) *wire.Answer {
	result, err := s.do(a)
	if err != nil {
		return &wire.Answer{Err: err.Error()}
	}
	b, err := json.Marshal(result)
	if err != nil {
		return &wire.Answer{Err: err.Error()}
	}
	return &wire.Answer{Result: b}
}

// undo puts back what the test bound, newest first.
func (s *session) undo() error {
	var errs []error
	for i := len(s.undos) - 1; i >= 0; i-- {
		errs = append(errs, s.undos[i]())
	}
	s.undos = nil
	return errors.Join(errs...)
}
