package trace

import "github.com/ring3dev/ring3/bus"

// region is a traced region. A read is recorded when it is done, a write before it is done: what
// the device does at once, and an access that never returns, come after it.
type region struct {
	d     *Device
	r     bus.Region
	index int8
	bells partsTable
}

func newRegion(d *Device, r bus.Region, index int) *region {
	g := &region{d: d, r: r, index: int8(index)}
	g.bells = partsOf(d.bells[index])
	return g
}

func (g *region) Info() bus.RegionInfo { return g.r.Info() }

// note records an access.
func (g *region) note(k Kind, width uint8, off bus.Off, v uint64) {
	t := g.d.rec
	t.mu.Lock()
	r := t.slot(k)
	r.Region, r.Width, r.Off, r.Value = g.index, width, off, v
	t.done(r)
	t.mu.Unlock()
}

// write records a write, and what it published.
func (g *region) write(width uint8, off bus.Off, v uint64) {
	if parts := g.bells.at(off); parts != nil {
		g.bellWrite(parts, width, off, v)
		return
	}
	g.note(Write, width, off, v)
}

func (g *region) Read8(off bus.Off) uint8 {
	v := g.r.Read8(off)
	if g.d.rec.on.Load() {
		g.note(Read, 1, off, uint64(v))
	}
	return v
}

func (g *region) Read16(off bus.Off) uint16 {
	v := g.r.Read16(off)
	if g.d.rec.on.Load() {
		g.note(Read, 2, off, uint64(v))
	}
	return v
}

func (g *region) Read32(off bus.Off) uint32 {
	v := g.r.Read32(off)
	if g.d.rec.on.Load() {
		g.note(Read, 4, off, uint64(v))
	}
	return v
}

func (g *region) Read64(off bus.Off) uint64 {
	v := g.r.Read64(off)
	if g.d.rec.on.Load() {
		g.note(Read, 8, off, v)
	}
	return v
}

func (g *region) Write8(off bus.Off, v uint8) {
	if g.d.rec.on.Load() {
		g.write(1, off, uint64(v))
	}
	g.r.Write8(off, v)
}

func (g *region) Write16(off bus.Off, v uint16) {
	if g.d.rec.on.Load() {
		g.write(2, off, uint64(v))
	}
	g.r.Write16(off, v)
}

func (g *region) Write32(off bus.Off, v uint32) {
	if g.d.rec.on.Load() {
		g.write(4, off, uint64(v))
	}
	g.r.Write32(off, v)
}

func (g *region) Write64(off bus.Off, v uint64) {
	if g.d.rec.on.Load() {
		g.write(8, off, v)
	}
	g.r.Write64(off, v)
}

// config is a traced config space.
type config struct {
	d   *Device
	cfg bus.Config
}

func (c *config) note(k Kind, width uint8, off bus.Off, v uint64) {
	t := c.d.rec
	if !t.on.Load() {
		return
	}
	t.mu.Lock()
	r := t.slot(k)
	r.Region, r.Width, r.Off, r.Value = ConfigSpace, width, off, v
	t.done(r)
	t.mu.Unlock()
}

func (c *config) Size() int { return c.cfg.Size() }

func (c *config) Read8(off bus.Off) uint8 {
	v := c.cfg.Read8(off)
	c.note(Read, 1, off, uint64(v))
	return v
}

func (c *config) Read16(off bus.Off) uint16 {
	v := c.cfg.Read16(off)
	c.note(Read, 2, off, uint64(v))
	return v
}

func (c *config) Read32(off bus.Off) uint32 {
	v := c.cfg.Read32(off)
	c.note(Read, 4, off, uint64(v))
	return v
}

func (c *config) Write8(off bus.Off, v uint8) {
	c.note(Write, 1, off, uint64(v))
	c.cfg.Write8(off, v)
}

func (c *config) Write16(off bus.Off, v uint16) {
	c.note(Write, 2, off, uint64(v))
	c.cfg.Write16(off, v)
}

func (c *config) Write32(off bus.Off, v uint32) {
	c.note(Write, 4, off, uint64(v))
	c.cfg.Write32(off, v)
}

// ReadRun32 is bus.ReadRunner's, each access recorded.
func (g *region) ReadRun32(off, stride bus.Off, p []uint32) {
	bus.ReadRun32(g.r, off, stride, p)
	if g.d.rec.on.Load() {
		for i, v := range p {
			g.note(Read, 4, off+bus.Off(i)*stride, uint64(v))
		}
	}
}

// ReadRun64 is bus.ReadRunner's, each access recorded.
func (g *region) ReadRun64(off, stride bus.Off, p []uint64) {
	bus.ReadRun64(g.r, off, stride, p)
	if g.d.rec.on.Load() {
		for i, v := range p {
			g.note(Read, 8, off+bus.Off(i)*stride, v)
		}
	}
}

// What follows is for memory, where an access does nothing but that: it is not recorded, as what drivers do in DMA memory is not.

// ReadBytes copies out of memory; bus.Copier.
func (g *region) ReadBytes(off bus.Off, p []byte) { bus.ReadBytes(g.r, off, p) }

// WriteBytes copies into memory; bus.Copier.
func (g *region) WriteBytes(off bus.Off, p []byte) { bus.WriteBytes(g.r, off, p) }

// Hold is the memory itself, where it is this process's own; bus.Holder.
func (g *region) Hold() ([]byte, func()) { return bus.Hold(g.r) }
