package host

import (
	"fmt"
	"strconv"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/rt"
)

const rtHelp = "run interrupt handlers, pollers, generators and TAP under SCHED_FIFO at `PRIO` (1 to 99), each on a pinned thread of its own, memory locked; " +
	"a generator that never has to wait keeps its CPU from everything else: see docs/limits.md"

// addRT adds what --rt says; "" is nothing.
func (p *Plan) addRT(s string) error {
	if s == "" {
		return nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < rt.MinPriority || n > rt.MaxPriority {
		return usagef("--rt %q: want a priority of SCHED_FIFO, %d to %d", s, rt.MinPriority, rt.MaxPriority)
	}
	p.RT = n
	return nil
}

// realTime makes sure that there can be real-time threads, where they are asked for.
func (s *System) realTime() (err error) {
	if s.plan.RT == 0 {
		return nil
	}
	if s.rt, err = rt.New(rt.Config{Priority: s.plan.RT, Log: s.log}); err != nil {
		return fmt.Errorf("--rt %d: %w", s.plan.RT, err)
	}
	return nil
}

// grantRT leaves real-time threads to the user whom this process, as root, is about to become.
func (p *Plan) grantRT() {
	if p.RT != 0 {
		rt.Grant(p.RT)
	}
}

// driverDevice is a device as its driver gets it: its interrupts have numbers and, with --rt, real-time threads.
type driverDevice struct {
	bus.Device
	s    *System
	name string
}

// EnableIRQs tells each vector.
func (d driverDevice) EnableIRQs(mode bus.IRQMode, n int) ([]*bus.IRQ, error) {
	qs, err := d.Device.EnableIRQs(mode, n)
	for _, q := range qs {
		q.SetNumber(d.s.irqs.number(d.name, q.Vector()))
		if d.s.rt != nil {
			q.SetPolicy(d.s.rt)
		}
		d.s.lines.observe(q)
	}
	return qs, err
}

// What an embedded interface would hide.
func (d driverDevice) HardwareIDs() []string             { return bus.HardwareIDs(d.Device) }
func (d driverDevice) SaveState() (restore func() error) { return bus.SaveState(d.Device) }
func (d driverDevice) Clock() bus.Clock                  { return bus.ClockOf(d.Device) }
func (d driverDevice) RestoreIRQs(write bool) (lost bool, err error) {
	return bus.RestoreIRQs(d.Device, write)
}

// forDriver is a device as its driver gets it.
func (s *System) forDriver(b *boundDevice) bus.Device {
	return driverDevice{b.dev, s, b.spec.Name}
}
