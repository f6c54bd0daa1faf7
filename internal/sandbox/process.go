package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/child"
	"github.com/ring3dev/ring3/internal/ioctl"
)

// Process is a started program. Safe for concurrent use.
type Process struct {
	o       Options
	cmd     *exec.Cmd
	box     *cgroup // nil: none
	done    chan struct{}
	entered chan struct{} // closed when Enter has reported, or never will
	reading sync.WaitGroup

	mu        sync.Mutex
	state     State
	inside    bool
	failed    string // what Enter said
	refused   []string
	violation string
	stderr    words
}

// State is how a program ended.
type State struct {
	Exited    bool           // false: it runs
	Code      int            // its exit status; -1: a signal ended it
	Signal    syscall.Signal // that ended it, or 0
	Violation string         // the system call for which it was killed, with its arguments: `socket(0x2, 0x1, 0x0)`; or ""
}

// String says it in a few words, without the program's name.
func (s State) String() string {
	switch {
	case !s.Exited:
		return "running"
	case s.Violation != "":
		return "killed for the system call " + s.Violation
	case s.Signal == unix.SIGSYS:
		return "killed for a system call that it must not make"
	case s.Signal != 0:
		return "killed by " + unix.SignalName(s.Signal)
	}
	return "exit status " + strconv.Itoa(s.Code)
}

// PID is its process id, as seen here.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when it has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Entered waits until the program has given up its rights: nil. It fails where the program ended before, said that it cannot, or d passed.
func (p *Process) Entered(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.entered:
	case <-t.C:
		return fmt.Errorf("sandbox: not entered after %v: %w", d, os.ErrDeadlineExceeded)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.failed != "":
		return errors.New(p.failed)
	case !p.inside:
		return errors.New("sandbox: the program did not enter it")
	}
	return nil
}

// State is how it ended, or that it runs.
func (p *Process) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.state
	if s.Exited {
		s.Violation = p.violation
	}
	return s
}

// Stderr is the end of what it wrote there, and before it the beginning of a crash that is longer: at most 64 KiB.
func (p *Process) Stderr() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.bytes()
}

// Kill kills it, and does not wait.
func (p *Process) Kill() { _ = p.cmd.Process.Kill() }

// Abort asks it for the stacks of its goroutines (SIGQUIT; they are in [Process.Stderr] then), which ends it, and kills it after d. It does not wait.
func (p *Process) Abort(d time.Duration) {
	_ = p.cmd.Process.Signal(unix.SIGQUIT)
	p.killAfter(d)
}

func (p *Process) killAfter(d time.Duration) {
	go func() {
		select {
		case <-p.done:
		case <-time.After(d):
			p.Kill()
		}
	}()
}

// Close kills it, waits for its end, and releases what is held for it. It is idempotent.
func (p *Process) Close() error {
	p.Kill()
	<-p.done
	return nil
}

// end notes how it ended.
func (p *Process) end(stderr *child.Pipe) {
	stderr.Ended()
	p.reading.Wait()
	p.mu.Lock()
	p.state = State{Exited: true, Code: -1}
	if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
		p.state.Code = ws.ExitStatus()
		if ws.Signaled() {
			p.state.Signal = ws.Signal()
		}
	}
	p.mu.Unlock()
	p.box.remove()
	close(p.done)
}

// read reads stderr to its end, or the program's.
func (p *Process) read(r *child.Pipe) {
	defer p.reading.Done()
	defer r.Close()
	var pass chan []byte
	if p.o.Stderr != nil {
		pass = make(chan []byte, 64)
		defer close(pass)
		go func() {
			for b := range pass {
				_, _ = p.o.Stderr.Write(b)
			}
		}()
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			p.mu.Lock()
			p.stderr.add(buf[:n])
			p.mu.Unlock()
			select {
			case pass <- bytes.Clone(buf[:n]):
			default: // it does not keep up, or is not there
			}
		}
		if err != nil {
			return
		}
	}
}

// maxReport bounds what Enter says, in bytes.
const maxReport = 16 << 10

