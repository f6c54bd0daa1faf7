package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// portTime is how long a look at the port's own registers may take.
const portTime = 2 * time.Second

// run keeps the network device as the port is. What may go well next time is tried again; and now and then it looks by itself, since
// nobody tells a machine's device that its fabric died.
func (p *rioPort) run() {
	retry := rejoinFirst
	for {
		wait := lookAgain
		if err := p.update(); err != nil {
			wait = retry
			retry = min(2*retry, rejoinMost)
		} else {
			retry = rejoinFirst
		}
		select {
		case <-p.ctx.Done():
			return
		case <-p.wake:
		case <-time.After(wait):
		}
	}
}

// passing tells whether an error is of a fabric that is gone, or slow: it may be back.
func passing(err error) bool {
	return errors.Is(err, bus.ErrGone) || errors.Is(err, bus.ErrTimeout) || errors.Is(err, context.DeadlineExceeded)
}

// update makes the network device, or replaces it when the port has another ID. While the fabric is gone, or nobody has numbered it anew
// since, what there is stays: its link is down. An error is one that may pass.
func (p *rioPort) update() error {
	ctx, cancel := context.WithTimeout(p.ctx, portTime)
	id, err := p.port.DestID(ctx)
	cancel()
	if p.ctx.Err() != nil {
		return nil
	}
	if err != nil {
		if errors.Is(err, bus.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) {
			p.inTrouble(fmt.Errorf("%s: its fabric does not answer: %w", p.name, bus.ErrTimeout))
		}
		return err // that it is gone others tell
	}
	if id == p.port.IDs().Any() {
		p.inTrouble(nil)
		return nil
	}
	if !lockUse(p.ctx, p.use) {
		return nil
	}
	defer p.use.Unlock()
	return p.number(id)
}

// number has the network device be that of an ID. use is held.
func (p *rioPort) number(id rapidio.DestID) error {
	b := p.s.boundOf(p.name)
	if b == nil || b.rio != p {
		return nil
	}
	if b.net != nil && b.netID == id {
		p.inTrouble(nil)
		p.settle(nil)
		return nil
	}
	if b.net != nil {
		p.s.log.Info(fmt.Sprintf("%s: the fabric gave it the device ID %#04x, in place of %#04x", p.name, id, b.netID))
		p.s.complain(p.s.removeNet(b))
	}
	p.mu.Lock()
	before := p.failed != nil && p.refused == id
	p.mu.Unlock()
	if before { // as it did
		return nil
	}
	err := p.s.appear(p.s.boundOf(p.name), id)
	if passing(err) {
		p.inTrouble(err)
		return err
	}
	p.inTrouble(nil)
	p.mu.Lock()
	started := p.started()
	p.refused = id
	p.mu.Unlock()
	if started { // nobody waits for it
		p.s.complain(err)
	}
	p.settle(err)
	return nil
}

// inTrouble notes what went wrong, or that all is well, and says so where it is news.
func (p *rioPort) inTrouble(err error) {
	p.mu.Lock()
	before := p.trouble
	p.trouble = err
	p.mu.Unlock()
	switch {
	case err == nil && before == nil:
	case err == nil:
		p.s.log.Warn(p.name + ": its fabric answers again")
	case before == nil || before.Error() != err.Error():
		p.s.log.Warn(err.Error())
	}
}

// anew forgets why there is no network device: the fabric is another one.
func (p *rioPort) anew() {
	p.mu.Lock()
	p.failed, p.trouble = nil, nil
	p.mu.Unlock()
	p.poke()
}

// appear gives a master port its network device, and puts all that stands on that into the tree. use is held.
func (s *System) appear(b *boundDevice, id rapidio.DestID) error {
	p := b.rio
	log := s.log.With("device", b.spec.Name)
	dev, err := rionet.New(p.port, rionet.Options{Name: b.spec.Name, Driver: s.rio.peers, Classic: p.classic, Log: log})
	if err != nil {
		return err
	}
	n := *b
	n.net, n.netID = dev, id
	if err := s.receive(&n); err != nil {
		return errors.Join(err, n.stopTraffic(), dev.Close())
	}
	s.put(&n)
	s.tree.addNet(&n)
	if !s.strict {
		s.complain(s.accountFor(&n))
	}
	return nil
}

// removeNet takes the network device of a master port away, and all that stands on it. use is held.
func (s *System) removeNet(b *boundDevice) error {
	bare := *b
	bare.net, bare.sink, bare.tap, bare.forward = nil, nil, nil, nil
	s.put(&bare) // nobody finds it any more
	s.pktgen.RemoveDevice(b.spec.Name)
	s.tree.removeNet(b)
	err := errors.Join(b.stopTraffic(), b.closeNet())
	s.netGone(b.spec.Name)
	return err
}

// netGone forgets the frames of a network device that is closed.
func (s *System) netGone(name string) {
	s.pktgen.RemoveDevice(name) // again: what was in flight is given back
	s.figuring.Lock()
	s.receivers = slices.DeleteFunc(slices.Clone(s.receivers), func(r receiver) bool { return r.name == name })
	s.figuring.Unlock()
}

// closeNet closes a master port's network device.
func (b *boundDevice) closeNet() error {
	c, ok := b.net.(io.Closer)
	if b.rio == nil || !ok {
		return nil
	}
	err := c.Close()
	if b.tap != nil {
		_ = b.tap.Close() // again: what a dead device held
	}
	return err
}
