package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/internal/node"
)

// group is a worker's tree with files that other workers have too.
type group struct {
	root *node.Dir

	mu  sync.Mutex
	got []string
}

func newGroup(name string) *group {
	g := &group{root: &node.Dir{}}
	record := func(_ context.Context, p []byte) (int, error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.got = append(g.got, string(p))
		if string(p) == "bad "+name {
			return 0, syscall.EINVAL
		}
		return len(p), nil
	}
	for _, f := range []string{"all", "chosen", "first", "private"} {
		g.root.MkdirAll("proc").Put(f, &node.File{Mode: 0o644, Show: text(name + "\n"), Store: record})
	}
	g.root.MkdirAll("proc").Put("start", &node.File{Mode: 0o200, Store: func(ctx context.Context, p []byte) (int, error) {
		_, _ = record(ctx, p)
		<-ctx.Done()
		return len(p), nil
	}})
	g.root.MkdirAll("proc").Put("own-"+name, &node.File{Mode: 0o444, Show: text(name)})
	g.root.Put("link", &node.Link{Target: name})
	return g
}

// took is what was written since it was asked.
func (g *group) took() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := strings.Join(g.got, ",")
	g.got = nil
	return all
}

func joinedTree(patience time.Duration) *Tree {
	return NewTree(TreeOptions{Patience: patience, Except: []string{"ns"}, Rules: []Rule{
		{Pattern: "/proc/all"},
		{Pattern: "/proc/chosen", Show: func(parts []string, texts [][]byte) []byte {
			return []byte(strings.Join(parts, "+") + ":" + string(bytes.Join(texts, []byte("|"))))
		}, Store: func(parts []string, p []byte) []string {
			return slices.DeleteFunc(slices.Clone(parts), func(s string) bool { return !strings.Contains(string(p), s) })
		}},
		{Pattern: "/proc/first", One: true},
		{Pattern: "/proc/start", Again: true, Lasts: func(p []byte) bool { return string(p) == "start" }},
	}})
}

func TestJoined(t *testing.T) {
	tr := joinedTree(0)
	pa, pb := tr.Part("a"), tr.Part("b")
	a, b := newGroup("a"), newGroup("b")
	run(t, pb, b.root) // the order is that of Part, not of Attach
	wa := run(t, pa, a.root)
	for path, want := range map[string]string{"proc/all": "a\nb\n", "proc/chosen": "a+b:a\n|b\n", "proc/first": "a\n",
		"proc/private": "b\n", "proc/own-a": "a", "proc/own-b": "b"} {
		if got, err := find(t, tr, path).ReadAll(); string(got) != want || err != nil {
			t.Errorf("%s: ReadAll() = %q, %v, want %q", path, got, err, want)
		}
	}
	if l, ok := tr.Root().Lookup("link").(*node.Link); !ok || l.Target != "b" {
		t.Errorf("a link that both have is %v, want that of b, who had it first", l)
	}
	for _, c := range []struct {
		path, text     string
		wantA, wantB   string
		wantN          int
		wantErr        error
		afterAIsFailed bool
	}{
		{"proc/all", "x", "x", "x", 1, nil, false},
		{"proc/all", "bad a", "bad a", "bad a", 0, syscall.EINVAL, false},
		{"proc/private", "x", "", "x", 1, nil, false},
		{"proc/chosen", "to b", "", "to b", 4, nil, false},
		{"proc/chosen", "to none", "to none", "", 7, nil, false},
		{"proc/all", "y", "", "y", 1, nil, true},
		{"proc/own-a", "y", "", "", 0, syscall.EIO, true},
	} {
		if c.afterAIsFailed {
			pa.Fail(errors.New("dies again and again"))
		}
		f := find(t, tr, c.path)
		n, err := f.Write(context.Background(), []byte(c.text))
		if n != c.wantN || !errors.Is(err, c.wantErr) {
			t.Errorf("%s: Write(%q) = %d, %v, want %d, %v", c.path, c.text, n, err, c.wantN, c.wantErr)
		}
		if gotA, gotB := a.took(), b.took(); gotA != c.wantA || gotB != c.wantB {
			t.Errorf("%s: Write(%q) reached a as %q and b as %q, want %q and %q", c.path, c.text, gotA, gotB, c.wantA, c.wantB)
		}
	}
	if err := wa.c.Err(); err == nil {
		t.Error("Fail does not end the link")
	}
	if got, err := find(t, tr, "proc/chosen").ReadAll(); string(got) != "b:b\n" || err != nil {
		t.Errorf("with a failed, ReadAll() = %q, %v, want that of b", got, err)
	}
	if got, err := find(t, tr, "proc/first").ReadAll(); string(got) != "b\n" || err != nil {
		t.Errorf("with a failed, ReadAll() of a file of which one is shown = %q, %v, want that of b", got, err)
	}
	if got, err := find(t, tr, "proc/own-a").ReadAll(); !errors.Is(err, syscall.EIO) || !strings.Contains(fmt.Sprint(err), "again and again") {
		t.Errorf("a file of a part that failed: ReadAll() = %q, %v, want EIO and why", got, err)
	}
	pa.Remove()
	if got := dump(tr.Root(), ""); strings.Contains(got, "own-a") || !strings.Contains(got, "own-b") || !strings.Contains(got, "/proc/all") {
		t.Errorf("with a removed there is\n%s", got)
	}
	pb.Remove()
	if got := dump(tr.Root(), ""); got != "" {
		t.Errorf("with all removed there is\n%s", got)
	}
}

