package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/iova"
)

// Where BARs are placed: as package qemu places them.
var windows = pci.Windows{
	IO:    pci.Range{Base: 0x2000, Size: 0xe000},
	Mem:   pci.Range{Base: 0xc0000000, Size: 0x3e000000},
	Mem64: pci.Range{Base: 1 << 36, Size: 1 << 36},
}

// Machine is a bus with devices. Safe for concurrent use.
type Machine struct {
	log    *slog.Logger
	domain uint32
	// ejected is Config's.
	ejected func(name string)

	// topoMu is held while functions are looked for or forgotten; before any device's irqMu. What it found is never changed, but replaced.
	topoMu sync.Mutex
	topo   atomic.Pointer[pci.Topology]

	// mu is held while a chip runs: for each access, each timer. Before it is taken: a device's
	// irqMu.
	mu      sync.Mutex
	devices []*device        // in the order of Config.Devices, then of plugging in
	roots   []*device        // those on the root bus
	dead    map[*device]bool // those that are no more, and not closed yet
	left    []string         // cards that left their slots, of which ejected is to be told
	pairs   [][2]string      // Config.Wires
	clock   clock
	iovas   *iova.Pool
	// dmaBytes is how much of it is in use.
	dmaBytes uint64
	bell     []*bus.IRQ // by the data of a message
	lines    [pciLines + 1]line
	wires    wires
	stray    uint64 // DMA that hit nothing
	strayE   error  // the first
	err      error
	done     chan struct{}

	closeOnce sync.Once
	closeErr  error
}

