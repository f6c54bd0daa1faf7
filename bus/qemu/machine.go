package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// The chipset's address map as this bus lays it out: RAM from 0, configuration space
// (256 buses of 1 MiB), a window for 32-bit memory BARs below the IOAPIC, one for large
// 64-bit BARs above 4 GiB.
const (
	ecamBase = 0xb0000000
	regXBAR  = bus.Off(0x60) // PCIEXBAR of the host bridge, RW, 64 bits; bit 0 enables, 2:1 = 0: 256 MiB
)

var windows = pci.Windows{
	IO:    pci.Range{Base: 0x2000, Size: 0xe000},
	Mem:   pci.Range{Base: 0xc0000000, Size: 0x3e000000},
	Mem64: pci.Range{Base: 1 << 36, Size: 1 << 36},
}

// Machine is the devices of one running QEMU. Safe for concurrent use.
type Machine struct {
	log     *slog.Logger
	own     *Process // nil: somebody else's
	mon     Monitor
	unwatch func()
	about   meta
	qt      *qtest
	ram     *ram
	bell    *doorbell
	iommu   *iommu // nil: no device asked for it
	dimms   dimms
	domain  uint32

	deleted chan Event // devices that QEMU has removed
	up      atomic.Bool
	ejects  sync.WaitGroup
	gone    chan struct{} // closed by Close

	// Lock order: mu, then irqMu, then the IOMMU's, then the qtest client's, then lineMu. Nobody waits for QMP with one of
	// them.
	mu    sync.Mutex // guards what follows, to shut
	topo  *pci.Topology
	units []*unit // those of Config.Devices, in their order, then those plugged in
	late  []*unit // that QEMU has removed, and nobody has forgotten yet
	shut  bool    // closed: nothing is plugged in any more

	missing []string // devices that had left when the machine was made

	irqMu  sync.Mutex // guards bell.used, intxOn and the devices' irqState
	intxOn bool       // interrupt messages were asked for
	lineMu sync.Mutex // guards lines and what hangs on them
	lines  map[int]*line

	broken atomic.Bool // the link broke; why is not known yet
	errMu  sync.Mutex  // guards err and the closing of done
	err    error
	done   chan struct{}

	closeOnce sync.Once
	closeErr  error
}

// Start starts QEMU, waits until it answers, and enumerates its bus. It takes about
// 0.1 s. Errors name what was being done; one that the user can mend says how. It is Launch and Attach in one process.
func Start(ctx context.Context, c Config) (*Machine, error) {
	p, err := Launch(ctx, c)
	if err != nil {
		return nil, err
	}
	c.fill()
	parts, err := p.parts(true)
	if err != nil {
		p.Close()
		return nil, err
	}
	defer parts.Close()
	var have meta
	if err := json.Unmarshal(parts.Meta, &have); err != nil {
		p.Close()
		return nil, fmt.Errorf("qemu: starting: %w", err)
	}
	m := newMachine(&c, p, have)
	m.own = p
	if err := m.take(parts); err != nil {
		m.unwatch()
		p.Close()
		return nil, err
	}
	if err = m.place(&c, have); err == nil {
		m.follow()
		err = m.bringUp(ctx, &c)
	}
	if err != nil {
		err = p.explain(err)
		m.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("qemu: starting: %w", context.Cause(ctx))
		}
		return nil, err
	}
	return m, nil
}

// newMachine is one that has nothing yet.
func newMachine(c *Config, mon Monitor, have meta) *Machine {
	m := &Machine{log: c.Log, mon: mon, about: have, domain: c.Domain, lines: map[int]*line{}, done: make(chan struct{}), deleted: make(chan Event, maxDevices), gone: make(chan struct{})}
	m.unwatch = mon.Watch(m.event)
	return m
}

// follow ends the machine with its QEMU.
func (m *Machine) follow() {
	go func() {
		select {
		case <-m.mon.Done():
			m.record(m.mon.Err())
			m.qt.dead.Store(true)
		case <-m.gone:
		}
	}()
}

// bringUp takes the machine to enumerated devices.
func (m *Machine) bringUp(ctx context.Context, c *Config) (err error) {
	stop := context.AfterFunc(ctx, func() {
		m.record(fmt.Errorf("qemu: starting: %w (%w)", context.Cause(ctx), bus.ErrGone))
		m.qt.dead.Store(true)
	})
	defer stop()
	if err := m.enumerate(c); err != nil {
		return err
	}
	if !stop() {
		return fmt.Errorf("qemu: starting: %w", context.Cause(ctx))
	}
	m.up.Store(true)
	m.ejects.Go(func() { m.watchEjects(c.Ejected) })
	return nil
}

