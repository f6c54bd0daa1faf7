package mirror

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/ring3dev/ring3/internal/node"
)

// settled waits until the supervisor has been told of all that was done in w.
func (w *worker) settled(t *testing.T) {
	t.Helper()
	if err := w.e.Flush(); err != nil {
		t.Fatal(err)
	}
	// The answer to any call comes after what was told before it.
	if _, _, err := w.c.Call(patient(t), methodShow, make([]byte, 8)); !errors.Is(err, syscall.ESTALE) {
		t.Fatalf("a call of no file: %v, want ESTALE", err)
	}
}

// TestChanges changes a worker's tree from many goroutines, with directories that come with what is in them, that stand in two places, and that
// have a second layer; the mirror must end up the same.
func TestChanges(t *testing.T) {
	tr := NewTree(TreeOptions{})
	root := &node.Dir{}
	shared, layer := &node.Dir{}, &node.Dir{}
	root.MkdirAll("x").Put("one", shared)
	root.MkdirAll("y/z").Put("two", shared)
	root.Put("layered", &node.Dir{Ours: layer})
	w := run(t, tr.Part("a"), root)
	dirs := []*node.Dir{shared, layer, root.MkdirAll("x"), root.MkdirAll("y/z"), root.MkdirAll("layered")}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range 1000 {
				d, name := dirs[r.IntN(len(dirs))], fmt.Sprint("n", r.IntN(6))
				switch r.IntN(6) {
				case 0:
					d.Remove(name)
				case 1:
					d.Put(name, &node.File{Mode: 0o444, Size: r.IntN(3)})
				case 2:
					d.Put(name, &node.Link{Target: fmt.Sprint(r.IntN(3))})
				case 3:
					sub := &node.Dir{}
					sub.MkdirAll("a/b").Put("f", &node.File{})
					d.Put(name, sub)
					sub.MkdirAll("a").Put(fmt.Sprint(r.IntN(3)), &node.File{})
				case 4:
					if sub, ok := d.Lookup(name).(*node.Dir); ok {
						sub.Put("late", &node.Dir{})
						sub.Remove("a")
					}
				case 5:
					if r.IntN(20) == 0 {
						root.MkdirAll("x").Remove("one")
						root.MkdirAll("x").Put("one", shared)
					}
				}
			}
		})
	}
	wg.Wait()
	w.settled(t)
	if got, want := dump(tr.Root(), ""), dump(root, ""); got != want {
		t.Errorf("the mirror has\n%s\nwant\n%s", got, want)
	}
	w.e.mu.Lock()
	told, watched := w.e.count, len(w.e.dirs)
	w.e.mu.Unlock()
	if n := strings.Count(dump(root, ""), "\n"); told != n {
		t.Errorf("the export counts %d entries, the tree has %d", told, n)
	}
	if watched > 5+strings.Count(dump(root, ""), "/ ") {
		t.Errorf("the export watches %d directories", watched)
	}
	p := tr.Part("a")
	tr.mu.Lock()
	if n := len(p.cur.nodes) - 1; n != told {
		t.Errorf("the supervisor has %d nodes, %d were told", n, told)
	}
	tr.mu.Unlock()
}

// TestOrder has a file whose write makes another: it is there when the write is done.
func TestOrder(t *testing.T) {
	tr := NewTree(TreeOptions{})
	root := &node.Dir{}
	fill(root, "1")
	run(t, tr.Part("a"), root)
	mk, rm := find(t, tr, "proc/net/make"), find(t, tr, "proc/net/remove")
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for k := range 100 {
				name := fmt.Sprintf("f%d.%d", i, k)
				if _, err := mk.Write(context.Background(), []byte(name)); err != nil {
					t.Error(err)
				}
				if n, err := tr.Root().Walk("proc/made/" + name); err != nil {
					t.Errorf("%s after the write that makes it: %v, %v", name, n, err)
					return
				}
				if _, err := rm.Write(context.Background(), []byte(name)); err != nil {
					t.Error(err)
				}
				if n, err := tr.Root().Walk("proc/made/" + name); err != syscall.ENOENT {
					t.Errorf("%s after the write that removes it: %v, %v", name, n, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestGone has files that are open when their worker takes them away.
func TestGone(t *testing.T) {
	tr := NewTree(TreeOptions{})
	root := sample()
	p := tr.Part("a")
	w := run(t, p, root)
	dev := find(t, tr, "proc/net/dev")
	root.MkdirAll("proc/net").Remove("dev")
	w.settled(t)
	if b, err := dev.ReadAll(); string(b) != "eth0\n" || err != nil {
		t.Errorf("ReadAll() of a file that is gone, and open = %q, %v, want what it was", b, err)
	}
	root.MkdirAll("proc/net").Put("dev", &node.File{Mode: 0o444, Show: text("other\n")})
	w.settled(t)
	if b, err := dev.ReadAll(); string(b) != "eth0\n" || err != nil {
		t.Errorf("ReadAll() of a file that another one took the place of = %q, %v, want what it was", b, err)
	}
	if b, err := find(t, tr, "proc/net/dev").ReadAll(); string(b) != "other\n" || err != nil {
		t.Errorf("ReadAll() = %q, %v, want the other", b, err)
	}
	for i := range maxLate + 1 {
		root.Put(fmt.Sprint(i), &node.File{})
		w.settled(t)
		root.Remove(fmt.Sprint(i))
	}
	w.settled(t)
	if b, err := dev.ReadAll(); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("ReadAll() of a file that is gone for long = %q, %v, want ENODEV", b, err)
	}
	w.kill()
	p.Detach(errors.New("killed"))
	if b, err := dev.ReadAll(); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("ReadAll() of a file that is gone, of a worker that is = %q, %v, want ENODEV", b, err)
	}
}

// TestTooLarge has a tree that no supervisor takes.
func TestTooLarge(t *testing.T) {
	loop := &node.Dir{}
	loop.Put("a", loop)
	loop.Put("b", loop)
	for _, c := range []struct {
		name string
		root *node.Dir
		want error
	}{{"a tree without end", loop, syscall.E2BIG}} {
		tr := NewTree(TreeOptions{})
		ours, theirs := linked(t, tr.Part("a"))
		e := NewExport(c.root)
		if err := e.Start(theirs); !errors.Is(err, c.want) {
			t.Errorf("%s: Start() = %v, want %v", c.name, err, c.want)
		}
		if err := ours.Err(); err != nil {
			t.Errorf("%s: the supervisor ended the link: %v", c.name, err)
		}
	}
	deep := &node.Dir{}
	deep.MkdirAll(strings.Repeat("d/", 2*maxDepth)).Put("f", &node.File{})
	deep.Put(strings.Repeat("n", 300), &node.File{})
	deep.Put("long", &node.Link{Target: strings.Repeat("n", 5000)})
	tr := NewTree(TreeOptions{})
	run(t, tr.Part("a"), deep)
	if got := strings.Count(dump(tr.Root(), ""), "\n"); got != maxDepth-1 {
		t.Errorf("of a tree that is too deep %d entries are shown, want %d", got, maxDepth-1)
	}
}
