package shm

import (
	"context"
	"fmt"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Node is a node's view of its region. Each of its rings belongs to one goroutine at a time.
type Node struct {
	Index   int    // of its endpoint in the fabric
	Name    string // of its endpoint
	IDs     rapidio.IDSize
	Tx      *Producer
	Answers *Consumer
	Events  *Consumer
	Mbox    [rapidio.MaxMboxes]*Consumer
	Direct  []*Direct

	mem Memory
	off int
}

// Direct is a direct link to another node: messages to its mailboxes and from it, which nobody routes. They are done once they are
// there: there are no results.
type Direct struct {
	Peer int // ivshmem ID, whose vectors are NumVectors as a node's
	Out  [rapidio.MaxMboxes]*Producer
	In   [rapidio.MaxMboxes]*Consumer

	mem  Memory
	dest int // where its device ID stands
}

// ErrNoFabric is what OpenNode wraps where there is memory, and no fabric's.
var ErrNoFabric = fmt.Errorf("no fabric behind it: %w", bus.ErrNotSupported)

// OpenNode finds the region of the node with an ivshmem ID. What the memory says is checked; Reset must follow.
func OpenNode(mem Memory, peer int) (*Node, error) {
	if mem.Size() < 2*pageSize {
		return nil, fmt.Errorf("%d bytes of shared memory: %w", mem.Size(), ErrNoFabric)
	}
	if v := mem.Load32(dirMagic); v != magicDir {
		return nil, fmt.Errorf("shared memory begins with %#x, want %#x: %w", v, uint32(magicDir), ErrNoFabric)
	}
	if v := mem.Load32(dirVersion); v != version {
		return nil, fmt.Errorf("the fabric's shared memory has version %d, want %d: %w", v, version, ErrNoFabric)
	}
	n := &Node{mem: mem, off: -1}
	for i := range min(int(mem.Load32(dirCount)), maxMembers) {
		if int(mem.Load32(dirFirst+8*i)) == peer {
			n.off = int(mem.Load32(dirFirst + 8*i + 4))
		}
	}
	if n.off < 0 || n.off%pageSize != 0 || n.off > mem.Size()-pageSize {
		return nil, fmt.Errorf("the fabric's shared memory has no region for node %d: %w", peer, ErrNoFabric)
	}
	if m, v := n.word(hdrMagic), n.word(hdrVersion); m != magicRegion || v != version {
		return nil, fmt.Errorf("the region of node %d begins with %#x, version %d, want %#x, version %d: %w", peer, m, v, uint32(magicRegion), version, ErrNoFabric)
	}
	return n, n.open()
}

func (n *Node) word(at int) uint32 { return n.mem.Load32(n.off + at) }

// open reads the region's page.
func (n *Node) open() error {
	n.Index, n.IDs = int(n.word(hdrIndex)), rapidio.IDSize(n.word(hdrIDs))
	length := n.word(hdrName)
	if n.IDs != rapidio.Small && n.IDs != rapidio.Large || length > maxName {
		return fmt.Errorf("a region with %d-bit IDs, and a name of %d bytes: %w", n.IDs, length, bus.ErrProtocol)
	}
	name := make([]byte, length)
	n.mem.Read(n.off+hdrName+4, name)
	n.Name = string(name)
	var g [numRings]geometry
	for i := range g {
		at := hdrRings + 12*i
		g[i] = geometry{int(n.word(at)), int(n.word(at + 4)), int(n.word(at + 8))}
		if want := (Layout{Tx: 2, Mbox: 2, Events: 2}).ring(i); g[i].slot != want.slot {
			return fmt.Errorf("ring %d has records of %d bytes, want %d: %w", i, g[i].slot, want.slot, bus.ErrProtocol)
		}
	}
	var err error
	if n.Tx, err = newProducer(n.mem, g[ringTx]); err != nil {
		return err
	}
	for i, to := range []**Consumer{&n.Answers, &n.Events, &n.Mbox[0], &n.Mbox[1], &n.Mbox[2], &n.Mbox[3]} {
		if *to, err = newConsumer(n.mem, g[ringAnswers+i]); err != nil {
			return err
		}
	}
	for i := range min(int(n.word(hdrDirect)), maxDirect) {
		d, err := n.openDirect(n.off + hdrLinks + i*linkSize)
		if err != nil {
			return fmt.Errorf("direct link %d: %w", i, err)
		}
		n.Direct = append(n.Direct, d)
	}
	return nil
}

func (n *Node) openDirect(at int) (*Direct, error) {
	d := &Direct{mem: n.mem, dest: at + linkDest, Peer: int(n.mem.Load32(at + linkPeer))}
	g := geometry{n: int(n.mem.Load32(at + linkN)), slot: int(n.mem.Load32(at + linkSlot))}
	if d.Peer < 1 || d.Peer > 0xffff || g.slot != rapidio.MaxMessage {
		return nil, fmt.Errorf("node %d, records of %d bytes: %w", d.Peer, g.slot, bus.ErrProtocol)
	}
	for m := range rapidio.MaxMboxes {
		var err error
		g.off = int(n.mem.Load32(at + linkOut + 4*m))
		if d.Out[m], err = newProducer(n.mem, g); err != nil {
			return nil, err
		}
		g.off = int(n.mem.Load32(at + linkIn + 4*m))
		if d.In[m], err = newConsumer(n.mem, g); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// Reset asks the daemon to make the region anew, and waits for it: for the first, and after another node had it. kick signals the
// daemon; vectors is how many the node serves.
func (n *Node) Reset(ctx context.Context, vectors int, kick func()) error {
	n.mem.Store32(n.off+hdrVectors, uint32(min(vectors, NumVectors)))
	want := n.word(hdrRequest) + 1
	n.mem.Store32(n.off+hdrRequest, want)
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		kick()
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("joining the fabric as %s: it does not answer: %w", n.Name, ctx.Err())
		case <-t.C:
		}
		if n.word(hdrAck) == want {
			break
		}
	}
	n.Tx.begin(0, 0)
	for _, c := range append([]*Consumer{n.Answers, n.Events}, n.Mbox[:]...) {
		c.begin(0)
	}
	for _, d := range n.Direct {
		for m := range d.Out {
			d.Out[m].adopt()
			d.In[m].Drop()
		}
	}
	return nil
}

// Link says whether the endpoint's link is up. n is another number after each change.
func (n *Node) Link() (up bool, count uint32) {
	v := n.word(hdrLink)
	return v&1 != 0, v
}

// Config is how often somebody else wrote the endpoint's registers.
func (n *Node) Config() uint32 { return n.word(hdrConfig) }

// MaxEntries is the most entries that an inbound mailbox may have.
func (n *Node) MaxEntries() int { return n.Mbox[0].n }

// Dest is the device ID that the link leads to; ok is false while it is not to be used.
func (d *Direct) Dest() (id rapidio.DestID, ok bool) {
	v := d.mem.Load32(d.dest)
	return rapidio.DestID(v), v&destValid != 0
}

// Open lets so many messages in at once, for a mailbox; 0 closes it. The consumer's goroutine calls it.
func (d *Direct) Open(mbox, entries int) {
	d.In[mbox].Drop()
	d.In[mbox].store(ctlLimit, uint32(min(entries, d.In[mbox].n)))
}

// Limit has the producer keep to what its consumer takes, as it says now: 0, or broken: nothing.
func (p *Producer) Limit() int {
	p.limit = min(p.load(ctlLimit), uint32(p.n))
	if p.err != nil {
		return 0
	}
	return int(p.limit)
}
