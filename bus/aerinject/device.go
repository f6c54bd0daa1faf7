package aerinject

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Device is a function into which errors can be injected: a bus.Device that does what the wrapped one does. Safe for
// concurrent use.
type Device struct {
	bus.Device // within
	cfg        config

	over atomic.Pointer[overlay] // nil until something is injected
	root atomic.Bool             // it is known to be a root port

	mu   sync.Mutex
	irqs []*bus.IRQ // what is enabled
}

var (
	_ bus.Device      = (*Device)(nil)
	_ bus.Platform    = (*Device)(nil)
	_ bus.StateKeeper = (*Device)(nil)
)

// Wrap makes such a device of dev, which is used through the result only from then on, and closed by closing the result.
func Wrap(dev bus.Device) *Device {
	d := &Device{Device: dev}
	d.cfg = config{Config: dev.Config(), d: d}
	return d
}

// Unwrap is the device within.
func (d *Device) Unwrap() bus.Device { return d.Device }

// HardwareIDs are those of the device itself; bus.Platform.
func (d *Device) HardwareIDs() []string { return bus.HardwareIDs(d.Device) }

// SaveState is the device's; bus.StateKeeper. What is injected stays, as sticky registers do over a reset.
func (d *Device) SaveState() (restore func() error) { return bus.SaveState(d.Device) }

// RestoreIRQs is the device's; bus.IRQKeeper.
func (d *Device) RestoreIRQs(write bool) (lost bool, err error) {
	return bus.RestoreIRQs(d.Device, write)
}

// Config is bus.Device's, with what was injected.
func (d *Device) Config() bus.Config { return &d.cfg }

// EnableIRQs is bus.Device's.
func (d *Device) EnableIRQs(mode bus.IRQMode, n int) ([]*bus.IRQ, error) {
	qs, err := d.Device.EnableIRQs(mode, n)
	if err == nil {
		d.setIRQs(slices.Clone(qs))
	}
	return qs, err
}

// DisableIRQs is bus.Device's.
func (d *Device) DisableIRQs() error {
	d.setIRQs(nil)
	return d.Device.DisableIRQs()
}

// Close is bus.Device's.
func (d *Device) Close() error {
	d.setIRQs(nil)
	return d.Device.Close()
}

func (d *Device) setIRQs(qs []*bus.IRQ) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.irqs = qs
}

// vector is the interrupt of a message number; nil without interrupts. A line carries all messages, and so does the
// first of fewer vectors than the number would want.
func (d *Device) vector(message int) *bus.IRQ {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case len(d.irqs) == 0:
		return nil
	case d.irqs[0].Mode() == bus.INTx || message >= len(d.irqs):
		return d.irqs[0]
	}
	return d.irqs[message]
}

// Pending says whether something that was injected is not cleared yet: in a function's own status, or in a root port's.
func (d *Device) Pending() bool {
	x := d.over.Load()
	return x != nil && x.pending()
}

// overlayFor is the device's overlay, made where there is none; nil without Advanced Error Reporting, as far as its
// register end, the first byte behind those that are wanted.
func (d *Device) overlayFor(end bus.Off) *overlay {
	if d == nil {
		return nil
	}
	x := d.over.Load()
	if x == nil {
		at, ok := pci.FindExtCap(d.cfg.Config, pci.ExtCapAER)
		if !ok {
			return nil
		}
		d.over.CompareAndSwap(nil, &overlay{in: d.cfg.Config, at: at})
		x = d.over.Load()
	}
	if int(x.at+end) > d.cfg.Size() {
		return nil // it says that it reaches beyond config space
	}
	return x
}

// isRootPort says whether it is one. Of anything else, what stands where a root port has its registers is not known.
func (d *Device) isRootPort() bool {
	if !d.root.Load() {
		e, ok := pci.FindExpress(d.cfg.Config)
		d.root.Store(ok && e.Type == pci.ExpRootPort)
	}
	return d.root.Load()
}
