// Package node is what an exported file tree is made of: directories, files with a
// show and a store, files with opens that have state, and symbolic links. It knows neither
// FUSE nor sockets; packages procfs, sysfs and devfs give it the kernel's flavours under
// public names, and internal/kernfs or the control socket serve it.
//
// All types are safe for concurrent use. Show, Store and Open are called without any lock
// held, possibly several at a time.
package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sort"
	"strings"
	"sync"
	"syscall"
)

// Node is a directory, a file or a link.
type Node interface{ isNode() }

// Flavour is the kernel file system whose habits a file has.
type Flavour uint8

// Flavours.
const (
	Proc Flavour = iota // st_size 0; a write of any length reaches Store whole
	Sys                 // st_size 4096 (or Size); a write is cut to 4096 bytes
)

// File is a file whose content is made when it is opened, and whose writes are
// commands.
type File struct {
	Mode    fs.FileMode // permission bits
	Flavour Flavour
	Size    int // what stat shows; 0 means the flavour's own

	// Show writes the content. It is called once per open, at the first read, and again
	// for a read at offset 0. nil: reading gives EIO.
	Show func(w *bytes.Buffer) error
	// ShowContext is called in place of Show, of a file that may wait, as one whose text comes from another process does. ctx ends
	// when the reader was interrupted. nil: Show is called.
	ShowContext func(ctx context.Context, w *bytes.Buffer) error
	// Store takes one write(2), never empty. It returns how many bytes it took and a
	// syscall.Errno (wrapped or not) for what went wrong. ctx ends when the writer was
	// interrupted; a Store that does not block may ignore it. nil: writing gives EIO.
	Store func(ctx context.Context, p []byte) (int, error)
	// ReadAt and WriteAt serve a binary file (config) instead of Show and Store.
	ReadAt  func(p []byte, off int64) (int, error)
	WriteAt func(p []byte, off int64) (int, error)
	// Open makes the file a character device in behaviour, instead of all the above: each
	// open(2) calls it, with the flags of that, and has a Stream of its own. An error is that of
	// open(2). st_size is 0.
	Open func(flags int) (Stream, error)
	// OneOpen is for a file that one program at a time may open: an open waits for the closes that were asked for before
	// it, at most a grace time once it is interrupted, and need not find the file busy. Of others no open waits for a close.
	OneOpen bool
}

func (*File) isNode() {}

// Link is a symbolic link.
type Link struct {
	Target string
	Fixed  bool // clients may remember it for long, as they do for links into the kernel's own tree
}

func (*Link) isNode() {}

// Dir is a directory. The zero value is an empty one.
//
// A directory may be merged from three layers, of which the first that has a name wins: its
// own entries (Put), those of Ours, and the entries of a directory of the machine's file
// system, Kernel, which show as symbolic links: a link keeps its text, anything else
// becomes a link to Keep/<name>. Ours, Kernel and Keep are set before the directory is
// used and not changed later.
type Dir struct {
	Mode fs.FileMode // permission bits; 0 means 0555, in sysfs 0755

	Ours   *Dir   // second layer, nil for none
	Kernel string // third layer: absolute path of a real directory, "" for none
	Keep   string // where links to entries of Kernel lead

	mu       sync.RWMutex
	ent      map[string]Node
	dirs     int        // how many of ent are directories
	watchers []*watcher // never changed in place
}

func (*Dir) isNode() {}

// Put adds or replaces an entry.
func (d *Dir) Put(name string, n Node) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		panic(fmt.Sprintf("node: impossible name %q", name))
	}
	d.mu.Lock()
	if d.ent == nil {
		d.ent = make(map[string]Node)
	}
	d.drop(name)
	d.ent[name] = n
	if _, ok := n.(*Dir); ok {
		d.dirs++
	}
	told := d.watchers
	d.mu.Unlock()
	tell(told, d, name)
}

// drop removes an entry. mu is held.
func (d *Dir) drop(name string) {
	if _, ok := d.ent[name].(*Dir); ok {
		d.dirs--
	}
	delete(d.ent, name)
}

