package rejoin

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Opening a box anew may fail for what passes, as a fabric that is slow to answer. It is tried again after a while, more and more seldom.
const (
	againFirst = 50 * time.Millisecond
	againLast  = 2 * time.Second
)

// retry says when to try again.
type retry struct {
	at    time.Time // zero: at once
	pause time.Duration
}

func (r *retry) failed() {
	r.pause = min(max(2*r.pause, againFirst), againLast)
	r.at = time.Now().Add(r.pause)
}

// left is how long not to try.
func (r *retry) left() time.Duration {
	if r.at.IsZero() {
		return 0
	}
	return max(time.Until(r.at), 0)
}

// mailbox is what both kinds of box have in common: one of the Ops that there are now, opened anew where others came.
type mailbox[B interface {
	comparable
	Close() error
}] struct {
	p             *Port
	mbox, entries int
	open          func(o rapidio.Ops, mbox, entries int) (B, error)
	left          func(B) // takes over what is to be known of a box before it is closed: its Ops are dead

	life   *life // that box is of
	box    B     // the zero value: there is none
	retry  retry // of opening it
	closed bool
}

// first opens it. That is not tried again.
func (b *mailbox[B]) first() error {
	l := b.p.life.Load()
	if l.ops == nil {
		_, err := b.p.ops()
		return err
	}
	box, err := b.open(l.ops, b.mbox, b.entries)
	if err != nil {
		return err
	}
	b.life, b.box = l, box
	return nil
}

// sync has the box of the Ops that there are now; the zero value if there is none.
func (b *mailbox[B]) sync() B {
	var none B
	if l := b.p.life.Load(); l != b.life {
		if b.box != none {
			b.left(b.box)
			_ = b.box.Close()
		}
		b.life, b.box, b.retry = l, none, retry{}
	}
	if b.box == none && b.life.ops != nil && !b.closed && b.retry.left() == 0 {
		if box, err := b.open(b.life.ops, b.mbox, b.entries); err != nil {
			b.retry.failed()
		} else {
			b.box = box
		}
	}
	return b.box
}

// close closes it.
func (b *mailbox[B]) close() error {
	var none B
	if b.closed {
		return nil
	}
	b.closed = true
	if b.box != none {
		return b.p.lost(b.box.Close())
	}
	return nil
}

// OpenOutbox opens an outbound mailbox, which lives through changes of Ops.
func (p *Port) OpenOutbox(mbox, entries int) (rapidio.Outbox, error) {
	b := &outbox{mailbox: mailbox[rapidio.Outbox]{p: p, mbox: mbox, entries: entries, open: rapidio.Ops.OpenOutbox}}
	b.left = func(old rapidio.Outbox) { b.lost += old.InFlight() }
	if err := b.first(); err != nil {
		return nil, err
	}
	return b, nil
}

// outbox is one.
type outbox struct {
	mailbox[rapidio.Outbox]
	lost int // messages whose result is Error, and was not taken: they come before those of box
}

// Add sends messages, or counts them as lost while there is no box.
func (b *outbox) Add(msgs []rapidio.Message) int {
	if b.closed {
		return 0
	}
	if box := b.sync(); box != nil {
		return box.Add(msgs)
	}
	n := max(0, min(len(msgs), b.entries-b.lost))
	b.lost += n
	return n
}

// Results takes results.
func (b *outbox) Results(st []rapidio.Status) int {
	box := b.sync()
	n := min(b.lost, len(st))
	for i := range n {
		st[i] = rapidio.Error
	}
	b.lost -= n
	if box != nil && n < len(st) {
		n += box.Results(st[n:])
	}
	return n
}

// InFlight counts what has no result yet.
func (b *outbox) InFlight() int {
	n := b.lost
	if b.box != nil {
		n += b.box.InFlight()
	}
	return n
}

// Wait waits for room or results. While there are no Ops there is always one of them.
func (b *outbox) Wait(ctx context.Context) error {
	for !b.closed {
		box := b.sync()
		if b.lost > 0 || box == nil && b.p.Err() == nil {
			return ctx.Err()
		}
		if box == nil {
			return b.p.Err()
		}
		err := box.Wait(ctx)
		if again, err := b.p.again(ctx, b.life, err); !again {
			return err
		}
	}
	return errClosed(b.p, b.mbox)
}

// Close closes it.
func (b *outbox) Close() error { return b.close() }

// OpenInbox opens an inbound mailbox, which lives through changes of Ops.
func (p *Port) OpenInbox(mbox, entries int) (rapidio.Inbox, error) {
	b := &inbox{mailbox: mailbox[rapidio.Inbox]{p: p, mbox: mbox, entries: entries, open: rapidio.Ops.OpenInbox}}
	b.left = func(old rapidio.Inbox) { b.cut += old.Cut() }
	if err := b.first(); err != nil {
		return nil, err
	}
	return b, nil
}

// inbox is one.
type inbox struct {
	mu sync.Mutex // guards all: Free and Cut may be called during a Wait
	mailbox[rapidio.Inbox]
	cut uint64 // by boxes before it
}

// Get receives messages.
func (b *inbox) Get(msgs []rapidio.Message) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if box := b.sync(); box != nil && !b.closed {
		return box.Get(msgs)
	}
	return 0
}

// Free is the room that there is.
func (b *inbox) Free() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if box := b.sync(); box != nil && !b.closed {
		return box.Free()
	}
	return 0
}

// Cut counts what was cut off.
func (b *inbox) Cut() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.box != nil {
		return b.cut + b.box.Cut()
	}
	return b.cut
}

// now is what Wait waits at. Where that is no box, but Ops, it is tried to open one after pause.
func (b *inbox) now() (box rapidio.Inbox, l *life, pause time.Duration, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, nil, 0, errClosed(b.p, b.mbox)
	}
	if box = b.sync(); box == nil && b.life.ops != nil {
		pause = max(b.retry.left(), time.Millisecond)
	}
	return box, b.life, pause, nil
}

// Wait waits for a message, also while there are no Ops.
func (b *inbox) Wait(ctx context.Context) error {
	for {
		box, l, pause, err := b.now()
		if err != nil {
			return err
		}
		if box == nil {
			if err := b.p.waitOver(ctx, l, pause); err != nil {
				return err
			}
			continue
		}
		err = box.Wait(ctx)
		if again, err := b.p.again(ctx, l, err); !again {
			return err
		}
	}
}

// Close closes it.
func (b *inbox) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.close()
}

// again says whether a wait that ended in a life goes on in the next one, or else what it ended with.
func (p *Port) again(ctx context.Context, l *life, err error) (bool, error) {
	switch {
	case err == nil || ctx.Err() != nil:
		return false, err
	case p.life.Load() != l:
		return true, nil
	case errors.Is(err, bus.ErrGone): // and nobody has said so yet
		err := p.waitOver(ctx, l, 0)
		return err == nil, err
	}
	return false, err
}

// waitOver waits for the end of a life, or not longer than some time that is not 0.
func (p *Port) waitOver(ctx context.Context, l *life, most time.Duration) error {
	var enough <-chan time.Time
	if most > 0 {
		t := time.NewTimer(most)
		defer t.Stop()
		enough = t.C
	}
	select {
	case <-enough:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-p.done:
		return p.Err()
	case <-l.over:
		return p.Err()
	}
}

func errClosed(p *Port, mbox int) error {
	return fmt.Errorf("%s: mailbox %d: %w", p.info.Name, mbox, bus.ErrClosed)
}
