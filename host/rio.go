package host

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/rapidio/scan"
	"github.com/ring3dev/ring3/rionet/rejoin"
)

// rioBus is the RapidIO subsystem of a System: there is one as soon as a device is a master port.
type rioBus struct {
	mu    sync.Mutex   // held while it is made and ended
	bus   *rapidio.Bus // nil: there is none
	enum  *scan.Scanner
	peers *rionet.Driver
}

// lookAgain is how often a host looks whether its net is as it was; agents look half as often. Nobody tells agents of a host that was killed,
// and the scanner takes care that looking takes little of the time (package scan, "Again").
const lookAgain = 5 * time.Second

// openRIO makes it.
func (s *System) openRIO() error {
	s.rio.mu.Lock()
	defer s.rio.mu.Unlock()
	if s.rio.bus != nil {
		return nil
	}
	b := rapidio.NewBus(rapidio.BusOptions{Log: s.log, Uevents: s.events, Changed: s.pokePorts})
	s.rio.bus, s.rio.enum, s.rio.peers = b, scan.New(b, scan.Options{Log: s.log, Check: lookAgain}), rionet.NewDriver()
	if err := b.Register(s.rio.peers.Rapidio()); err != nil {
		return fmt.Errorf("rionet: %w", err)
	}
	if s.tree != nil { // it came later
		s.tree.exportRIO(b)
	}
	return nil
}

// close ends it.
func (r *rioBus) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bus != nil {
		r.bus.Close()
		r.enum.Wait()
	}
}

// pokePorts has all ports look how they are.
func (s *System) pokePorts() {
	for _, b := range s.bound() {
		if b.rio != nil {
			b.rio.poke()
		}
	}
}

// rioPort is what stands on a device that is a master port. It has a network device once the port has a device ID.
type rioPort struct {
	s       *System
	name    string
	use     *sync.Mutex  // the device's
	fabric  fabricNode   // the zero value: nobody knows
	owners  []int        // who may run it, besides this user and root
	link    *rejoin.Port // as the subsystem has it
	port    *rapidio.Mport
	classic bool // exact=off
	windows windows

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup // what run starts
	wake    chan struct{}
	settled chan struct{} // closed when there is a network device, or it is known why there is none

	mu      sync.Mutex // guards what follows
	scanned bool       // the first scan is done
	failed  error      // why there is no network device, for good
	refused rapidio.DestID
	trouble error // what went wrong last that may go well next time
	away    error // the fabric is gone, and this is why joining it again failed last
}

// startRIO takes a device into service that is a master port. It looks for nothing yet: runPort does.
func (s *System) startRIO(ctx context.Context, b *boundDevice, ops rapidio.Ops) error {
	host, most := -1, ops.Info().IDs.Any()-1
	if v, ok := b.spec.Options["host"]; ok {
		id, err := parseHost(v)
		if err != nil || id > uint16(most) {
			return usagef("device %s: host=%s: want a device ID, 0 to %#x", b.spec.Name, v, most)
		}
		host = int(id)
	}
	if err := s.openRIO(); err != nil {
		return err
	}
	p := &rioPort{s: s, name: b.spec.Name, use: b.use, fabric: fabricOf(b.spec), owners: ownersOf(b.spec), classic: b.spec.Options["exact"] == "off",
		wake: make(chan struct{}, 1), settled: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(s.ctx)
	p.link = rejoin.New(ops, p.poke)
	o := rapidio.MportOptions{Host: host, Scan: s.rio.enum}
	if b.spec.Backend == onFabric {
		o.Windows = &p.windows
	}
	var err error
	if p.port, err = s.rio.bus.AddMport(ctx, p.link, o); err != nil {
		p.cancel()
		return fmt.Errorf("%s (%s): %w", b.spec.Name, b.dev.Backend(), err)
	}
	b.rio = p
	return nil
}

// runPort begins to look for devices at a port, and from now on gives it a network device when it has an ID. The device is in the list.
func (s *System) runPort(b *boundDevice) {
	p := b.rio
	if p == nil {
		return
	}
	p.running.Go(p.run)
	p.running.Go(p.scan)
	if b.spec.Backend == onFabric {
		p.running.Go(p.follow)
		p.running.Go(p.watchWindows)
		return
	}
	p.running.Go(func() { // nobody has another one
		ops, _ := b.inst.(rapidio.Ops)
		select {
		case <-p.ctx.Done():
		case <-b.dev.Done():
			p.link.Fail(b.dev.Err())
		case <-ops.Done():
			p.link.Fail(ops.Err())
		}
	})
}

// poke has the port look how it is.
func (p *rioPort) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// scan looks for devices once. What comes later is told by port-writes, or asked for by /sys/bus/rapidio/scan.
func (p *rioPort) scan() {
	err := p.s.rio.bus.Scan(p.ctx, p.port.ID())
	if p.ctx.Err() != nil {
		return
	}
	if !errors.Is(err, bus.ErrGone) { // follow tells of that
		p.s.complain(err)
	}
	p.mu.Lock()
	p.scanned = true
	p.mu.Unlock()
	p.poke()
}

// settle notes what became of the network device, and lets go who waits for that, once the first scan is done.
func (p *rioPort) settle(failed error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = failed
	if !p.scanned && failed == nil {
		return
	}
	select {
	case <-p.settled:
	default:
		close(p.settled)
	}
}

// started says whether the port has settled before. mu is held.
func (p *rioPort) started() bool {
	select {
	case <-p.settled:
		return true
	default:
		return false
	}
}

// lockUse takes the use of a device, unless ctx ends: whoever has it may be waiting for who asks.
func lockUse(ctx context.Context, use *sync.Mutex) bool {
	for !use.TryLock() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(plugStep):
		}
	}
	if ctx.Err() != nil {
		use.Unlock()
		return false
	}
	return true
}

