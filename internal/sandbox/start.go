package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/child"
)

// Options say what is started. Zero values are the defaults named here.
type Options struct {
	Path    string   // of the program; empty: this one, also when its file was deleted or replaced
	Program *os.File // the program, open; instead of Path. It stays the caller's
	Args    []string // without the program's name
	Env     []string // nothing of this process's environment comes along
	Files   []*os.File
	Stderr  io.Writer // also gets what it writes there, as far as it keeps up; nil: nobody

	Memory      int64 // bytes of private memory; 1 GiB
	Descriptors int   // 1024
	Threads     int   // 512
	FileSize    int64 // bytes that a file may grow to; 64 GiB, for captures
	Locked      int64 // bytes of memory that may be locked; 0
	RealTime    bool  // priorities stay what its user may have
	// Bare: it keeps its user's rights, and has a process of its own and nothing else: no namespaces, no filter, of the limits those of memory and core dumps. For what
	// opens by itself what nobody can open for it.
	Bare bool
	CPUs float64 // how many it may keep busy, where a cgroup is delegated; 0: all

	Log     *slog.Logger  // nil discards
	Started func(pid int) // called once it runs, before Start returns: for what must outlive this process's death
}

func (o *Options) defaults() {
	set := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	set(&o.Memory, 1<<30)
	set(&o.FileSize, 64<<30)
	if o.Descriptors == 0 {
		o.Descriptors = 1024
	}
	if o.Threads == 0 {
		o.Threads = 512
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// maxFiles is how many descriptors a program may be given.
const maxFiles = 128

// spaces are the namespaces of a worker but for the user's.
const spaces = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWPID

// level is one way to start a program. They are tried from the best to the worst.
type level struct {
	flags  uintptr
	host   int    // the user that it is outside; -1: this one
	nobody bool   // it changes its user by itself
	lacks  string // what it lacks, for the log
}

// levels are what may work for this user.
func levels() (l []level) {
	root := os.Geteuid() == 0
	if root && mapped("uid_map", nobody) && mapped("gid_map", nobody) {
		l = append(l, level{flags: spaces | unix.CLONE_NEWUSER, host: nobody})
	}
	own := level{flags: spaces | unix.CLONE_NEWUSER, host: -1}
	if len(l) > 0 {
		own.lacks = "a user of its own: nobody cannot execute the program, so it runs as root's user in a namespace without rights outside"
	}
	l = append(l, own)
	if root {
		l = append(l, level{flags: spaces, host: -1, nobody: mapped("uid_map", nobody), lacks: "a user namespace"})
	}
	return append(l, level{host: -1, nobody: root && mapped("uid_map", nobody), lacks: "namespaces: it has the file system and the network of its user, but it can open nothing there"})
}

// Start starts a program, which calls [Enter]. It returns when the program runs; [Process.Entered] tells when it has given its rights up. Files stay the caller's.
func Start(o Options) (*Process, error) { return start(o, false) }

func start(o Options, probe bool) (*Process, error) {
	o.defaults()
	if len(o.Files) > maxFiles {
		return nil, fmt.Errorf("sandbox: %d descriptors, want at most %d: %w", len(o.Files), maxFiles, unix.EINVAL)
	}
	program, name, err := o.open()
	if err != nil {
		return nil, fmt.Errorf("sandbox: opening the program: %w", err)
	}
	defer program.Close()
	// What this process inherited without knowing goes no further. Its own descriptors are marked already.
	_ = unix.CloseRange(3, uint(^uint32(0)), unix.CLOSE_RANGE_CLOEXEC)
	p := &Process{o: o, done: make(chan struct{}), entered: make(chan struct{})}
	if err := p.launch(program, name, probe); err != nil {
		return nil, fmt.Errorf("sandbox: starting %s: %w", name, err)
	}
	if o.Started != nil {
		o.Started(p.PID())
	}
	return p, nil
}

// firstFree is above every descriptor that the program is given, so that the one by which it is executed is still there when those are in their places.
const firstFree = 3 + maxFiles + 8

// open opens the program at a descriptor above all that it gets.
func (o *Options) open() (*os.File, string, error) {
	f, name := o.Program, ""
	if f != nil {
		name = f.Name()
	} else {
		path := o.Path
		if path == "" {
			path = "/proc/self/exe"
			name, _ = os.Executable()
		}
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, "", &fs.PathError{Op: "open", Path: path, Err: err}
		}
		f = os.NewFile(uintptr(fd), path)
		defer f.Close()
		if name == "" {
			name = path
		}
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, firstFree)
	if err != nil {
		return nil, "", err
	}
	return os.NewFile(uintptr(fd), name), name, nil
}

// launch tries the levels.
func (p *Process) launch(program *os.File, name string, probe bool) error {
	var box *cgroup
	box, err := newCgroup(&p.o)
	if err != nil {
		p.lacks(slog.LevelDebug, "a cgroup: %v", err) // few have one
	}
	p.box = box
	var last error
	ways := levels()
	if p.o.Bare {
		ways = []level{{host: -1}}
	}
	for _, l := range ways {
		err := p.try(l, program, name, probe)
		if err == nil {
			if l.lacks != "" {
				p.lacks(slog.LevelWarn, "%s (%v)", l.lacks, last)
			}
			return nil
		}
		last = err
		if !slices.ContainsFunc([]error{unix.EPERM, unix.EACCES, unix.EINVAL, unix.ENOSPC, unix.EUSERS, unix.ENOSYS}, func(e error) bool { return errors.Is(err, e) }) {
			break
		}
	}
	p.box.remove()
	return last
}

// try starts the program in one way.
func (p *Process) try(l level, program *os.File, name string, probe bool) (err error) {
	talk, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(talk[0], true)
	}
	if err != nil {
		return err
	}
	theirs := os.NewFile(uintptr(talk[1]), "sandbox")
	defer theirs.Close()
	r, w, err := child.NewPipe()
	if err != nil {
		unix.Close(talk[0])
		return err
	}
	defer w.Close()
	own := l.flags&unix.CLONE_NEWUSER != 0
	what, err := json.Marshal(order{Talk: talkFD(len(p.o.Files)), Spaces: l.flags&unix.CLONE_NEWNS != 0, User: own, Nobody: l.nobody, Limits: p.o.limits(own), Descriptors: p.o.descriptors(), Memory: p.o.Memory, Listener: true, Probe: probe, Bare: p.o.Bare})
	if err != nil {
		return err
	}
	cmd := &exec.Cmd{
		Path: fmt.Sprintf("/proc/self/fd/%d", program.Fd()), Args: append([]string{filepath.Base(name)}, p.o.Args...),
		Env: append(slices.Clone(p.o.Env), envName+"="+string(what)), Dir: "/", Stderr: w,
		ExtraFiles:  append(slices.Clone(p.o.Files), theirs),
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Cloneflags: l.flags},
	}
	if own {
		uid, gid := os.Geteuid(), os.Getegid()
		if l.host >= 0 {
			uid, gid = l.host, l.host
			cmd.SysProcAttr.Credential = &syscall.Credential{}
			cmd.SysProcAttr.GidMappingsEnableSetgroups = true
		}
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: gid, Size: 1}}
	}
	p.box.enter(cmd.SysProcAttr)
	started := make(chan error)
	// A parent-death signal comes when the starting thread ends, so that thread stays until the program has ended.
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		if err == nil {
			p.cmd = cmd
			p.reading.Add(1)
			go p.read(r)
			go p.listen(talk[0])
		}
		started <- err
		if err == nil {
			_ = cmd.Wait() // its state says it
			p.end(r)
		}
	}()
	if err := <-started; err != nil {
		r.Close()
		unix.Close(talk[0])
		return err
	}
	return nil
}

// told are the lines that were logged already, by any Start of this process.
var (
	toldMu sync.Mutex
	told   []string
)

// maxTold bounds them: the lines that a worker reports are its own words.
const maxTold = 32

// lacks logs what the system refused, once.
func (p *Process) lacks(level slog.Level, format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	p.mu.Lock()
	if len(p.refused) < maxTold {
		p.refused = append(p.refused, line)
	}
	p.mu.Unlock()
	toldMu.Lock()
	fresh := !slices.Contains(told, line) && len(told) < maxTold
	if fresh {
		told = append(told, line)
	}
	toldMu.Unlock()
	if fresh {
		p.o.Log.Log(context.Background(), level, "a worker runs without "+line)
	}
}

// Limits starts this program once more, with args that make it call [Enter], where it ends, and lists what could not be had on this machine: one line each.
func Limits(args ...string) []string {
	p, err := start(Options{Args: args}, true)
	if err != nil {
		return []string{err.Error()}
	}
	defer p.Close()
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.refused)
}

func fields(b []byte) []string { return strings.Fields(string(b)) }
