package sim

import (
	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// region is a BAR, or what takes its place; bus.Region.
type region struct {
	d    *device
	w    *window
	info bus.RegionInfo
}

func (r *region) Info() bus.RegionInfo { return r.info }

// reaches says whether an access gets to the device. Called with Machine.mu held.
func (r *region) reaches(off bus.Off, width int) bool {
	size := bus.Off(r.info.Size)
	return off&bus.Off(width-1) == 0 && off < size && size-off >= bus.Off(width) && r.w.decodes && !r.d.gone &&
		(width < 8 || r.info.Kind == bus.RegionMem)
}

func (r *region) read(off bus.Off, width int) uint64 {
	d, m := r.d, r.d.m
	m.lock()
	defer m.unlock()
	m.clock.access(readTime)
	if !r.reaches(off, width) {
		return ^uint64(0)
	}
	if table, pba := d.inTable(r.info.Index, off); table {
		return d.readTable(off, width)
	} else if pba {
		return d.readPending(off, width)
	}
	if r.w.widths&width == 0 {
		return ^uint64(0)
	}
	return d.chip.read(r.info.Index, off, width)
}

func (r *region) write(off bus.Off, v uint64, width int) {
	d, m := r.d, r.d.m
	m.lock()
	defer m.unlock()
	m.clock.access(writeTime)
	if !r.reaches(off, width) {
		return
	}
	if table, pba := d.inTable(r.info.Index, off); table {
		d.writeTable(off, width, v)
	} else if !pba && r.w.widths&width != 0 {
		d.chip.write(r.info.Index, off, width, v)
	}
}

func (r *region) Read8(o bus.Off) uint8       { return uint8(r.read(o, 1)) }
func (r *region) Read16(o bus.Off) uint16     { return uint16(r.read(o, 2)) }
func (r *region) Read32(o bus.Off) uint32     { return uint32(r.read(o, 4)) }
func (r *region) Read64(o bus.Off) uint64     { return r.read(o, 8) }
func (r *region) Write8(o bus.Off, v uint8)   { r.write(o, uint64(v), 1) }
func (r *region) Write16(o bus.Off, v uint16) { r.write(o, uint64(v), 2) }
func (r *region) Write32(o bus.Off, v uint32) { r.write(o, uint64(v), 4) }
func (r *region) Write64(o bus.Off, v uint64) { r.write(o, v, 8) }

// config is a function's config space; bus.Config.
type config struct{ d *device }

func (c *config) Size() int {
	if c.d.isPlatform() {
		return 0
	}
	return len(c.d.space.b)
}

func (c *config) read(off bus.Off, width int) uint32 {
	d := c.d
	d.m.lock()
	defer d.m.unlock()
	d.m.clock.access(readTime)
	if d.gone || !d.live || d.isPlatform() || !d.space.inside(off, width) {
		return ^uint32(0)
	}
	return d.space.read(off, width)
}

func (c *config) write(off bus.Off, v uint32, width int) {
	d := c.d
	d.m.lock()
	defer d.m.unlock()
	d.m.clock.access(writeTime)
	if d.gone || !d.live || d.isPlatform() || !d.space.inside(off, width) {
		return
	}
	d.writeConfig(off, width, v)
}

func (c *config) Read8(o bus.Off) uint8       { return uint8(c.read(o, 1)) }
func (c *config) Read16(o bus.Off) uint16     { return uint16(c.read(o, 2)) }
func (c *config) Read32(o bus.Off) uint32     { return c.read(o, 4) }
func (c *config) Write8(o bus.Off, v uint8)   { c.write(o, uint32(v), 1) }
func (c *config) Write16(o bus.Off, v uint16) { c.write(o, uint32(v), 2) }
func (c *config) Write32(o bus.Off, v uint32) { c.write(o, v, 4) }

// routed is the config space at an address: of whatever function answers there.
type routed struct {
	m *Machine
	a pci.Addr
}

var _ pci.Access = (*Machine)(nil)

// to is the function that answers; nil if none does.
func (c *routed) to(off bus.Off, width int) *device {
	if d := c.m.route(c.a); d != nil && !d.gone && c.a.Domain == c.m.domain && d.space.inside(off, width) {
		return d
	}
	return nil
}

func (c *routed) Size() int {
	c.m.lock()
	defer c.m.unlock()
	if d := c.to(0, 1); d != nil {
		return len(d.space.b)
	}
	return 256
}

func (c *routed) read(off bus.Off, width int) uint32 {
	c.m.lock()
	defer c.m.unlock()
	c.m.clock.access(readTime)
	if d := c.to(off, width); d != nil {
		return d.space.read(off, width)
	}
	return ^uint32(0)
}

func (c *routed) write(off bus.Off, v uint32, width int) {
	c.m.lock()
	defer c.m.unlock()
	c.m.clock.access(writeTime)
	if d := c.to(off, width); d != nil {
		d.writeConfig(off, width, v)
	}
}

func (c *routed) Read8(o bus.Off) uint8       { return uint8(c.read(o, 1)) }
func (c *routed) Read16(o bus.Off) uint16     { return uint16(c.read(o, 2)) }
func (c *routed) Read32(o bus.Off) uint32     { return c.read(o, 4) }
func (c *routed) Write8(o bus.Off, v uint8)   { c.write(o, uint32(v), 1) }
func (c *routed) Write16(o bus.Off, v uint16) { c.write(o, uint32(v), 2) }
func (c *routed) Write32(o bus.Off, v uint32) { c.write(o, v, 4) }
