package node

import (
	"maps"
	"slices"
)

// watcher is who wants to know of a directory's changes.
type watcher struct {
	changed func(d *Dir, name string)
}

// Watch has changed called after each Put and Remove of d: not of what is below, and not of Ours. It is called without a lock held, on the
// goroutine that made the change, before Put or Remove returns; by two goroutines at once for two changes. So it says only that name may be another
// entry, or none, by now: [Dir.Own] says which, and whoever looks after each call ends up with what is. A directory
// that nobody watches pays for a look at an empty list.
//
// After stop, calls that had begun may still be on their way.
func (d *Dir) Watch(changed func(d *Dir, name string)) (stop func()) {
	w := &watcher{changed}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watchers = append(slices.Clip(d.watchers), w) // a copy: others are read without the lock
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.watchers = slices.DeleteFunc(slices.Clone(d.watchers), func(x *watcher) bool { return x == w })
	}
}

func tell(all []*watcher, d *Dir, name string) {
	for _, w := range all {
		w.changed(d, name)
	}
}

// Own finds an entry of the layers that are not the kernel's; nil if there is none.
func (d *Dir) Own(name string) Node { return d.ours(name) }

// OwnEntries are the entries of the layers that are not the kernel's, as they are now.
func (d *Dir) OwnEntries() map[string]Node {
	var all map[string]Node
	if d.Ours != nil {
		all = d.Ours.OwnEntries()
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	if all == nil {
		return maps.Clone(d.ent)
	}
	maps.Copy(all, d.ent)
	return all
}
