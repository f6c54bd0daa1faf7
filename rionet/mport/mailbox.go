package mport

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// Entries of a mailbox.
const (
	minEntries = 2
	maxEntries = 1024
)

func (p *Port) checkBox(what string, mbox, entries, most int) error {
	switch {
	case p.Err() != nil:
		return fmt.Errorf("%s: opening %s %d: %w", p.info.Name, what, mbox, p.Err())
	case mbox < 0 || mbox >= rapidio.MaxMboxes:
		return fmt.Errorf("%s: opening %s %d: 0 to %d are possible: %w", p.info.Name, what, mbox, rapidio.MaxMboxes-1, rapidio.ErrRange)
	case entries < minEntries || entries > most || entries&(entries-1) != 0:
		return fmt.Errorf("%s: opening %s %d with %d entries: a power of two from %d to %d is wanted: %w",
			p.info.Name, what, mbox, entries, minEntries, most, rapidio.ErrRange)
	}
	return nil
}

// outbox is an outbound mailbox.
type outbox struct {
	p       *Port
	mbox    int
	waker   *bus.Waker
	timer   *time.Timer
	poll    poller
	direct  []route
	refused bool        // by the mailbox at the end of a direct link, in this Add
	when    []time.Time // by message: when it was added
	taken   uint32      // results; the owner's, written under ansMu
	short   bool        // the last Add took fewer than there were
	gone    atomic.Bool
	entries int

	// Guarded by Port.ansMu.
	added  uint32
	st     []rapidio.Status
	asleep bool
}

// route is a direct link as an Add finds it.
type route struct {
	link *shm.Direct
	dest rapidio.DestID
	ok   bool
	rang [rapidio.MaxMboxes]bool // something was put
	// refusing: a message was refused, and those Behind it are (rapidio.Order).
	refusing [rapidio.MaxMboxes]bool
}

// OpenOutbox opens an outbound mailbox.
func (p *Port) OpenOutbox(mbox, entries int) (rapidio.Outbox, error) {
	if err := p.checkBox("outbound mailbox", mbox, entries, maxEntries); err != nil {
		return nil, err
	}
	p.ansMu.Lock()
	defer p.ansMu.Unlock()
	if p.out[mbox] != nil {
		return nil, fmt.Errorf("%s: outbound mailbox %d: %w", p.info.Name, mbox, rapidio.ErrClaimed)
	}
	b := &outbox{p: p, mbox: mbox, entries: entries, waker: bus.NewWaker(), timer: time.NewTimer(time.Hour),
		st: make([]rapidio.Status, entries), when: make([]time.Time, entries)}
	b.timer.Stop()
	// Answers to what another box of this number sent are not this one's.
	b.added = uint32(time.Now().UnixNano()) & tagCount
	b.taken = b.added
	for _, l := range p.node.Direct {
		b.direct = append(b.direct, route{link: l})
	}
	p.out[mbox] = b
	return b, nil
}

// Add sends messages.
func (b *outbox) Add(msgs []rapidio.Message) int {
	p := b.p
	if b.gone.Load() || p.Err() != nil || !p.enter() {
		return 0
	}
	room := b.entries - int(b.added-b.taken)
	now := time.Now()
	b.look()
	p.txMu.Lock()
	n := 0
	first := b.added
	p.ansMu.Lock()
	for ; n < len(msgs) && n < room; n++ {
		st := b.put(&msgs[n], (first+uint32(n))&tagCount)
		if st == noRoom {
			break
		}
		i := int(first+uint32(n)) & (b.entries - 1)
		b.st[i], b.when[i] = st, now
	}
	b.added = first + uint32(n)
	p.ansMu.Unlock()
	wake := p.node.Tx.Publish()
	err := p.node.Tx.Err()
	b.ring()
	p.txMu.Unlock()
	p.leave()
	if wake {
		p.kick(daemon, 0)
	}
	if err != nil {
		p.broken("sending", err)
	}
	b.short = n < len(msgs)
	if b.refused {
		b.refused = false
		yield() // to whom the mailbox belongs: he may wait for a processor, which we have
	}
	return n
}

// noRoom is put's, for a message that was not taken.
const noRoom = rapidio.Status(0xff)

// put sends one message. txMu is held.
func (b *outbox) put(m *rapidio.Message, count uint32) rapidio.Status {
	if m.Mbox >= rapidio.MaxMboxes || len(m.Data) == 0 || len(m.Data) > rapidio.MaxMessage {
		return rapidio.Error
	}
	h := shm.Header{Kind: shm.KindMessage, Mbox: m.Mbox, Peer: m.Peer, Info: uint16(m.Order), Tag: uint32(b.mbox)<<tagShift | count}
	for i := range b.direct {
		r := &b.direct[i]
		if !r.ok || r.dest != m.Peer {
			continue
		}
		if refusing := &r.refusing[m.Mbox]; m.Order == rapidio.Again {
			*refusing = false
		} else if m.Order == rapidio.Behind && *refusing {
			return rapidio.Retry
		}
		out := r.link.Out[m.Mbox]
		if out.Limit() == 0 {
			break // closed, or broken: the fabric knows what to answer
		}
		if !out.Put(&h, m.Data) {
			r.refusing[m.Mbox] = m.Order != rapidio.Alone
			b.refused = true
			return rapidio.Retry
		}
		r.rang[m.Mbox] = true
		return rapidio.Done
	}
	if !b.p.node.Tx.Put(&h, m.Data) {
		return noRoom
	}
	return rapidio.Pending
}

