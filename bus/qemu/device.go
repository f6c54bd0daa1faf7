package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// device is one function of the machine, or a platform device; bus.Device.
type device struct {
	m       *Machine
	spec    DeviceSpec
	fn      *pci.Function // nil: a platform device
	cfg     *config
	address string
	regions []bus.RegionInfo
	ids     []string // of a platform device
	line    int      // the IOAPIC's input of a platform device; 0: it has none

	irq     irqState // guarded by m.irqMu
	closing bool     // nothing is enabled any more; guarded by m.irqMu

	domain *domain               // what it reaches through the IOMMU; nil: all RAM
	fault  atomic.Pointer[error] // why the IOMMU cut it off

	closed    atomic.Bool
	closeOnce sync.Once
	closeErr  error
	done      chan struct{}
}

func newDevice(m *Machine, spec DeviceSpec, fn *pci.Function) *device {
	d := &device{m: m, spec: spec, fn: fn, address: fn.Addr.String(), regions: fn.BARs, done: make(chan struct{})}
	d.cfg = m.config(fn.Addr)
	d.cfg.dev = d
	if d.cfg.Read32(256) == ^uint32(0) {
		d.cfg.size = 256 // no extended space: a conventional function
	}
	d.follow()
	return d
}

// follow ends the device with its machine.
func (d *device) follow() {
	go func() {
		select {
		case <-d.m.done:
			d.markClosed()
		case <-d.done:
		}
	}()
}

var doneMu sync.Mutex

// markClosed closes done once, whoever comes first: the machine's end or Close.
func (d *device) markClosed() {
	doneMu.Lock()
	defer doneMu.Unlock()
	select {
	case <-d.done:
	default:
		close(d.done)
	}
}

func (d *device) Address() string       { return d.address }
func (d *device) Backend() string       { return "qemu:" + d.spec.Model }
func (d *device) Config() bus.Config    { return d.cfg }
func (d *device) DMA() bus.DMA          { return dmaOf{d} }
func (d *device) Done() <-chan struct{} { return d.done }

func (d *device) Regions() []bus.RegionInfo { return slices.Clone(d.regions) }

// Err looks at the IOMMU too: what it stopped before this call is told by this call.
func (d *device) Err() error {
	if d.domain != nil && d.alive() {
		d.m.iommu.look()
	}
	if f := d.fault.Load(); f != nil {
		return *f
	}
	if err := d.m.Err(); err != nil {
		return fmt.Errorf("%s %s: %w", d.Address(), d.spec.Name, err)
	}
	if d.closed.Load() {
		return fmt.Errorf("%s %s: %w", d.Address(), d.spec.Name, bus.ErrClosed)
	}
	return nil
}

func (d *device) Region(index int) (bus.Region, error) {
	if err := d.Err(); err != nil {
		return nil, err
	}
	for _, r := range d.regions {
		if r.Index != index {
			continue
		}
		if r.Addr == 0 {
			return nil, fmt.Errorf("%s %s: region %d was not placed: %w", d.Address(), d.spec.Name, index, bus.ErrNotSupported)
		}
		return &region{dev: d, info: r}, nil
	}
	return nil, fmt.Errorf("%s %s: no region %d: %w", d.Address(), d.spec.Name, index, bus.ErrNotSupported)
}

// alive says whether accesses go to the device.
func (d *device) alive() bool { return !d.closed.Load() && d.fault.Load() == nil }

// dmaOf is a device's view of the machine's RAM.
type dmaOf struct{ d *device }

func (a dmaOf) Alloc(r bus.DMARequest) (*bus.Memory, error) {
	if err := a.d.Err(); err != nil {
		return nil, fmt.Errorf("allocating DMA memory: %w", err)
	}
	if a.d.platform() {
		return nil, fmt.Errorf("%s %s: allocating DMA memory: model %s masters no bus: %w", a.d.Address(), a.d.spec.Name, a.d.spec.Model, bus.ErrNotSupported)
	}
	if a.d.domain != nil {
		return a.d.m.iommu.alloc(a.d, r)
	}
	return a.d.m.ram.alloc(a.d.Address(), r)
}

