package mirror

import (
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/internal/node"
)

// Rule says what is done with a file that several parts have, or one that a worker may die under. Of a file without a Rule there is one: whoever had it first
// has it, and no other worker can put its own in the place, or beside.
type Rule struct {
	// Pattern is a path from the top, as path.Match has it: "/proc/net/pktgen/kpktgend_*". The first Rule that matches counts.
	Pattern string
	// Show makes the text of the texts of several parts, in the order in which Part made them; a part that has failed
	// is left out, and one that has not answered within a fifth of Patience when another has. nil: one after the other.
	Show func(parts []string, texts [][]byte) []byte
	// One says that the texts are the same, and one is shown: the others are not asked. Show is not called.
	One bool
	// Store names those of parts that get a write, also where there is one; none means the first, whose answer is the writer's. nil: all.
	Store func(parts []string, p []byte) []string
	// Again says that a write that was on its way when its worker died is harmless to repeat: it goes to the next worker, and to one more.
	Again bool
	// Lasts says that such a write is for as long as something goes on, whichever worker does it: it goes to each of them, until it is answered or the part has failed.
	// nil: none is.
	Lasts func(p []byte) bool
}

// TreeOptions say how a Tree behaves. The zero value is good for a test.
type TreeOptions struct {
	Rules []Rule
	// Except are names at the top that no worker may have.
	Except []string
	// May says whether a part may have an entry ("/sys/class/net/eth1"), where what is above it is there. It is asked once for each, with the Tree's lock held: it must not
	// wait, nor use the Tree. nil: each may have any.
	May func(part, path string) bool
	// Leads says whether a link of a part's may lead out of the tree. It is asked as May is. nil: none may.
	Leads func(part, path, target string) bool
	// Patience is how long a call waits for the next worker, and how long one that cannot be interrupted waits for its answer; 0: 10 s.
	Patience time.Duration
	Log      *slog.Logger // nil discards
}

// Tree is the supervisor's side: the trees of all workers, joined. It is safe for concurrent use.
type Tree struct {
	o   TreeOptions
	top *entry

	mu    sync.Mutex // guards all entries, sessions and parts' lists; never held during a call to a worker
	parts map[string]*Part
	order int // of the next part
}

