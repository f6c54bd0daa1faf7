package mirror

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/kernfs"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/mounts"
	"github.com/ring3dev/ring3/internal/node"
)

// roleEnv makes the test binary a worker, whose link is descriptor 3, or a supervisor with a mount: a process must not touch its own.
const roleEnv = "MIRROR_TEST_ROLE"

func TestMain(m *testing.M) {
	kernfs.GuardMain()
	role, arg, _ := strings.Cut(os.Getenv(roleEnv), " ")
	var err error
	switch role {
	case "":
		os.Exit(m.Run())
	case "work":
		err = work(arg)
	case "serve":
		err = supervise(arg)
	}
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// work is a worker's life. generation is its number.
func work(generation string) error {
	f := os.NewFile(3, "link")
	u, err := link.Open(f)
	f.Close()
	if err != nil {
		return err
	}
	root := &node.Dir{}
	e := NewExport(root)
	fill(root, generation)
	fill(root.MkdirAll("deep"), generation)
	c := link.New(u, link.Mux{Class: e}, link.Options{Name: "supervisor"})
	if err := e.Start(c); err != nil {
		return err
	}
	<-c.Done()
	return nil
}

// fill makes a worker's tree.
func fill(root *node.Dir, generation string) {
	d := root.MkdirAll("proc/net")
	d.Put("dev", &node.File{Mode: 0o444, Show: text("0123456789\n")})
	d.Put("generation", &node.File{Mode: 0o444, Show: text(generation + "\n")})
	last := atomic.Value{}
	last.Store("")
	d.Put("ctl", &node.File{Mode: 0o644, Flavour: node.Sys, Show: func(w *bytes.Buffer) error { w.WriteString(last.Load().(string)); return nil },
		Store: func(_ context.Context, p []byte) (int, error) { last.Store(string(p)); return len(p), nil }})
	d.Put("make", &node.File{Mode: 0o200, Store: func(_ context.Context, p []byte) (int, error) {
		root.MkdirAll("proc/made").Put(strings.TrimSpace(string(p)), &node.File{Mode: 0o444, Show: text("made\n")})
		return len(p), nil
	}})
	d.Put("remove", &node.File{Mode: 0o200, Store: func(_ context.Context, p []byte) (int, error) {
		root.MkdirAll("proc/made").Remove(strings.TrimSpace(string(p)))
		return len(p), nil
	}})
	d.Put("start", &node.File{Mode: 0o200, Store: func(ctx context.Context, p []byte) (int, error) { <-ctx.Done(); return len(p), nil }})
	d.Put("stuck", &node.File{Mode: 0o600, Show: func(*bytes.Buffer) error { select {} }, Store: func(context.Context, []byte) (int, error) { select {} }})
	switch generation { // what is another thing, or looks another way, in the next worker
	case "1":
		d.Put("varies", &node.File{Mode: 0o444, Show: text("one\n")})
	case "2":
		d.Put("varies", &node.File{Mode: 0o644, Flavour: node.Sys, Show: text("two\n"), Store: func(_ context.Context, p []byte) (int, error) { return len(p), nil }})
	case "3":
		d.Put("varies", &node.Link{Target: "generation"})
	case "4":
		d.MkdirAll("varies").Put("in", &node.File{Mode: 0o444, Show: text("four\n")})
	case "5":
		d.Put("varies", &node.Dir{Mode: 0o700})
		d.MkdirAll("varies").Put("in", &node.File{Mode: 0o444, Show: text("five\n")})
	}
	root.MkdirAll("dev").Put("echo", &node.File{Mode: 0o600, OneOpen: true, Open: openEcho(generation)})
}

// supervise serves a mirror of one worker at dir, beside the same tree without a worker in direct/, and obeys lines.
func supervise(dir string) error {
	t := NewTree(TreeOptions{})
	fill(t.Root().MkdirAll("direct"), "direct")
	p := t.Part("a")
	generation := 0
	var w *child
	spawn := func() error {
		generation++
		var err error
		if w, err = spawnWorker(p, fmt.Sprint(generation)); err != nil {
			return err
		}
		p.Attach(w.link)
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		return p.Sync(ctx)
	}
	if err := spawn(); err != nil {
		return err
	}
	defer func() { w.kill() }()
	s, err := kernfs.Mount(dir, t.Root(), kernfs.Options{Guard: true, Grace: 400 * time.Millisecond})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch in.Text() {
		case "kill":
			w.kill()
			p.Detach(errors.New("killed"))
			fmt.Println("ok")
		case "stop":
			fmt.Println(w.cmd.Process.Signal(unix.SIGSTOP))
		case "fail":
			p.Fail(errors.New("dies again and again"))
			fmt.Println("ok")
		case "spawn":
			fmt.Println(spawn())
		case "remove":
			p.Remove()
			fmt.Println("ok")
		}
	}
	return s.Unmount()
}

// child is a worker that is a process.
type child struct {
	cmd  *exec.Cmd
	link *link.Conn
}

func spawnWorker(p *Part, generation string) (*child, error) {
	ours, theirs, err := link.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleEnv+"=work "+generation, "GORACE=atexit_sleep_ms=10")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, err
	}
	return &child{cmd, link.New(ours, link.Mux{Class: p}, link.Options{Name: "worker " + generation})}, nil
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	c.link.Close()
}

// mounted is a supervisor in another process.
type mounted struct {
	t   testing.TB
	dir string
	in  io.WriteCloser
	out *bufio.Scanner
}

// mount starts a supervisor.
func mount(t testing.TB) *mounted {
	t.Helper()
	if err := kernfs.Probe(); err != nil {
		t.Skip("no FUSE here: ", err)
	}
	m := &mounted{t: t, dir: t.TempDir()}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleEnv+"=serve "+m.dir, "GORACE=atexit_sleep_ms=10")
	cmd.Stderr = os.Stderr
	m.in, _ = cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	m.out = bufio.NewScanner(out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.in.Close()
		killer := time.AfterFunc(20*time.Second, func() {
			t.Error("the supervisor does not end")
			_ = cmd.Process.Kill()
		})
		for m.out.Scan() {
		}
		_ = cmd.Wait()
		killer.Stop()
		if _, ok := mounts.At(m.dir); ok {
			t.Errorf("a mount is left at %s", m.dir)
			_ = kernfs.Detach(m.dir)
		}
	})
	if got := m.line(); got != "ready" {
		t.Fatalf("the supervisor says %q, want ready", got)
	}
	return m
}

func (m *mounted) line() string {
	if !m.out.Scan() {
		return "end of output"
	}
	return m.out.Text()
}

// ask has the supervisor do something.
func (m *mounted) ask(line, want string) {
	m.t.Helper()
	if _, err := io.WriteString(m.in, line+"\n"); err != nil {
		m.t.Fatal(err)
	}
	if got := m.line(); got != want {
		m.t.Fatalf("%s: the supervisor says %q, want %q", line, got, want)
	}
}
