package userns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// childArg is the hidden first argument that makes a program built on this package the
// child's half.
const childArg = "--internal-userns-child"

// reportFD is where the child says what went wrong; it closes when the command starts.
const reportFD = 3

// killWait is how long a command may take to end after its context did.
const killWait = 3 * time.Second

// Exit statuses of a command that could not be started, as a shell has them.
const (
	statusNotExecutable = 126
	statusNotFound      = 127
)

// Command is a command to run inside.
type Command struct {
	Plan Plan
	Argv []string // nil means the user's shell
	Env  []string // nil means this process's

	Stdin, Stdout, Stderr *os.File // nil means this process's
}

// job is what the parent tells the child.
type job struct {
	Plan  Plan
	Argv  []string
	Dir   string // the working directory, by name: below /sys it is another one inside
	Probe bool   // only try
}

// Run runs a command inside and returns its exit status, 128+n if signal n ended it. An
// error means that the command did not run; the status is then 127 if it was not found, 126
// if it could not be executed, else 1.
//
// While it runs, SIGINT and SIGQUIT of a terminal go to the command only, which gets them
// from the terminal; sent to this process alone they are passed on, as SIGTERM, SIGHUP,
// SIGUSR1 and SIGUSR2 always are. The end of ctx ends the command: SIGHUP and SIGTERM, 3 s
// later SIGKILL. So ctx should not end at SIGINT.
func Run(ctx context.Context, c Command) (int, error) {
	if len(c.Argv) == 0 {
		c.Argv = []string{userShell(c.Env)}
	}
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	// The child dies of SIGHUP if this thread ends, which is if this process does.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	sigs := make(chan os.Signal, 16)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(sigs)
	cmd, report, err := start(c, job{Plan: c.Plan, Argv: c.Argv, Dir: dir})
	if err != nil {
		return 1, err
	}
	started := make(chan struct{})
	stop := forward(ctx, sigs, cmd.Process, started)
	said, _ := io.ReadAll(report) // ends when the command starts, or the child ends
	close(started)
	report.Close()
	err = cmd.Wait()
	stop()
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case len(said) > 0:
		return status.ExitStatus(), errors.New(string(said))
	case status.Signaled():
		return 128 + int(status.Signal()), nil
	case status.Exited():
		return status.ExitStatus(), nil
	}
	return 1, fmt.Errorf("waiting for the command: %w", err)
}

// userShell is the shell for a command line without a command.
func userShell(env []string) string {
	if env == nil {
		env = os.Environ()
	}
	for _, e := range env {
		if sh, ok := strings.CutPrefix(e, "SHELL="); ok && filepath.IsAbs(sh) {
			if _, err := exec.LookPath(sh); err == nil {
				return sh
			}
		}
	}
	if _, err := os.Stat("/bin/bash"); err == nil {
		return "/bin/bash"
	}
	return "/bin/sh"
}

// start starts the child's half, and returns where it reports.
func start(c Command, j job) (*exec.Cmd, *os.File, error) {
	arg, err := json.Marshal(j)
	if err != nil {
		return nil, nil, err
	}
	attr := []*syscall.SysProcAttr{newUser()}
	if os.Geteuid() == 0 {
		// Real root keeps its ids and set-uid programs. Root in a container may need the other way.
		attr = []*syscall.SysProcAttr{{Cloneflags: syscall.CLONE_NEWNS}, newUser()}
	}
	var errStart error
	for _, a := range attr {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		a.Pdeathsig = syscall.SIGHUP
		if c.Plan.OwnNet {
			a.Cloneflags |= syscall.CLONE_NEWNET
		}
		cmd := &exec.Cmd{
			Path:        "/proc/self/exe", // also after the file was replaced by a new build
			Args:        []string{filepath.Base(os.Args[0]), childArg, string(arg)},
			Env:         c.Env,
			Stdin:       or(c.Stdin, os.Stdin),
			Stdout:      or(c.Stdout, os.Stdout),
			Stderr:      or(c.Stderr, os.Stderr),
			ExtraFiles:  []*os.File{w},
			SysProcAttr: a,
		}
		errStart = cmd.Start()
		w.Close()
		if errStart == nil {
			return cmd, r, nil
		}
		r.Close()
		if !errors.Is(errStart, syscall.EPERM) {
			break
		}
	}
	return nil, nil, explain("/proc", os.Geteuid(), fmt.Errorf("making a user and mount namespace: %w", bare(errStart)))
}

