package trace

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/ring3dev/ring3/bus"
)

// Options say how a device is traced.
type Options struct {
	Name      string         // what the user calls it: "eth0"
	Driver    string         // for people: "e1000"
	Registers []bus.Register // of its driver, may be nil: then there are offsets instead of names
	Records   int            // how many are kept; 0 means DefaultRecords
	// Shared, if not nil, gets the last records too, for who outlives this process: see [Recover]. It must have SharedWords.
	Shared Memory
	// Died is called once, with the reason, after the link died, and before Close returns; not
	// where the device is only closed. It must not close the device.
	Died func(d *Device, err error)
}

// Device is a traced device: a bus.Device that does what the wrapped one does.
type Device struct {
	dev   bus.Device
	o     Options
	rec   *recorder
	cfg   *config
	names namer

	bells map[int][]*bell // by region
	mems  []*memory       // what the device may touch; guarded by rec.mu

	looked    sync.Once
	closeOnce sync.Once
	closeErr  error
}

var _ bus.Device = (*Device)(nil)

// Wrap makes a traced device of dev, which is used through the result only from then on, and
// closed by closing the result.
func Wrap(dev bus.Device, o Options) *Device {
	if o.Records <= 0 {
		o.Records = DefaultRecords
	}
	d := &Device{dev: dev, o: o, rec: newRecorder(o.Records)}
	if o.Shared != nil && prepareShared(o.Shared) == nil {
		d.rec.shared = o.Shared
	}
	d.names = namer{o.Name, dev.Address(), slices.Concat(o.Registers, configRegisters)}
	d.bells = findBells(o.Registers)
	d.cfg = &config{d: d, cfg: dev.Config()}
	go d.watch()
	return d
}

// watch records the link's death.
func (d *Device) watch() {
	<-d.dev.Done()
	d.look()
}

// look records the link's death, where it is dead and not closed. What comes after the first
// look is no death but a consequence of closing.
func (d *Device) look() {
	d.looked.Do(func() {
		err := d.dev.Err()
		if err == nil || errors.Is(err, bus.ErrClosed) {
			return
		}
		d.note(func(r *Record) { r.setErr(d.Address(), err) }, Died)
		if d.o.Died != nil {
			d.o.Died(d, err)
		}
	})
}

// SetEnabled turns recording on and off. It begins on. While it is off nothing is known of
// what the driver does with its rings: the first doorbell afterwards is recorded without what
// it published.
func (d *Device) SetEnabled(on bool) {
	t := d.rec
	t.mu.Lock()
	defer t.mu.Unlock()
	if on && !t.on.Load() {
		d.forgetTails()
	}
	t.on.Store(on)
}

// Enabled says whether it records.
func (d *Device) Enabled() bool { return d.rec.on.Load() }

// Name is the name given to Wrap.
func (d *Device) Name() string { return d.o.Name }

// Driver is the driver's name given to Wrap.
func (d *Device) Driver() string { return d.o.Driver }

// Unwrap is the device within.
func (d *Device) Unwrap() bus.Device { return d.dev }

// note records something rare.
func (d *Device) note(fill func(r *Record), k Kind) {
	t := d.rec
	if !t.on.Load() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.slot(k)
	fill(r)
	t.done(r)
}

// Address is bus.Device's.
func (d *Device) Address() string { return d.dev.Address() }

// Backend is bus.Device's.
func (d *Device) Backend() string { return d.dev.Backend() }

// HardwareIDs are those of the device itself; bus.Platform.
func (d *Device) HardwareIDs() []string { return bus.HardwareIDs(d.dev) }

// Config is bus.Device's.
func (d *Device) Config() bus.Config { return d.cfg }

// Regions is bus.Device's.
func (d *Device) Regions() []bus.RegionInfo { return d.dev.Regions() }

// Region is bus.Device's.
func (d *Device) Region(index int) (bus.Region, error) {
	r, err := d.dev.Region(index)
	d.note(func(rec *Record) {
		rec.Region, rec.Value = int8(index), uint64(index)
		if err == nil {
			rec.Aux = r.Info().Size
		}
		rec.setErr(d.Address(), err)
	}, Open)
	if err != nil {
		return nil, err
	}
	return newRegion(d, r, index), nil
}

// DMA is bus.Device's.
func (d *Device) DMA() bus.DMA { return dmaOf{d, d.dev.DMA()} }

// IRQVectors is bus.Device's.
func (d *Device) IRQVectors(mode bus.IRQMode) int { return d.dev.IRQVectors(mode) }

// EnableIRQs is bus.Device's.
func (d *Device) EnableIRQs(mode bus.IRQMode, n int) ([]*bus.IRQ, error) {
	qs, err := d.dev.EnableIRQs(mode, n)
	d.note(func(r *Record) {
		r.Op, r.Mode, r.Value = OpEnable, mode, uint64(max(n, 0))
		r.setErr(d.Address(), err)
	}, IRQs)
	for _, q := range qs {
		vector := uint64(q.Vector())
		q.Observe(func(n uint64) {
			kind := IRQ
			if n == 0 {
				kind = Unmask
			}
			d.fired(kind, mode, vector, n)
		})
	}
	return qs, err
}

// fired records an interrupt that the driver took, or the line's release.
func (d *Device) fired(k Kind, mode bus.IRQMode, vector, n uint64) {
	t := d.rec
	if !t.on.Load() {
		return
	}
	t.mu.Lock()
	r := t.slot(k)
	r.Mode, r.Aux, r.Value = mode, vector, n
	t.done(r)
	t.mu.Unlock()
}

// DisableIRQs is bus.Device's.
func (d *Device) DisableIRQs() error {
	err := d.dev.DisableIRQs()
	d.note(func(r *Record) { r.Op = OpDisable; r.setErr(d.Address(), err) }, IRQs)
	return err
}

// Reset is bus.Device's.
func (d *Device) Reset(ctx context.Context) error {
	err := d.dev.Reset(ctx)
	t := d.rec
	t.mu.Lock()
	d.forgetTails()
	t.mu.Unlock()
	d.note(func(r *Record) { r.setErr(d.Address(), err) }, Reset)
	return err
}

// SaveState is bus.StateKeeper's. That a reset came between is recorded where it is restored.
func (d *Device) SaveState() (restore func() error) {
	inner := bus.SaveState(d.dev)
	return func() error {
		err := inner()
		t := d.rec
		t.mu.Lock()
		d.forgetTails()
		t.mu.Unlock()
		d.note(func(r *Record) { r.setErr(d.Address(), err) }, Reset)
		return err
	}
}

// RestoreIRQs is bus.IRQKeeper's.
func (d *Device) RestoreIRQs(write bool) (lost bool, err error) {
	return bus.RestoreIRQs(d.dev, write)
}

// Clock is bus.TimeKeeper's.
func (d *Device) Clock() bus.Clock { return bus.ClockOf(d.dev) }

// Done is bus.Device's.
func (d *Device) Done() <-chan struct{} { return d.dev.Done() }

// Err is bus.Device's.
func (d *Device) Err() error { return d.dev.Err() }

// Close is bus.Device's. It ends what readers read.
func (d *Device) Close() error {
	d.closeOnce.Do(func() {
		d.look() // the watcher may not have come to it
		t := d.rec
		d.closeErr = d.dev.Close()
		d.note(func(r *Record) { r.setErr(d.Address(), d.closeErr) }, Close)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.closed = true
		t.wake()
	})
	return d.closeErr
}
