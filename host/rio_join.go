package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/ivshmem"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/internal/sockpath"
	"github.com/ring3dev/ring3/rionet/fabricd"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// fabricMachine is a node of a fabric, as a machine of its own. It lives until it is closed: while the fabric is gone its device is dead,
// and then it has another one.
type fabricMachine struct {
	done chan struct{}

	mu  sync.Mutex // guards what follows
	dev bus.Device
	err error
}

func (m *fabricMachine) Device(string) (bus.Device, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dev, nil
}

func (m *fabricMachine) Function(string) (*pci.Function, error) { return nil, nil }
func (m *fabricMachine) Done() <-chan struct{}                  { return m.done }

func (m *fabricMachine) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

func (m *fabricMachine) replace(dev bus.Device) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dev = dev
}

func (m *fabricMachine) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.err = bus.ErrClosed
		close(m.done)
	}
	return m.dev.Close()
}

func (s *System) planFabric(_ Config, group []DeviceSpec, _ uint32) (starter, error) {
	d := group[0]
	return func(ctx context.Context) (machine, error) {
		dev, err := s.joinFabric(ctx, d)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.Name, err)
		}
		return &fabricMachine{dev: dev, done: make(chan struct{})}, nil
	}, nil
}

// joinTime is how long a fabric may take to let a node in.
const joinTime = 10 * time.Second

// joinFabric makes this process a node of a fabric.
func (s *System) joinFabric(ctx context.Context, d DeviceSpec) (bus.Device, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	var conn *net.UnixConn
	var err error
	if s.outside != nil {
		conn, err = s.outside.Fabric(ctx, d.Name)
	} else {
		conn, err = connect(ctx, d)
	}
	if err != nil {
		return nil, err
	}
	return ivshmem.Open(ctx, conn, ivshmem.Options{Vectors: shm.NumVectors, Backend: onFabric + ":" + d.Bus["node"], Log: s.log})
}

// connect makes the connection that a node of a fabric is.
func connect(ctx context.Context, d DeviceSpec) (*net.UnixConn, error) {
	q := fabricd.Request{Node: d.Bus["node"], Owners: ownersOf(d)}
	switch d.Bus["ids"] {
	case "8":
		q.IDs = rapidio.Small
	case "16":
		q.IDs = rapidio.Large
	}
	if v, ok := d.Bus["window"]; ok {
		var err error
		if q.Windows, err = parseWindows(v); err != nil {
			return nil, err
		}
	}
	conn, _, err := fabricd.Join(ctx, d.Device, q)
	return conn, err
}

// connectFabrics connects QEMU's devices that are nodes of a fabric to it. The caller calls done once QEMU has started.
func connectFabrics(ctx context.Context, group []DeviceSpec, devices []qemu.DeviceSpec) (done func(), err error) {
	var open []*os.File
	done = func() {
		for _, f := range open {
			f.Close()
		}
	}
	for _, d := range group {
		n := fabricOf(d)
		if n.path == "" {
			continue
		}
		f, err := connectNode(ctx, n, ownersOf(d))
		if err != nil {
			done()
			return nil, fmt.Errorf("%s: %w", d.Name, err)
		}
		open = append(open, f)
		i := slices.IndexFunc(devices, func(q qemu.DeviceSpec) bool { return q.Name == d.Name })
		devices[i].Server = f
	}
	return done, nil
}

// connectNode connects to the socket that a fabric has for a machine's ivshmem device.
func connectNode(ctx context.Context, n fabricNode, owners []int) (*os.File, error) {
	// First ask the fabric itself, which tells what is wrong.
	c, err := fabricd.Dial(ctx, n.path, owners...)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(c.Path()+".d", n.node)
	short, done, err := sockpath.Short(path)
	if err != nil {
		return nil, fmt.Errorf("joining the fabric at %s: %w", n.path, err)
	}
	defer done()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", short)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the fabric at %s has no endpoint %s: %w", n.path, n.node, fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("joining the fabric at %s as %s: %w", n.path, n.node, err)
	}
	defer conn.Close()
	node := conn.(*net.UnixConn)
	if err := fabricd.CheckOwner(node, n.path, owners...); err != nil {
		return nil, err
	}
	return node.File()
}

