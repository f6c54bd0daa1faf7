package qemu

import "github.com/ring3dev/ring3/bus"

// region is a BAR; bus.Region. Each method is one qtest access of its width.
type region struct {
	dev  *device
	info bus.RegionInfo
}

func (r *region) Info() bus.RegionInfo { return r.info }

// at checks an access and gives its bus address.
func (r *region) at(off bus.Off, width uint64) (uint64, bool) {
	o := uint64(off)
	ok := o&(width-1) == 0 && o < r.info.Size && r.info.Size-o >= width && r.dev.alive()
	return r.info.Addr + o, ok
}

func (r *region) read(off bus.Off, width int) uint64 {
	addr, ok := r.at(off, uint64(width))
	cmd := cmdRead[width]
	if r.info.Kind == bus.RegionIO {
		cmd = cmdIn[width]
	}
	if !ok || cmd == "" {
		return ^uint64(0)
	}
	v, ok := r.dev.m.qt.ask(cmd, addr)
	if !ok || !r.dev.alive() { // QEMU reads 0 where a device was
		return ^uint64(0)
	}
	return v
}

func (r *region) write(off bus.Off, v uint64, width int) {
	addr, ok := r.at(off, uint64(width))
	cmd := cmdWrite[width]
	if r.info.Kind == bus.RegionIO {
		cmd = cmdOut[width]
	}
	if ok && cmd != "" {
		r.dev.m.qt.post(cmd, addr, v)
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

// config is a function's config space through ECAM; bus.Config.
type config struct {
	m    *Machine
	base uint64
	size uint64
	dev  *device // nil while the bus enumerates
}

// configSize is all that ECAM has for a function.
const configSize = 4096

func (c *config) Size() int { return int(c.size) }

func (c *config) ok(off bus.Off, width uint64) bool {
	o := uint64(off)
	return o&(width-1) == 0 && o < c.size && c.size-o >= width && (c.dev == nil || c.dev.alive())
}

func (c *config) read(off bus.Off, width int) uint64 {
	if !c.ok(off, uint64(width)) {
		return ^uint64(0)
	}
	v, ok := c.m.qt.ask(cmdRead[width], c.base+uint64(off))
	if !ok || c.dev != nil && !c.dev.alive() {
		return ^uint64(0)
	}
	return v
}

func (c *config) write(off bus.Off, v uint64, width int) {
	if c.ok(off, uint64(width)) {
		c.m.qt.post(cmdWrite[width], c.base+uint64(off), v)
	}
}

func (c *config) Read8(o bus.Off) uint8       { return uint8(c.read(o, 1)) }
func (c *config) Read16(o bus.Off) uint16     { return uint16(c.read(o, 2)) }
func (c *config) Read32(o bus.Off) uint32     { return uint32(c.read(o, 4)) }
func (c *config) Write8(o bus.Off, v uint8)   { c.write(o, uint64(v), 1) }
func (c *config) Write16(o bus.Off, v uint16) { c.write(o, uint64(v), 2) }
func (c *config) Write32(o bus.Off, v uint32) { c.write(o, uint64(v), 4) }
