package shm

import (
	"sync"
	"sync/atomic"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Vectors of a node. The daemon has one: 0. A node that serves fewer has what is above on vector 0.
const (
	VecEvents  = 0 // doorbells, port-writes, the link, its registers
	VecMbox    = 1 // of mailbox 0; the others follow
	VecAnswers = VecMbox + rapidio.MaxMboxes
	NumVectors = VecAnswers + 1
)

// Daemon is the fabric's view of a node's region.
//
// NextTx, ReleaseTx, ArmTx, DisarmTx, Reset and Err are for one goroutine at a time, the one that serves what the node sends. The
// rest is safe for concurrent use. What is put is seen by the node after Flush, which says whom to wake.
type Daemon struct {
	mem  Memory
	off  int // of the region
	peer int
	tx   *Consumer
	seen uint32 // the node's request that was done
	// stalled: it has left so many answers that nothing more is taken
	stalled bool
	in      []words
	out     []directWord

	vectors atomic.Uint32 // that the node serves
	dirty   atomic.Uint32 // vectors of rings with staged records
	kicks   atomic.Uint32 // vectors to wake whatever is in the rings
	lost    atomic.Uint64

	answers lockedProducer
	run     Header // guarded by answers.mu: results that are not put yet; Len 0: none
	events  lockedProducer
	mbox    [rapidio.MaxMboxes]lockedProducer

	state sync.Mutex // guards the words of the header page that count
	link  uint32
	conf  uint32
}

type lockedProducer struct {
	mu sync.Mutex
	*Producer
}

// words are the control words of a direct ring that the node reads.
type words struct{ limit, wake int }

// directWord is where a node reads whom a direct link leads to.
type directWord struct{ peer, at int }

func newDaemon(p *Plan, i int, mem Memory) (*Daemon, error) {
	r := &p.regions[i]
	d := &Daemon{mem: mem, off: r.off, peer: p.members[i].Peer}
	d.vectors.Store(NumVectors)
	var err error
	if d.tx, err = newConsumer(mem, r.rings[ringTx]); err != nil {
		return nil, err
	}
	for k, to := range []*lockedProducer{&d.answers, &d.events, &d.mbox[0], &d.mbox[1], &d.mbox[2], &d.mbox[3]} {
		if to.Producer, err = newProducer(mem, r.rings[ringAnswers+k]); err != nil {
			return nil, err
		}
	}
	for n, x := range r.links {
		k := &p.links[x]
		from := k.ends[0]
		if from == i {
			from = k.ends[1]
		}
		for _, g := range k.rings[indexOf(k.ends, from)] {
			d.in = append(d.in, words{g.off + ctlLimit, g.off + ctlWake})
		}
		d.out = append(d.out, directWord{p.members[from].Peer, r.off + hdrLinks + n*linkSize + linkDest})
	}
	d.reset()
	return d, nil
}

func indexOf(ends [2]int, x int) int {
	if ends[1] == x {
		return 1
	}
	return 0
}

// Peer is the node's ivshmem ID.
func (d *Daemon) Peer() int { return d.peer }

// Reset makes the region anew: what NextTx's KindReset asks for, after what the node had open in the fabric was closed; and
// what is to be done between two nodes. A node that waits for it is told, and must be woken: at its vector 0.
func (d *Daemon) Reset() {
	d.reset()
	d.seen = d.mem.Load32(d.off + hdrRequest)
	n := d.mem.Load32(d.off + hdrVectors)
	if n == 0 || n > NumVectors {
		n = NumVectors
	}
	d.vectors.Store(n)
	d.mem.Store32(d.off+hdrAck, d.seen)
}

func (d *Daemon) reset() {
	d.dirty.Store(0)
	d.tx.reset()
	for _, p := range d.producers() {
		p.mu.Lock()
		p.reset()
		p.mu.Unlock()
	}
	for m := range d.mbox {
		d.SetMailbox(m, 0)
	}
	d.answers.mu.Lock()
	d.run.Len = 0
	d.answers.mu.Unlock()
	d.Leave()
}

// Leave closes the node's mailboxes for its direct links: when it is gone.
func (d *Daemon) Leave() {
	for _, w := range d.in {
		d.mem.Store32(w.limit, 0)
		d.mem.Store32(w.wake, 0)
	}
}

func (d *Daemon) producers() []*lockedProducer {
	return []*lockedProducer{&d.answers, &d.events, &d.mbox[0], &d.mbox[1], &d.mbox[2], &d.mbox[3]}
}

// Err is why the node's traffic cannot go on: it broke a ring. Nil while it can.
func (d *Daemon) Err() error {
	for _, p := range d.producers() {
		p.mu.Lock()
		err := p.err
		p.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return d.tx.err
}

// NextTx takes the next record that the node sent. data is the node's memory, which it may change at any time, until ReleaseTx.
// ok is false where there is none; where the node broke a ring (Err says so); and where the node has left so many answers that
// there is no room for more, until it takes them.
//
// The first record of a node is KindReset: the caller closes what it has open in the fabric, calls Reset and wakes vector 0.
func (d *Daemon) NextTx(h *Header) (data []byte, ok bool) {
	if d.tx.head == d.tx.tail {
		if d.mem.Load32(d.off+hdrRequest) != d.seen {
			*h = Header{Kind: KindReset}
			return nil, true
		}
		if d.stalled = !d.room(); d.stalled {
			return nil, false
		}
	}
	return d.tx.Next(h)
}

// room says whether all that may be taken at once can be answered.
func (d *Daemon) room() bool {
	d.answers.mu.Lock()
	defer d.answers.mu.Unlock()
	a := d.answers.Producer
	if a.n-int(a.tail-a.head) > d.tx.n || a.Room() > d.tx.n {
		return true
	}
	a.store(ctlRoom, 1)
	return a.Room() > d.tx.n
}

// ReleaseTx gives what NextTx took back to the node, which Flush wakes where it waits for that.
func (d *Daemon) ReleaseTx() {
	if d.tx.Release() {
		d.kicks.Or(1 << VecAnswers)
	}
}

// ArmTx asks the node to signal when it sends. more: there is something already.
func (d *Daemon) ArmTx() (more bool) {
	if d.tx.err != nil {
		return d.mem.Load32(d.off+hdrRequest) != d.seen
	}
	if d.stalled {
		more = d.room()
	} else {
		more = d.tx.Arm()
	}
	return more || d.mem.Load32(d.off+hdrRequest) != d.seen
}

// DisarmTx takes that back.
func (d *Daemon) DisarmTx() { d.tx.Disarm() }
