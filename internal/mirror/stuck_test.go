package mirror

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/internal/node"
)

// TestStuckStore: stores to one group's files that do not return hold up no file of another's, nor its death and its return, nor what else is asked of the same group.
func TestStuckStore(t *testing.T) {
	const stuck = 50
	tr := joinedTree(time.Minute)
	pa, pb := tr.Part("a"), tr.Part("b")
	a, b := newGroup("a"), newGroup("b")
	release := make(chan struct{})
	var inside sync.WaitGroup
	inside.Add(stuck)
	for i := range stuck {
		a.root.MkdirAll("proc").Put(fmt.Sprintf("stuck%d", i), &node.File{Mode: 0o200, Store: func(_ context.Context, p []byte) (int, error) {
			inside.Done()
			<-release
			return len(p), nil
		}})
	}
	run(t, pa, a.root)
	wb := run(t, pb, b.root)
	var over sync.WaitGroup
	for i := range stuck {
		over.Go(func() {
			if n, err := find(t, tr, fmt.Sprintf("proc/stuck%d", i)).Write(context.Background(), []byte("x")); n != 1 || err != nil {
				t.Errorf("a store that ended in the end: %d, %v, want 1, nil", n, err)
			}
		})
	}
	inside.Wait()
	for round := range 3 {
		for path, want := range map[string]string{"proc/own-b": "b", "proc/own-a": "a", "proc/all": "a\nb\n", "proc/chosen": "a+b:a\n|b\n"} {
			if got, err := find(t, tr, path).ReadAll(); string(got) != want || err != nil {
				t.Errorf("%s beside stores that hang: %q, %v, want %q", path, got, err, want)
			}
		}
		for path, text := range map[string]string{"proc/chosen": "b", "proc/private": "x", "proc/all": "x"} {
			if n, err := find(t, tr, path).Write(patient(t), []byte(text)); n != len(text) || err != nil {
				t.Errorf("%s beside stores that hang: writing %q = %d, %v", path, text, n, err)
			}
		}
		if round < 2 {
			wb.kill()
			wb = run(t, pb, b.root)
		}
	}
	close(release)
	over.Wait()
}
