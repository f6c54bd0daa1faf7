package fabric

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Entries of a mailbox.
const (
	minEntries = 2
	maxEntries = 1024
)

// Tags of an outbox: the mailbox in 30:29, then which outbox since the port began, then the slot.
const (
	tagMboxShift = 29
	tagGenShift  = 10
	tagGenMask   = 1<<(tagMboxShift-tagGenShift) - 1
	tagSlotMask  = maxEntries - 1
)

func (m *Mport) checkBox(what string, mbox, entries int) error {
	switch {
	case m.closed.Load():
		return m.errClosed()
	case !m.port.dev.mailboxes:
		return fmt.Errorf("%s: opening %s: the endpoint has no mailboxes: %w", m.name, what, rapidio.ErrRange)
	case mbox < 0 || mbox >= rapidio.MaxMboxes:
		return fmt.Errorf("%s: opening %s %d: 0 to %d are possible: %w", m.name, what, mbox, rapidio.MaxMboxes-1, rapidio.ErrRange)
	case entries < minEntries || entries > maxEntries || entries&(entries-1) != 0:
		return fmt.Errorf("%s: opening %s %d with %d entries: a power of two from %d to %d is wanted: %w",
			m.name, what, mbox, entries, minEntries, maxEntries, rapidio.ErrRange)
	}
	return nil
}

// outbox is an outbound mailbox.
type outbox struct {
	m     *Mport
	mbox  uint8
	tag   uint32          // without the slot
	st    []atomic.Uint32 // rapidio.Status by slot
	added uint32
	taken uint32
	wake  chan struct{}
	gone  atomic.Bool
}

// OpenOutbox opens an outbound mailbox.
func (m *Mport) OpenOutbox(mbox, entries int) (rapidio.Outbox, error) {
	if err := m.checkBox("outbound mailbox", mbox, entries); err != nil {
		return nil, err
	}
	m.boxes.Lock()
	defer m.boxes.Unlock()
	if m.out[mbox].Load() != nil {
		return nil, fmt.Errorf("%s: outbound mailbox %d: %w", m.name, mbox, rapidio.ErrClaimed)
	}
	m.gen++
	b := &outbox{m: m, mbox: uint8(mbox), tag: uint32(mbox)<<tagMboxShift | m.gen&tagGenMask<<tagGenShift,
		st: make([]atomic.Uint32, entries), wake: make(chan struct{}, 1)}
	m.out[mbox].Store(b)
	return b, nil
}

func (b *outbox) slot(i uint32) *atomic.Uint32 { return &b.st[i&uint32(len(b.st)-1)] }

func (b *outbox) Add(msgs []rapidio.Message) int {
	if b.gone.Load() || b.m.closed.Load() {
		return 0
	}
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	n := 0
	for ; n < len(msgs) && int(b.added-b.taken) < len(b.st); n++ {
		i := b.added
		b.added++
		st := b.slot(i)
		st.Store(uint32(rapidio.Pending))
		msg := &msgs[n]
		if msg.Mbox >= rapidio.MaxMboxes {
			st.Store(uint32(rapidio.Error))
			continue
		}
		if s := b.m.port.Message(b.tag|i&uint32(len(b.st)-1), msg); s != rapidio.Pending {
			st.Store(uint32(s))
		}
	}
	b.m.port.Flush()
	return n
}

func (b *outbox) Results(st []rapidio.Status) int {
	n := 0
	for ; n < len(st) && b.taken != b.added; n++ {
		s := rapidio.Status(b.slot(b.taken).Load())
		if s == rapidio.Pending {
			if !b.m.closed.Load() {
				break
			}
			s = rapidio.Error // no response will come
		}
		st[n] = s
		b.taken++
	}
	return n
}

func (b *outbox) InFlight() int { return int(b.added - b.taken) }

// complete is a response that came later.
func (b *outbox) complete(tag uint32, s rapidio.Status) {
	slot := tag & tagSlotMask
	if tag&^tagSlotMask != b.tag || int(slot) >= len(b.st) {
		return // of an outbox that was closed
	}
	b.st[slot].Store(uint32(s))
	signal(b.wake)
}

// Wait sleeps until Results has one; it does not where nothing is in flight.
func (b *outbox) Wait(ctx context.Context) error {
	for b.taken != b.added && rapidio.Status(b.slot(b.taken).Load()) == rapidio.Pending {
		if err := wait(ctx, b.m, &b.gone, b.wake); err != nil {
			return err
		}
	}
	if b.taken != b.added && !b.gone.Load() {
		return nil
	}
	return boxErr(b.m, &b.gone)
}

