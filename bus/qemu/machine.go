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

// Machine is one running QEMU with its devices. Safe for concurrent use.
type Machine struct {
	log    *slog.Logger
	proc   *process
	qt     *qtest
	qmp    *qmp
	ram    *ram
	bell   *doorbell
	iommu  *iommu // nil: no device asked for it
	dimms  dimms
	domain uint32
	wires  int // how many: below it the numbers of hubs are theirs

	deleted chan string   // QEMU's names of devices that it has removed
	pressed chan struct{} // the button of some device was pressed
	ejects  sync.WaitGroup

	// Lock order: mu, then irqMu, then the IOMMU's, then the qtest client's, then lineMu. Nobody waits for QMP with one of
	// them.
	mu    sync.Mutex // guards what follows, to shut
	topo  *pci.Topology
	plugs int     // how many devices were ever plugged in
	units []*unit // those of Config.Devices, in their order, then those plugged in
	late  []*unit // that QEMU has removed, and nobody has forgotten yet
	shut  bool    // closed: nothing is plugged in any more

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
// 0.1 s. Errors name what was being done; one that the user can mend says how.
func Start(ctx context.Context, c Config) (*Machine, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Domain == 0 {
		c.Domain = DefaultDomain
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	path, err := c.find()
	if err != nil {
		return nil, err
	}
	m := &Machine{log: c.Log, domain: c.Domain, lines: map[int]*line{}, done: make(chan struct{}), deleted: make(chan string, maxDevices), pressed: make(chan struct{}, 1), wires: len(c.Wires)}
	if m.bell, err = newDoorbell(c.vectors()); err != nil {
		return nil, err
	}
	var inherit files
	placed := c.deviceArgs(&inherit)
	if m.proc, err = launch(&c, path, placed.args, inherit, len(m.bell.fds)); err != nil {
		m.bell.close()
		return nil, err
	}
	m.qt = newQtest(m.proc.qtest, m.lineChanged, m.fail)
	m.proc.qtest = -1
	go func() {
		<-m.proc.child.Done()
		m.record(m.proc.ended())
		m.qt.dead.Store(true)
	}()
	if err := m.bringUp(ctx, &c, placed); err != nil {
		err = m.explain(&c, err)
		m.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("qemu: starting: %w", context.Cause(ctx))
		}
		return nil, err
	}
	m.proc.up.Store(true)
	m.ejects.Go(func() { m.watchEjects(c.Ejected) })
	return m, nil
}

// bringUp takes the machine from a started process to enumerated devices.
func (m *Machine) bringUp(ctx context.Context, c *Config, placed placing) (err error) {
	stop := context.AfterFunc(ctx, func() { m.proc.child.Kill() })
	defer stop()
	if m.ram, err = newRAM(int(m.proc.ram.Fd()), ramSize); err != nil {
		return err
	}
	if err := m.bell.serve(m.proc.ivshmem); err != nil {
		return err
	}
	if m.qmp, err = newQMP(m.proc.qmp, startTimeout, m.event); err != nil {
		return err
	}
	if err := m.enumerate(c, placed); err != nil {
		return err
	}
	if !stop() {
		return fmt.Errorf("qemu: starting: %w", context.Cause(ctx))
	}
	return nil
}

// enumerate sets up configuration space and finds the devices.
func (m *Machine) enumerate(c *Config, placed placing) error {
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
	m.newUnits(c, placed)
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
	if c.iommu() {
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
func (m *Machine) PID() int { return m.proc.child.PID() }

// Version is QEMU's version, "7.2.22".
func (m *Machine) Version() string {
	v := m.qmp.version
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
}

// Execute runs a QMP command.
func (m *Machine) Execute(cmd string, args any) (json.RawMessage, error) {
	return m.qmp.execute(cmd, args)
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
		err = fmt.Errorf("qemu: QEMU (pid %d) does not answer, and is ended: %w", m.PID(), err)
	}
	if errors.Is(err, bus.ErrGone) && !m.broken.Swap(true) {
		go func() {
			select {
			case <-m.proc.child.Done():
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
	if m.proc.up.Load() && !errors.Is(err, bus.ErrClosed) {
		m.log.Error(err.Error())
	}
	m.proc.child.Kill()
}

// explain prefers QEMU's own words over the broken pipe that its end looks like.
func (m *Machine) explain(c *Config, err error) error {
	if !errors.Is(err, bus.ErrGone) && !errors.Is(err, bus.ErrTimeout) {
		return err
	}
	select {
	case <-m.proc.child.Done():
		if said := c.inUsersWords(m.proc.child.LastWords()); said != "" {
			return fmt.Errorf("qemu: %s", said)
		}
		return m.proc.ended()
	case <-time.After(200 * time.Millisecond):
		return err
	}
}

// Close stops all devices, then QEMU, and releases everything. It is idempotent. Memory
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
		m.proc.kill()
		m.qt.close()
		m.proc.closeFiles()
		if m.qmp != nil {
			<-m.qmp.ended
		}
		m.ejects.Wait()
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
