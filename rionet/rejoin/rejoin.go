// Package rejoin keeps a master port in service while the fabric that it is on dies and comes back.
//
// A node loses its fabric when the fabric's daemon ends: the region that they share is dead, and so is the [rapidio.Ops] over it. When the
// daemon is back, the node joins again, and has a new region and new Ops. What stands on the port, the subsystem with its
// claims and rionet with its open mailboxes, need not be built anew for that: it has a [Port], and the Port has whichever Ops there are.
//
// While it has none ([Port.Lose]):
//
//   - register accesses, doorbells and port-writes fail with bus.ErrGone
//   - an Outbox takes messages, and their result is Error, as of all that were in flight; so senders go on, and lose what they send, as at a
//     network interface without a carrier
//   - an Inbox has nothing, and who waits for messages goes on waiting
//   - the Port is not Done: that it is after Close or Fail
//
// When it has Ops again ([Port.Join]), doorbells are let in if they were, boxes are opened anew by whoever uses them next, and tried
// again after a while where that fails; Events.Link tells first that the link went down and then, once it is, that it is up; the registers
// are new, and have no IDs.
//
// All of it is safe for concurrent use, but for the boxes, as rapidio.Ops says. Nothing is allocated for a message.
package rejoin

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Port is a master port whose fabric may come and go. It implements rapidio.Ops.
type Port struct {
	info   rapidio.PortInfo
	notify func() // after something of the port's own changed

	life atomic.Pointer[life] // never nil

	// Lock order: mu, then telling.
	mu        sync.Mutex // guards what follows, and changes of life
	events    rapidio.Events
	doorbells bool
	closed    error

	telling sync.Mutex // held while Events are told; guards linkDown
	down    bool       // they were told last that the link is down

	done chan struct{}
}

// life is one time on a fabric, or between two.
type life struct {
	ops  rapidio.Ops   // nil: there is none
	over chan struct{} // closed when another one took its place
	told bool          // its Ops told of the link; guarded by telling
}

// New makes a port of its first Ops, which nobody started yet. notify is called, without locks held and from any goroutine, after the port's
// registers were written by somebody else, and after its link or its Ops changed; nil: nobody wants to know.
func New(ops rapidio.Ops, notify func()) *Port {
	if notify == nil {
		notify = func() {}
	}
	p := &Port{info: ops.Info(), notify: notify, done: make(chan struct{})}
	p.life.Store(&life{ops: ops, over: make(chan struct{})})
	return p
}

// Lose takes the port's Ops away, which are dead or about to be.
func (p *Port) Lose() {
	p.mu.Lock()
	old := p.life.Load()
	if old.ops == nil || p.closed != nil {
		p.mu.Unlock()
		return
	}
	p.replace(&life{over: make(chan struct{})})
	events := p.events
	p.mu.Unlock()
	if events != nil {
		p.link(events, false)
	}
	p.notify()
}

// Join gives the port Ops in place of those that were lost. They must be of the same endpoint, with IDs of the same width.
func (p *Port) Join(ops rapidio.Ops) error {
	if ids := ops.Info().IDs; ids != p.info.IDs {
		return fmt.Errorf("%s: the fabric has other IDs than before, %v for %v: %w", p.info.Name, ids, p.info.IDs, bus.ErrNotSupported)
	}
	p.Lose() // if nobody did
	p.mu.Lock()
	events := p.events
	p.mu.Unlock()
	l := &life{ops: ops, over: make(chan struct{})}
	if events != nil { // before anybody uses them; what they tell until then is looked for below
		ops.Start(teller{p, l, events})
	}
	p.mu.Lock()
	if p.closed != nil {
		defer p.mu.Unlock()
		return p.closed
	}
	p.replace(l)
	doorbells := p.doorbells
	p.mu.Unlock()
	if doorbells {
		if err := ops.OpenDoorbells(true); err != nil {
			return fmt.Errorf("%s: letting doorbells in: %w", p.info.Name, err)
		}
	}
	if events != nil {
		up := linkUp(ops)
		p.telling.Lock()
		if !l.told { // what they tell themselves is newer
			p.linkLocked(events, up)
		}
		p.telling.Unlock()
	}
	p.notify()
	return nil
}

// linkTime is how long it may take to find out whether a link is up.
const linkTime = 5 * time.Second

// registers are a port's own, as rapidio.Access.
type registers struct{ rapidio.Ops }

func (r registers) Read32(ctx context.Context, off rapidio.Off) (uint32, error) {
	return r.LocalRead(ctx, off, 4)
}

// linkUp says whether a port's link is up. One that does not tell, as the 2005 design's, counts as up; and one that cannot be asked, so that
// it is found out by whoever uses it.
func linkUp(ops rapidio.Ops) bool {
	ctx, cancel := context.WithTimeout(context.Background(), linkTime)
	defer cancel()
	r := registers{ops}
	f, err := rapidio.FindFeatures(ctx, r)
	if err != nil || f.PHY == 0 {
		return true
	}
	v, err := r.Read32(ctx, f.PHY+rapidio.PHYPortErrStat)
	return err != nil || v&rapidio.PortOK != 0
}

