package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/ring3dev/ring3/internal/node"
)

// deaths is how often TestManyDeaths kills; more of them with RING3_LONG.
func deaths() int {
	if os.Getenv("RING3_LONG") != "" {
		return 5000
	}
	return 40
}

// TestManyDeaths kills one of two workers again and again under programs that use its files: no read fails, a write fails only as one that was on its way, a
// stream says EIO at most once for each death, and the other worker's files know nothing of it.
func TestManyDeaths(t *testing.T) {
	tr := joinedTree(0)
	pa, pb := tr.Part("a"), tr.Part("b")
	var killed, wrote, lost atomic.Int64
	tree := func(name string) *node.Dir {
		g := newGroup(name)
		g.root.MkdirAll("proc").Put("count-"+name, &node.File{Mode: 0o644, Show: text("x"), Store: func(_ context.Context, p []byte) (int, error) {
			return len(p), nil
		}})
		g.root.MkdirAll("dev").Put("echo-"+name, &node.File{Mode: 0o600, Open: openEcho(name)})
		return g.root
	}
	run(t, pb, tree("b"))
	w := run(t, pa, tree("a"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var turns []*atomic.Int64 // of each loop
	loop := func(f func() error) {
		n := &atomic.Int64{}
		turns = append(turns, n)
		wg.Go(func() {
			for ; ; n.Add(1) {
				select {
				case <-stop:
					return
				default:
				}
				if err := f(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	own, all, other := find(t, tr, "proc/own-a"), find(t, tr, "proc/all"), find(t, tr, "proc/count-b")
	count := find(t, tr, "proc/count-a")
	for _, c := range []struct {
		f    *node.File
		want string
	}{{own, "a"}, {all, "a\nb\n"}, {other, "x"}} {
		loop(func() error {
			b, err := c.f.ReadAll()
			if err != nil || !bytes.Equal(b, []byte(c.want)) {
				return fmt.Errorf("ReadAll() = %q, %w, want %q", b, err, c.want)
			}
			return nil
		})
	}
	loop(func() error {
		n, err := count.Write(context.Background(), []byte("abc"))
		switch {
		case err == nil && n == 3:
			wrote.Add(1)
		case errors.Is(err, syscall.EIO):
			lost.Add(1)
		default:
			return fmt.Errorf("Write() = %d, %w, want 3 or EIO", n, err)
		}
		return nil
	})
	loop(func() error {
		if n, err := other.Write(context.Background(), []byte("abc")); n != 3 || err != nil {
			return fmt.Errorf("Write() of the other's file = %d, %w, want 3", n, err)
		}
		return nil
	})
	s, err := find(t, tr, "dev/echo-a").Open(0)
	if err != nil {
		t.Fatal(err)
	}
	var streamErrs int64
	loop(func() error {
		if n, err := s.Write(context.Background(), []byte("x"), 0); err != nil {
			if !errors.Is(err, syscall.EIO) {
				return fmt.Errorf("stream: Write() = %d, %w, want EIO at worst", n, err)
			}
			streamErrs++
			return nil
		}
		if _, changed := s.(node.Poller).Poll(); changed == nil {
			return errors.New("stream: Poll() has no channel")
		}
		return nil
	})
	for range deaths() {
		for _, n := range turns { // so that no call meets two deaths
			n.Store(0)
		}
		await(t, func() bool {
			return t.Failed() || !slices.ContainsFunc(turns, func(n *atomic.Int64) bool { return n.Load() == 0 })
		})
		if t.Failed() {
			break
		}
		w.kill()
		killed.Add(1)
		pa.Detach(errors.New("killed"))
		w.c.Close()
		w.w.Close()
		w = run(t, pa, tree("a"))
	}
	close(stop)
	wg.Wait()
	_ = s.Close()
	if lost.Load() > killed.Load() || streamErrs > killed.Load() {
		t.Errorf("%d deaths cost %d writes and %d calls of a stream, want at most one each", killed.Load(), lost.Load(), streamErrs)
	}
	t.Logf("%d deaths: %d writes, %d lost, %d errors of a stream", killed.Load(), wrote.Load(), lost.Load(), streamErrs)
}