// enumerate sets up configuration space and finds the devices.
func (m *Machine) enumerate(c *Config) error {
	// The host bridge's own registers are reached through ports, until ECAM is on.
	for i, v := range []uint64{ecamBase | 1, 0} {
		m.qt.post(cmdOut[4], 0xcf8, 1<<31|uint64(regXBAR)+uint64(4*i))
		m.qt.post(cmdOut[4], 0xcfc, v)
	}
	var err error
	if m.topo, err = pci.EnumerateReserving(m, m.domain, windows, c.Reserve); err != nil {
		return fmt.Errorf("qemu: enumerating the bus: %w", err)
	}
	if err := m.Err(); err != nil {
		return fmt.Errorf("qemu: enumerating the bus: %w", err)
	}
	for _, f := range m.topo.Functions {
		m.adopt(f)
	}
	for _, u := range m.units {
		if IsTPM(u.spec.Model) {
			u.dev = newPlatformDevice(m, u.spec)
			continue
		}
		if u.fn == nil {
			return fmt.Errorf("qemu: %s (%s): no function in its slot: is it a PCI device? %w", u.spec.Name, u.spec.Model, bus.ErrProtocol)
		}
		if err := u.fn.Err; err != nil {
			return fmt.Errorf("qemu: %s (%s): %w", u.spec.Name, u.spec.Model, err)
		}
	}
	if m.bell.addr, err = findDoorbell(m.topo); err != nil {
		return err
	}
	if m.about.IOMMU {
		if err := m.startIOMMU(); err != nil {
			return fmt.Errorf("qemu: starting the IOMMU: %w", err)
		}
	}
	return m.bell.ready(m.qt)
}

// Config gives the config space of any function of the machine; pci.Access.
func (m *Machine) Config(a pci.Addr) bus.Config { return m.config(a) }

func (m *Machine) config(a pci.Addr) *config {
	return &config{m: m, size: configSize, base: ecamBase + uint64(a.Bus)<<20 + uint64(a.Dev)<<15 + uint64(a.Fn)<<12}
}

// PID is QEMU's process id.
func (m *Machine) PID() int { return m.about.PID }

// Version is QEMU's version, "7.2.22".
func (m *Machine) Version() string {
	v := m.about.Version
	return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2])
}

// monitor is whose QEMU's monitor is asked next; nil: another process, which asks for us. The monitor is another way to QEMU than the qtest socket, so what was written
// there comes first.
func (m *Machine) monitor() *Process {
	m.qt.flush()
	return m.own
}

// Execute runs a QMP command. Of a machine that was attached it is one of those of [Process.Execute].
func (m *Machine) Execute(cmd string, args any) (json.RawMessage, error) {
	if own := m.monitor(); own != nil {
		return own.qmp.execute(cmd, args)
	}
	return m.ask(cmd, args)
}

// ask has the owner of QEMU do something.
func (m *Machine) ask(cmd string, args any) (json.RawMessage, error) {
	b, err := json.Marshal(args)
	if err != nil {
		return nil, fmt.Errorf("qemu: %s: %w", cmd, err)
	}
	return m.mon.Execute(cmd, b)
}

// Done is closed when QEMU ended, stopped answering, or was closed.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Err says why Done is closed. Where the link just broke it waits for the reason, which takes
// as long as QEMU takes to exit, at most exitTime.
func (m *Machine) Err() error {
	if m.broken.Load() {
		<-m.done
	}
	m.errMu.Lock()
	defer m.errMu.Unlock()
	return m.err
}

// fail records why the machine died, once, and wakes everybody. A QEMU that does not
// answer, or talks nonsense, is of no use to anybody and ends here. Where the link broke
// because QEMU ended, its exit status and last words are the reason, so that is waited for
// in the background. The only lock taken is errMu, which is a leaf.
func (m *Machine) fail(err error) {
	if errors.Is(err, bus.ErrTimeout) {
		what := ""
		if m.own != nil {
			what = ", and is ended"
		}
		err = fmt.Errorf("qemu: QEMU (pid %d) does not answer%s: %w", m.PID(), what, err)
	}
	if errors.Is(err, bus.ErrGone) && !m.broken.Swap(true) {
		go func() {
			select {
			case <-m.mon.Done():
				m.record(m.mon.Err())
			case <-m.gone:
				m.record(err)
			case <-time.After(exitTime):
				m.record(err)
			}
		}()
		return
	}
	m.record(err)
}

// exitTime is how long the end of QEMU may come after that of its sockets.
const exitTime = time.Second

func (m *Machine) record(err error) {
	m.errMu.Lock()
	defer m.errMu.Unlock()
	if m.err != nil {
		return
	}
	m.err = err
	close(m.done)
	// Before it is up, whoever starts it gets the error.
	if m.up.Load() && !errors.Is(err, bus.ErrClosed) {
		m.log.Error(err.Error())
	}
	if m.own != nil {
		m.own.child.Kill()
	}
}

// Close stops all devices, then QEMU if Start made it, and releases everything. It is idempotent. Memory
// that a driver did not free stays mapped and is reported. It waits for Config.Ejected to return, so that must not call it.
func (m *Machine) Close() error {
	m.closeOnce.Do(func() {
		m.mu.Lock()
		m.shut = true
		devices := m.devices()
		m.mu.Unlock()
		for _, d := range slices.Backward(devices) {
			m.closeErr = errors.Join(m.closeErr, d.Close())
		}
		m.record(fmt.Errorf("qemu: %w", bus.ErrClosed))
		close(m.gone)
		if m.own != nil {
			m.own.kill()
		}
		m.qt.close()
		m.unwatch()
		m.ejects.Wait()
		if m.own != nil {
			m.own.Close()
		}
		m.bell.close()
		m.iommu.close()
		if m.ram != nil {
			// Of a machine that died, what was in flight never comes back.
			if n := m.ram.close(); n > 0 && errors.Is(m.Err(), bus.ErrClosed) {
				m.closeErr = errors.Join(m.closeErr, fmt.Errorf("qemu: closing: %d pieces of DMA memory were not freed", n))
			}
		}
	})
	return m.closeErr
}