// replace changes the life. mu is held.
func (p *Port) replace(l *life) {
	old := p.life.Swap(l)
	close(old.over)
}

// link tells of the link, if that is news.
func (p *Port) link(e rapidio.Events, up bool) {
	p.telling.Lock()
	defer p.telling.Unlock()
	p.linkLocked(e, up)
}

// linkLocked is link with telling held.
func (p *Port) linkLocked(e rapidio.Events, up bool) {
	if p.down == !up {
		return
	}
	p.down = !up
	e.Link(up)
}

// Close ends the port. It does not close the Ops, which are of who made them.
func (p *Port) Close() error {
	p.Fail(fmt.Errorf("%s: %w", p.info.Name, bus.ErrClosed))
	return nil
}

// Fail ends the port for good, and says why: its Ops died, and nobody has others.
func (p *Port) Fail(err error) {
	p.mu.Lock()
	if p.closed == nil {
		p.closed = err
		p.replace(&life{over: make(chan struct{})})
		close(p.done)
	}
	p.mu.Unlock()
	p.notify()
}

// ops are those that there are, or why there are none.
func (p *Port) ops() (rapidio.Ops, error) {
	if o := p.life.Load().ops; o != nil {
		return o, nil
	}
	select {
	case <-p.done:
		return nil, p.Err()
	default:
		return nil, fmt.Errorf("%s: its fabric is gone: %w", p.info.Name, bus.ErrGone)
	}
}

// Info is what does not change.
func (p *Port) Info() rapidio.PortInfo { return p.info }

// LocalRead reads the port's own registers.
func (p *Port) LocalRead(ctx context.Context, off rapidio.Off, w rapidio.Width) (uint32, error) {
	o, err := p.ops()
	if err != nil {
		return 0, err
	}
	return o.LocalRead(ctx, off, w)
}

// LocalWrite writes the port's own registers.
func (p *Port) LocalWrite(ctx context.Context, off rapidio.Off, w rapidio.Width, v uint32) error {
	o, err := p.ops()
	if err != nil {
		return err
	}
	return o.LocalWrite(ctx, off, w, v)
}

// Read is a maintenance transaction.
func (p *Port) Read(ctx context.Context, dest rapidio.DestID, hop uint8, off rapidio.Off, w rapidio.Width) (uint32, error) {
	o, err := p.ops()
	if err != nil {
		return 0, err
	}
	return o.Read(ctx, dest, hop, off, w)
}

// Write is a maintenance transaction.
func (p *Port) Write(ctx context.Context, dest rapidio.DestID, hop uint8, off rapidio.Off, w rapidio.Width, v uint32) error {
	o, err := p.ops()
	if err != nil {
		return err
	}
	return o.Write(ctx, dest, hop, off, w, v)
}

// Doorbell sends one.
func (p *Port) Doorbell(ctx context.Context, dest rapidio.DestID, info uint16) error {
	o, err := p.ops()
	if err != nil {
		return err
	}
	return o.Doorbell(ctx, dest, info)
}

// PortWrite sends one.
func (p *Port) PortWrite(ctx context.Context, dest rapidio.DestID, b []byte) error {
	o, err := p.ops()
	if err != nil {
		return err
	}
	return o.PortWrite(ctx, dest, b)
}

// OpenDoorbells lets doorbells in, from now on also after a fabric came back.
func (p *Port) OpenDoorbells(open bool) error {
	p.mu.Lock()
	p.doorbells = open
	p.mu.Unlock()
	o, err := p.ops()
	if errors.Is(err, bus.ErrGone) {
		return nil // Join does it
	}
	if err != nil {
		return err
	}
	return p.lost(o.OpenDoorbells(open))
}

// lost is nil where an error means no more than that the Ops are dead, of which Lose tells.
func (p *Port) lost(err error) error {
	if errors.Is(err, bus.ErrGone) {
		return nil
	}
	return err
}

// Start names who is told.
func (p *Port) Start(e rapidio.Events) {
	p.mu.Lock()
	p.events = e
	l := p.life.Load()
	p.mu.Unlock()
	if l.ops != nil {
		l.ops.Start(teller{p, l, e})
	}
}

// Done is closed when the port was closed.
func (p *Port) Done() <-chan struct{} { return p.done }

// Err says why.
func (p *Port) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// teller passes on what one life's Ops tell, as long as that lasts.
type teller struct {
	p  *Port
	l  *life
	to rapidio.Events
}

// tell calls f unless this life is over.
func (t teller) tell(f func()) {
	t.p.telling.Lock()
	defer t.p.telling.Unlock()
	if t.p.life.Load() == t.l {
		f()
	}
}

func (t teller) Doorbell(src rapidio.DestID, info uint16) {
	t.tell(func() { t.to.Doorbell(src, info) })
}

func (t teller) PortWrite(b []byte) { t.tell(func() { t.to.PortWrite(b) }) }

func (t teller) ConfigWritten() {
	t.tell(t.to.ConfigWritten)
	t.p.notify()
}

func (t teller) Link(up bool) {
	t.tell(func() {
		t.l.told = true
		t.p.linkLocked(t.to, up)
	})
	t.p.notify()
}