// TestAgain kills the worker under writes: one that may be made again goes on with the next worker, the other gives EIO.
func TestAgain(t *testing.T) {
	tr := joinedTree(20 * time.Millisecond)
	p := tr.Part("a")
	g := newGroup("a")
	w := run(t, p, g.root)
	g.root.MkdirAll("proc").Put("once", g.root.MkdirAll("proc").Lookup("start"))
	w.settled(t)
	type result struct {
		n   int
		err error
	}
	write := func(path string, ctx context.Context) chan result {
		f, done := find(t, tr, path), make(chan result, 1)
		go func() {
			n, err := f.Write(ctx, []byte("start"))
			done <- result{n, err}
		}()
		return done
	}
	ctx, cancel := context.WithCancel(context.Background())
	again, once := write("proc/start", ctx), write("proc/once", context.Background())
	await(t, func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.got) == 2 })
	for range 5 { // more often than a read would be retried
		w.kill()
		p.Detach(errors.New("killed"))
		// One that does not last waits no longer than Patience, which this one does.
		if _, err := find(t, tr, "proc/start").Write(context.Background(), []byte("other")); !errors.Is(err, syscall.EIO) {
			t.Errorf("a write without a worker = %v, want EIO after Patience", err)
		}
		g = newGroup("a")
		w = run(t, p, g.root)
		await(t, func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.got) == 1 })
	}
	if r := <-once; !errors.Is(r.err, syscall.EIO) {
		t.Errorf("a write under which its worker died = %d, %v, want EIO", r.n, r.err)
	}
	cancel()
	if r := <-again; r.n != 5 || r.err != nil {
		t.Errorf("a write that may be made again = %d, %v, want 5", r.n, r.err)
	}
}

func await(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come to that")
		}
	}
}

