package fabric

import "github.com/ring3dev/ring3/rionet/rapidio"

// note is something a node is to be told.
type note struct {
	port *Port // nil: it is for Options.LinkChanged
	link *link
	kind noteKind
	up   bool
	n    int // bytes of data
	data [rapidio.MaxPortWrite]byte
}

type noteKind uint8

const (
	noteLink noteKind = iota
	noteConfig
	notePortWrite
	noteKinds
)

// maxNotes is how many notes of a kind wait for one node, or of one link. One goroutine delivers for all, and while a node keeps it,
// others go on writing registers and sending port-writes.
const maxNotes = 64

// queued is what waits of a kind for one node, or of one link. Fabric.mu guards it.
type queued struct {
	n    int
	last int // where in Fabric.notes
}

// unlock releases mu, after telling the nodes what they are to be told. They are told without it, so that they may use their ports
// meanwhile; one goroutine at a time does, which keeps the order.
func (f *Fabric) unlock() {
	if f.draining {
		f.mu.Unlock()
		return
	}
	f.draining = true
	for len(f.notes) > 0 {
		batch := f.takeNotes()
		f.mu.Unlock()
		for i := range batch {
			batch[i].deliver(f)
		}
		f.mu.Lock()
	}
	f.draining = false
	f.mu.Unlock()
}

// takeNotes takes all that wait. The caller holds f.mu.
func (f *Fabric) takeNotes() []note {
	batch := f.notes
	f.notes = nil
	for i := range batch {
		*batch[i].queue() = queued{}
	}
	return batch
}

// queue is where notes like this one are counted.
func (n *note) queue() *queued {
	if n.port == nil {
		return &n.link.queued
	}
	return &n.port.queued[n.kind]
}

// tell has a node be told something, or Options.LinkChanged, or not where too much waits already: port-writes get lost, as they may
// anywhere, that registers were written is told once, and of a link at least how it is in the end. The caller holds f.mu.
func (f *Fabric) tell(n note) {
	q, most := n.queue(), maxNotes
	if n.kind == noteConfig {
		most = 1
	}
	if q.n >= most {
		if n.kind == noteLink {
			f.notes[q.last].up = n.up
		}
		return
	}
	q.n++
	q.last = len(f.notes)
	f.notes = append(f.notes, n)
}

func (n *note) deliver(f *Fabric) {
	if n.port == nil {
		f.opts.LinkChanged(n.link.Ends, n.up)
		return
	}
	s, ok := n.port.enter()
	if !ok {
		return
	}
	defer n.port.leave()
	switch n.kind {
	case noteLink:
		s.Link(n.up)
	case noteConfig:
		s.ConfigWritten()
	case notePortWrite:
		s.PortWrite(n.data[:n.n])
	}
	s.Flush()
}

// noteConfigWritten tells the node of an endpoint, once for all writes until it is told.
func (f *Fabric) noteConfigWritten(d *device) {
	if p := d.node.Load(); p != nil {
		f.tell(note{port: p, kind: noteConfig})
	}
}
