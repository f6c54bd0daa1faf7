package scan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Options are the times of a Scanner; what is 0 is as its comment says.
type Options struct {
	Log *slog.Logger // nil discards

	// DiscoverTimeout is how long Discover waits for a host to be done: 30 s, as the kernel.
	DiscoverTimeout time.Duration
	// LockTimeout is how long a lock does not move until its host counts as dead: 10 s.
	LockTimeout time.Duration
	// Check is how often a host looks whether its net is still as it was, should a port-write have been lost, and a host that lost
	// whether the one that won is still there: 30 s. Agents look half as often.
	Check time.Duration
	// Settle is how long nothing must happen before a host or an agent looks what happened: 20 ms; ten times that is the most.
	Settle time.Duration
}

func (o Options) defaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{
		{&o.DiscoverTimeout, 30 * time.Second}, {&o.LockTimeout, 10 * time.Second}, {&o.Check, 30 * time.Second}, {&o.Settle, 20 * time.Millisecond},
	} {
		if *d.v <= 0 {
			*d.v = d.d
		}
	}
	return o
}

// Scanner enumerates and discovers for the master ports of a bus. It is safe for concurrent use.
type Scanner struct {
	b   *rapidio.Bus
	o   Options
	log *slog.Logger
	wg  sync.WaitGroup

	mu    sync.Mutex
	ports map[*rapidio.Mport]*port
}

var _ rapidio.Enumerator = (*Scanner)(nil)

// New makes a Scanner.
func New(b *rapidio.Bus, o Options) *Scanner {
	o = o.defaults()
	return &Scanner{b: b, o: o, log: o.Log, ports: map[*rapidio.Mport]*port{}}
}

// Wait returns when everything has ended that looked after ports, which must be out of service.
func (s *Scanner) Wait() { s.wg.Wait() }

// role is what a port is for its net.
type role int

const (
	nobody role = iota // nothing was tried yet
	host               // it enumerated
	agent              // somebody else does
)

// port is what a Scanner knows of a master port.
type port struct {
	s     *Scanner
	m     *rapidio.Mport
	net   *rapidio.Net
	turn  chan struct{} // of whoever scans
	kick  chan struct{} // something happened
	rearm chan struct{} // somebody else scanned: the next check is due at another time
	cfg   chan struct{} // the port's registers were written

	mu     sync.Mutex // guards what events leave:
	events pending

	// belongs to who has the turn
	self    *rapidio.Device // the port's own endpoint; nil: not read yet
	role    role
	trusted bool // nobody else changed what this host wrote
	order   []*node
	known   map[uint32]*node
	byID    map[rapidio.DestID]*node
	tag     uint32 // the last component tag given
	said    map[string]bool
	retry   time.Duration  // when to try again what was left out; 0: not
	last    time.Duration  // what the last scan took, of a discovery its last pass, without waiting for others
	boss    rapidio.DestID // the host that won; "any": nobody knows
	missed  int            // checks in a row in which the host that won did not answer
}

// pending is what happened since somebody looked.
type pending struct {
	link, config, portWrite bool
	last                    rapidio.PortWrite
	tags                    map[uint32]bool // whose port-writes, up to maxTags
}

const maxTags = 16

// port is what there is of a master port; create makes it, with its goroutine, at its first scan.
func (s *Scanner) port(m *rapidio.Mport, create bool) *port {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.ports[m]
	if p != nil || !create {
		return p
	}
	p = &port{
		s: s, m: m, turn: make(chan struct{}, 1), kick: make(chan struct{}, 1), rearm: make(chan struct{}, 1), cfg: make(chan struct{}, 1),
		known: map[uint32]*node{}, byID: map[rapidio.DestID]*node{}, tag: firstTag, said: map[string]bool{},
		boss: m.IDs().Any(),
	}
	s.ports[m] = p
	s.wg.Go(p.run)
	return p
}

// take waits for a port's turn.
func (p *port) take(ctx context.Context) error {
	select {
	case p.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-p.m.Done():
		return bus.ErrGone
	}
}

func (p *port) give() { <-p.turn }

// Enumerate finds and numbers all that a host's port reaches. Where another host wins, it discovers what that one found.
func (s *Scanner) Enumerate(ctx context.Context, m *rapidio.Mport) error {
	if m.Host() < 0 {
		return fmt.Errorf("it has no host device ID: %w", bus.ErrNotSupported)
	}
	p := s.port(m, true)
	if err := p.take(ctx); err != nil {
		return err
	}
	defer poke(p.rearm)
	defer p.give()
	p.net = s.b.AddNet(m)
	s.log.Info(fmt.Sprintf("RIO: enumerate master port %d, %s", m.ID(), m.Name()))
	p.trusted, p.said = false, map[string]bool{}
	changed, err := p.enumerateSoon(ctx, false)
	switch {
	case errors.Is(err, errLinkDown):
		s.log.Info(fmt.Sprintf("RIO: master port %d link inactive", m.ID()))
	case errors.Is(err, errLost):
		return p.lost(ctx, err)
	case err == nil && changed:
		p.forward(ctx, pending{})
	}
	if err != nil {
		p.role = host // it tries again, by itself and when something happens
		p.settled(1)
	}
	return err
}

// lost makes an agent of a host's port, and discovers.
func (p *port) lost(ctx context.Context, why error) error {
	p.s.log.Info(fmt.Sprintf("RIO: master port %d device has lost enumeration to a remote host", p.m.ID()))
	p.role, p.trusted = agent, false
	err := p.awaitAndDiscover(ctx)
	if err != nil {
		return fmt.Errorf("%w; %w", why, err)
	}
	return nil
}

// Discover finds what a host has numbered, once it is done.
func (s *Scanner) Discover(ctx context.Context, m *rapidio.Mport) error {
	p := s.port(m, true)
	if err := p.take(ctx); err != nil {
		return err
	}
	defer poke(p.rearm)
	defer p.give()
	p.net = s.b.AddNet(m)
	s.log.Info(fmt.Sprintf("RIO: discover master port %d, %s", m.ID(), m.Name()))
	p.role, p.said = agent, map[string]bool{}
	return p.awaitAndDiscover(ctx)
}

// PortWrite remembers a port-write, and has somebody look.
func (s *Scanner) PortWrite(m *rapidio.Mport, pw rapidio.PortWrite) {
	s.event(m, func(e *pending) {
		e.portWrite, e.last = true, pw
		if e.tags == nil {
			e.tags = map[uint32]bool{}
		}
		if len(e.tags) < maxTags {
			e.tags[pw.Tag] = true
		}
	})
}

// Link has somebody look at what a port's link leads to.
func (s *Scanner) Link(m *rapidio.Mport, _ bool) { s.event(m, func(e *pending) { e.link = true }) }

// ConfigWritten has somebody look whether the port was enumerated.
func (s *Scanner) ConfigWritten(m *rapidio.Mport) { s.event(m, func(e *pending) { e.config = true }) }

// Leave waits for a port's scan to end, and keeps its turn: there comes no other.
func (s *Scanner) Leave(m *rapidio.Mport) {
	if p := s.port(m, false); p != nil {
		p.turn <- struct{}{}
	}
}

// event remembers that something happened. Before a port's first scan nobody wants to know.
func (s *Scanner) event(m *rapidio.Mport, note func(*pending)) {
	p := s.port(m, false)
	if p == nil {
		return
	}
	p.mu.Lock()
	note(&p.events)
	config := p.events.config
	p.mu.Unlock()
	if config {
		poke(p.cfg)
	}
	poke(p.kick)
}

// poke wakes whoever waits for a channel, or will.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sleep waits, until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