// NewTree makes an empty Tree.
func NewTree(o TreeOptions) *Tree {
	if o.Patience <= 0 {
		o.Patience = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	dir := &node.Dir{}
	return &Tree{o: o, top: &entry{n: dir, dir: dir, kids: map[string]*entry{}}, parts: map[string]*Part{}}
}

// Root is the joined tree. Its owner may put entries of its own; those stay, and hide what a worker has at the same place. A directory of the owner's that
// a worker has as well gets the worker's entries too; so a directory that the owner builds upon is made before a worker is attached.
func (t *Tree) Root() *node.Dir { return t.top.dir }

// Part is the part of that name, made when it is not there.
func (t *Tree) Part(name string) *Part {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.parts[name]
	if p == nil {
		t.order++
		p = newPart(t, name, t.order)
		t.parts[name] = p
	}
	return p
}

// rule is what is done with the file at a path; nil if no Rule says.
func (t *Tree) rule(at string) *Rule {
	for i := range t.o.Rules {
		if ok, _ := path.Match(t.o.Rules[i].Pattern, at); ok {
			return &t.o.Rules[i]
		}
	}
	return nil
}

// entry is a place in the joined tree. What is not said to be otherwise is guarded by Tree.mu.
type entry struct {
	up   *entry
	name string
	path string
	rule *Rule // of a file; nil: none

	kids map[string]*entry // of a directory
	own  []*seen           // whose it is, in the order of their parts; all of one kind
	info kindInfo          // what n was made of
	n    node.Node         // what stands in the tree; nil: something of the owner's
	dir  *node.Dir         // n, or a directory of the owner's, where the entry is one
	used bool              // dir is the owner's

	users atomic.Pointer[[]*seen] // own, for calls; what it was when the entry went
	gone  atomic.Bool             // not in the tree any more; programs may have it open
}

// What follows is called with Tree.mu held.

// join gives an entry the node of a worker: a new entry, or one that other parts have, or the same part's last worker had. It returns nil where
// it may not be shown.
func (t *Tree) join(up *entry, s *seen) *entry {
	if up == t.top && slices.Contains(t.o.Except, s.name) {
		return nil
	}
	e := up.kids[s.name]
	if t.o.May != nil && !t.o.May(s.of.part.name, up.path+"/"+s.name) {
		s.of.part.hidden("it may not have that", up.path+"/"+s.name)
		return nil
	}
	if at := up.path + "/" + s.name; s.kind == kindLink && !inside(at, s.target) && (t.o.Leads == nil || !t.o.Leads(s.of.part.name, at, s.target)) {
		s.of.part.hidden("its link leads out of the tree", up.path+"/"+s.name)
		return nil
	}
	if e == nil {
		e = &entry{up: up, name: s.name, path: up.path + "/" + s.name}
		switch s.kind {
		case kindDir:
			e.kids = map[string]*entry{}
		case kindFile:
			e.rule = t.rule(e.path)
		}
		switch there := up.dir.Own(s.name).(type) {
		case nil:
		case *node.Dir:
			if s.kind != kindDir {
				return nil
			}
			e.dir, e.used = there, true
		default:
			return nil
		}
		up.kids[s.name] = e
	} else if !e.takes(s) {
		s.of.part.hidden("another one has it", e.path)
		return nil
	}
	part := func(x *seen) int { return x.of.part.order }
	i, found := slices.BinarySearchFunc(e.own, part(s), func(x *seen, order int) int { return part(x) - order })
	e.own = slices.Clone(e.own) // calls read the old one
	if found {
		e.own[i] = s
	} else {
		e.own = slices.Insert(e.own, i, s)
	}
	s.at = e
	e.refresh()
	return e
}

// tops are the directories between which links may lead, and magic the names in /proc of what leads everywhere.
var (
	tops  = []string{"dev", "proc", "sys"}
	magic = []string{"cwd", "exe", "fd", "map_files", "ns", "root"}
)

// inside says whether a link at a path leads to somewhere in the tree, wherever other links that are so lead: first up, and then down only. By one that leads
// elsewhere a worker would have whoever follows it take a file of the user's, or memory of the worker's, for what is shown here.
func inside(at, target string) bool {
	most := strings.Count(strings.Trim(at, "/"), "/")
	up := 0
	for ; target == ".." || strings.HasPrefix(target, "../"); up++ {
		target = strings.TrimPrefix(target[2:], "/")
	}
	words := strings.Split(target, "/")
	switch {
	case up > most, strings.HasPrefix(target, "/"), slices.Contains(words, ".."):
		return false
	case up > 0 && up == most && !slices.Contains(tops, words[0]): // in 'ring3 shell' that is the machine's root
		return false
	}
	return !slices.ContainsFunc(words, func(w string) bool { return slices.Contains(magic, w) })
}

// takes says whether a worker's node may stand here beside, or in the place of, what is here.
func (e *entry) takes(s *seen) bool {
	first := e.own[0]
	switch {
	case first.kind != s.kind:
		return false
	case len(e.own) == 1 && first.of.part == s.of.part, s.kind == kindDir:
		return true
	case s.kind == kindLink:
		return first.kindInfo == s.kindInfo
	}
	return e.rule != nil
}

// hidden logs that something is not shown, once.
func (p *Part) hidden(why, path string) {
	if !p.hides {
		p.hides = true
		p.t.o.Log.Warn("a worker has what is not shown, nor what else there may be of this kind: "+why, "worker", p.name, "path", path)
	}
}

// leave takes a node of a worker away, after what is below it.
func (t *Tree) leave(s *seen) {
	e := s.at
	if e == nil {
		return
	}
	s.at = nil
	i := slices.Index(e.own, s)
	if i < 0 {
		return // the next worker's took its place
	}
	e.own = slices.Delete(slices.Clone(e.own), i, i+1)
	if len(e.own) > 0 {
		e.refresh()
		return
	}
	e.gone.Store(true)
	delete(e.up.kids, e.name)
	if e.n != nil && e.up.dir.Own(e.name) == e.n {
		e.up.dir.Remove(e.name)
	}
}

// refresh has the tree show what the first part has. What looks the same stays the same node, so that its inode does.
func (e *entry) refresh() {
	own := e.own
	e.users.Store(&own)
	info := own[0].kindInfo
	if e.used || e.n != nil && e.info == info {
		return
	}
	e.info = info
	switch info.kind {
	case kindDir:
		d := &node.Dir{Mode: fs.FileMode(info.mode)}
		if e.dir != nil {
			for name, n := range e.dir.OwnEntries() {
				d.Put(name, n)
			}
		}
		e.n, e.dir = d, d
	case kindLink:
		e.n = &node.Link{Target: info.target}
	case kindFile:
		e.n = e.file(info)
	}
	e.up.dir.Put(e.name, e.n)
}
