package mirror

import (
	"sync"

	"github.com/ring3dev/ring3/internal/link"
)

// session is what one worker told.
type session struct {
	part *Part
	c    *link.Conn

	// Guarded by Tree.mu.
	nodes map[uint64]*seen
	bytes int
	whole bool

	mu    sync.Mutex
	opens map[uint64]*stream // by the worker's number
}

// seen is a node that a worker told of. It is guarded by Tree.mu, but for what never changes.
type seen struct {
	of    *session
	id    uint64
	up    *seen
	depth int
	name  string
	kindInfo
	kids map[string]*seen // of a directory
	at   *entry           // nil: not in the tree
}

// What follows is called with Tree.mu held.

// take adds or removes a node, as the worker says.
func (s *session) take(r *record) error {
	if r.remove {
		n := s.nodes[r.id]
		if n == nil {
			return protocol("entry %d goes, and never came", r.id)
		}
		delete(n.up.kids, n.name)
		s.drop(n)
		return nil
	}
	up := s.nodes[r.parent]
	switch {
	case up == nil || up.kind != kindDir:
		return protocol("%q comes into %d, which is no directory", r.name, r.parent)
	case s.nodes[r.id] != nil || up.kids[r.name] != nil:
		return protocol("%q comes a second time", r.name)
	case up.depth+1 > maxDepth || len(s.nodes) >= maxNodes || s.bytes+len(r.name)+len(r.target) > maxBytes:
		return protocol("%q: more than %d levels, %d entries or %d bytes of names", r.name, maxDepth, maxNodes, maxBytes)
	}
	n := &seen{of: s, id: r.id, up: up, depth: up.depth + 1, name: r.name, kindInfo: r.kindInfo}
	if n.kind == kindDir {
		n.kids = map[string]*seen{}
	}
	up.kids[n.name], s.nodes[n.id] = n, n
	s.bytes += len(n.name) + len(n.target)
	if up.at != nil {
		s.part.t.join(up.at, n)
	}
	return nil
}

// drop forgets a node and what is below it.
func (s *session) drop(n *seen) {
	for _, k := range n.kids {
		s.drop(k)
	}
	s.part.t.leave(n)
	delete(s.nodes, n.id)
	s.bytes -= len(n.name) + len(n.target)
}

// show puts a node, and what is below, into the tree, in the place of what the part's last worker had there.
func (s *session) show(n *seen, old *session) {
	if e := n.up.at.kids[n.name]; e != nil && old != nil {
		for _, x := range e.own {
			if x.of == old && x.kind != n.kind {
				old.hide(x)
				break
			}
		}
	}
	if s.part.t.join(n.up.at, n) == nil {
		return
	}
	for _, k := range n.kids {
		s.show(k, old)
	}
}

// hide takes out of the tree what is still of s.
func (s *session) hide(n *seen) {
	for _, k := range n.kids {
		s.hide(k)
	}
	s.part.t.leave(n)
}

// wake tells whoever polls a stream.
func (s *session) wake(id uint64) {
	s.mu.Lock()
	x := s.opens[id]
	s.mu.Unlock()
	if x != nil {
		x.wake()
	}
}

// wakeAll tells whoever polls.
func (s *session) wakeAll() {
	s.mu.Lock()
	all := make([]*stream, 0, len(s.opens))
	for _, x := range s.opens {
		all = append(all, x)
	}
	s.mu.Unlock()
	for _, x := range all {
		x.wake()
	}
}
