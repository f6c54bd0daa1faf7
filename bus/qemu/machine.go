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

	"golang.org/x/sys/unix"

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
	topo   *pci.Topology
	iommu  *iommu // nil: no device asked for it
	dimms  dimms
	domain uint32

	devices []*device // in the order of Config.Devices

	// Lock order: irqMu, then the IOMMU's, then the qtest client's, then lineMu.
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
	m := &Machine{log: c.Log, domain: c.Domain, lines: map[int]*line{}, done: make(chan struct{})}
	if m.bell, err = newDoorbell(16 + 8*len(c.Devices)); err != nil {
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
	if m.qmp, err = newQMP(m.proc.qmp, startTimeout); err != nil {
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
	if m.topo, err = pci.Enumerate(m, m.domain, windows); err != nil {
		return fmt.Errorf("qemu: enumerating the bus: %w", err)
	}
	if err := m.Err(); err != nil {
		return fmt.Errorf("qemu: enumerating the bus: %w", err)
	}
	for i, spec := range c.Devices {
		if IsTPM(spec.Model) {
			m.devices = append(m.devices, newPlatformDevice(m, spec))
			continue
		}
		f, err := m.locate(placed, i)
		if err != nil {
			return fmt.Errorf("qemu: %s (%s): %w", spec.Name, spec.Model, err)
		}
		m.devices = append(m.devices, newDevice(m, spec, f))
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

// locate finds the function of a device by its place.
func (m *Machine) locate(placed placing, i int) (*pci.Function, error) {
	p := placed.where[i]
	a := pci.Addr{Domain: m.domain, Dev: uint8(p.slot)}
	if p.parent >= 0 {
		up, err := m.locate(placed, p.parent)
		if err != nil {
			return nil, err
		}
		a.Bus = up.Secondary
	}
	for _, f := range m.topo.Functions {
		if f.Addr == a {
			return f, f.Err
		}
	}
	return nil, fmt.Errorf("no function at %s: is it a PCI device? %w", a, bus.ErrProtocol)
}

// Config gives the config space of any function of the machine; pci.Access.
func (m *Machine) Config(a pci.Addr) bus.Config { return m.config(a) }

func (m *Machine) config(a pci.Addr) *config {
	return &config{m: m, size: configSize, base: ecamBase + uint64(a.Bus)<<20 + uint64(a.Dev)<<15 + uint64(a.Fn)<<12}
}

// Topology is what enumeration found, the chipset's own functions included.
func (m *Machine) Topology() *pci.Topology { return m.topo }

// Device returns the device that Config named so. There is one bus.Device for it; closing
// that is closing it for everybody.
func (m *Machine) Device(name string) (bus.Device, error) {
	for _, d := range m.devices {
		if d.spec.Name == name {
			return d, nil
		}
	}
	return nil, fmt.Errorf("qemu: no device is named %s: %w", name, unix.ENODEV)
}

// Function returns what enumeration found out about the device of that name; nil, without an error, if it is
// no PCI function.
func (m *Machine) Function(name string) (*pci.Function, error) {
	i := slices.IndexFunc(m.devices, func(d *device) bool { return d.spec.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("qemu: no device is named %s: %w", name, unix.ENODEV)
	}
	return m.devices[i].fn, nil
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
// that a driver did not free stays mapped and is reported.
func (m *Machine) Close() error {
	m.closeOnce.Do(func() {
		for i := len(m.devices) - 1; i >= 0; i-- {
			m.closeErr = errors.Join(m.closeErr, m.devices[i].Close())
		}
		m.record(fmt.Errorf("qemu: %w", bus.ErrClosed))
		m.proc.kill()
		m.qt.close()
		m.proc.closeFiles()
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
