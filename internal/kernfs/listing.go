package kernfs

import (
	"errors"
	"io"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/ring3dev/ring3/internal/node"
)

// notEOF is err, without the end of a file, which read(2) tells by returning nothing.
func notEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// listing is one open directory: what it held when reading began, so that entries which
// come and go meanwhile shift nothing.
type listing struct {
	mu  sync.Mutex
	ent []fuse.DirEntry
}

func (t *tree) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	e, st := t.begin(in.NodeId)
	if st != fuse.OK {
		return st
	}
	if _, ok := e.node.(*node.Dir); !ok {
		return fuse.ENOTDIR
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nextFh++
	t.lists[t.nextFh] = &listing{}
	out.Fh = t.nextFh
	return fuse.OK
}

func (t *tree) ReleaseDir(in *fuse.ReleaseIn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.lists, in.Fh)
}

func (t *tree) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	e, st := t.begin(in.NodeId)
	if st != fuse.OK {
		return st
	}
	t.mu.Lock()
	l := t.lists[in.Fh]
	t.mu.Unlock()
	if l == nil {
		return fuse.EBADF
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if in.Offset == 0 {
		l.ent = t.list(e)
	}
	for i := in.Offset; i < uint64(len(l.ent)); i++ {
		if !out.AddDirEntry(l.ent[i]) {
			break
		}
	}
	return fuse.OK
}

// list is a directory's entries now, "." and ".." first.
func (t *tree) list(e *entry) []fuse.DirEntry {
	d, ok := e.node.(*node.Dir)
	if !ok {
		return nil
	}
	up := e.ino
	if p := t.get(e.parent); p != nil {
		up = p.ino
	}
	names := d.Names()
	ent := make([]fuse.DirEntry, 0, len(names)+2)
	ent = append(ent, fuse.DirEntry{Mode: syscall.S_IFDIR, Name: ".", Ino: e.ino}, fuse.DirEntry{Mode: syscall.S_IFDIR, Name: "..", Ino: up})
	for _, name := range names {
		var mode uint32
		switch d.Lookup(name).(type) {
		case *node.Dir:
			mode = syscall.S_IFDIR
		case *node.Link:
			mode = syscall.S_IFLNK
		case *node.File:
			mode = syscall.S_IFREG
		default:
			continue // gone meanwhile
		}
		ent = append(ent, fuse.DirEntry{Mode: mode, Name: name, Ino: childIno(e.ino, name)})
	}
	return ent
}
