package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/node"
)

// worker is a worker's end in this process, and the supervisor's link to it.
type worker struct {
	root *node.Dir
	e    *Export
	c    *link.Conn // the supervisor's
	w    *link.Conn // the worker's
}

// linked is a link between part and a worker without anything.
func linked(t testing.TB, p *Part) (ours, theirs *link.Conn) {
	t.Helper()
	a, b := sockets(t)
	ours = link.New(a, link.Mux{Class: p}, link.Options{Name: "worker"})
	theirs = link.New(b, link.Mux{}, link.Options{Name: "supervisor"})
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

func sockets(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	a, f, err := link.Pair()
	if err != nil {
		t.Fatal(err)
	}
	b, err = link.Open(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// start makes a worker of part, whose tree is root. It is not attached.
func start(t testing.TB, p *Part, root *node.Dir) *worker {
	t.Helper()
	ours, theirs := sockets(t)
	w := &worker{root: root, e: NewExport(root, "ns")}
	w.c = link.New(ours, link.Mux{Class: p}, link.Options{Name: "worker"})
	w.w = link.New(theirs, link.Mux{Class: w.e}, link.Options{Name: "supervisor"})
	t.Cleanup(func() { w.c.Close(); w.w.Close() })
	if err := w.e.Start(w.w); err != nil {
		t.Fatal(err)
	}
	return w
}

// run is start, attached and whole.
func run(t testing.TB, p *Part, root *node.Dir) *worker {
	t.Helper()
	w := start(t, p, root)
	p.Attach(w.c)
	if err := p.Sync(patient(t)); err != nil {
		t.Fatal(err)
	}
	return w
}

// kill ends a worker as its death does.
func (w *worker) kill() { w.w.End(errors.New("killed")) }

func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func text(s string) func(*bytes.Buffer) error {
	return func(w *bytes.Buffer) error { w.WriteString(s); return nil }
}

// find is the file at a path.
func find(t testing.TB, tr *Tree, path string) *node.File {
	t.Helper()
	n, err := tr.Root().Walk(path)
	f, ok := n.(*node.File)
	if !ok {
		t.Fatalf("%s: %T, %v, want a file", path, n, err)
	}
	return f
}

// dump is a tree as text: a line for each entry.
func dump(d *node.Dir, at string) string {
	var b strings.Builder
	for _, name := range d.Names() {
		p := at + "/" + name
		switch n := d.Lookup(name).(type) {
		case *node.Dir:
			fmt.Fprintf(&b, "%s/ %o\n%s", p, n.Mode, dump(n, p))
		case *node.Link:
			fmt.Fprintf(&b, "%s -> %s\n", p, n.Target)
		case *node.File:
			fmt.Fprintf(&b, "%s %o %d %d %v\n", p, n.Mode, n.Flavour, n.Size, n.OneOpen)
		}
	}
	return b.String()
}

func sample() *node.Dir {
	root := &node.Dir{}
	var last string
	proc := root.MkdirAll("proc/net")
	proc.Put("dev", &node.File{Mode: 0o444, Show: text("eth0\n")})
	proc.Put("ctl", &node.File{Mode: 0o644, Flavour: node.Sys, Show: func(w *bytes.Buffer) error { w.WriteString(last); return nil },
		Store: func(_ context.Context, p []byte) (int, error) {
			if string(p) == "bad" {
				return 0, fmt.Errorf("ctl: no such thing: %w", syscall.EINVAL)
			}
			last = string(p)
			return len(p), nil
		}})
	config := []byte("0123456789")
	root.MkdirAll("sys").Put("config", &node.File{Mode: 0o644, Flavour: node.Sys, Size: len(config),
		ReadAt:  func(p []byte, off int64) (int, error) { return copy(p, config[off:]), io.EOF },
		WriteAt: func(p []byte, off int64) (int, error) { return copy(config[off:], p), nil }})
	root.MkdirAll("sys").Put("empty", &node.Dir{Mode: 0o700})
	root.MkdirAll("sys").Put("link", &node.Link{Target: "../proc/net"})
	root.MkdirAll("ns").Put("hidden", &node.Dir{})
	return root
}

func TestTree(t *testing.T) {
	tr := NewTree(TreeOptions{})
	root := sample()
	run(t, tr.Part("a"), root)
	root.Remove("ns")
	if got, want := dump(tr.Root(), ""), dump(root, ""); got != want {
		t.Errorf("the mirror has\n%s\nwant\n%s", got, want)
	}
	if b, err := find(t, tr, "sys/link/dev").ReadAll(); string(b) != "eth0\n" || err != nil {
		t.Errorf("ReadAll() = %q, %v, want eth0", b, err)
	}
	ctl := find(t, tr, "proc/net/ctl")
	if n, err := ctl.Write(context.Background(), []byte("hello")); n != 5 || err != nil {
		t.Errorf("Write() = %d, %v, want 5", n, err)
	}
	if b, err := ctl.ReadAll(); string(b) != "hello" || err != nil {
		t.Errorf("ReadAll() = %q, %v, want hello", b, err)
	}
	if n, err := ctl.Write(context.Background(), []byte("bad")); n != 0 || !errors.Is(err, syscall.EINVAL) || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("Write(bad) = %d, %v, want 0, EINVAL", n, err)
	}
	config := find(t, tr, "sys/config")
	if n, err := config.WriteAt([]byte("xy"), 4); n != 2 || err != nil {
		t.Errorf("WriteAt() = %d, %v, want 2", n, err)
	}
	p := make([]byte, 4)
	if n, err := config.ReadAt(p, 3); n != 4 || string(p) != "3xy6" || err != nil {
		t.Errorf("ReadAt() = %d, %q, %v, want 4, 3xy6", n, p, err)
	}
}

func TestDeath(t *testing.T) {
	tr := NewTree(TreeOptions{})
	p := tr.Part("a")
	w := run(t, p, sample())
	before := find(t, tr, "proc/net/ctl")
	w.kill()
	p.Detach(errors.New("killed"))
	got := make(chan error, 1)
	go func() {
		b, err := before.ReadAll()
		if err == nil && string(b) != "" {
			err = fmt.Errorf("got %q", b)
		}
		got <- err
	}()
	second := sample()
	second.MkdirAll("sys").Remove("empty")
	run(t, p, second)
	if err := <-got; err != nil {
		t.Errorf("a read that waited for the next worker: %v", err)
	}
	if find(t, tr, "proc/net/ctl") != before {
		t.Error("a file that both workers have is another node")
	}
	if n := tr.Root().MkdirAll("sys").Lookup("empty"); n != nil {
		t.Errorf("what the second worker has not is %v, want nil", n)
	}
}
