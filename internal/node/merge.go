package node

import (
	"os"
	"path/filepath"
	"sort"
)

// ours looks a name up in the layers that are not the kernel's.
func (d *Dir) ours(name string) Node {
	d.mu.RLock()
	n := d.ent[name]
	d.mu.RUnlock()
	if n == nil && d.Ours != nil {
		return d.Ours.Lookup(name)
	}
	return n
}

// ourNames lists the layers that are not the kernel's, in byte order.
func (d *Dir) ourNames() []string {
	d.mu.RLock()
	names := make([]string, 0, len(d.ent))
	for n := range d.ent {
		names = append(names, n)
	}
	if d.Ours != nil {
		for _, n := range d.Ours.Names() {
			if d.ent[n] == nil {
				names = append(names, n)
			}
		}
	}
	d.mu.RUnlock()
	sort.Strings(names)
	return names
}

// kernel looks a name up in the real directory below and makes the link that stands for
// it; nil if there is none.
func (d *Dir) kernel(name string) Node {
	if d.Kernel == "" || name == "" || name == "." || name == ".." {
		return nil
	}
	path := filepath.Join(d.Kernel, name)
	fi, err := os.Lstat(path)
	if err != nil {
		return nil
	}
	if fi.Mode()&os.ModeSymlink != 0 {
		text, err := os.Readlink(path)
		if err != nil {
			return nil
		}
		return &Link{Target: text, Fixed: true}
	}
	return &Link{Target: filepath.Join(d.Keep, name), Fixed: true}
}

// kernelNames lists the real directory below; a directory that cannot be read is empty.
func (d *Dir) kernelNames() []string {
	f, err := os.Open(d.Kernel)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1) // what could be read before an error still counts
	return names
}

// Hidden lists the names of a merged directory's own layers that the machine has too, so
// that ours hide the machine's. It is empty for a directory without a Kernel layer.
func (d *Dir) Hidden() []string {
	var both []string
	for _, n := range d.ourNames() {
		if d.kernel(n) != nil {
			both = append(both, n)
		}
	}
	return both
}

// Subdirs counts the entries that are directories; one of Ours that an own entry hides
// counts too.
func (d *Dir) Subdirs() int {
	d.mu.RLock()
	n := d.dirs
	d.mu.RUnlock()
	if d.Ours != nil {
		n += d.Ours.Subdirs()
	}
	return n
}
