package scan

import (
	"fmt"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// node is a device as a round met it: a place in the tree of the walk, with what its registers said.
type node struct {
	dev   *rapidio.Device // as it was read; of a device that was there before, what the net has of it
	was   *node           // it in the round before; nil: it is new
	depth int             // how many switches are before it: its hop count

	parent   *node // the switch by which it was met; nil: the master port
	port     int   // of parent
	in       int   // its own, back to parent
	children []*node
	links    []link // of a switch, by port
	up       []bool // as well: what had a link

	failed bool // it answered no more: the round leaves it out
	isNew  bool // nobody knew it before this round
	fresh  bool // nothing that was written into it before counts

	tag    uint32 // component tag: what it has, or shall have
	regTag uint32 // what its register holds now
	dest   rapidio.DestID
	regID  rapidio.DestID // what an endpoint's Base Device ID holds
	done   bool           // an endpoint's enumeration was complete when it was met

	// of a switch
	number int            // in the graph
	path   rapidio.DestID // an ID whose route from the master port passes it, or ends in it
	hop    int            // how many switches that route passes before
	prev   *node          // the last of them
	back   int            // its port to it
	any    int            // where its route of the "any" ID leads; unknown, or a port
	table  []int16        // what its table holds, by ID; unknown, or a port or InvalidRoute
	want   []uint8        // what it shall hold
	dense  int            // below this everything in want is written; beyond, what is not known and leads nowhere is left alone
	dirty  bool           // this, or something below, is to be written
}

// unknown in a table: nobody has read or written it.
const unknown = -1

// link is what is at a port.
type link struct {
	to   *node
	port int // its port there
}

func (n *node) isSwitch() bool { return n.dev.Switch != nil }

func (n *node) ports() int { return n.dev.Ports() }

// where says where a node is, for people.
func (n *node) where() string { return place(n.parent, n.port) }

func place(parent *node, port int) string {
	if parent == nil {
		return "the neighbour"
	}
	return fmt.Sprintf("port %d of %s", port, parent.label())
}

func (n *node) label() string {
	kind := 'e'
	if n.isSwitch() {
		kind = 's'
	}
	return fmt.Sprintf("%c:%04x (hop %d)", kind, n.tag&rapidio.ComponentMask, n.depth)
}

// held is what a switch's table is known to hold for an ID.
func (n *node) held(id rapidio.DestID) int16 {
	if int(id) < len(n.table) {
		return n.table[id]
	}
	return unknown
}

// lacks tells whether an entry of a switch's table is to be written.
func (n *node) lacks(id int) bool {
	held := n.held(rapidio.DestID(id))
	return held != int16(n.want[id]) && (id < n.dense || held != unknown || n.want[id] != rapidio.InvalidRoute)
}

// hold remembers it.
func (n *node) hold(id rapidio.DestID, v int16) {
	for int(id) >= len(n.table) {
		n.table = append(n.table, unknown)
	}
	n.table[id] = v
}

// round is one enumeration, from locks taken to locks released.
type round struct {
	access
	p     *port
	host  rapidio.DestID
	force bool // locks of higher hosts that do not move may be taken over

	root      *node
	nodes     []*node          // in the order in which they were met
	tags      map[uint32]*node // by what their registers hold
	later     []link           // ports that are to be tried again
	taken     map[*node]bool   // what of the round before was met
	switches  int
	endpoints int
	lastID    rapidio.DestID // the highest that all switches route
	temp      uint32         // the last temporary component tag
	takeovers int
	trouble   int // how much was left out that may be there the next time
	stopped   bool
	broken    error // why nothing is reached any more
	ownLocked bool
	begun     time.Time
}

// tempTags are component tags while a round has not chosen: outside of what devices keep.
const (
	tempTags = 0x10000
	firstTag = 1 // the host's own, as the kernel counts
	lastTag  = tempTags - 1
)

// say tells of something that went wrong, once until it went right for a whole round.
func (p *port) say(format string, args ...any) {
	text := "RIO: " + p.m.Name() + ": " + fmt.Sprintf(format, args...)
	if p.said[text] || len(p.said) >= maxSaid {
		return
	}
	p.said[text] = true
	p.s.log.Warn(text)
}

// maxSaid bounds how many lines one trouble makes.
const maxSaid = 32

func (r *round) say(format string, args ...any) { r.p.say(format, args...) }
