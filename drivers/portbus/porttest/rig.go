package porttest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/portbus"
)

// Machine is a backend that owns a bus; *sim.Machine and *qemu.Machine.
type Machine interface {
	Topology() *pci.Topology
	Named(f *pci.Function) (name string, dev bus.Device, ok bool)
	Rescan(port *pci.Function) ([]*pci.Function, error)
	Forget(f *pci.Function)
	Disconnect(port *pci.Function)
	Close() error
}

// Options say what to set up over a machine.
type Options struct {
	Bus     *portbus.Bus
	Drivers []*pci.Driver // besides the ports'
	Profile string        // empty: the default one
	// Wrap, if it is not nil, puts something around a device before a driver has it.
	Wrap func(name string, dev bus.Device) bus.Device
	// Log gets the messages too.
	Log *slog.Logger
	// NoRescan: somebody else looks for what is behind ports, as the kernel does for real ones.
	NoRescan bool
	// Alone: ports are told of no hierarchy.
	Alone bool
	// Others are the functions that somebody else has behind ports; nil: none.
	Others func() []string
}

// Rig is a machine whose devices have drivers; pci.Hierarchy. Safe for concurrent use.
type Rig struct {
	opts Options
	m    Machine
	rec  recorder
	turn chan struct{} // held by who changes what there is

	mu      sync.Mutex // guards what follows
	entries []*entry   // parents before what is behind them
	irqs    int        // numbers given so far
	closed  bool
}

// entry is a function that is known.
type entry struct {
	fn      *pci.Function
	name    string
	dev     bus.Device
	restore func() error

	use    sync.RWMutex // held, for reading, while somebody uses inst
	inst   pci.Instance
	driver string
	err    error // why there is no driver
}

// New starts a machine of bus/sim, and binds its devices. A test that fails shows all messages.
func New(t testing.TB, c sim.Config, b *portbus.Bus, drivers ...*pci.Driver) *Rig {
	t.Helper()
	return Start(t, c, Options{Bus: b, Drivers: drivers})
}

// Start is New with more to say.
func Start(t testing.TB, c sim.Config, o Options) *Rig {
	t.Helper()
	m, err := sim.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return Over(t, m, o)
}

// Over binds the devices of a machine, which belongs to the rig from then on.
func Over(t testing.TB, m Machine, o Options) *Rig {
	t.Helper()
	r := Make(m, o)
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, l := range r.Lines() {
				t.Log(l)
			}
		}
	})
	return r
}

// Make is Over for who closes the rig himself.
func Make(m Machine, o Options) *Rig {
	r := &Rig{opts: o, m: m, turn: make(chan struct{}, 1), irqs: firstIRQ}
	r.rec.init(m, o.Log)
	r.opts.Drivers = append([]*pci.Driver{o.Bus.PortDriver()}, o.Drivers...)
	r.turn <- struct{}{}
	r.adopt(m.Topology().Functions)
	r.bindNew(context.Background())
	<-r.turn
	return r
}

// Machine is what New started, or Over was given.
func (r *Rig) Machine() Machine { return r.m }

// Sim is the machine that New started.
func (r *Rig) Sim() *sim.Machine { m, _ := r.m.(*sim.Machine); return m }

// adopt makes entries of functions. The turn is held.
func (r *Rig) adopt(fns []*pci.Function) {
	for _, f := range fns {
		name, dev, ok := r.m.Named(f)
		if !ok {
			r.rec.line("%s: nobody's: %v", f.Addr, f.Err)
			continue
		}
		if r.opts.Wrap != nil {
			dev = r.opts.Wrap(name, dev)
		}
		e := &entry{fn: f, name: name, dev: &device{Device: dev, rig: r}}
		r.mu.Lock()
		r.entries = append(r.entries, e)
		r.mu.Unlock()
		r.Uevent("add", pci.SysfsPath(f), "pci")
	}
}

// bindNew gives a driver to what has none. The turn is held.
func (r *Rig) bindNew(ctx context.Context) {
	for _, e := range r.all() {
		if e.inst == nil && e.err == nil {
			r.bind(ctx, e)
		}
	}
}

