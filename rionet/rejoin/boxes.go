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

// OpenOutbox opens an outbound mailbox, which lives through changes of Ops.
func (p *Port) OpenOutbox(mbox, entries int) (rapidio.Outbox, error) {
	b := &outbox{p: p, mbox: mbox, entries: entries}
	l := p.life.Load()
	if l.ops == nil {
		_, err := p.ops()
		return nil, err
	}
	var err error
	if b.box, err = l.ops.OpenOutbox(mbox, entries); err != nil {
		return nil, err
	}
	b.life = l
	return b, nil
}

// outbox is one.
type outbox struct {
	p             *Port
	mbox, entries int
	life          *life // that box is of
	box           rapidio.Outbox
	retry         retry // of opening it
	lost          int   // messages whose result is Error, and was not taken: they come before those of box
	closed        bool
}

// sync has the box of the Ops that there are now; nil if there are none.
func (b *outbox) sync() rapidio.Outbox {
	if l := b.p.life.Load(); l != b.life {
		b.follow(l)
	}
	if b.box == nil {
		b.open()
	}
	return b.box
}

func (b *outbox) follow(l *life) {
	if b.box != nil {
		b.lost += b.box.InFlight()
		_ = b.box.Close() // of Ops that are dead
	}
	b.life, b.box, b.retry = l, nil, retry{}
}

// open opens it, if it is time to try. What is added is lost until that succeeds.
func (b *outbox) open() {
	ops := b.life.ops
	if ops == nil || b.closed || b.retry.left() > 0 {
		return
	}
	box, err := ops.OpenOutbox(b.mbox, b.entries)
	if err != nil {
		b.retry.failed()
		return
	}
	b.box = box
}

// Add sends messages, or counts them as lost.
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
func (b *outbox) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	if box := b.box; box != nil {
		return b.p.lost(box.Close())
	}
	return nil
}

// OpenInbox opens an inbound mailbox, which lives through changes of Ops.
func (p *Port) OpenInbox(mbox, entries int) (rapidio.Inbox, error) {
	b := &inbox{p: p, mbox: mbox, entries: entries}
	l := p.life.Load()
	if l.ops == nil {
		_, err := p.ops()
		return nil, err
	}
	var err error
	if b.box, err = l.ops.OpenInbox(mbox, entries); err != nil {
		return nil, err
	}
	b.life = l
	return b, nil
}

// inbox is one.
type inbox struct {
	p             *Port
	mbox, entries int

	mu     sync.Mutex // guards all below: Free and Cut may be called during a Wait
	life   *life      // that box is of
	box    rapidio.Inbox
	retry  retry  // of opening it
	cut    uint64 // by boxes before it
	closed bool
}

// sync has the box of the Ops that there are now; nil if there are none. Called with mu held.
func (b *inbox) sync() rapidio.Inbox {
	if l := b.p.life.Load(); l != b.life {
		b.follow(l)
	}
	if b.box == nil {
		b.open()
	}
	return b.box
}

func (b *inbox) follow(l *life) {
	if b.box != nil {
		b.cut += b.box.Cut()
		_ = b.box.Close() // of Ops that are dead
	}
	b.life, b.box, b.retry = l, nil, retry{}
}

// open opens it, if it is time to try.
func (b *inbox) open() {
	ops := b.life.ops
	if ops == nil || b.closed || b.retry.left() > 0 {
		return
	}
	box, err := ops.OpenInbox(b.mbox, b.entries)
	if err != nil {
		b.retry.failed()
		return
	}
	b.box = box
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
	if b.closed {
		return nil
	}
	b.closed = true
	if box := b.box; box != nil {
		return b.p.lost(box.Close())
	}
	return nil
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
