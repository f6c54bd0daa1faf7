package mirror

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/node"
)

// Export is the worker's side: a tree, as its supervisor is told of it, and the calls of its files. It is a [link.Handler] for [Class].
// It is safe for concurrent use.
type Export struct {
	// Stored is told of each write that a file took, before it is answered; nil: nobody wants to know. It is set before Start.
	Stored func(f *node.File, p []byte)
	// Begun is told of each call before it is made: "reading", "writing" (p), "opening" a file, "streaming", which is a read or a write of a stream and has no file. What it
	// returns is called when the call has ended. nil: nobody wants to know. It is set before Start.
	Begun func(what string, f *node.File, p []byte) (end func())

	top    *place
	except []string

	marks marks

	mu    sync.Mutex // held while records are made and sent
	c     *link.Conn // of Start
	err   error      // why nothing more is sent
	out   []byte     // records that are not sent yet
	last  uint64     // number given last
	count int        // of nodes that are told
	dirs  map[*node.Dir][]*place
	stops map[*node.Dir][]func()
	late  []uint64 // files that are gone, the oldest first

	tab   sync.RWMutex // guards what follows; it may be taken with mu held
	files map[uint64]*node.File

	streams streams
}

// place is an entry that the supervisor was told of. A directory that is reached by two ways has two.
type place struct {
	id    uint64
	n     node.Node
	depth int
	kids  map[string]*place // of a directory
}

// NewExport makes an Export of what is below root, without the entries of root that except names.
func NewExport(root *node.Dir, except ...string) *Export {
	e := &Export{top: &place{n: root}, except: except, dirs: map[*node.Dir][]*place{}, stops: map[*node.Dir][]func(){}, files: map[uint64]*node.File{}}
	e.marks.wake = make(chan struct{}, 1)
	e.streams.open = map[uint64]*exported{}
	return e
}

// Start tells c's other end of the whole tree, then of each change until c ends. It returns when the tree has been told; an error is c's, or
// says that the tree is larger than a supervisor takes. It is called once.
func (e *Export) Start(c *link.Conn) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.c = c
	e.streams.c.Store(c)
	e.enter(e.top)
	if e.push(true); e.err == nil {
		e.err = c.Send(eventWhole, nil)
	}
	if e.err != nil {
		e.release()
		return fmt.Errorf("telling of the tree: %w", e.err)
	}
	go e.follow(c)
	return nil
}

// follow tells of changes, until c ends.
func (e *Export) follow(c *link.Conn) {
	for {
		select {
		case <-e.marks.wake:
			if err := e.Flush(); err != nil {
				c.End(err) // the other side would go on with a tree that is not this one
			}
		case <-c.Done():
			e.mu.Lock()
			if e.err == nil {
				e.err = c.Err()
			}
			e.release()
			e.mu.Unlock()
			e.streams.closeAll()
			return
		}
	}
}

