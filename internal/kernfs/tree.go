package kernfs

import (
	"context"
	"hash/fnv"
	"log/slog"
	"math"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/ring3dev/ring3/internal/node"
)

// entry is one node that the kernel knows, under one name.
type entry struct {
	id      uint64
	parent  uint64
	name    string
	ino     uint64
	flavour node.Flavour // of a directory: what its part of the tree imitates
	node    node.Node
	lookups uint64 // how often the kernel was told; guarded by tree.mu
}

// place is where a node stands that keeps its node id as long as it stands there.
type place struct {
	parent uint64
	name   string
}

// tree answers the kernel's requests about names and attributes; files.go has the rest.
type tree struct {
	fuse.RawFileSystem // answers what we do not know with ENOSYS

	log      *slog.Logger
	uid, gid uint32
	born     time.Time
	grace    time.Duration // for Show and Store after an interrupt
	ctx      context.Context
	dead     atomic.Bool // unmounted, though somebody still has files open

	mu      sync.Mutex
	nextID  uint64
	entries map[uint64]*entry
	placed  map[place]*entry
	nextFh  uint64
	open    map[uint64]*handle
	closing map[uint64]*handle // of streams: released, and not yet closed
	over    bool               // all streams were closed: there will be no more
	lists   map[uint64]*listing
}

func newTree(ctx context.Context, root *node.Dir, log *slog.Logger, grace time.Duration) *tree {
	t := &tree{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		log:           log,
		uid:           uint32(os.Geteuid()),
		gid:           uint32(os.Getegid()),
		born:          time.Now(),
		grace:         grace,
		ctx:           ctx,
		nextID:        fuse.FUSE_ROOT_ID,
		entries:       make(map[uint64]*entry),
		placed:        make(map[place]*entry),
		open:          make(map[uint64]*handle),
		closing:       make(map[uint64]*handle),
		lists:         make(map[uint64]*listing),
	}
	t.entries[fuse.FUSE_ROOT_ID] = &entry{id: fuse.FUSE_ROOT_ID, ino: 1, node: root, lookups: 1}
	return t
}

func (t *tree) String() string { return "ring3" }

// counts is what the tables hold; a test looks for leaks with it.
func (t *tree) counts() (entries, placed, open, lists int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.entries), len(t.placed), len(t.open) + len(t.closing), len(t.lists)
}

// get finds an entry. The kernel never asks for one it forgot.
func (t *tree) get(id uint64) *entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.entries[id]
}

// begin finds the entry that a request is about, or the reason to refuse the request.
func (t *tree) begin(id uint64) (*entry, fuse.Status) {
	if t.dead.Load() {
		return nil, fuse.ENODEV
	}
	e := t.get(id)
	if e == nil {
		return nil, fuse.Status(syscall.ESTALE)
	}
	return e, fuse.OK
}

// childIno is a number that a path keeps, without a table: a hash of its parent's and its
// name. 0 and the root's 1 are avoided.
func childIno(parent uint64, name string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(strconv.AppendUint(nil, parent, 16))
	_, _ = h.Write([]byte{'/'})
	_, _ = h.Write([]byte(name))
	if ino := h.Sum64() & math.MaxInt64; ino > 1 {
		return ino
	}
	return 2
}

// flavourOf says what the directory name in parent imitates: /sys is sysfs, and so is
// everything below.
func flavourOf(parent *entry, name string) node.Flavour {
	if parent.flavour == node.Sys || name == "sys" {
		return node.Sys
	}
	return node.Proc
}

// keepsID says whether a node has the same id for every client. A file that can be written
// has not: its writers would wait for each other.
func keepsID(n node.Node) bool {
	switch n := n.(type) {
	case *node.Dir:
		return true
	case *node.File:
		return n.Mode&0o222 == 0 && n.Open == nil
	}
	return false
}

// know records that the kernel is told of n as name in parent, and returns its entry.
func (t *tree) know(parent *entry, name string, n node.Node) *entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := place{parent.id, name}
	keep := keepsID(n)
	if keep {
		if e := t.placed[at]; e != nil && e.node == n {
			e.lookups++
			return e
		}
	}
	t.nextID++
	e := &entry{id: t.nextID, parent: parent.id, name: name, ino: childIno(parent.ino, name),
		flavour: flavourOf(parent, name), node: n, lookups: 1}
	t.entries[e.id] = e
	if keep {
		t.placed[at] = e // an earlier node of this name lives on until it is forgotten
	}
	return e
}