// Times between two tries to join a fabric that is gone.
const (
	rejoinFirst = 500 * time.Millisecond
	rejoinMost  = 5 * time.Second
)

// follow joins the fabric again when it was lost.
func (p *rioPort) follow() {
	for {
		b := p.s.boundOf(p.name)
		if b == nil || b.rio != p {
			return // being taken away
		}
		ops, _ := b.inst.(rapidio.Ops)
		why := b.dev.Err
		select {
		case <-p.ctx.Done():
			return
		case <-b.dev.Done():
		case <-ops.Done(): // what they share is of no use
			why = ops.Err
		}
		if p.ctx.Err() != nil {
			return
		}
		p.s.log.Warn(fmt.Sprintf("%s: the fabric at %s is gone; joining again", p.name, p.fabric.path))
		p.setAway(why())
		p.link.Lose()
		if !p.leave() || !p.joinAgain() {
			return
		}
		p.setAway(nil)
		p.s.log.Warn(fmt.Sprintf("%s: the fabric at %s is back", p.name, p.fabric.path))
		p.anew()
	}
}

// leave closes the dead device and its driver's instance: the daemon takes a node once, and it may be that only this end saw the other one
// die. It says no where the port ends.
func (p *rioPort) leave() bool {
	if !lockUse(p.ctx, p.use) {
		return false
	}
	defer p.use.Unlock()
	b := p.s.boundOf(p.name)
	if b == nil || b.rio != p {
		return false
	}
	p.s.irqs.remove(b)
	_ = b.inst.Close()
	_ = b.dev.Close()
	return true
}

func (p *rioPort) setAway(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = err
}

// joinAgain tries until it succeeds, or the port ends.
func (p *rioPort) joinAgain() bool {
	said := ""
	for wait := rejoinFirst; ; wait = min(2*wait, rejoinMost) {
		select {
		case <-p.ctx.Done():
			return false
		case <-time.After(wait):
		}
		err := p.joinOnce()
		if err == nil {
			return true
		}
		if p.ctx.Err() != nil {
			return false
		}
		p.setAway(err)
		// That nobody is there yet is no news; that somebody refuses is.
		var answer *fabricd.Error
		news := errors.As(err, &answer) || !errors.Is(err, bus.ErrGone) && !errors.Is(err, fs.ErrNotExist)
		if text := err.Error(); news && text != said {
			said = text
			p.s.log.Warn(fmt.Sprintf("%s: joining the fabric again: %s", p.name, text))
		}
	}
}

// joinOnce puts a new device in place of the dead one, with a driver of its own, under the port that there is.
func (p *rioPort) joinOnce() (err error) {
	s := p.s
	spec := s.specOf(p.name)
	if spec == nil {
		return bus.ErrClosed
	}
	dev, err := s.joinFabric(p.ctx, *spec)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = dev.Close()
		}
	}()
	if err := s.scan.lock(p.ctx); err != nil {
		return err
	}
	defer s.scan.unlock()
	if !lockUse(p.ctx, p.use) {
		return p.ctx.Err()
	}
	defer p.use.Unlock()
	old := s.boundOf(p.name)
	if old == nil || old.rio != p {
		return bus.ErrClosed
	}
	n := *old
	n.dev = dev
	driver, regs := servedBy(spec.Device, n.dev, s.drivers)
	if n.trace, err = s.tracing.wrap(p.name, n.dev, driver, regs); err != nil {
		return err
	}
	n.dev = n.trace
	r := s.probeDriver(p.ctx, &n, s.drivers)
	if r.Err != nil {
		return r.Err
	}
	ops, ok := r.Instance.(rapidio.Ops)
	if !ok {
		return errors.Join(fmt.Errorf("driver %s: it is no master port any more: %w", r.Driver.Name, bus.ErrProtocol), r.Instance.Close())
	}
	if err := p.link.Join(ops); err != nil {
		p.link.Lose()
		return errors.Join(err, r.Instance.Close())
	}
	s.tracing.forget(old.trace)
	n.inst = r.Instance
	if m, ok := n.machine.(*fabricMachine); ok {
		m.replace(n.dev)
	}
	s.irqs.add(&n)
	s.put(&n)
	return nil
}
