package node

import (
	"fmt"
	"reflect"
	"sync"
	"testing"
)

func TestWatch(t *testing.T) {
	below := &Dir{}
	d := &Dir{Ours: below}
	var got []string
	stop := d.Watch(func(at *Dir, name string) {
		if at != d {
			t.Error("the change of another directory")
		}
		// No lock is held: who is told may look, and change.
		got = append(got, fmt.Sprintf("%s %v", name, at.Own(name) != nil))
	})
	var second int
	stop2 := d.Watch(func(*Dir, string) { second++ })
	d.Put("a", &File{})
	d.Put("a", &Link{})
	d.MkdirAll("b/c")
	d.Remove("a")
	below.Put("x", &File{})
	stop()
	stop()
	d.Put("z", &File{})
	stop2()
	d.Put("y", &File{})
	if want := []string{"a true", "a true", "b true", "a false"}; !reflect.DeepEqual(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	if second != 5 {
		t.Errorf("the second watcher was told %d times, want 5", second)
	}
	want := map[string]bool{"b": true, "x": true, "y": true, "z": true}
	all := d.OwnEntries()
	for name := range all {
		if !want[name] || d.Own(name) != all[name] {
			t.Errorf("OwnEntries() has %q", name)
		}
	}
	if len(all) != len(want) {
		t.Errorf("OwnEntries() has %d entries, want %d", len(all), len(want))
	}
}

// TestWatchConverges has changes and watches come and go at once: who looks after each call has seen the last state.
func TestWatchConverges(t *testing.T) {
	d := &Dir{}
	var mu sync.Mutex
	seen := map[string]Node{}
	look := func(name string) {
		mu.Lock()
		defer mu.Unlock()
		seen[name] = d.Own(name)
	}
	stop := d.Watch(func(_ *Dir, name string) { look(name) })
	defer stop()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for k := range 500 {
				name := fmt.Sprint((i + k) % 7)
				if k%3 == 0 {
					d.Remove(name)
				} else {
					d.Put(name, &File{Size: k})
				}
				d.Watch(func(*Dir, string) {})()
			}
		})
	}
	wg.Wait()
	for name, n := range seen {
		if n != d.Own(name) {
			t.Errorf("%s is %v, and was last seen as %v", name, d.Own(name), n)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	d, f := &Dir{}, &File{}
	for b.Loop() {
		d.Put("name", f)
	}
}
