package rapidio

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/ring3dev/ring3/bus"
)

// counts are what a port counts.
type counts struct {
	doorbells, strayDoorbells, portWrites, strayPortWrites, badPortWrites, linkChanges atomic.Uint64
}

// MportStats are counters of a master port.
type MportStats struct {
	Doorbells       uint64 // received
	StrayDoorbells  uint64 // of these, in nobody's range
	PortWrites      uint64 // received
	StrayPortWrites uint64 // of these, of no device that is known
	BadPortWrites   uint64 // of these, of an impossible length
	LinkChanges     uint64
}

// Stats are its counters.
func (m *Mport) Stats() MportStats {
	c := &m.counts
	return MportStats{
		Doorbells: c.doorbells.Load(), StrayDoorbells: c.strayDoorbells.Load(), PortWrites: c.portWrites.Load(),
		StrayPortWrites: c.strayPortWrites.Load(), BadPortWrites: c.badPortWrites.Load(), LinkChanges: c.linkChanges.Load(),
	}
}

// ID is its number, 0 to 7.
func (m *Mport) ID() int { return m.id }

// Name is "rapidio0", by its number.
func (m *Mport) Name() string { return fmt.Sprintf("rapidio%d", m.id) }

// Bus is the bus that it is on.
func (m *Mport) Bus() *Bus { return m.bus }

// Ops is the port as hardware. Mailboxes and doorbells are claimed before they are used.
func (m *Mport) Ops() Ops { return m.ops }

// Info is what the hardware says of itself.
func (m *Mport) Info() PortInfo { return m.info }

// Host is the host device ID of an enumerating host; -1: it is none.
func (m *Mport) Host() int { return m.opts.Host }

// IDs is the width of device IDs.
func (m *Mport) IDs() IDSize { return m.info.IDs }

// Net is the net that it is on; nil: none was found yet.
func (m *Mport) Net() *Net {
	m.bus.mu.Lock()
	defer m.bus.mu.Unlock()
	return m.net
}

// Done is closed when the port went out of service.
func (m *Mport) Done() <-chan struct{} { return m.ctx.Done() }

// LocalRead reads one of the port's own registers, or a part of it.
func (m *Mport) LocalRead(ctx context.Context, off Off, w Width) (uint32, error) {
	err := check(off, w)
	if err == nil {
		var v uint32
		if v, err = m.ops.LocalRead(ctx, off, w); err == nil {
			return v, nil
		}
	}
	return 0, fmt.Errorf("%s: reading %#x: %w", m.Name(), off, err)
}

// LocalWrite writes one.
func (m *Mport) LocalWrite(ctx context.Context, off Off, w Width, v uint32) error {
	err := check(off, w)
	if err == nil {
		err = m.ops.LocalWrite(ctx, off, w, v)
	}
	if err != nil {
		return fmt.Errorf("%s: writing %#x: %w", m.Name(), off, err)
	}
	return nil
}

// LocalRead32 reads one of the port's own registers.
func (m *Mport) LocalRead32(ctx context.Context, off Off) (uint32, error) {
	return m.LocalRead(ctx, off, 4)
}

// LocalWrite32 writes one.
func (m *Mport) LocalWrite32(ctx context.Context, off Off, v uint32) error {
	return m.LocalWrite(ctx, off, 4, v)
}

// Read reads a register, or a part of it, of the device that is hop switches away on the route to dest (Ops.Read).
func (m *Mport) Read(ctx context.Context, dest DestID, hop uint8, off Off, w Width) (uint32, error) {
	err := check(off, w)
	if err == nil {
		var v uint32
		if v, err = m.ops.Read(ctx, dest, hop, off, w); err == nil {
			return v, nil
		}
	}
	return 0, fmt.Errorf("%s: reading %#x of %#04x, hop %d: %w", m.Name(), off, dest, hop, err)
}

// Write writes one.
func (m *Mport) Write(ctx context.Context, dest DestID, hop uint8, off Off, w Width, v uint32) error {
	err := check(off, w)
	if err == nil {
		err = m.ops.Write(ctx, dest, hop, off, w, v)
	}
	if err != nil {
		return fmt.Errorf("%s: writing %#x of %#04x, hop %d: %w", m.Name(), off, dest, hop, err)
	}
	return nil
}

// Read32 reads a register of a device that is elsewhere.
func (m *Mport) Read32(ctx context.Context, dest DestID, hop uint8, off Off) (uint32, error) {
	return m.Read(ctx, dest, hop, off, 4)
}

// Write32 writes one.
func (m *Mport) Write32(ctx context.Context, dest DestID, hop uint8, off Off, v uint32) error {
	return m.Write(ctx, dest, hop, off, 4, v)
}

// DestID is the port's own device ID: what a host, this one or another, wrote into its Base Device ID register.
func (m *Mport) DestID(ctx context.Context) (DestID, error) {
	v, err := m.LocalRead32(ctx, RegBaseDeviceID)
	if err != nil {
		return 0, err
	}
	return m.IDs().Of(v), nil
}

// SendDoorbell sends a doorbell to a device ID, and waits for its response.
func (m *Mport) SendDoorbell(ctx context.Context, dest DestID, info uint16) error {
	if err := m.ops.Doorbell(ctx, dest, info); err != nil {
		return fmt.Errorf("%s: doorbell %#04x to %#04x: %w", m.Name(), info, dest, err)
	}
	return nil
}

// usable fails for a port that is out of service.
func (m *Mport) usable() error {
	if m.ctx.Err() == nil {
		return nil
	}
	if err := m.ops.Err(); err != nil && !errors.Is(err, bus.ErrClosed) {
		return err
	}
	return fmt.Errorf("out of service: %w", bus.ErrClosed)
}

// OnLink has f called when the port's link went up or down, as Events.Link says it. Calls come one at a time and must not take long; how the
// link is at first is not told. cancel ends it, as the release of RequestInbDoorbell.
func (m *Mport) OnLink(f func(up bool)) (cancel func()) { return m.links.add(f) }

// events is what a port's hardware tells.
type events struct{ m *Mport }

func (e events) Doorbell(src DestID, info uint16) { e.m.doorbell(src, info) }
func (e events) PortWrite(p []byte)               { e.m.portWrite(p) }

func (e events) ConfigWritten() {
	if s := e.m.opts.Scan; s != nil && e.m.ctx.Err() == nil {
		s.ConfigWritten(e.m)
	}
}

func (e events) Link(up bool) {
	e.m.counts.linkChanges.Add(1)
	if e.m.ctx.Err() != nil {
		return
	}
	e.m.links.call(up)
	if s := e.m.opts.Scan; s != nil {
		s.Link(e.m, up)
	}
}
