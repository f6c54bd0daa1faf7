package portbus

import (
	"context"
	"fmt"
	"slices"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// What services see of the port that they serve where they see it as a function among others: Port.Member, Port.Function, Port.Hierarchy. It can be read,
// and is changed by this package alone.

// readOnly is a config space that nothing is written to; bus.Config.
type readOnly struct{ cfg bus.Config }

func (r readOnly) Size() int               { return r.cfg.Size() }
func (r readOnly) Read8(o bus.Off) uint8   { return r.cfg.Read8(o) }
func (r readOnly) Read16(o bus.Off) uint16 { return r.cfg.Read16(o) }
func (r readOnly) Read32(o bus.Off) uint32 { return r.cfg.Read32(o) }
func (r readOnly) Write8(bus.Off, uint8)   {}
func (r readOnly) Write16(bus.Off, uint16) {}
func (r readOnly) Write32(bus.Off, uint32) {}

// ownDevice is the port's device; bus.Device, bus.TimeKeeper. It has no Unwrap and no SaveState, which would lead around it.
type ownDevice struct{ dev bus.Device }

func (o *ownDevice) Address() string                 { return o.dev.Address() }
func (o *ownDevice) Backend() string                 { return o.dev.Backend() }
func (o *ownDevice) Config() bus.Config              { return readOnly{o.dev.Config()} }
func (o *ownDevice) Regions() []bus.RegionInfo       { return o.dev.Regions() }
func (o *ownDevice) DMA() bus.DMA                    { return noDMA{o} }
func (o *ownDevice) IRQVectors(mode bus.IRQMode) int { return o.dev.IRQVectors(mode) }
func (o *ownDevice) Done() <-chan struct{}           { return o.dev.Done() }
func (o *ownDevice) Err() error                      { return o.dev.Err() }
func (o *ownDevice) Clock() bus.Clock                { return bus.ClockOf(o.dev) }

// Region fails: the tables of interrupt messages are in one.
func (o *ownDevice) Region(int) (bus.Region, error) { return nil, o.not("a region") }

// EnableIRQs fails: Device.Handle is the way.
func (o *ownDevice) EnableIRQs(bus.IRQMode, int) ([]*bus.IRQ, error) {
	return nil, o.not("enabling interrupts")
}

// DisableIRQs fails.
func (o *ownDevice) DisableIRQs() error { return o.not("disabling interrupts") }

// Reset fails: ResetFunction is for that.
func (o *ownDevice) Reset(context.Context) error { return o.not("a reset") }

// Close fails.
func (o *ownDevice) Close() error { return o.not("closing it") }

func (o *ownDevice) not(what string) error {
	return fmt.Errorf("%s: %s is not for a service of the port: %w", o.dev.Address(), what, bus.ErrNotSupported)
}

// noDMA has no memory; bus.DMA.
type noDMA struct{ o *ownDevice }

func (n noDMA) Alloc(bus.DMARequest) (*bus.Memory, error) { return nil, n.o.not("DMA memory") }

func (n noDMA) Map([]byte, bus.DMARequest) (*bus.Memory, error) { return nil, n.o.not("DMA memory") }

// own is a member as services of the port see it: others are what they are.
func (p *Port) own(m *pci.Member) *pci.Member {
	if m == nil || m.Function.Addr != p.addr {
		return m
	}
	o := *m
	o.Function, o.Device, o.Restore = p.function, &ownDevice{p.dev}, func() error { return nil }
	return &o
}

// ownBus is who owns the bus; pci.Hierarchy.
type ownBus struct {
	pci.Hierarchy
	p *Port
}

func (b ownBus) Find(a pci.Addr) *pci.Member { return b.p.own(b.Hierarchy.Find(a)) }

func (b ownBus) Below(port pci.Addr) []*pci.Member {
	all := slices.Clone(b.Hierarchy.Below(port))
	for i, m := range all {
		all[i] = b.p.own(m)
	}
	return all
}

// ownWaker is one that wakes up; pci.Waker.
type ownWaker struct {
	ownBus
	pci.Waker
}