// look finds out whom direct links lead to.
func (b *outbox) look() {
	for i := range b.direct {
		r := &b.direct[i]
		r.dest, r.ok = r.link.Dest()
	}
}

// ring publishes what was put on direct links, and signals who sleeps there.
func (b *outbox) ring() {
	for i := range b.direct {
		r := &b.direct[i]
		for m, rang := range r.rang {
			if r.rang[m] = false; rang && r.link.Out[m].Publish() {
				b.p.kick(r.link.Peer, shm.VecMbox+m)
			}
		}
	}
}

// results are what became of n messages from one on. ansMu is held.
func (b *outbox) results(first uint32, n int, st rapidio.Status) {
	from := int(int32((first-b.taken)<<(32-tagShift)) >> (32 - tagShift))
	for i := max(from, 0); i < min(from+n, int(b.added-b.taken)); i++ {
		at := int(b.taken+uint32(i)) & (b.entries - 1)
		if b.st[at] == rapidio.Pending {
			b.st[at] = st
		}
	}
	if b.asleep {
		b.waker.Wake()
	}
}

// Results takes responses.
func (b *outbox) Results(st []rapidio.Status) int {
	if b.taken == b.added {
		return 0
	}
	b.p.take()
	b.p.ansMu.Lock()
	defer b.p.ansMu.Unlock()
	return b.collect(st)
}

// collect takes what there is; with nil nothing, but it says whether there is something. ansMu is held.
func (b *outbox) collect(st []rapidio.Status) int {
	n := 0
	for n < max(len(st), 1) && b.taken+uint32(n) != b.added {
		at := int(b.taken+uint32(n)) & (b.entries - 1)
		if b.st[at] == rapidio.Pending {
			if b.p.Err() == nil && time.Since(b.when[at]) <= b.p.timeout {
				break
			}
			b.st[at] = rapidio.Error
		}
		if st != nil {
			st[n] = b.st[at]
		}
		n++
	}
	if st == nil {
		return n
	}
	b.taken += uint32(n)
	return n
}

// InFlight is how many have no result taken yet.
func (b *outbox) InFlight() int { return int(b.added - b.taken) }

// ready says whether Wait is over.
func (b *outbox) ready() bool {
	p := b.p
	p.take()
	p.ansMu.Lock()
	n := b.collect(nil)
	p.ansMu.Unlock()
	if n > 0 || b.InFlight() == 0 && !b.short {
		return true
	}
	if !b.short || b.InFlight() == b.entries || !p.enter() {
		return false
	}
	defer p.leave()
	p.txMu.Lock()
	defer p.txMu.Unlock()
	return p.node.Tx.WantRoom()
}

// Wait sleeps until there is a result or, after an Add that did not take all, room.
func (b *outbox) Wait(ctx context.Context) error { return b.poll.wait(ctx, b) }

func (b *outbox) err() error { return b.p.boxErr(b.mbox, &b.gone) }
func (b *outbox) due() bool  { return b.ready() }

func (b *outbox) sleep(ctx context.Context) error {
	p := b.p
	p.ansMu.Lock()
	b.asleep = true
	p.ansMu.Unlock()
	p.rest(1)
	defer func() {
		p.rest(-1)
		p.ansMu.Lock()
		b.asleep = false
		p.ansMu.Unlock()
	}()
	if b.ready() {
		return nil
	}
	b.timer.Reset(p.timeout + time.Millisecond)
	defer b.timer.Stop()
	select {
	case <-b.waker.C():
	case <-ctx.Done():
		return ctx.Err()
	case <-p.done:
	case <-b.timer.C:
	}
	return nil
}

// Close gives the box up.
func (b *outbox) Close() error {
	if !b.gone.Swap(true) {
		b.p.ansMu.Lock()
		b.p.out[b.mbox] = nil
		b.p.ansMu.Unlock()
		b.waker.Wake()
	}
	return nil
}

// boxErr says why a box is of no use.
func (p *Port) boxErr(mbox int, gone *atomic.Bool) error {
	if err := p.Err(); err != nil {
		return fmt.Errorf("mailbox %d: %w", mbox, err)
	}
	if gone.Load() {
		return fmt.Errorf("%s: mailbox %d: %w", p.info.Name, mbox, bus.ErrClosed)
	}
	return nil
}