// Forget is the kernel dropping n of its references to a node.
func (t *tree) Forget(id, n uint64) {
	if id == fuse.FUSE_ROOT_ID {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[id]
	if e == nil {
		return
	}
	if n < e.lookups {
		e.lookups -= n
		return
	}
	delete(t.entries, id)
	if at := (place{e.parent, e.name}); t.placed[at] == e {
		delete(t.placed, at)
	}
}

// Lookup finds a name in a directory.
func (t *tree) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	parent, st := t.begin(h.NodeId)
	if st != fuse.OK {
		return st
	}
	d, ok := parent.node.(*node.Dir)
	if !ok {
		return fuse.ENOTDIR
	}
	n := d.Lookup(name)
	if n == nil {
		return fuse.ENOENT
	}
	e := t.know(parent, name, n)
	out.NodeId = e.id
	out.Generation = 1
	t.attr(e, &out.Attr)
	out.AttrValid = remember(n)
	if l, ok := n.(*node.Link); ok && l.Fixed {
		out.EntryValid = longTime
	}
	return fuse.OK
}

// longTime is how many seconds the kernel may remember what stands for its own entries in
// a merged directory, so that these can be used while this process is stopped.
const longTime = 3600

// remember is how long the kernel may remember attributes, in seconds. Only the number of a
// directory's directories ever changes; each step of a path asks for its directory's mode.
func remember(n node.Node) uint64 {
	switch n := n.(type) {
	case *node.Dir:
		if n.Kernel != "" {
			return longTime
		}
		return 1
	case *node.Link:
		if n.Fixed {
			return longTime
		}
	}
	return 0
}

// attr fills in what stat shows.
func (t *tree) attr(e *entry, a *fuse.Attr) {
	*a = fuse.Attr{Ino: e.ino, Nlink: 1, Blksize: 4096, Owner: fuse.Owner{Uid: t.uid, Gid: t.gid}}
	a.SetTimes(&t.born, &t.born, &t.born)
	switch n := e.node.(type) {
	case *node.Dir:
		mode := n.Mode.Perm()
		switch {
		case mode != 0:
		case e.flavour == node.Sys: // sysfs says so, and nobody can make a name in it either
			mode = 0o755
		default:
			mode = 0o555
		}
		a.Mode = syscall.S_IFDIR | uint32(mode)
		a.Nlink = uint32(2 + n.Subdirs())
	case *node.Link:
		a.Mode = syscall.S_IFLNK | 0o777
		a.Size = uint64(len(n.Target))
	case *node.File:
		a.Mode = syscall.S_IFREG | uint32(n.Mode.Perm())
		a.Size = fileSize(n)
	}
}

// fileSize is st_size of a file.
func fileSize(f *node.File) uint64 {
	switch {
	case f.Open != nil:
		return 0
	case f.Size > 0:
		return uint64(f.Size)
	case f.Flavour == node.Sys && f.ReadAt == nil:
		return 4096
	}
	return 0
}

func (t *tree) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	e, st := t.begin(in.NodeId)
	if st == fuse.OK {
		t.attr(e, &out.Attr)
		out.AttrValid = remember(e.node)
	}
	return st
}

// SetAttr accepts what changes nothing here, as O_TRUNC, touch, and a chmod to what is, and refuses the rest. What
// stands for a character device has no length that ftruncate could change.
func (t *tree) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	e, st := t.begin(in.NodeId)
	if st != fuse.OK {
		return st
	}
	t.attr(e, &out.Attr)
	a := &out.Attr
	if in.Valid&fuse.FATTR_MODE != 0 && in.Mode&0o7777 != a.Mode&0o7777 || in.Valid&fuse.FATTR_UID != 0 && in.Uid != a.Uid || in.Valid&fuse.FATTR_GID != 0 && in.Gid != a.Gid {
		return fuse.EPERM
	}
	if f, ok := e.node.(*node.File); ok && f.Open != nil && in.Valid&fuse.FATTR_SIZE != 0 {
		return fuse.EINVAL
	}
	return fuse.OK
}

func (t *tree) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	e, st := t.begin(h.NodeId)
	if st != fuse.OK {
		return nil, st
	}
	l, ok := e.node.(*node.Link)
	if !ok {
		return nil, fuse.EINVAL
	}
	return []byte(l.Target), fuse.OK
}

// StatFs tells df that there is nothing to count.
func (t *tree) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: 255}
	return fuse.OK
}
