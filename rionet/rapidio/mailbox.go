package rapidio

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Entries of a mailbox.
const (
	minEntries = 2
	maxEntries = 1024
)

// boxes are the claims of a port's mailboxes.
type boxes struct {
	mu      sync.Mutex
	in, out [MaxMboxes]*string // who has it
	workers []*worker
}

// claimBox claims a mailbox of a direction. unclaim is idempotent.
func (m *Mport) claimBox(of *[MaxMboxes]*string, owner string, mbox, entries int) (unclaim func(), err error) {
	if mbox < 0 || mbox >= MaxMboxes {
		return nil, fmt.Errorf("want a mailbox from 0 to %d: %w", MaxMboxes-1, ErrRange)
	}
	if entries < minEntries || entries > maxEntries || entries&(entries-1) != 0 {
		return nil, fmt.Errorf("%d entries, want a power of two, %d to %d: %w", entries, minEntries, maxEntries, ErrRange)
	}
	m.boxes.mu.Lock()
	defer m.boxes.mu.Unlock()
	if err := m.usable(); err != nil {
		return nil, err
	}
	if by := of[mbox]; by != nil {
		return nil, fmt.Errorf("it is %s's: %w", *by, ErrClaimed)
	}
	mine := &owner
	of[mbox] = mine
	return func() {
		m.boxes.mu.Lock()
		defer m.boxes.mu.Unlock()
		if of[mbox] == mine {
			of[mbox] = nil
		}
	}, nil
}

// outbox gives its claim back when it is closed.
type outbox struct {
	Outbox
	unclaim func()
}

func (o *outbox) Close() error {
	defer o.unclaim()
	return o.Outbox.Close()
}

type inbox struct {
	Inbox
	unclaim func()
}

func (i *inbox) Close() error {
	defer i.unclaim()
	return i.Inbox.Close()
}

// RequestOutbMbox claims an outbound mailbox and opens it, with room for so many messages: a power of two, 2 to 1024. Where somebody has it
// it fails with ErrClaimed. Its Close gives it up.
func (m *Mport) RequestOutbMbox(owner string, mbox, entries int) (Outbox, error) {
	unclaim, err := m.claimBox(&m.boxes.out, owner, mbox, entries)
	if err == nil {
		var o Outbox
		if o, err = m.ops.OpenOutbox(mbox, entries); err == nil {
			return &outbox{o, unclaim}, nil
		}
		unclaim()
	}
	return nil, fmt.Errorf("%s: claiming outbound mailbox %d for %s: %w", m.Name(), mbox, owner, err)
}

// RequestInbMbox claims an inbound mailbox and opens it.
func (m *Mport) RequestInbMbox(owner string, mbox, entries int) (Inbox, error) {
	unclaim, err := m.claimBox(&m.boxes.in, owner, mbox, entries)
	if err == nil {
		var i Inbox
		if i, err = m.ops.OpenInbox(mbox, entries); err == nil {
			return &inbox{i, unclaim}, nil
		}
		unclaim()
	}
	return nil, fmt.Errorf("%s: claiming inbound mailbox %d for %s: %w", m.Name(), mbox, owner, err)
}

// RequestInbMboxFunc is RequestInbMbox with a goroutine that calls f whenever there are messages: f takes them, all of them if it can. The
// Inbox is f's alone. release closes it, and waits for f as that of RequestInbDoorbell does.
func (m *Mport) RequestInbMboxFunc(owner string, mbox, entries int, f func(Inbox)) (release func(), err error) {
	box, err := m.RequestInbMbox(owner, mbox, entries)
	if err != nil {
		return nil, err
	}
	w := m.work(box.Wait, func() { f(box) }, box.Close, nil)
	return w.release, nil
}

// RequestOutbMboxFunc is RequestOutbMbox with a goroutine that calls f first of all, after each kick, and, as long as messages are in flight,
// whenever Outbox.Wait returns: f takes results and adds messages. The Outbox is f's alone; kick, which may be called from anywhere
// and never waits, is how others have f look at what they want to send.
func (m *Mport) RequestOutbMboxFunc(owner string, mbox, entries int, f func(Outbox)) (kick, release func(), err error) {
	box, err := m.RequestOutbMbox(owner, mbox, entries)
	if err != nil {
		return nil, nil, err
	}
	c := &counted{Outbox: box}
	w := m.work(box.Wait, func() { f(c) }, box.Close, c)
	return w.kick, w.release, nil
}

