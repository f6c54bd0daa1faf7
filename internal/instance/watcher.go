package instance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// watchArg is the hidden first argument that makes a program built on this package a
// watcher.
const watchArg = "--internal-watch-instance"

// The watcher's descriptors: the pipe's read end, and where it says that it is ready.
const (
	watchFD = 3
	readyFD = 4
)

// Bounds of the parent's patience with its watcher.
const (
	readyWait  = 20 * time.Second // an emulated machine that is busy
	tellWait   = time.Second
	finishWait = time.Second
)

// dieWait bounds the watcher's wait for a parent whose pipe closed to be gone: a process
// that dumps core may take its time.
const dieWait = 30 * time.Second

// watcher is the parent's end. A nil one is silent.
type watcher struct {
	w    *os.File
	cmd  *exec.Cmd
	done chan struct{} // closed when the process was reaped
	log  *slog.Logger
}

// StartWatcher starts the process that cleans up after this one should it end without
// Close: it kills the recorded children, unmounts, and removes the folder. It runs this
// same binary, whose main must call WatcherMain first of all. It returns when the
// watcher no longer minds signals, some milliseconds later. What was added before is
// told to it now.
func (in *Instance) StartWatcher() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed || in.watch != nil {
		return nil
	}
	w, err := startWatcher(in.name, in.log)
	if err != nil {
		return fmt.Errorf("instance %s: starting the watcher: %w", in.name, err)
	}
	in.watch = w
	w.tell(msgInstance(in.base, in.name, in.state))
	for _, p := range in.state.Children {
		w.tell(msgChild(p))
	}
	for _, m := range in.state.Mounts {
		w.tell(msgMount(m))
	}
	for _, d := range in.state.Dirs {
		w.tell(msgDir(d))
	}
	return nil
}

func startWatcher(name string, log *slog.Logger) (*watcher, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		w.Close()
		return nil, err
	}
	defer ready.Close()
	cmd, err := watcherCmd(name, r, theirs)
	theirs.Close()
	if err != nil {
		w.Close()
		return nil, err
	}
	out := &watcher{w: w, cmd: cmd, done: make(chan struct{}), log: log}
	go func() {
		_ = cmd.Wait() // how it ended changes nothing
		close(out.done)
	}()
	_ = ready.SetReadDeadline(time.Now().Add(readyWait))
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		out.finish()
		return nil, fmt.Errorf("it does not report; does main call WatcherMain first? %w", err)
	}
	return out, nil
}

