// Package child starts a program whose life is tied to this process's: it is killed when this process
// ends in any way, it does not see Ctrl-C at the terminal, and its last words are kept, for
// whoever has to explain its end.
package child

import (
	"bufio"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"unicode"
)

// keep is how many of the last lines are kept.
const keep = 8

// Process is a started program. Safe for concurrent use.
type Process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	status error // valid after exited

	mu   sync.Mutex
	last []string
}

// Start starts cmd, whose Stderr and SysProcAttr it sets. said is given each line that the program writes to
// stderr, cleaned of its name at the beginning ("NAME: ") and of control characters, and says whether it is worth keeping; nil keeps all.
func Start(cmd *exec.Cmd, said func(line string) bool) (*Process, error) {
	p := &Process{cmd: cmd, exited: make(chan struct{})}
	stderr, theirs, err := NewPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	// A parent-death signal comes when the starting thread ends, so that thread stays until the program has ended.
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		theirs.Close()
		started <- err
		if err != nil {
			stderr.Close()
			return
		}
		read := make(chan struct{})
		go func() {
			p.read(stderr, said)
			stderr.Close()
			close(read)
		}()
		p.status = cmd.Wait()
		stderr.Ended()
		<-read
		close(p.exited)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// read passes on what the program says until it ends.
func (p *Process) read(r io.Reader, said func(string) bool) {
	name := p.cmd.Path[strings.LastIndexByte(p.cmd.Path, '/')+1:] + ": "
	br := bufio.NewReaderSize(r, 4096)
	for {
		b, _, err := br.ReadLine()
		line := strings.TrimPrefix(strings.TrimSpace(clean(string(b))), name)
		if line != "" && (said == nil || said(line)) {
			p.mu.Lock()
			p.last = append(p.last, line)
			if len(p.last) > keep {
				p.last = p.last[1:]
			}
			p.mu.Unlock()
		}
		if err != nil {
			return
		}
	}
}

// clean keeps what a program writes from steering a terminal: some of it may be somebody else's words.
func clean(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsControl(c) && c != '\t' {
			return '?'
		}
		return c
	}, s)
}

// PID is its process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Path is the program.
func (p *Process) Path() string { return p.cmd.Path }

// Done is closed when it has ended.
func (p *Process) Done() <-chan struct{} { return p.exited }

// LastWords is the last line that it wrote and that was kept, or "".
func (p *Process) LastWords() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.last) == 0 {
		return ""
	}
	return p.last[len(p.last)-1]
}

// Err is what was wrong with the end of a program that has ended; nil: it ended by itself, with exit status 0.
func (p *Process) Err() error { return p.status }

// End describes the end of a program that has ended: its exit status, and its last words.
func (p *Process) End() string {
	status := "exit status 0"
	if p.status != nil {
		status = p.status.Error()
	}
	if w := p.LastWords(); w != "" {
		status += ": " + w
	}
	return status
}

// Signal sends it a signal.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Kill kills it, and does not wait.
func (p *Process) Kill() { _ = p.cmd.Process.Kill() }