// counted is an outbox of which is known whether anything happened.
type counted struct {
	Outbox
	moved uint64
}

func (c *counted) Add(msgs []Message) int {
	n := c.Outbox.Add(msgs)
	c.moved += uint64(n)
	return n
}

func (c *counted) Results(st []Status) int {
	n := c.Outbox.Results(st)
	c.moved += uint64(n)
	return n
}

// worker is the goroutine of a mailbox with a callback.
type worker struct {
	hook   hook
	m      *Mport
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}

	wait  func(context.Context) error
	call  func()
	close func() error
	out   *counted // nil: of an inbox, for which there is always something to wait

	mu     sync.Mutex
	kicked bool
	wake   context.CancelFunc // ends what it waits for; nil: it does not wait
}

// How long a worker sleeps where waiting fails at once, as while the fabric is away, and where an outbox woke it for nothing.
const (
	workerPause = 50 * time.Millisecond
	idlePause   = time.Millisecond
)

func (m *Mport) work(wait func(context.Context) error, call func(), closeBox func() error, out *counted) *worker {
	w := &worker{m: m, done: make(chan struct{}), wait: wait, call: call, close: closeBox, out: out, kicked: out != nil}
	w.ctx, w.cancel = context.WithCancel(m.ctx)
	m.boxes.mu.Lock()
	m.boxes.workers = append(m.boxes.workers, w)
	m.boxes.mu.Unlock()
	go w.loop()
	return w
}

func (w *worker) kick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kicked = true
	if w.wake != nil {
		w.wake()
	}
}

func (w *worker) loop() {
	defer close(w.done)
	defer w.forget()
	defer func() { _ = w.close() }()
	for w.ctx.Err() == nil {
		kicked, err := w.until(w.sleep)
		switch {
		case w.ctx.Err() != nil:
			return
		case err != nil && !kicked:
			w.pause(workerPause)
			continue
		}
		before := w.moved()
		w.hook.run(w.call)
		if w.out != nil && !kicked && w.moved() == before {
			w.pause(idlePause)
		}
	}
}

func (w *worker) moved() uint64 {
	if w.out == nil {
		return 0
	}
	return w.out.moved
}

// sleep waits until there is something to do.
func (w *worker) sleep(ctx context.Context) error {
	if w.out == nil || w.out.InFlight() > 0 {
		return w.wait(ctx)
	}
	<-ctx.Done()
	return ctx.Err()
}

// pause lets time go by, or a kick come.
func (w *worker) pause(d time.Duration) {
	kicked, _ := w.until(func(ctx context.Context) error {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		return nil
	})
	if kicked {
		w.kick()
	}
}

// until does what waits, which a kick ends, or one that came before.
func (w *worker) until(do func(ctx context.Context) error) (kicked bool, err error) {
	if w.out == nil { // nobody can kick it
		return false, do(w.ctx)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	w.mu.Lock()
	if w.kicked {
		w.kicked = false
		w.mu.Unlock()
		return true, nil
	}
	w.wake = cancel
	w.mu.Unlock()
	err = do(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	kicked, w.kicked, w.wake = w.kicked, false, nil
	return kicked, err
}

func (w *worker) forget() {
	b := &w.m.boxes
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, other := range b.workers {
		if other == w {
			b.workers = append(b.workers[:i:i], b.workers[i+1:]...)
			return
		}
	}
}

// release ends the goroutine, and with it the claim.
func (w *worker) release() {
	w.cancel()
	w.hook.release()
	if !inCallback() {
		<-w.done
	}
}

// drop ends all workers. Mailboxes without one are closed by whoever opened them.
func (b *boxes) drop() {
	b.mu.Lock()
	workers := append([]*worker(nil), b.workers...)
	b.mu.Unlock()
	for _, w := range workers {
		w.release()
	}
}