// halt ends what a port does by itself. What it holds stays. It may be called with use held.
func (p *rioPort) halt() {
	p.cancel()
	p.running.Wait()
}

// closePort takes a device's master port out of service: its network device first, which tells its peers. What takes the network device's
// frames is closed already.
func (b *boundDevice) closePort() error {
	p := b.rio
	if p == nil {
		return nil
	}
	p.halt()
	ctx, cancel := context.WithTimeout(context.Background(), portTime)
	_, err := p.port.DestID(ctx)
	cancel()
	if errors.Is(err, rapidio.ErrNoReply) || errors.Is(err, context.DeadlineExceeded) {
		// A fabric that is stopped, or that died unseen by a machine's device: there is nobody to take leave of, and each
		// attempt would wait for an answer.
		p.link.Fail(fmt.Errorf("%s: its fabric does not answer: %w", b.spec.Name, bus.ErrGone))
		_ = b.dev.Close()
	}
	err = b.closeNet()
	p.s.rio.bus.RemoveMport(p.port)
	return errors.Join(err, p.link.Close())
}

// How long the start waits for a port to be numbered and its network device to be there: by somebody else, who may not be there; and as long as that takes, on a busy machine,
// where the port numbers itself, as a host does (or waits for one that outbid it), or where there was a network device before, whose settings, and a run of pktgen's, are to go on with it (the host numbers a
// node that comes back as soon as it hears of it).
const (
	settleTime = 2 * time.Second
	backTime   = 8 * time.Second
)

// startPorts begins to look for devices at all ports. It waits a little, so that what comes at once is there when the start is over.
func (s *System) startPorts(ctx context.Context, saved *Saved) error {
	for _, b := range s.bound() {
		s.runPort(b)
	}
	began := time.Now()
	for _, b := range s.bound() {
		p := b.rio
		if p == nil {
			continue
		}
		wait := settleTime
		if p.port.Host() >= 0 || saved.hadNet(p.name) {
			wait = backTime
		}
		late := time.NewTimer(max(0, wait-time.Since(began)))
		select {
		case <-p.settled:
		case <-late.C:
		case <-ctx.Done():
			late.Stop()
			return context.Cause(ctx)
		}
		late.Stop()
		p.mu.Lock()
		settled, failed := p.started(), p.failed
		if !settled {
			close(p.settled) // nobody waits any more
		}
		p.mu.Unlock()
		if failed != nil {
			return failed
		}
		if b := s.boundOf(p.name); b.net == nil {
			_, cause := p.state(b)
			s.log.Warn(p.name + ": " + cause)
		}
	}
	return nil
}

// waiting is why a port without an ID has no network device.
const waiting = "waiting for a host to enumerate the fabric"

// state is what a port is doing, and why.
func (p *rioPort) state(b *boundDevice) (state, cause string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.away != nil:
		return stateJoining, p.away.Error()
	case p.trouble != nil:
		return stateUp, p.trouble.Error()
	case b.net == nil && p.failed != nil:
		return stateUp, p.failed.Error()
	case b.net == nil:
		return stateUp, waiting
	}
	return stateUp, ""
}