// watcherCmd starts the process.
func watcherCmd(name string, pipe, ready *os.File) (*exec.Cmd, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	cmd := &exec.Cmd{
		Path:        "/proc/self/exe", // also after the file was replaced by a new build
		Args:        []string{filepath.Base(os.Args[0]), watchArg, name},
		Dir:         "/",
		Stdin:       null,
		Stdout:      null,
		Stderr:      null,
		ExtraFiles:  []*os.File{pipe, ready},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	return cmd, cmd.Start()
}

// tell sends one line. A watcher that cannot be told is only logged: Sweep stands behind
// it.
func (w *watcher) tell(line string) {
	if w == nil {
		return
	}
	_ = w.w.SetWriteDeadline(time.Now().Add(tellWait))
	if _, err := io.WriteString(w.w, line); err != nil {
		w.log.Warn("the watcher is gone; what a crash leaves is cleaned up by the next ring3 command", "err", err)
	}
}

// finish dismisses the watcher and waits until it is gone.
func (w *watcher) finish() {
	if w == nil {
		return
	}
	select {
	case <-w.done: // somebody killed it before
		w.w.Close()
		return
	default:
	}
	w.tell(msgDone)
	w.w.Close()
	select {
	case <-w.done:
	case <-time.After(finishWait):
		_ = w.cmd.Process.Kill() // ours and not yet reaped, so no other process
		<-w.done
	}
}

// The lines of the protocol. Strings are quoted as Go does, so a line is a line.
const msgDone = "done\n"

func msgInstance(base, name string, s State) string {
	return fmt.Sprintf("instance %s %s %s %d %d\n", strconv.Quote(base), name, s.ID, s.Pid, s.Start)
}
func msgChild(p Proc) string     { return fmt.Sprintf("child %d %d\n", p.Pid, p.Start) }
func msgNoChild(pid int) string  { return fmt.Sprintf("nochild %d\n", pid) }
func msgMount(m Mount) string    { return fmt.Sprintf("mount %s %s\n", m.Dev, strconv.Quote(m.Dir)) }
func msgDir(d string) string     { return fmt.Sprintf("dir %s\n", strconv.Quote(d)) }
func msgNoMount(d string) string { return fmt.Sprintf("nomount %s\n", strconv.Quote(d)) }

// watched is what a watcher has been told.
type watched struct {
	base, name string
	state      State // ID, Proc, Children, Mounts, Dirs
	done       bool
}

// line takes in one line. Lines it does not understand change nothing: a parent of
// another build never meets this one, since both are the same binary.
func (w *watched) line(s string) error {
	verb, rest, _ := strings.Cut(strings.TrimSuffix(s, "\n"), " ")
	var err error
	switch verb {
	case "done":
		w.done = true
	case "instance":
		var base, name, id string
		var p Proc
		if _, err = fmt.Sscanf(rest, "%q %s %s %d %d", &base, &name, &id, &p.Pid, &p.Start); err == nil {
			if err = CheckName(name); err == nil {
				w.base, w.name, w.state.ID, w.state.Proc = base, name, id, p
			}
		}
	case "child":
		var p Proc
		if _, err = fmt.Sscanf(rest, "%d %d", &p.Pid, &p.Start); err == nil {
			w.state.Children = append(w.state.Children, p)
		}
	case "nochild":
		var pid int
		if _, err = fmt.Sscanf(rest, "%d", &pid); err == nil {
			w.state.Children = dropChild(w.state.Children, pid)
		}
	case "mount":
		var m Mount
		if _, err = fmt.Sscanf(rest, "%s %q", &m.Dev, &m.Dir); err == nil {
			w.state.Mounts = append(dropMount(w.state.Mounts, m.Dir), m)
		}
	case "dir":
		var dir string
		if _, err = fmt.Sscanf(rest, "%q", &dir); err == nil {
			w.state.Dirs = append(w.state.Dirs, dir)
		}
	case "nomount":
		var dir string
		if _, err = fmt.Sscanf(rest, "%q", &dir); err == nil {
			w.state.Mounts = dropMount(w.state.Mounts, dir)
		}
	default:
		err = errors.New("unknown verb")
	}
	if err != nil {
		return fmt.Errorf("line %.80q: %w", s, err)
	}
	return nil
}

// WatcherMain returns at once unless this process was started as a watcher; then it does
// a watcher's work and exits. A main that uses StartWatcher calls it before anything
// else, in particular before flags are read.
func WatcherMain() {
	if len(os.Args) != 3 || os.Args[1] != watchArg {
		return
	}
	// setsid keeps the terminal's signals away; these come from a session's end or from
	// somebody who ends all processes of ring3 by name.
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE)
	closeInherited(readyFD + 1)
	pipe, ready := os.NewFile(watchFD, "parent"), os.NewFile(readyFD, "ready")
	if _, err := ready.Write([]byte{1}); err != nil {
		os.Exit(2) // started by hand
	}
	ready.Close()
	w := listen(pipe)
	if w.done || w.name == "" {
		os.Exit(0)
	}
	if err := w.cleanUp(); err != nil {
		os.Exit(1) // Sweep will try again, and tell
	}
	os.Exit(0)
}

// closeInherited closes descriptors that the parent itself was given without
// close-on-exec (a shell's pipeline, a jobserver): held here, they would keep somebody
// waiting for an end of file. The runtime's own are anonymous inodes, and stay.
func closeInherited(from int) {
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range ents {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < from {
			continue
		}
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err != nil || strings.HasPrefix(to, "anon_inode:") {
			continue
		}
		_ = unix.Close(fd)
	}
}

// listen takes in lines until the parent says that it is done, or ends.
func listen(pipe io.Reader) watched {
	var w watched
	r := bufio.NewReader(pipe)
	for !w.done {
		s, err := r.ReadString('\n')
		if err != nil { // an unfinished last line is not one
			break
		}
		_ = w.line(s) // nobody to tell
	}
	return w
}

// cleanUp does Close's work for a parent that could not.
func (w *watched) cleanUp() error {
	if w.state.Proc.Pid > 0 && !w.state.Proc.waitGone(dieWait) {
		return fmt.Errorf("parent %s closed its pipe and lives: %w", w.state.Proc, unix.EBUSY)
	}
	// The children first and without a lock: nothing may delay their end.
	var errs []error
	for _, p := range w.state.Children {
		errs = append(errs, p.kill())
	}
	bl, err := lockBase(w.base)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer bl.Close()
	dir := filepath.Join(w.base, w.name)
	s, err := readState(dir)
	if err != nil || s.ID != w.state.ID {
		// Swept already, and perhaps the name and the mount point used again.
		return errors.Join(errs...)
	}
	if !w.unlocked(dir) {
		return fmt.Errorf("%s is still locked: %w", dir, unix.EBUSY)
	}
	return errors.Join(append(errs, sweepOne(w.base, w.name, w.state, slog.New(slog.DiscardHandler)))...)
}

// unlocked waits until the dead parent's lock has gone too; its descriptors close in
// some order.
func (w *watched) unlocked(dir string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for {
		if live, err := locked(filepath.Join(dir, lockFile)); err == nil && !live {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(5 * time.Millisecond):
		}
	}
}