// TestPatience has no worker come.
func TestPatience(t *testing.T) {
	tr := joinedTree(50 * time.Millisecond)
	p := tr.Part("a")
	g := newGroup("a")
	w := run(t, p, g.root)
	f := find(t, tr, "proc/private")
	w.kill()
	p.Detach(errors.New("killed"))
	if b, err := f.ReadAll(); !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "not back") {
		t.Errorf("ReadAll() = %q, %v, want EIO after some patience", b, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if n, err := f.Write(ctx, []byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("Write() that is interrupted = %d, %v, want Canceled", n, err)
	}
	if g := newGroup("a"); true {
		run(t, p, g.root)
		if n, err := f.Write(context.Background(), []byte("x")); n != 1 || err != nil || g.took() != "x" {
			t.Errorf("Write() to the next worker = %d, %v, want 1", n, err)
		}
	}
}

// TestPoison has a file that kills whoever shows it: it costs a few workers, no more.
func TestPoison(t *testing.T) {
	tr := NewTree(TreeOptions{})
	p := tr.Part("a")
	deaths := make(chan struct{}, 10)
	spawn := func() {
		var w atomic.Pointer[worker] // the race detector does not see that a socket orders this
		root := &node.Dir{}
		root.Put("poison", &node.File{Mode: 0o444, Show: func(*bytes.Buffer) error {
			w.Load().kill()
			deaths <- struct{}{}
			return nil
		}})
		w.Store(start(t, p, root)) // before it gets calls
		p.Attach(w.Load().c)
	}
	spawn()
	if err := p.Sync(patient(t)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	f := find(t, tr, "poison")
	go func() {
		_, err := f.ReadAll()
		done <- err
	}()
	died := 0
	for {
		select {
		case <-deaths:
			died++
			p.Detach(errors.New("killed"))
			spawn()
			continue
		case err := <-done:
			if !errors.Is(err, syscall.EIO) {
				t.Errorf("ReadAll() = %v, want EIO", err)
			}
		}
		break
	}
	if died > maxRetries+1 {
		t.Errorf("one read cost %d workers, want %d", died, maxRetries+1)
	}
}

// TestMay has a worker with what is another one's to have, though it comes first.
func TestMay(t *testing.T) {
	tr := NewTree(TreeOptions{May: func(part, path string) bool { return part != "bad" || path != "/proc/own-a" && path != "/sys/a" }})
	bad, good := newGroup("a"), newGroup("a")
	bad.root.MkdirAll("sys/a/below").Put("f", &node.File{})
	good.root.MkdirAll("sys/a").Put("mine", &node.File{})
	run(t, tr.Part("bad"), bad.root)
	if s := dump(tr.Root(), ""); strings.Contains(s, "own-a") || strings.Contains(s, "/sys/a") || !strings.Contains(s, "/proc/private") {
		t.Errorf("of a worker that may not have all there is\n%s", s)
	}
	w := run(t, tr.Part("good"), good.root)
	bad.root.MkdirAll("sys/a").Put("late", &node.File{})
	w.settled(t)
	if s := dump(tr.Root(), ""); !strings.Contains(s, "own-a") || !strings.Contains(s, "/sys/a/mine") || strings.Contains(s, "below") || strings.Contains(s, "late") {
		t.Errorf("with the one that may there is\n%s", s)
	}
}

// TestOwner has the tree's owner put entries of its own where a worker has some.
func TestOwner(t *testing.T) {
	tr := joinedTree(0)
	mine := &node.File{Mode: 0o444, Show: text("mine")}
	proc := tr.Root().MkdirAll("proc")
	proc.Put("private", mine)
	tr.Root().Put("link", &node.Dir{})
	g := newGroup("a")
	g.root.MkdirAll("ns").Put("x", &node.File{})
	g.root.MkdirAll("link2/below").Put("x", &node.File{})
	p := tr.Part("a")
	run(t, p, g.root)
	if find(t, tr, "proc/private") != mine || tr.Root().Lookup("proc") != node.Node(proc) {
		t.Error("a worker took the place of what the owner put")
	}
	if n := tr.Root().Lookup("ns"); n != nil {
		t.Errorf("a worker has a name that none may have: %v", n)
	}
	if find(t, tr, "proc/own-a") == nil {
		t.Error("a directory of the owner's does not get the worker's entries")
	}
	p.Remove()
	if got, want := dump(tr.Root(), ""), "/link/ 0\n/proc/ 0\n/proc/private 444 0 0 false\n"; got != want {
		t.Errorf("with the worker removed there is\n%s\nwant\n%s", got, want)
	}
}

// TestJoinedLate: what several parts show is shown without one that hangs, and that is not waited for again until it has answered.
func TestJoinedLate(t *testing.T) {
	tr := joinedTree(20 * time.Second)
	pa, pb := tr.Part("a"), tr.Part("b")
	a, b := newGroup("a"), newGroup("b")
	hangs, asked := make(chan struct{}), make(chan struct{}, 16)
	a.root.MkdirAll("proc").Put("all", &node.File{Mode: 0o644, Show: func(w *bytes.Buffer) error {
		asked <- struct{}{}
		<-hangs
		w.WriteString("a\n")
		return nil
	}})
	run(t, pa, a.root)
	run(t, pb, b.root)
	for range 3 {
		if got, err := find(t, tr, "proc/all").ReadAll(); string(got) != "b\n" || err != nil {
			t.Errorf("ReadAll() with a part that hangs = %q, %v, want that of the other", got, err)
		}
	}
	if n := len(asked); n != 1 {
		t.Errorf("the part that hangs was asked %d times, want once", n)
	}
	close(hangs)
	await(t, func() bool {
		got, err := find(t, tr, "proc/all").ReadAll()
		return string(got) == "a\nb\n" && err == nil
	})
}

// TestPoisonAgain: a write that is harmless to repeat, and kills whom it reaches, is repeated twice.
func TestPoisonAgain(t *testing.T) {
	tr := joinedTree(0)
	p := tr.Part("a")
	var took atomic.Int64
	var w *worker
	died := make(chan struct{}, 16)
	grow := func() *node.Dir {
		root := &node.Dir{}
		root.MkdirAll("proc").Put("start", &node.File{Mode: 0o200, Store: func(ctx context.Context, _ []byte) (int, error) {
			took.Add(1)
			died <- struct{}{}
			<-ctx.Done()
			return 0, ctx.Err()
		}})
		return root
	}
	w = run(t, p, grow())
	done := make(chan error, 1)
	f := find(t, tr, "proc/start")
	go func() {
		_, err := f.Write(context.Background(), []byte("x"))
		done <- err
	}()
	for {
		select {
		case <-died:
			w.kill()
			p.Detach(errors.New("killed"))
			w = run(t, p, grow())
			continue
		case err := <-done:
			if n := took.Load(); n != 1+maxRetries || !errors.Is(err, syscall.EIO) {
				t.Errorf("a write that kills was made %d times, and is %v, want %d and EIO", n, err, 1+maxRetries)
			}
		}
		return
	}
}