// Flush returns when the supervisor has been told of all changes that were made before the call. Calls of files do it by themselves; who answers
// another call that may have changed the tree does it before the answer.
func (e *Export) Flush() error {
	if !e.marks.any.Load() {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.c == nil {
		return nil // Start will
	}
	for m := range e.marks.take() {
		for _, p := range slices.Clone(e.dirs[m.dir]) {
			if e.dirs[m.dir] != nil && slices.Contains(e.dirs[m.dir], p) { // an entry before it may have taken it away
				e.compare(p, m.name)
			}
		}
	}
	e.push(true)
	e.marks.told()
	return e.err
}

// What follows is called with mu held.

// release ends all watches.
func (e *Export) release() {
	for d := range e.stops {
		e.unwatch(d)
	}
}

func (e *Export) unwatch(d *node.Dir) {
	for _, stop := range e.stops[d] {
		stop()
	}
	delete(e.stops, d)
}

// enter tells of a directory's entries, now and when they change.
func (e *Export) enter(p *place) {
	d := p.n.(*node.Dir)
	p.kids = map[string]*place{}
	if e.dirs[d] = append(e.dirs[d], p); len(e.dirs[d]) == 1 {
		for l := d; l != nil; l = l.Ours { // before the entries are read: what comes between is told twice, and found to be the same
			e.stops[d] = append(e.stops[d], l.Watch(func(_ *node.Dir, name string) { e.marks.put(mark{d, name}) }))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.OwnEntries())) {
		e.compare(p, name)
	}
}

// leave undoes enter for all that is below, and forgets the files.
func (e *Export) leave(p *place) {
	e.count--
	switch n := p.n.(type) {
	case *node.Dir:
		for _, k := range p.kids {
			e.leave(k)
		}
		if e.dirs[n] = slices.DeleteFunc(e.dirs[n], func(x *place) bool { return x == p }); len(e.dirs[n]) == 0 {
			delete(e.dirs, n)
			e.unwatch(n)
		}
	case *node.File:
		// Programs that have it open go on with it, as they would with a file of this process.
		if e.late = append(e.late, p.id); len(e.late) > maxLate {
			e.tab.Lock()
			delete(e.files, e.late[0])
			e.tab.Unlock()
			e.late = e.late[1:]
		}
	}
}

// maxLate is how many files that are gone still answer.
const maxLate = 1024

// compare tells of the entry name of p, if it is not what was told.
func (e *Export) compare(p *place, name string) {
	if p == e.top && slices.Contains(e.except, name) {
		return
	}
	n := p.n.(*node.Dir).Own(name)
	old := p.kids[name]
	if old != nil && old.n == n {
		return
	}
	if old != nil {
		delete(p.kids, name)
		e.leave(old)
		e.tell(&record{remove: true, id: old.id})
	}
	info, ok := describe(n)
	if !ok || !goodName(name) || p.depth+1 >= maxDepth {
		return
	}
	if e.count++; e.count >= maxNodes {
		e.count--
		if e.err == nil {
			e.err = fmt.Errorf("more than %d entries: %w", maxNodes, syscall.E2BIG)
		}
		return
	}
	e.last++
	k := &place{id: e.last, n: n, depth: p.depth + 1}
	p.kids[name] = k
	e.tell(&record{id: k.id, parent: p.id, name: name, kindInfo: info})
	switch n := n.(type) {
	case *node.File:
		e.tab.Lock()
		e.files[k.id] = n
		e.tab.Unlock()
	case *node.Dir:
		e.enter(k)
	}
}

// tell puts a record to those that are sent together.
func (e *Export) tell(r *record) {
	e.out = r.append(e.out)
	e.push(false)
}

// pushSize is how many bytes of records are sent at once.
const pushSize = 64 << 10

// push sends what there is: if it is much, or now.
func (e *Export) push(now bool) {
	if len(e.out) == 0 || !now && len(e.out) < pushSize {
		return
	}
	if e.err == nil {
		e.err = e.c.Send(eventRecords, e.out)
	}
	e.out = e.out[:0]
}

// mark says that an entry may have changed.
type mark struct {
	dir  *node.Dir
	name string
}

// marks are what changed and was not looked at yet. Their number has the bound that the tree has: one for each name.
type marks struct {
	wake chan struct{}
	any  atomic.Bool

	mu  sync.Mutex
	all map[mark]struct{}
}

func (m *marks) put(x mark) {
	m.mu.Lock()
	if m.all == nil {
		m.all = map[mark]struct{}{}
	}
	m.all[x] = struct{}{}
	m.any.Store(true)
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// take gives all marks.
func (m *marks) take() map[mark]struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.all
	m.all = nil
	return all
}

// told ends what take began: only now may somebody find that there is nothing to tell.
func (m *marks) told() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.any.Store(len(m.all) > 0)
}

// Event implements [link.Handler]: a supervisor tells nothing of this class.
func (e *Export) Event(m link.Method, _ []byte, files []*os.File) error {
	closeAll(files)
	return protocol("event %#x", uint16(m))
}

// Call implements [link.Handler].
func (e *Export) Call(ctx context.Context, m link.Method, body []byte, files []*os.File, _ func([]byte) error) ([]byte, []*os.File, error) {
	closeAll(files)
	if len(body) < 8 {
		return nil, nil, protocol("a call of %d bytes", len(body))
	}
	id, body := wire.Uint64(body), body[8:]
	reply, err := e.answer(ctx, m, id, body)
	if f := e.Flush(); err == nil && f != nil {
		err = f
	}
	return reply, nil, err
}

// Sent implements [link.SentHandler]: what a device gave may be a key.
func (e *Export) Sent(m link.Method, reply []byte) {
	if m == methodRead {
		clear(reply)
	}
}

// errStale is the answer about a file or a stream that is not there (any more).
var errStale = fmt.Errorf("tree: no such file: %w", syscall.ESTALE)

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
