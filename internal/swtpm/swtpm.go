// Package swtpm starts and owns swtpm, the TPM that stands behind QEMU's models tpm-tis and tpm-crb.
//
// The emulator's sockets are inherited, so nobody else can reach it. Its state is a directory: one of the caller's
// for a TPM that is kept, or an empty one that is thrown away. One process has it at a time, which a lock of this
// package's own sees to: swtpm 0.7 starts silently on a directory that another one uses.
//
// swtpm is killed when this process ends in any way; it writes its permanent state at once when that changes,
// so nothing is lost then but what a TPM loses with its power.
package swtpm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/child"
)

// Binary is the program.
const Binary = "swtpm"

// Config says what to start.
type Config struct {
	Name    string // of the device, for messages
	Dir     string // state; made (0700) if it is missing
	V12     bool   // a TPM 1.2 instead of a TPM 2.0
	Binary  string // a program or path; "" means Binary
	Started func(pid int)
	// Direct is for measuring: the socket is that of commands and answers, and the TPM is started.
	Direct bool
}

// Process is a running swtpm. Safe for concurrent use.
type Process struct {
	c       Config
	child   *child.Process
	lock    *os.File
	control *os.File
	fresh   bool
}

// lockName is a file in the state directory whose flock(2) says who has it.
const lockName = ".ring3.lock"

// stateFiles are swtpm's permanent states, by family.
var stateFiles = map[bool]string{true: "tpm-00.permall", false: "tpm2-00.permall"}

func family(v12 bool) string {
	if v12 {
		return "1.2"
	}
	return "2.0"
}

// Start starts swtpm and returns when it runs; whether it can read its state shows when QEMU uses it:
// Explain. Errors are one line, with the remedy where there is one.
func Start(c Config) (_ *Process, err error) {
	if c.Binary == "" {
		c.Binary = Binary
	}
	// It is in sbin on some systems, which a user's PATH may lack.
	path, err := exec.LookPath(c.Binary)
	if err != nil {
		var e *exec.Error
		if errors.As(err, &e) {
			err = e.Err
		}
		return nil, fmt.Errorf("%s: starting %s: %w: install it (Debian, Ubuntu: apt-get install swtpm)", c.Name, c.Binary, err)
	}
	p := &Process{c: c}
	defer func() {
		if err != nil {
			p.closeFiles()
		}
	}()
	if err := p.claim(); err != nil {
		return nil, fmt.Errorf("%s: state directory %s: %w", c.Name, c.Dir, err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: making swtpm's socket: %w", c.Name, err)
	}
	if c.Direct {
		_ = unix.SetNonblock(pair[0], true) // for deadlines; QEMU sets its own up
	}
	p.control = os.NewFile(uintptr(pair[0]), "swtpm control")
	theirs := os.NewFile(uintptr(pair[1]), "swtpm")
	defer theirs.Close()
	args := []string{"socket", "--tpmstate", "dir=" + c.Dir + ",mode=0600", "--terminate"}
	if c.Direct {
		args = append(args, "--fd", "3", "--flags", "not-need-init,startup-clear")
	} else {
		args = append(args, "--ctrl", "type=unixio,clientfd=3")
	}
	if !c.V12 {
		args = append(args, "--tpm2")
	}
	cmd := exec.Command(path, args...)
	cmd.ExtraFiles = []*os.File{theirs}
	if p.child, err = child.Start(cmd, worthKeeping); err != nil {
		return nil, fmt.Errorf("%s: starting %s: %w", c.Name, path, err)
	}
	if c.Started != nil {
		c.Started(p.child.PID())
	}
	return p, nil
}

// worthKeeping leaves out what swtpm says in any case.
func worthKeeping(line string) bool { return !strings.Contains(line, "client disconnected") }

// claim makes the directory, locks it, and looks at what is in it.
func (p *Process) claim() error {
	dir := p.c.Dir
	if strings.ContainsAny(dir, ",\n") {
		return fmt.Errorf("swtpm takes no path with a comma or a newline: %w", unix.EINVAL)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making it: %w", cause(err))
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("locking it: %w", cause(err))
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		who := make([]byte, 32)
		n, _ := lock.ReadAt(who, 0)
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("in use by process %s: %w", strings.TrimSpace(string(who[:max(n, 0)])), bus.ErrBusy)
		}
		return fmt.Errorf("locking it: %w", err)
	}
	p.lock = lock
	_ = lock.Truncate(0)
	_, _ = fmt.Fprintf(lock, "%d\n", os.Getpid())
	_, err = os.Stat(filepath.Join(dir, stateFiles[p.c.V12]))
	p.fresh = errors.Is(err, fs.ErrNotExist)
	if _, err := os.Stat(filepath.Join(dir, stateFiles[!p.c.V12])); err == nil {
		return fmt.Errorf("it holds the state of a TPM %s: choose another, or say tpm=%s", family(!p.c.V12), family(!p.c.V12))
	}
	return nil
}

// cause drops the path of an error, which the message has already.
func cause(err error) error {
	var e *fs.PathError
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

// Control is QEMU's end of the control channel. It is to be closed (CloseControl) once QEMU has it.
func (p *Process) Control() *os.File { return p.control }

// CloseControl closes our copy, so that swtpm sees QEMU's end.
func (p *Process) CloseControl() {
	if p.control != nil {
		_ = p.control.Close()
		p.control = nil
	}
}

// PID is its process id.
func (p *Process) PID() int { return p.child.PID() }

// Signal sends it a signal, for tests.
func (p *Process) Signal(s syscall.Signal) error { return p.child.Signal(s) }

// Done is closed when swtpm ended.
func (p *Process) Done() <-chan struct{} { return p.child.Done() }

// Err is what was wrong with its end, once it has ended; nil: it ended as it does when its QEMU has.
func (p *Process) Err() error { return p.child.Err() }

// End says how it ended, once it has.
func (p *Process) End() string {
	return fmt.Sprintf("%s: swtpm (pid %d) ended: %s", p.c.Name, p.PID(), p.child.End())
}

// Explain makes an error of QEMU's start one that says what is wrong with the emulator's state, if that is what it
// is about.
func (p *Process) Explain(err error) error {
	if err == nil {
		return nil
	}
	ended := false
	select {
	case <-p.Done():
		ended = true
	default:
	}
	about := strings.Contains(err.Error(), "tpm-emulator") || strings.Contains(err.Error(), "tpmdev")
	switch {
	case about && !p.fresh:
		return fmt.Errorf("%s: state directory %s: swtpm cannot use the state in it, which is damaged or of a newer version: %w", p.c.Name, p.c.Dir, err)
	case about || ended:
		return fmt.Errorf("%s: swtpm did not start: %s: %w", p.c.Name, p.child.LastWords(), err)
	}
	return err
}

// endWait is how long swtpm may take to end by itself after QEMU did.
const endWait = time.Second

// Close waits for swtpm, whose QEMU has ended, and ends it if need be. It is idempotent.
func (p *Process) Close() error {
	if p == nil {
		return nil
	}
	p.CloseControl()
	select {
	case <-p.Done():
	case <-time.After(endWait):
		_ = p.child.Signal(syscall.SIGKILL)
		<-p.Done()
	}
	p.closeFiles()
	return nil
}

func (p *Process) closeFiles() {
	p.CloseControl()
	if p.lock != nil {
		_ = p.lock.Close() // and with it the lock
		p.lock = nil
	}
}
