package scan

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// run looks after a port, from its first scan until it goes out of service.
func (p *port) run() {
	defer func() {
		p.s.mu.Lock()
		delete(p.s.ports, p.m)
		p.s.mu.Unlock()
	}()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p.s.wg.Go(func() {
		select {
		case <-p.m.Done():
			cancel()
		case <-ctx.Done():
		}
	})
	timer := time.NewTimer(p.s.o.Check)
	defer timer.Stop()
	for {
		happened, periodic := false, false
		select {
		case <-ctx.Done():
			return
		case <-p.kick:
			if p.quiet(ctx) != nil {
				return
			}
			happened = true
		case <-p.rearm:
		case <-timer.C:
			periodic = true
		}
		if p.take(ctx) != nil {
			return
		}
		if happened || periodic {
			p.act(ctx, periodic)
		}
		next := p.pause()
		p.give()
		timer.Reset(next)
	}
}

// quiet waits until nothing has happened for a while, so that a burst of events is one; but not for ever.
func (p *port) quiet(ctx context.Context) error {
	end := time.NewTimer(10 * p.s.o.Settle)
	defer end.Stop()
	for {
		still := time.NewTimer(p.s.o.Settle)
		select {
		case <-ctx.Done():
			still.Stop()
			return ctx.Err()
		case <-p.kick:
			still.Stop()
		case <-still.C:
			return nil
		case <-end.C:
			still.Stop()
			return nil
		}
	}
}

// Bounds of how much of the time checks may take: one part in load, but that one is due after longest, unless they would take one part in most then. Nobody
// tells agents of a host that died, and on a busy machine a check that is quick otherwise takes seconds.
const (
	load    = 100
	most    = 10
	longest = time.Minute
)

// pause is how long to wait for the next check: as the options say, sooner after something was left out, and later where a check takes long.
func (p *port) pause() time.Duration {
	d := p.s.o.Check
	if p.role == agent && p.m.Host() < 0 {
		d *= 2
	}
	d = max(d, min(load*p.last, max(longest, most*p.last)))
	if p.retry > 0 {
		d = min(d, p.retry)
	}
	return d
}

// firstRetry is how soon what was left out is tried again; then half as often each time.
const firstRetry = time.Second

// settled notes how much a scan left out.
func (p *port) settled(trouble int) {
	switch {
	case trouble == 0:
		p.retry = 0
		clear(p.said)
	case p.retry == 0:
		p.retry = firstRetry
	default:
		p.retry = min(2*p.retry, p.s.o.Check)
	}
}

// act looks what happened, and does what is to be done.
func (p *port) act(ctx context.Context, periodic bool) {
	p.mu.Lock()
	e := p.events
	p.events = pending{}
	p.mu.Unlock()
	var err error
	switch p.role {
	case host:
		err = p.actHost(ctx, e, periodic)
	case agent:
		err = p.actAgent(ctx, e, periodic)
	}
	if err == nil || ctx.Err() != nil || errors.Is(err, errLinkDown) || errors.Is(err, bus.ErrClosed) { // whoever closed it takes it out of service
		return
	}
	if errors.Is(err, bus.ErrGone) {
		p.empty() // until its fabric is back, of which its owner tells
	} else {
		p.say("%v", err)
	}
	p.settled(1)
}

// actHost enumerates again, if the net is not as it was.
func (p *port) actHost(ctx context.Context, e pending, periodic bool) error {
	a := &access{ctx: ctx, ops: p.m.Ops(), ids: p.m.IDs(), left: maxBudget}
	if up, err := p.linkUp(a.own()); err != nil {
		return err
	} else if !up {
		p.empty()
		return nil
	}
	if p.trusted {
		theirs, err := p.enumerated(a.own())
		if err != nil {
			return err
		}
		if theirs {
			return p.yield(ctx)
		}
	}
	retry := periodic && p.retry > 0
	if p.trusted && !retry {
		if !e.link && !e.portWrite && !periodic {
			return nil
		}
		begun := time.Now()
		same := p.intact(a, e.tags)
		p.last = time.Since(begun)
		if same || ctx.Err() != nil {
			return nil
		}
	}
	changed, err := p.enumerate(ctx, false)
	if errors.Is(err, errLost) {
		return p.yield(ctx)
	}
	if err == nil && changed {
		p.forward(ctx, e)
	}
	return err
}

// yield makes an agent of a port that was a host's; ConfigWritten tells when there is something to discover.
func (p *port) yield(ctx context.Context) error {
	p.s.log.Info(fmt.Sprintf("RIO: master port %d device has lost enumeration to a remote host", p.m.ID()))
	p.role, p.trusted, p.missed = agent, false, 0
	return p.actAgent(ctx, pending{config: true}, false)
}

// forward tells the processors of the net of an event, after the net is what it is now: they look again, too. New ones look anyway. Port-writes
// may be lost; so agents also look now and then without.
func (p *port) forward(ctx context.Context, e pending) {
	raw := e.last.Bytes()
	if e.portWrite && e.last.Len >= 4 {
		raw = e.last.Raw[:e.last.Len&^3]
	} else if len(p.order) > 0 {
		raw = rapidio.PortWrite{Tag: p.order[0].tag}.Bytes()
	}
	for _, n := range p.order {
		if n.isSwitch() || n.isNew || n.dev.PEF&rapidio.PEFProcessor == 0 {
			continue
		}
		if err := p.m.Ops().PortWrite(ctx, n.dest, raw); err != nil {
			p.s.log.Debug(fmt.Sprintf("RIO: %s: forwarding a port-write to %#x: %v", p.m.Name(), n.dest, err))
		}
	}
}

// intact tells whether the net is as the last round left it: links of all ports, IDs of all endpoints. What was latched of an event is cleared,
// so that the next one is told.
func (p *port) intact(a *access, tags map[uint32]bool) bool {
	// After the fabric itself began anew, the port's own registers did, too.
	if id, err := a.own().read(rapidio.RegBaseDeviceID); err != nil || a.ids.Of(id) != rapidio.DestID(p.m.Host()) {
		return false
	}
	if done, err := discovered(a.own(), p.self); err != nil || !done {
		return false
	}
	for _, n := range p.order {
		if !n.isSwitch() {
			t := target{a: a, dest: n.dest, hop: rapidio.MaxHops}
			v, err := t.read(rapidio.RegBaseDeviceID)
			if err != nil || a.ids.Of(v) != n.dest {
				return false
			}
			continue
		}
		t := target{a: a, dest: n.path, hop: uint8(n.hop)}
		if tag, err := t.read(rapidio.RegComponentTag); err != nil || tag != n.tag {
			return false
		}
		if tags[n.tag] && n.dev.ErrMgmt != 0 && t.write(n.dev.ErrMgmt+rapidio.EMLogDetect, 0) != nil {
			return false
		}
		if n.dev.PHY == 0 {
			continue
		}
		for port := range n.ports() {
			if up, err := linked(t, n.dev, port); err != nil || up != n.up[port] {
				return false
			}
		}
	}
	return true
}