// newUser asks for namespaces in which the caller is root.
func newUser() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:                 syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings:                []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings:                []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
		GidMappingsEnableSetgroups: false,
	}
}

func or(f, def *os.File) *os.File {
	if f != nil {
		return f
	}
	return def
}

// bare is the errno of an error whose words add nothing.
func bare(err error) error {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}

// forward passes signals on until the returned function is called.
// Until the command has started, all are: the terminal may have signalled before there was a
// child to get it.
func forward(ctx context.Context, sigs <-chan os.Signal, p *os.Process, started <-chan struct{}) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ended, kill := ctx.Done(), (<-chan time.Time)(nil)
		for {
			select {
			case <-quit:
				return
			case s := <-sigs:
				if (s == syscall.SIGINT || s == syscall.SIGQUIT) && isClosed(started) && inForeground() {
					continue // the terminal sent it to the command too
				}
				_ = p.Signal(s) // it may have ended meanwhile
			case <-ended:
				ended = nil
				for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGTERM, syscall.SIGCONT} {
					_ = p.Signal(s)
				}
				kill = time.After(killWait)
			case <-kill:
				_ = p.Kill()
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// inForeground says whether this process is in the terminal's foreground group.
func inForeground() bool {
	fd, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// ChildMain turns the process into the child's half if it was started as one, and then does
// not return. A main function calls it first of all.
func ChildMain() {
	if len(os.Args) != 3 || os.Args[1] != childArg {
		return
	}
	syscall.CloseOnExec(reportFD)
	status, err := child(os.Args[2])
	if err != nil {
		_, _ = io.WriteString(os.NewFile(reportFD, "report"), err.Error())
	}
	os.Exit(status)
}

// child arranges and becomes the command. It returns only without one.
func child(arg string) (int, error) {
	parent := os.Getppid()
	var j job
	if err := json.Unmarshal([]byte(arg), &j); err != nil {
		return 1, fmt.Errorf("reading the plan: %w", err)
	}
	if err := arrange(j.Plan); err != nil {
		return 1, explain("/proc", os.Getuid(), err)
	}
	if j.Plan.OwnNet {
		if err := loopbackUp(); err != nil {
			return 1, fmt.Errorf("setting lo up: %w", err)
		}
	}
	if j.Probe {
		return 0, probeLink(j.Plan)
	}
	if err := os.Chdir(j.Dir); err != nil {
		_ = os.Chdir("/") // the folder may be closed to the ids inside
	}
	if err := findPrograms(j.Plan); err != nil {
		return 1, err
	}
	path, err := exec.LookPath(j.Argv[0])
	if err != nil {
		var e *exec.Error
		if errors.As(err, &e) {
			err = e.Err
		}
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, syscall.ENOENT) {
			return statusNotFound, fmt.Errorf("%s: command not found", j.Argv[0])
		}
		return statusNotExecutable, fmt.Errorf("%s: %w", j.Argv[0], bare(err))
	}
	// The wish to die with the parent belongs to a thread, and exec keeps the caller's.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGHUP), 0, 0, 0); err != nil {
		return 1, fmt.Errorf("prctl(PR_SET_PDEATHSIG): %w", err)
	}
	if os.Getppid() != parent {
		return 1, errors.New("the parent is gone")
	}
	return statusNotExecutable, fmt.Errorf("%s: %w", path, syscall.Exec(path, j.Argv, os.Environ()))
}

// loopbackUp sets lo up, which is down in a new network.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r); err != nil {
		return err
	}
	r.SetUint16(r.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}