// listen takes Enter's report, and then the calls that the program must not make: the first one ends it.
func (p *Process) listen(talk int) {
	f := p.reported(talk)
	close(p.entered)
	if f == nil {
		return
	}
	defer f.Close()
	stop := make(chan struct{})
	defer close(stop)
	go p.unblock(f, stop) // a listener says nothing when its program ends while it waits
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	var n ioctl.SeccompNotice
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if k, _ := unix.Poll(fds, 0); k <= 0 {
			return false
		}
		if fds[0].Revents&unix.POLLIN == 0 { // nobody is left who could make a call
			failed = io.EOF
			return true
		}
		n, failed = ioctl.SeccompReceive(int(fd))
		return failed == nil || !errors.Is(failed, unix.ENOENT) && !errors.Is(failed, unix.EINTR)
	})
	if err != nil || failed != nil {
		return
	}
	args := make([]string, 3)
	for i := range args {
		args[i] = "0x" + strconv.FormatUint(n.Args[i], 16)
	}
	p.mu.Lock()
	p.violation = callName(n.Nr) + "(" + strings.Join(args, ", ") + ")"
	p.mu.Unlock()
	// To that thread, whose stack is wanted; a stack of a thread that runs is nobody else's to print.
	_ = unix.Tgkill(p.PID(), int(n.PID), unix.SIGQUIT)
	p.killAfter(violationWait)
	<-p.done
}

// unblock ends reads of f when the program ends, unless stop comes first.
func (p *Process) unblock(f *os.File, stop <-chan struct{}) {
	select {
	case <-p.done:
		_ = f.SetReadDeadline(time.Unix(1, 0))
	case <-stop:
	}
}

// violationWait is how long a program that made a call that it must not make may take to say where.
const violationWait = 250 * time.Millisecond

// reported reads Enter's report; it returns the listener, nil where there is none.
func (p *Process) reported(talk int) *os.File {
	t := os.NewFile(uintptr(talk), "sandbox") // it does not block, so the runtime waits
	defer t.Close()
	raw, err := t.SyscallConn()
	if err != nil {
		return nil
	}
	stop := make(chan struct{})
	defer close(stop)
	go p.unblock(t, stop) // the program may have given its end to somebody else
	b, oob := make([]byte, maxReport), make([]byte, unix.CmsgSpace(4*4))
	var n, oobn int
	receive := func(fd uintptr) bool {
		n, oobn, _, _, err = unix.Recvmsg(int(fd), b, oob, unix.MSG_CMSG_CLOEXEC)
		return err != unix.EAGAIN && err != unix.EINTR
	}
	if raw.Read(receive) != nil { // it ended: what it said before is there
		if e := raw.Control(func(fd uintptr) { receive(fd) }); e != nil {
			return nil
		}
	}
	if err != nil {
		return nil
	}
	var listener *os.File
	for i, fd := range descriptors(oob[:oobn]) {
		if i > 0 || unix.SetNonblock(fd, true) != nil {
			unix.Close(fd)
			continue
		}
		listener = os.NewFile(uintptr(fd), "seccomp")
	}
	var r report
	if err := json.Unmarshal(b[:n], &r); err != nil {
		if listener != nil {
			listener.Close()
		}
		return nil
	}
	for _, line := range r.Refused[:min(len(r.Refused), maxTold)] {
		p.lacks(slog.LevelWarn, "%s", line)
	}
	p.mu.Lock()
	p.inside, p.failed = r.Failed == "", r.Failed
	p.mu.Unlock()
	return listener
}

// descriptors takes them out of control messages.
func descriptors(oob []byte) (fds []int) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range msgs {
		if l, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, l...)
		}
	}
	return fds
}

// Traced tells whether a debugger holds the program.
func (p *Process) Traced() bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID()) + "/status")
	if err != nil {
		return false
	}
	_, s, ok := strings.Cut(string(b), "\nTracerPid:")
	if !ok {
		return false
	}
	s, _, _ = strings.Cut(s, "\n")
	s = strings.TrimSpace(s)
	return s != "" && s != "0"
}

// Usage is what the program uses: bytes of memory that are in RAM, those that it shares included, and CPU time since its start.
func (p *Process) Usage() (rss int64, cpu time.Duration, err error) {
	dir := "/proc/" + strconv.Itoa(p.PID())
	b, err := os.ReadFile(dir + "/statm")
	if err != nil {
		return 0, 0, fmt.Errorf("sandbox: %w", err)
	}
	if f := fields(b); len(f) > 1 {
		pages, _ := strconv.ParseInt(f[1], 10, 64)
		rss = pages * int64(os.Getpagesize())
	}
	if b, err = os.ReadFile(dir + "/stat"); err != nil {
		return 0, 0, fmt.Errorf("sandbox: %w", err)
	}
	// The name may hold anything, blanks and parentheses, too.
	f := fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 13 {
		return rss, 0, fmt.Errorf("sandbox: %s/stat has %d fields after the name, want 50", dir, len(f))
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	sys, _ := strconv.ParseInt(f[12], 10, 64)
	return rss, time.Duration(user+sys) * (time.Second / ticks), nil
}

// ticks is how many there are in a second in files of /proc (USER_HZ), on every architecture that ring3 has.
const ticks = 100
