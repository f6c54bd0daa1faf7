package porttest

import (
	"github.com/ring3dev/ring3/bus"
)

// firstIRQ is the number of the first interrupt, as if there were a few others.
const firstIRQ = 24

// device is a device as a host gives it to a driver: its interrupts have numbers.
type device struct {
	bus.Device
	rig *Rig
}

// Unwrap is the device inside.
func (d *device) Unwrap() bus.Device { return d.Device }

// Clock is a bus.TimeKeeper's.
func (d *device) Clock() bus.Clock { return bus.ClockOf(d.Device) }

// SaveState is a bus.StateKeeper's.
func (d *device) SaveState() func() error { return bus.SaveState(d.Device) }

// RestoreIRQs is a bus.IRQKeeper's.
func (d *device) RestoreIRQs(write bool) (bool, error) { return bus.RestoreIRQs(d.Device, write) }

// HardwareIDs are a bus.Platform's.
func (d *device) HardwareIDs() []string { return bus.HardwareIDs(d.Device) }

// EnableIRQs numbers what it enables.
func (d *device) EnableIRQs(mode bus.IRQMode, n int) ([]*bus.IRQ, error) {
	irqs, err := d.Device.EnableIRQs(mode, n)
	d.rig.mu.Lock()
	defer d.rig.mu.Unlock()
	for _, q := range irqs {
		q.SetNumber(d.rig.irqs)
		d.rig.irqs++
	}
	return irqs, err
}
