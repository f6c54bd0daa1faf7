package mport

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// inbox is an inbound mailbox: the ring from the fabric, and one of each direct link.
type inbox struct {
	p       *Port
	mbox    int
	entries int
	waker   *bus.Waker
	poll    poller
	cut     atomic.Uint64
	gone    atomic.Bool

	mu    sync.Mutex // guards the rings' ends: Close may come while the owner uses it
	rings []ring
	next  int // the one to begin with

	relook *time.Timer // where there are direct links; else nil
	every  time.Duration
}

// relookEvery is how often who sleeps looks at direct links, though nobody signalled. Their peers signal by themselves, and may do that in
// vain: one that ended between its message and the signal, and one whose QEMU, or that itself, has not heard yet which eventfds a node
// has that came back, while the memory says already that the link is of use. Who sends waits longer than that for room.
const relookEvery = 50 * time.Millisecond

type ring struct {
	*shm.Consumer
	link *shm.Direct // nil: it is the fabric's
}

// OpenInbox opens an inbound mailbox.
func (p *Port) OpenInbox(mbox, entries int) (rapidio.Inbox, error) {
	if err := p.checkBox("inbound mailbox", mbox, entries, min(maxEntries, p.node.MaxEntries())); err != nil {
		return nil, err
	}
	p.boxes.Lock()
	defer p.boxes.Unlock()
	if p.in[mbox].Load() != nil {
		return nil, fmt.Errorf("%s: inbound mailbox %d: %w", p.info.Name, mbox, rapidio.ErrClaimed)
	}
	b := &inbox{p: p, mbox: mbox, entries: entries, waker: bus.NewWaker(), rings: []ring{{p.node.Mbox[mbox], nil}}}
	p.use(func() { b.rings[0].Drop() })
	p.in[mbox].Store(b)
	if err := p.setMailbox(mbox, entries); err != nil {
		p.in[mbox].Store(nil)
		return nil, err
	}
	// A peer signals the vector that it knows; who has fewer does not hear it, and gets his messages through the fabric.
	if p.vectors == shm.NumVectors {
		for _, l := range p.node.Direct {
			b.rings = append(b.rings, ring{l.In[mbox], l})
		}
		if len(b.rings) > 1 {
			b.relook, b.every = time.NewTimer(relookEvery), relookEvery
			b.relook.Stop()
		}
		b.openDirect(entries)
	}
	return b, nil
}

func (p *Port) setMailbox(mbox, entries int) error {
	h := shm.Header{Kind: shm.KindMailbox, Mbox: uint8(mbox), Value: uint32(entries)}
	if _, err := p.transact(context.Background(), &h, nil); err != nil {
		return fmt.Errorf("%s: inbound mailbox %d with %d entries: %w", p.info.Name, mbox, entries, err)
	}
	return nil
}

func (b *inbox) openDirect(entries int) {
	b.p.use(func() {
		for _, r := range b.rings[1:] {
			r.link.Open(b.mbox, entries)
		}
	})
}

// Get receives messages.
func (b *inbox) Get(msgs []rapidio.Message) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone.Load() || b.p.Err() != nil || !b.p.enter() {
		return 0
	}
	defer b.p.leave()
	n := 0
	for i := 0; i < len(b.rings) && n < len(msgs); i++ {
		r := &b.rings[(b.next+i)%len(b.rings)]
		n += b.from(r, msgs[n:])
	}
	if len(b.rings) > 1 {
		b.next = (b.next + 1) % len(b.rings)
	}
	return n
}

// from receives from one ring.
func (b *inbox) from(r *ring, msgs []rapidio.Message) int {
	var h shm.Header
	n := 0
	for n < len(msgs) {
		data, ok := r.Next(&h)
		if !ok {
			break
		}
		if len(data) == 0 {
			continue // no message
		}
		m := &msgs[n]
		m.Peer, m.Mbox = h.Peer, uint8(b.mbox)
		m.Data = m.Data[:copy(m.Data, data)]
		if len(m.Data) < len(data) {
			b.cut.Add(1)
		}
		n++
	}
	if r.Release(); n < len(msgs) && r.Err() != nil {
		b.p.broken(fmt.Sprintf("mailbox %d", b.mbox), r.Err())
	}
	if r.link != nil && n > 0 {
		if id, ok := r.link.Dest(); ok { // what the peer says it is does not matter
			for i := range msgs[:n] {
				msgs[i].Peer = id
			}
		}
	}
	return n
}

// ready says whether Get has something; with arm, that nobody will signal.
func (b *inbox) ready(arm bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.p.enter() {
		return true
	}
	defer b.p.leave()
	for i := range b.rings {
		if r := &b.rings[i]; arm && r.Arm() || !arm && r.Ready() {
			return true
		}
	}
	return false
}

// Wait sleeps until there is a message.
func (b *inbox) Wait(ctx context.Context) error { return b.poll.wait(ctx, b) }

func (b *inbox) err() error { return b.p.boxErr(b.mbox, &b.gone) }
func (b *inbox) due() bool  { return b.ready(false) }

func (b *inbox) sleep(ctx context.Context) error {
	if b.ready(true) {
		return nil
	}
	var again <-chan time.Time
	if b.relook != nil {
		b.relook.Reset(b.every)
		defer b.relook.Stop()
		again = b.relook.C
	}
	select {
	case <-b.waker.C():
		return nil
	case <-again:
		if b.ready(false) {
			b.p.log.Debug("messages of a direct link, and no signal", "mailbox", b.mbox)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-b.p.done:
		return nil
	}
}

// Free is how many more find room at the least.
func (b *inbox) Free() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone.Load() || !b.p.enter() {
		return 0
	}
	defer b.p.leave()
	n := b.entries
	for i := range b.rings {
		r := &b.rings[i]
		n = min(n, min(b.entries, r.Cap())-r.Waiting())
	}
	return max(n, 0)
}

// Cut is how many were cut off.
func (b *inbox) Cut() uint64 { return b.cut.Load() }

// Close closes it. What it has is lost.
func (b *inbox) Close() error {
	p := b.p
	p.boxes.Lock()
	defer p.boxes.Unlock()
	if b.gone.Swap(true) {
		return nil
	}
	b.mu.Lock()
	b.openDirect(0)
	b.mu.Unlock()
	var err error
	if p.Err() == nil {
		err = p.setMailbox(b.mbox, 0)
	}
	p.in[b.mbox].Store(nil)
	b.waker.Wake()
	return err
}