func (a dmaOf) Map([]byte, bus.DMARequest) (*bus.Memory, error) {
	return nil, fmt.Errorf("%s: mapping a caller's memory: a QEMU device reaches only its machine's RAM: %w", a.d.Address(), bus.ErrNotSupported)
}

const (
	devCapFLR = 1 << 28                // of Device Capabilities (PCI Express Base 5.0, 7.5.3.3)
	flrTime   = 100 * time.Millisecond // 6.6.2
	resetHold = time.Millisecond       // Trst, PCI Local Bus 3.0, 4.3.2
)

// Reset uses function-level reset, or the reset of a bridge below which the device
// stands alone.
func (d *device) Reset(ctx context.Context) error {
	if err := d.Err(); err != nil {
		return err
	}
	if d.platform() {
		return fmt.Errorf("%s %s: model %s has no reset: %w", d.Address(), d.spec.Name, d.spec.Model, bus.ErrNotSupported)
	}
	restore := d.SaveState()
	off, ok := pci.FindCap(d.cfg, pci.CapPCIe)
	switch {
	case ok && d.cfg.Read32(off+pci.ExpDevCap)&devCapFLR != 0:
		d.cfg.Write16(off+pci.ExpDevCtl, d.cfg.Read16(off+pci.ExpDevCtl)|pci.DevCtlFLR)
		if err := bus.Sleep(ctx, bus.ClockOf(d), flrTime); err != nil {
			return fmt.Errorf("%s %s: function reset: %w", d.Address(), d.spec.Name, err)
		}
	case d.fn.Parent != nil && d.alone():
		up := d.m.Config(d.fn.Parent.Addr)
		ctl := up.Read16(pci.CfgBridgeCtl)
		up.Write16(pci.CfgBridgeCtl, ctl|pci.BridgeReset)
		err := bus.Sleep(ctx, bus.ClockOf(d), resetHold)
		up.Write16(pci.CfgBridgeCtl, ctl)
		if err != nil {
			return fmt.Errorf("%s %s: bus reset: %w", d.Address(), d.spec.Name, err)
		}
	default:
		return fmt.Errorf("%s %s: the model has no function reset: %w", d.Address(), d.spec.Name, bus.ErrNotSupported)
	}
	if clogs(d.spec.Model) {
		if own := d.m.monitor(); own != nil {
			if err := own.unclog(); err != nil {
				return fmt.Errorf("%s %s: reset: %w", d.Address(), d.spec.Name, err)
			}
		}
	}
	return restore()
}

// alone says whether no other function stands below the device's bridge.
func (d *device) alone() bool {
	n := 0
	for _, f := range d.m.Topology().Functions {
		if f.Parent == d.fn.Parent {
			n++
		}
	}
	return n == 1
}

// Close masks interrupts, stops the device's bus mastering, and refuses further work.
func (d *device) Close() error {
	d.closeOnce.Do(func() {
		d.m.irqMu.Lock()
		d.closing = true
		err := d.disableLocked()
		d.m.irqMu.Unlock()
		if errors.Is(err, bus.ErrGone) || errors.Is(err, bus.ErrClosed) {
			err = nil
		}
		d.closeErr = err
		// QEMU finishes every posted write, the last doorbell included.
		if d.platform() {
			d.m.qt.flush()
		} else {
			pci.SetCommand(d.cfg, 0, pci.CmdMaster)
			d.cfg.Read16(pci.CfgCommand)
		}
		if d.domain != nil && d.alive() {
			d.m.iommu.look() // the last moment to tell of a fault
		}
		d.closed.Store(true)
		d.markClosed()
	})
	return d.closeErr
}