func (b *outbox) Close() error {
	b.m.boxes.Lock()
	defer b.m.boxes.Unlock()
	if !b.gone.Swap(true) {
		b.m.out[b.mbox].Store(nil)
		signal(b.wake)
	}
	return nil
}

// inbox is an inbound mailbox: a ring of slots.
type inbox struct {
	m    *Mport
	mbox uint8
	wake chan struct{}
	gone atomic.Bool
	cut  atomic.Uint64

	mu    sync.Mutex
	slots []inSlot
	data  []byte // MaxMessage for each slot
	in    uint32
	out   uint32
	fresh bool // something came since the last flush
}

type inSlot struct {
	peer rapidio.DestID
	n    int
}

// OpenInbox opens an inbound mailbox.
func (m *Mport) OpenInbox(mbox, entries int) (rapidio.Inbox, error) {
	if err := m.checkBox("inbound mailbox", mbox, entries); err != nil {
		return nil, err
	}
	m.boxes.Lock()
	defer m.boxes.Unlock()
	if m.in[mbox].Load() != nil {
		return nil, fmt.Errorf("%s: inbound mailbox %d: %w", m.name, mbox, rapidio.ErrClaimed)
	}
	b := &inbox{m: m, mbox: uint8(mbox), wake: make(chan struct{}, 1), slots: make([]inSlot, entries),
		data: make([]byte, entries*rapidio.MaxMessage)}
	m.in[mbox].Store(b)
	m.port.SetMailbox(b.mbox, true, false)
	return b, nil
}

// room is the data of a slot.
func (b *inbox) room(i uint32) []byte {
	at := int(i&uint32(len(b.slots)-1)) * rapidio.MaxMessage
	return b.data[at : at+rapidio.MaxMessage]
}

// put takes a message from the fabric.
func (b *inbox) put(m *rapidio.Message) rapidio.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := int(b.in - b.out)
	if n == len(b.slots) {
		return rapidio.Retry
	}
	b.slots[b.in&uint32(len(b.slots)-1)] = inSlot{m.Peer, copy(b.room(b.in), m.Data)}
	b.in++
	b.fresh = true
	if n+1 == len(b.slots) && !b.gone.Load() {
		b.m.port.SetMailbox(b.mbox, true, true)
	}
	return rapidio.Done
}

func (b *inbox) flush() {
	b.mu.Lock()
	fresh := b.fresh
	b.fresh = false
	b.mu.Unlock()
	if fresh {
		signal(b.wake)
	}
}

func (b *inbox) Get(msgs []rapidio.Message) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if full := int(b.in-b.out) == len(b.slots); full && len(msgs) > 0 && !b.gone.Load() {
		b.m.port.SetMailbox(b.mbox, true, false)
	}
	n := 0
	for ; n < len(msgs) && b.out != b.in; n++ {
		s := b.slots[b.out&uint32(len(b.slots)-1)]
		m := &msgs[n]
		m.Peer, m.Mbox = s.peer, b.mbox
		m.Data = m.Data[:copy(m.Data, b.room(b.out)[:s.n])]
		if len(m.Data) < s.n {
			b.cut.Add(1)
		}
		b.out++
	}
	return n
}

func (b *inbox) Wait(ctx context.Context) error {
	for b.Free() == len(b.slots) {
		if err := wait(ctx, b.m, &b.gone, b.wake); err != nil {
			return err
		}
	}
	if b.gone.Load() {
		return boxErr(b.m, &b.gone)
	}
	return nil
}

func (b *inbox) Free() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.slots) - int(b.in-b.out)
}

func (b *inbox) Cut() uint64 { return b.cut.Load() }

func (b *inbox) Close() error {
	b.m.boxes.Lock()
	defer b.m.boxes.Unlock()
	// Under mu too, so that a message that arrives now does not open the mailbox again.
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.gone.Swap(true) {
		b.m.in[b.mbox].Store(nil)
		b.m.port.SetMailbox(b.mbox, false, false)
		signal(b.wake)
	}
	return nil
}

// signal wakes who waits at a channel with room for one.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// boxErr is why a box has no more to come; nil: it has.
func boxErr(m *Mport, gone *atomic.Bool) error {
	if gone.Load() || m.closed.Load() {
		return fmt.Errorf("%s: mailbox: %w", m.name, bus.ErrClosed)
	}
	return nil
}

// wait sleeps until a box is signalled, or never will be.
func wait(ctx context.Context, m *Mport, gone *atomic.Bool, wake chan struct{}) error {
	if err := boxErr(m, gone); err != nil {
		return err
	}
	select {
	case <-wake:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-m.done:
		return boxErr(m, gone)
	}
}