func (r *Rig) bind(ctx context.Context, e *entry) {
	env := pci.Env{Name: e.name, Log: slog.New(&r.rec), Profile: r.opts.Profile, Bus: r, Function: e.fn}
	if r.opts.Alone {
		env.Bus = nil
	}
	res := pci.Bind(ctx, e.dev, env, r.opts.Drivers)
	if res.Outcome != pci.Bound {
		e.err = res.Err
		if res.Outcome == pci.Failed {
			r.rec.line("%v", res.Err)
		}
		return
	}
	r.mu.Lock()
	e.driver = res.Driver.Name
	r.mu.Unlock()
	e.use.Lock()
	e.inst, e.restore = res.Instance, bus.SaveState(e.dev)
	e.use.Unlock()
	r.Uevent("bind", pci.SysfsPath(e.fn), "pci", "DRIVER="+e.driver)
}

// unbind takes the driver away. The turn is held.
func (r *Rig) unbind(e *entry) error {
	e.use.Lock()
	inst := e.inst
	e.inst = nil
	e.use.Unlock()
	if inst == nil {
		return nil
	}
	err := inst.Close()
	r.mu.Lock()
	e.driver = ""
	r.mu.Unlock()
	r.Uevent("unbind", pci.SysfsPath(e.fn), "pci")
	return err
}

// drop takes a function out of service, and forgets it. The turn is held.
func (r *Rig) drop(e *entry) error {
	err := errors.Join(r.unbind(e), e.dev.Close())
	r.mu.Lock()
	r.entries = slices.DeleteFunc(r.entries, func(o *entry) bool { return o == e })
	r.mu.Unlock()
	r.Uevent("remove", pci.SysfsPath(e.fn), "pci")
	return err
}

func (r *Rig) all() []*entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.entries)
}

// take waits for the turn.
func (r *Rig) take(ctx context.Context) error {
	select {
	case r.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// behind says whether f stands behind a port.
func behind(f *pci.Function, port pci.Addr) bool {
	for f = f.Parent; f != nil; f = f.Parent {
		if f.Addr == port {
			return true
		}
	}
	return false
}

func (r *Rig) below(port pci.Addr) []*entry {
	return slices.DeleteFunc(r.all(), func(e *entry) bool { return !behind(e.fn, port) })
}

func (r *Rig) find(a pci.Addr) *entry {
	for _, e := range r.all() {
		if e.fn.Addr == a {
			return e
		}
	}
	return nil
}

// Unbind takes the driver of a device away.
func (r *Rig) Unbind(ctx context.Context, name string) error {
	e := r.named(name)
	if e == nil {
		return fmt.Errorf("porttest: nothing is named %s", name)
	}
	if err := r.take(ctx); err != nil {
		return err
	}
	defer func() { <-r.turn }()
	err := r.unbind(e)
	e.err = errors.New("unbound")
	return err
}

// Bind gives it one again.
func (r *Rig) Bind(ctx context.Context, name string) error {
	e := r.named(name)
	if e == nil {
		return fmt.Errorf("porttest: nothing is named %s", name)
	}
	if err := r.take(ctx); err != nil {
		return err
	}
	defer func() { <-r.turn }()
	e.err = nil
	r.bind(ctx, e)
	return e.err
}

func (r *Rig) named(name string) *entry {
	for _, e := range r.all() {
		if e.name == name {
			return e
		}
	}
	return nil
}

// Port is the port of that name; nil where none is in service.
func (r *Rig) Port(name string) (p *portbus.Port) {
	r.Use(name, func(i pci.Instance) { p, _ = i.(*portbus.Port) })
	return p
}

// Use calls f with the instance of a device, nil where there is none.
func (r *Rig) Use(name string, f func(pci.Instance)) {
	if e := r.named(name); e != nil {
		e.using(f)
	} else {
		f(nil)
	}
}

func (e *entry) using(f func(pci.Instance)) {
	e.use.RLock()
	defer e.use.RUnlock()
	f(e.inst)
}

// Names are the names of what is known, and " driver" where it has one.
func (r *Rig) Names() []string {
	var names []string
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.entries {
		n := e.name
		if e.driver != "" {
			n += " " + e.driver
		}
		names = append(names, n)
	}
	return names
}

// Close takes everything out of service, leaves first, and closes the machine. It is idempotent.
func (r *Rig) Close() error {
	r.mu.Lock()
	closed := r.closed
	r.closed = true
	r.mu.Unlock()
	if closed {
		return nil
	}
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	var err error
	for _, e := range slices.Backward(r.all()) {
		err = errors.Join(err, r.unbind(e), e.dev.Close())
	}
	return errors.Join(err, r.m.Close())
}