// Remove takes an entry away. Files that are open stay readable.
func (d *Dir) Remove(name string) {
	d.mu.Lock()
	d.drop(name)
	told := d.watchers
	d.mu.Unlock()
	tell(told, d, name)
}

// Lookup finds an entry; nil if there is none.
func (d *Dir) Lookup(name string) Node {
	if n := d.ours(name); n != nil {
		return n
	}
	return d.kernel(name)
}

// Names lists the entries in byte order.
func (d *Dir) Names() []string {
	names := d.ourNames()
	if d.Kernel == "" {
		return names
	}
	have := make(map[string]bool, len(names))
	for _, n := range names {
		have[n] = true
	}
	for _, n := range d.kernelNames() {
		if !have[n] {
			names = append(names, n)
		}
	}
	sort.Strings(names)
	return names
}

// MkdirAll returns the directory at a slash-separated path, making what is missing. It
// panics where a part of the path is not a directory.
func (d *Dir) MkdirAll(path string) *Dir {
	for _, name := range strings.Split(path, "/") {
		if name == "" {
			continue
		}
		switch n := d.Lookup(name).(type) {
		case nil:
			sub := &Dir{}
			d.Put(name, sub)
			d = sub
		case *Dir:
			d = n
		default:
			panic(fmt.Sprintf("node: %s in %s is not a directory", name, path))
		}
	}
	return d
}

// maxLinks bounds a walk, as the kernel's MAXSYMLINKS does.
const maxLinks = 40

// Walk finds the node at a path below d, following links (the last one too) that stay
// inside the tree. Errors are ENOENT, ENOTDIR and ELOOP.
func (d *Dir) Walk(path string) (Node, error) {
	rest := strings.Split(path, "/")
	stack := []*Dir{d}
	links := 0
	var at Node = d
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		dir, ok := at.(*Dir)
		if !ok {
			return nil, syscall.ENOTDIR
		}
		if name == ".." {
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
			at = stack[len(stack)-1]
			continue
		}
		switch n := dir.Lookup(name).(type) {
		case nil:
			return nil, syscall.ENOENT
		case *Link:
			if links++; links > maxLinks {
				return nil, syscall.ELOOP
			}
			if strings.HasPrefix(n.Target, "/") {
				stack = stack[:1]
				at = stack[0]
			}
			rest = append(strings.Split(n.Target, "/"), rest...)
		case *Dir:
			stack = append(stack, n)
			at = n
		default:
			at = n
		}
	}
	return at, nil
}

// pageSize is the most that a sysfs file takes in one write, and shows.
const pageSize = 4096

// ReadAll is [File.Content] for who cannot be interrupted.
func (f *File) ReadAll() ([]byte, error) { return f.Content(context.Background()) }

// Content is one open and read to the end, of a file of either kind.
func (f *File) Content(ctx context.Context) ([]byte, error) {
	if f.Open != nil {
		return nil, ErrStream
	}
	if f.ReadAt != nil {
		p := make([]byte, max(f.Size, pageSize))
		n, err := f.ReadAt(p, 0)
		return p[:min(max(n, 0), len(p))], err
	}
	var b bytes.Buffer
	err := error(syscall.EIO)
	switch {
	case f.ShowContext != nil:
		err = f.ShowContext(ctx, &b)
	case f.Show != nil:
		err = f.Show(&b)
	}
	if err != nil {
		return nil, err
	}
	if f.Flavour == Sys && b.Len() > pageSize {
		b.Truncate(pageSize)
	}
	return b.Bytes(), nil
}

// Write is one write(2).
func (f *File) Write(ctx context.Context, p []byte) (int, error) {
	if f.Open != nil {
		return 0, ErrStream
	}
	if f.Store == nil {
		return 0, syscall.EIO
	}
	if f.Flavour == Sys && len(p) > pageSize {
		p = p[:pageSize]
	}
	return f.Store(ctx, p)
}

// Errno is the number that a client sees for err: 0 for nil, EIO where err carries none.
func Errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var e syscall.Errno
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, fs.ErrNotExist):
		return syscall.ENOENT
	case errors.Is(err, fs.ErrPermission):
		return syscall.EACCES
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return syscall.EINTR
	}
	return syscall.EIO
}
