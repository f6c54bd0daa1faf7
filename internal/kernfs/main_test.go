package kernfs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/internal/mounts"
	"github.com/ring3dev/ring3/internal/node"
)

// serveEnv makes the test binary a server: a process must not touch its own mount.
const serveEnv = "KERNFS_TEST_SERVE"

func TestMain(m *testing.M) {
	GuardMain()
	MounterMain()
	if dir := os.Getenv(mounterEnv); dir != "" {
		if err := mountAsUser(dir); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(serveEnv); dir != "" {
		if err := serveTest(dir, os.Getenv(serveEnv+"_GUARD") != ""); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if path := os.Getenv(stopEnv); path != "" {
		stopClient(path)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serveTest mounts the test tree and obeys the lines of its standard input.
func serveTest(dir string, guard bool) error {
	var log bytes.Buffer
	fdsBefore, routinesBefore := left()
	root := testTree()
	s, err := Mount(dir, root, Options{Guard: guard, Grace: 400 * time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	go func() {
		s.Wait()
		fmt.Println("done")
	}()
	sc := bufio.NewScanner(os.Stdin)
	for sc.Scan() {
		verb, arg, _ := strings.Cut(sc.Text(), " ")
		switch verb {
		case "counts":
			e, d, o, l := s.tree.counts()
			fmt.Printf("entries=%d placed=%d open=%d lists=%d\n", e, d, o, l)
		case "add":
			root.MkdirAll("proc/dyn").Put(arg, &node.File{Mode: 0o444})
			fmt.Println("ok")
		case "del":
			root.MkdirAll("proc/dyn").Remove(arg)
			fmt.Println("ok")
		case "box", "put":
			boxVerb(verb, arg)
		case "unmount":
			fmt.Println(s.Unmount(), s.Unmount())
			log.Reset()
		case "left":
			fds, routines := left()
			fmt.Printf("fds=%d goroutines=%d\n", fds-fdsBefore, routines-routinesBefore)
		case "log":
			fmt.Printf("%q\n", log.String())
		}
	}
	return s.Unmount()
}

// left counts descriptors, once the runtime has its own, and goroutines, once those that end have.
func left() (fds, routines int) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, 0
	}
	r.Close()
	w.Close()
	for last := -1; last != routines; time.Sleep(50 * time.Millisecond) {
		last, routines = routines, runtime.NumGoroutine()
	}
	ent, _ := os.ReadDir("/proc/self/fd")
	return len(ent), routines
}

// testTree has one file for every habit.
func testTree() *node.Dir {
	root := &node.Dir{}
	proc, sys := root.MkdirAll("proc"), root.MkdirAll("sys")
	text := func(s string) func(*bytes.Buffer) error {
		return func(w *bytes.Buffer) error { w.WriteString(s); return nil }
	}
	proc.Put("hello", &node.File{Mode: 0o444, Show: text("hello\n")})
	var last atomic.Value
	var stores, shows atomic.Int64
	last.Store("")
	record := func(_ context.Context, p []byte) (int, error) {
		stores.Add(1)
		last.Store(string(p))
		return len(p), nil
	}
	showLast := func(w *bytes.Buffer) error {
		s := last.Load().(string)
		fmt.Fprintf(w, "%d %d %q\n", stores.Load(), len(s), s[:min(len(s), 40)])
		return nil
	}
	proc.Put("cmd", &node.File{Mode: 0o600, Show: showLast, Store: record})
	proc.Put("once", &node.File{Mode: 0o444, Show: func(w *bytes.Buffer) error {
		fmt.Fprintf(w, "%08d\n%s", shows.Add(1), strings.Repeat("x", 300000))
		return nil
	}})
	stop := make(chan struct{}, 1)
	running := atomic.Int64{}
	proc.Put("ctrl", &node.File{Mode: 0o600,
		Show: func(w *bytes.Buffer) error { fmt.Fprintln(w, running.Load()); return nil },
		Store: func(ctx context.Context, p []byte) (int, error) {
			if string(p) == "stop\n" {
				stop <- struct{}{}
				return len(p), nil
			}
			running.Add(1)
			defer running.Add(-1)
			select {
			case <-ctx.Done():
			case <-stop:
			}
			return len(p), nil
		}})
	never := make(chan struct{})
	proc.Put("deaf", &node.File{Mode: 0o600,
		Show:  func(*bytes.Buffer) error { <-never; return nil },
		Store: func(context.Context, []byte) (int, error) { <-never; return 0, nil }})
	proc.Put("panic", &node.File{Mode: 0o600,
		Show:  func(*bytes.Buffer) error { panic("show is broken") },
		Store: func(context.Context, []byte) (int, error) { panic("store is broken") }})
	for name, err := range map[string]error{"busy": syscall.EBUSY, "wrapped": fmt.Errorf("x: %w", syscall.ENODEV), "plain": errors.New("x"), "many": nil} {
		proc.MkdirAll("err").Put(name, &node.File{Mode: 0o600, Show: func(*bytes.Buffer) error { return err },
			Store: func(context.Context, []byte) (int, error) { return 1 << 20, err }})
	}
	proc.MkdirAll("err").Put("nothing", &node.File{Mode: 0o600})
	for i := range 3000 {
		proc.MkdirAll("dyn").Put(fmt.Sprintf("entry-with-a-rather-long-name-%05d", i), &node.File{Mode: 0o444, Show: text("x\n")})
	}
	sys.Put("attr", &node.File{Mode: 0o644, Flavour: node.Sys, Show: showLast, Store: record})
	sys.Put("ro", &node.File{Mode: 0o444, Flavour: node.Sys, Show: text("1\n")})
	sys.Put("wo", &node.File{Mode: 0o200, Flavour: node.Sys, Store: record})
	sys.Put("long", &node.File{Mode: 0o444, Flavour: node.Sys, Show: text(strings.Repeat("y", 5000))})
	config := make([]byte, 5000)
	for i := range config {
		config[i] = byte(i)
	}
	sys.Put("config", &node.File{Mode: 0o644, Flavour: node.Sys, Size: len(config),
		ReadAt: func(p []byte, off int64) (int, error) {
			n := copy(p, config[off:])
			if int(off)+n == len(config) {
				return n, io.EOF
			}
			return n, nil
		},
		WriteAt: func(p []byte, off int64) (int, error) { return copy(config[off:], p), nil }})
	sys.MkdirAll("class/x/sub").Put("back", &node.Link{Target: "../../../attr"})
	putStreams(root.MkdirAll("dev"))
	root.Put("merged", &node.Dir{Kernel: "/proc/self/net", Keep: "/proc/self/net"})
	return root
}

// server is a running server process.
type server struct {
	t    *testing.T
	dir  string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Scanner
	ends chan struct{}
}

// asUser runs cmd as a user who is nobody. Only root can.
func asUser(argv ...string) []string {
	return append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}, argv...)
}

// needFuse skips where FUSE is not to be had at all.
func needFuse(t *testing.T) {
	t.Helper()
	if err := Probe(); err != nil {
		t.Skip("no FUSE here: ", err)
	}
}

// serve starts a server. user means as uid 65534, with fusermount3.
func serve(t *testing.T, user, guard bool) *server {
	t.Helper()
	needFuse(t)
	dir, err := os.MkdirTemp("/tmp", "kernfs")
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	argv := []string{exe}
	if user {
		if os.Geteuid() != 0 {
			t.Skip("only root can become another user")
		}
		copyTo := dir + ".test" // the build's own folder may be closed to others
		if out, err := exec.Command("cp", exe, copyTo).CombinedOutput(); err != nil {
			t.Fatalf("cp: %s", out)
		}
		t.Cleanup(func() { os.Remove(copyTo) })
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		argv = asUser(copyTo)
	}
	s := &server{t: t, dir: dir, cmd: exec.Command(argv[0], argv[1:]...), ends: make(chan struct{})}
	s.cmd.Env = append(os.Environ(), serveEnv+"="+dir, "GORACE=atexit_sleep_ms=10")
	if guard {
		s.cmd.Env = append(s.cmd.Env, serveEnv+"_GUARD=1")
	}
	s.cmd.Stderr = os.Stderr
	s.in, _ = s.cmd.StdinPipe()
	out, _ := s.cmd.StdoutPipe()
	s.out = bufio.NewScanner(out)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.end)
	if got := s.line(); got != "ready" {
		t.Fatalf("the server says %q, want ready", got)
	}
	return s
}

// line is the server's next line.
func (s *server) line() string {
	if !s.out.Scan() {
		return "end of output"
	}
	return s.out.Text()
}

// ask sends a line and returns the answer.
func (s *server) ask(line string) string {
	s.t.Helper()
	if _, err := io.WriteString(s.in, line+"\n"); err != nil {
		s.t.Fatal(err)
	}
	return s.line()
}

// end stops the server and looks for what it left.
func (s *server) end() {
	s.in.Close()
	killer := time.AfterFunc(10*time.Second, func() {
		s.t.Error("the server does not end")
		_ = s.cmd.Process.Kill()
	})
	for s.out.Scan() { // Wait must not close the pipe before it is read
	}
	_ = s.cmd.Wait()
	killer.Stop()
	if e, ok := mounts.At(s.dir); ok {
		s.t.Errorf("a mount of type %s is left at %s", e.FSType, s.dir)
		_ = Detach(s.dir)
	}
	if err := os.Remove(s.dir); err != nil {
		s.t.Errorf("removing the mount point: %v", err)
	}
}

// pause stops the server, and returns when it is stopped.
func (s *server) pause() {
	_ = s.cmd.Process.Signal(syscall.SIGSTOP)
	for end := time.Now().Add(5 * time.Second); !isStopped(s.cmd.Process.Pid); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatal("the server does not stop")
		}
	}
}

// sh runs a bash script with D as the mount point, bounded, and returns what it wrote, both streams,
// and its exit status.
func (s *server) sh(script string, as ...string) string {
	s.t.Helper()
	argv := append(as, "bash", "-c", script)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "D="+s.dir, "LC_ALL=C")
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		s.t.Fatalf("script hangs: %s\nso far: %s", script, out)
	}
	if err != nil {
		return fmt.Sprintf("%s[%v]", out, err)
	}
	return string(out)
}
