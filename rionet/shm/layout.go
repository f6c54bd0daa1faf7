package shm

import (
	"fmt"
	"math/bits"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// The memory begins with a directory: who has his region where. A node looks there for its own, by its ivshmem ID.
const (
	magicDir    = 0x44463352 // "R3FD"
	magicRegion = 0x52463352 // "R3FR"
	version     = 1

	dirMagic   = 0x00
	dirVersion = 0x04
	dirCount   = 0x08
	dirFirst   = 0x10 // {ivshmem ID, offset of the region}, 32 bits each

	pageSize   = 4096
	maxMembers = (pageSize - dirFirst) / 8
)

// A region begins with a page that says what is where. The daemon writes it, but for the node's line.
const (
	hdrMagic   = 0x000
	hdrVersion = 0x004
	hdrIndex   = 0x008 // of the endpoint, in the fabric
	hdrIDs     = 0x00c // width of device IDs
	hdrName    = 0x010 // length, then bytes
	maxName    = 64
	hdrRings   = 0x080 // of each ring: offset in the memory, records, bytes a record
	hdrDirect  = 0x0f8 // how many direct links
	hdrAck     = 0x100 // the node's request that was done
	hdrLink    = 0x104 // bit 0: the endpoint's link is up; above it, how often that changed
	hdrConfig  = 0x108 // how often somebody else wrote the endpoint's registers
	hdrRequest = 0x180 // the node writes: a new number asks for a reset
	hdrVectors = 0x184 // the node writes, before: how many vectors it serves
	hdrLinks   = 0x800 // of each direct link, linkSize

	linkPeer  = 0x00 // ivshmem ID
	linkN     = 0x04 // records of each ring
	linkSlot  = 0x08 // bytes a record
	linkDest  = 0x0c // bit 31: it is usable; 15:0 the device ID
	linkOut   = 0x10 // offsets of the rings to the peer, by mailbox
	linkIn    = 0x20 // and from it
	linkSize  = 0x40
	maxDirect = (pageSize - hdrLinks) / linkSize

	destValid = 1 << 31
)

// Rings of a region.
const (
	ringTx = iota
	ringAnswers
	ringEvents
	ringMbox // and three more
	numRings = ringMbox + rapidio.MaxMboxes
)

// Layout says how large the rings of a region are, in records (powers of two). The zero Layout has what DefaultLayout has.
type Layout struct {
	Tx     int // what a node sends; each may carry a message
	Mbox   int // of an inbound mailbox: the most entries that one may be opened with
	Events int // doorbells and port-writes that a node receives
	Direct int // of a direct link, a mailbox
}

// DefaultLayout lets mailboxes have 1024 entries. Memory that is never used is never there: a ring touches as much as is under way.
var DefaultLayout = Layout{Tx: 256, Mbox: 1024, Events: 1024, Direct: 256}

// MaxCalls is how many doorbells and configuration accesses of a node may be under way.
const MaxCalls = 1024

// answers is how many answers may be under way: one for each message that outboxes may have there, and each call.
const answers = 8192

func (l Layout) filled() Layout {
	for _, x := range []struct {
		to *int
		v  int
	}{{&l.Tx, DefaultLayout.Tx}, {&l.Mbox, DefaultLayout.Mbox}, {&l.Events, DefaultLayout.Events}, {&l.Direct, DefaultLayout.Direct}} {
		if *x.to == 0 {
			*x.to = x.v
		}
	}
	return l
}

// ring is a region's ring i, without its place.
func (l Layout) ring(i int) geometry {
	switch i {
	case ringTx:
		return geometry{n: l.Tx, slot: rapidio.MaxMessage}
	case ringAnswers:
		return geometry{n: answers}
	case ringEvents:
		return geometry{n: l.Events, slot: rapidio.MaxPortWrite}
	}
	return geometry{n: l.Mbox, slot: rapidio.MaxMessage}
}

// Member is a node of a shared memory.
type Member struct {
	Peer  int    // its ivshmem ID
	Index int    // of its endpoint in the fabric
	Name  string // of its endpoint
}

// Plan is what stands where in a shared memory: the regions of one node or, where direct links join them, of several.
type Plan struct {
	layout  Layout
	ids     rapidio.IDSize
	members []Member
	regions []region
	links   []link
	size    int
}

// region is a member's.
type region struct {
	off   int
	rings [numRings]geometry
	links []int // of Plan.links, where it is an end
}

// link is a direct link of two members.
type link struct {
	ends  [2]int
	rings [2][rapidio.MaxMboxes]geometry // by sender
}

// NewPlan lays out a memory. links are pairs of indices of members.
func NewPlan(l Layout, ids rapidio.IDSize, members []Member, links [][2]int) (*Plan, error) {
	p := &Plan{layout: l.filled(), ids: ids, members: members, size: pageSize}
	if len(members) == 0 || len(members) > maxMembers {
		return nil, fmt.Errorf("laying out shared memory: %d nodes, want 1 to %d: %w", len(members), maxMembers, bus.ErrNotSupported)
	}
	for _, m := range members {
		if len(m.Name) > maxName || m.Peer < 1 || m.Peer > 0xffff {
			return nil, fmt.Errorf("laying out shared memory: node %q, ID %d: want a name of at most %d bytes, and an ID of 1 to 65535: %w", m.Name, m.Peer, maxName, bus.ErrNotSupported)
		}
		r := region{off: p.take(pageSize)}
		for i := range r.rings {
			r.rings[i] = p.place(p.layout.ring(i))
		}
		p.regions = append(p.regions, r)
	}
	for _, ends := range links {
		if err := p.join(ends); err != nil {
			return nil, err
		}
	}
	if p.size > 1<<30 {
		return nil, fmt.Errorf("laying out shared memory: %d nodes need %d MiB, want at most 1024: %w", len(members), p.size>>20, bus.ErrNotSupported)
	}
	if p.size = 1 << bits.Len(uint(p.size-1)); p.layout.Mbox > 1<<10 {
		return nil, fmt.Errorf("laying out shared memory: mailboxes of %d entries, want at most 1024: %w", p.layout.Mbox, bus.ErrNotSupported)
	}
	return p, p.check()
}

// check holds the rings to the rules that nodes will hold them to.
func (p *Plan) check() error {
	for _, r := range p.regions {
		for _, g := range r.rings {
			if err := g.check(p.size); err != nil {
				return fmt.Errorf("laying out shared memory: %w", err)
			}
		}
	}
	for _, k := range p.links {
		if err := k.rings[0][0].check(p.size); err != nil {
			return fmt.Errorf("laying out shared memory: %w", err)
		}
	}
	return nil
}

// take reserves whole pages.
func (p *Plan) take(n int) int {
	off := p.size
	p.size += (n + pageSize - 1) &^ (pageSize - 1)
	return off
}

func (p *Plan) place(g geometry) geometry {
	g.off = p.take(g.size())
	return g
}

// join lays out a direct link.
func (p *Plan) join(ends [2]int) error {
	k := link{ends: ends}
	for _, e := range ends {
		if e < 0 || e >= len(p.members) || ends[0] == ends[1] {
			return fmt.Errorf("laying out shared memory: a direct link of nodes %d and %d of %d: %w", ends[0], ends[1], len(p.members), bus.ErrNotSupported)
		}
		if len(p.regions[e].links) == maxDirect {
			return fmt.Errorf("laying out shared memory: more than %d direct links of %s: %w", maxDirect, p.members[e].Name, bus.ErrNotSupported)
		}
		p.regions[e].links = append(p.regions[e].links, len(p.links))
	}
	for i := range k.rings {
		for m := range k.rings[i] {
			k.rings[i][m] = p.place(geometry{n: p.layout.Direct, slot: rapidio.MaxMessage})
		}
	}
	p.links = append(p.links, k)
	return nil
}

// Size is how large the memory must be: a power of two, as a BAR is.
func (p *Plan) Size() int { return p.size }

// Format writes the plan to memory of Size zeroed bytes, and makes the daemon's views of it, in the members' order.
func (p *Plan) Format(b []byte) ([]*Daemon, error) {
	if len(b) != p.size {
		return nil, fmt.Errorf("formatting shared memory: it has %d bytes, want %d: %w", len(b), p.size, bus.ErrNotSupported)
	}
	mem := Mapped(b)
	var out []*Daemon
	for i, m := range p.members {
		d, err := newDaemon(p, i, mem)
		if err != nil {
			return nil, fmt.Errorf("formatting shared memory: %s: %w", m.Name, err)
		}
		p.describe(i, mem)
		out = append(out, d)
	}
	p.directory(mem)
	return out, nil
}

// Mend writes again what a node finds its region by, in memory that stays while that of a member that went may be a mess.
func (p *Plan) Mend(member int, b []byte) {
	mem := Mapped(b)
	p.describe(member, mem)
	p.directory(mem)
}

// directory writes the first page.
func (p *Plan) directory(mem Memory) {
	for i, m := range p.members {
		mem.Store32(dirFirst+8*i, uint32(m.Peer))
		mem.Store32(dirFirst+8*i+4, uint32(p.regions[i].off))
	}
	mem.Store32(dirCount, uint32(len(p.members)))
	mem.Store32(dirVersion, version)
	mem.Store32(dirMagic, magicDir)
}

// describe writes a region's page.
func (p *Plan) describe(i int, mem Memory) {
	m, r := p.members[i], &p.regions[i]
	put := func(at int, v int) { mem.Store32(r.off+at, uint32(v)) }
	put(hdrIndex, m.Index)
	put(hdrIDs, int(p.ids))
	put(hdrName, len(m.Name))
	mem.Write(r.off+hdrName+4, []byte(m.Name))
	for k, g := range r.rings {
		put(hdrRings+12*k, g.off)
		put(hdrRings+12*k+4, g.n)
		put(hdrRings+12*k+8, g.slot)
	}
	put(hdrDirect, len(r.links))
	for n, x := range r.links {
		k := &p.links[x]
		me := 0
		if k.ends[1] == i {
			me = 1
		}
		at := hdrLinks + n*linkSize
		put(at+linkPeer, p.members[k.ends[1-me]].Peer)
		put(at+linkN, k.rings[0][0].n)
		put(at+linkSlot, k.rings[0][0].slot)
		for box := range rapidio.MaxMboxes {
			put(at+linkOut+4*box, k.rings[me][box].off)
			put(at+linkIn+4*box, k.rings[1-me][box].off)
		}
	}
	put(hdrVersion, version)
	put(hdrMagic, magicRegion)
}