// Start makes a machine and enumerates its bus, which takes no time. Errors name what is wrong
// with the config.
func Start(ctx context.Context, c Config) (*Machine, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("sim: starting: %w", context.Cause(ctx))
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Domain == 0 {
		c.Domain = DefaultDomain
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	m := &Machine{log: c.Log, domain: c.Domain, ejected: c.Ejected, iovas: addresses(), done: make(chan struct{}), dead: map[*device]bool{}, pairs: c.Wires}
	m.clock.init(c.Clock, m.woken)
	if err := m.build(&c); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// build makes the devices, wires them, and enumerates the bus.
func (m *Machine) build(c *Config) error {
	for _, spec := range c.Devices {
		d, err := newDevice(m, spec)
		if err != nil {
			return fmt.Errorf("sim: %s: model %s: %w", spec.Name, spec.Model, err)
		}
		m.devices = append(m.devices, d)
	}
	m.lock()
	for _, d := range m.devices {
		m.wire(d)
	}
	for _, d := range m.devices {
		d.chip.reset()
	}
	m.unlock()
	if err := m.enumerate(c.Reserve); err != nil {
		return err
	}
	for _, d := range m.devices {
		if d.isPlatform() {
			continue
		}
		if d.fn == nil {
			return fmt.Errorf("sim: %s: model %s: enumerating the bus: no function was found: %w", d.spec.Name, d.spec.Model, bus.ErrProtocol)
		}
		if d.fn.Err != nil {
			return fmt.Errorf("sim: %s: model %s: %w", d.spec.Name, d.spec.Model, d.fn.Err)
		}
	}
	return nil
}

// enumerate looks for the functions that there are, which may be none.
func (m *Machine) enumerate(keep pci.Reserve) error {
	if !slices.ContainsFunc(m.devices, func(d *device) bool { return !d.isPlatform() }) {
		m.topo.Store(&pci.Topology{Domain: m.domain})
		return nil
	}
	t, err := pci.EnumerateReserving(m, m.domain, windows, keep)
	if err != nil {
		return fmt.Errorf("sim: enumerating the bus: %w", err)
	}
	m.topo.Store(t)
	m.placeAll(t.Functions)
	return nil
}

func (m *Machine) lock() { m.mu.Lock() }

// unlock sees to the clock first.
func (m *Machine) unlock() {
	if m.clock.dirty {
		m.clock.arm()
	}
	left := m.left
	m.left = nil
	m.mu.Unlock()
	if m.ejected != nil {
		for _, name := range left {
			m.ejected(name)
		}
	}
}

// woken is called when a timer may be due.
func (m *Machine) woken() {
	m.lock()
	defer m.unlock()
	if m.err == nil {
		m.clock.woken()
	}
}

// Now is virtual time since the start.
func (m *Machine) Now() time.Duration {
	m.lock()
	defer m.unlock()
	return m.clock.now()
}

// Advance moves time on by d, and does what is due on the way, each thing at its time. It is
// what moves a Stepped clock, and makes the others jump.
func (m *Machine) Advance(d time.Duration) {
	m.lock()
	defer m.unlock()
	d = max(d, 0)
	until := m.clock.now() + d
	for m.err == nil && m.clock.step(until) {
		m.unlock() // let others in between
		m.lock()
	}
	m.clock.time = max(m.clock.time, until)
	m.clock.start = m.clock.start.Add(-d)
	m.clock.armed, m.clock.dirty = false, true // what comes next comes earlier
}

// Next says how far off the next thing is that will happen by itself, and whether there is
// one: what a test with a Stepped clock advances by.
func (m *Machine) Next() (time.Duration, bool) {
	m.lock()
	defer m.unlock()
	at, ok := m.clock.next()
	return max(0, at-m.clock.now()), ok
}

// StrayDMA tells how often devices touched memory that is not theirs, or not in the direction
// that it was asked for, or any without being allowed to (bus mastering), and of the first time.
// Nothing was written then.
func (m *Machine) StrayDMA() (n uint64, first error) {
	m.lock()
	defer m.unlock()
	return m.stray, m.strayE
}

// Config gives the config space of whatever function answers at an address, each time it is accessed; pci.Access.
func (m *Machine) Config(a pci.Addr) bus.Config { return &routed{m, a} }

// Topology is what is known now. It does not change: after Rescan and Forget there is another.
func (m *Machine) Topology() *pci.Topology { return m.topo.Load().Snapshot() }

func (m *Machine) find(name string) *device {
	for _, d := range m.devices {
		if d.spec.Name == name {
			return d
		}
	}
	return nil
}

// named is a device that was enumerated, or is none to be.
func (m *Machine) named(name string) (*device, error) {
	m.lock()
	defer m.unlock()
	if d := m.find(name); d != nil && (d.fn != nil || d.isPlatform()) {
		return d, nil
	}
	return nil, fmt.Errorf("sim: no device is named %s: %w", name, unix.ENODEV)
}

// Device returns the device that Config named so. There is one bus.Device for it; closing
// that is closing it for everybody.
func (m *Machine) Device(name string) (bus.Device, error) {
	d, err := m.named(name)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Function returns what enumeration found out about the device of that name: nil, and no error, of a
// platform device, which is no function and which nobody enumerates.
func (m *Machine) Function(name string) (*pci.Function, error) {
	d, err := m.named(name)
	if err != nil {
		return nil, err
	}
	m.lock()
	defer m.unlock()
	return d.fn, nil
}

// Unplug pulls a device out while it works: its link dies (bus.ErrGone), whatever it was
// about to do, that of all that is behind it too, and a device that is wired to it loses its link. A slot that it was in
// tells of the change, and is empty.
func (m *Machine) Unplug(name string) error {
	m.lock()
	defer m.unlock()
	d := m.find(name)
	switch {
	case d == nil:
		return fmt.Errorf("sim: no device is named %s: %w", name, unix.ENODEV)
	case d.up == nil:
		d.dies(fmt.Errorf("it was pulled out: %w", bus.ErrGone))
	case !d.up.port.hasSlot():
		return d.errorf("pulling it out: it is part of a switch: %w", bus.ErrNotSupported)
	default:
		p := d.up.port
		p.leave(d)
		p.put(pci.ExpSltSta, pci.SltStaPresence, true)
		p.settle(true)
	}
	return nil
}

// Reset is power-on reset of a device, whether or not its function has a reset of its own: its
// registers are as at the start, its config space as it was.
func (m *Machine) Reset(ctx context.Context, name string) error {
	d, err := m.named(name)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return d.errorf("power-on reset: %w", ctx.Err())
	}
	return d.powerOn(true)
}

// Done is closed when the machine was closed.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Err says why Done is closed.
func (m *Machine) Err() error {
	m.lock()
	defer m.unlock()
	return m.err
}

// Close stops all devices and releases everything. It is idempotent. Memory that a driver
// did not free is reported.
func (m *Machine) Close() error {
	m.closeOnce.Do(func() {
		m.lock()
		all := append(slices.Collect(maps.Keys(m.dead)), m.devices...)
		m.unlock()
		for i := len(all) - 1; i >= 0; i-- {
			m.closeErr = errors.Join(m.closeErr, all[i].Close())
		}
		m.lock()
		defer m.unlock()
		m.err = fmt.Errorf("sim: %w", bus.ErrClosed)
		m.clock.stop()
		left := 0
		for _, d := range m.devices {
			if !errors.Is(d.err, bus.ErrGone) { // of one that was pulled out, what was in flight never comes back
				left += len(d.memory.all)
			}
		}
		if left > 0 {
			m.closeErr = errors.Join(m.closeErr, fmt.Errorf("sim: closing: %d pieces of DMA memory were not freed", left))
		}
		close(m.done)
	})
	return m.closeErr
}
