package fault

import (
	"fmt"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// read makes one access of width bytes.
func (d *Device) read(op Op, at place, width int, do func() uint64) uint64 {
	ones := ^uint64(0) >> (64 - 8*width)
	t := d.step(op, at, width, ones)
	if d.dead.Load() {
		return ones
	}
	d.watchRings()
	v := do()
	if op == ConfigRead && d.configGone() {
		v = ones
	}
	if d.stuckBits() {
		v = d.hold(at, width, v)
	}
	for i := range t.todo {
		f := &t.todo[i]
		switch f.Kind {
		case Ones:
			v = ones
		case Zero:
			v = 0
		case Flip:
			v ^= 1 << f.Arg & ones
		case Stuck:
			v ^= 1 << f.Arg & ones
			d.stick(at, stuckBit{uint(f.Arg), v>>f.Arg&1 != 0})
		case Stall:
			time.Sleep(time.Duration(f.arg()) * time.Millisecond)
		}
	}
	if d.dead.Load() {
		v = ones // it died under the access
	}
	d.after(t, v)
	return v
}

// write makes one access of width bytes.
func (d *Device) write(op Op, at place, width int, v uint64, do func()) {
	t := d.step(op, at, width, v)
	if d.dead.Load() {
		return
	}
	if f := d.planned(t, Stall); f != nil {
		time.Sleep(time.Duration(f.arg()) * time.Millisecond)
	}
	if d.planned(t, LostWrite) == nil && (op != ConfigWrite || !d.configGone()) {
		d.watchRings()
		do()
		if len(t.todo) > 0 {
			d.flush()
		}
	}
	d.after(t, v)
}

func (d *Device) configGone() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cfgGone
}

func (d *Device) stuckBits() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.stuck) > 0
}

// hold is what a read gives where bits are stuck.
func (d *Device) hold(at place, width int, v uint64) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.stuck[d.places.canonical(at)] {
		if s.bit >= uint(8*width) {
			continue
		}
		if v &^= 1 << s.bit; s.one {
			v |= 1 << s.bit
		}
	}
	return v
}

func (d *Device) stick(at place, s stuckBit) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at = d.places.canonical(at)
	d.stuck[at] = append(d.stuck[at], s)
}

// Region opens a region.
func (d *Device) Region(index int) (bus.Region, error) {
	t := d.step(OpenRegion, place{class: call, n: int(OpenRegion)}, 0, uint64(index))
	if err := d.refuse(t, fmt.Sprintf("region %d", index)); err != nil {
		return nil, err
	}
	in, err := d.in.Region(index)
	d.after(t, uint64(index))
	if err != nil {
		return nil, err
	}
	return region{d, in, index}, nil
}

// region is a region whose accesses count; bus.Region.
type region struct {
	d     *Device
	in    bus.Region
	index int
}

func (r region) Info() bus.RegionInfo { return r.in.Info() }

func (r region) at(o bus.Off) place { return place{class: inRegion, n: r.index, off: o} }

func (r region) Read8(o bus.Off) uint8 {
	return uint8(r.d.read(Read, r.at(o), 1, func() uint64 { return uint64(r.in.Read8(o)) }))
}

func (r region) Read16(o bus.Off) uint16 {
	return uint16(r.d.read(Read, r.at(o), 2, func() uint64 { return uint64(r.in.Read16(o)) }))
}

func (r region) Read32(o bus.Off) uint32 {
	return uint32(r.d.read(Read, r.at(o), 4, func() uint64 { return uint64(r.in.Read32(o)) }))
}

func (r region) Read64(o bus.Off) uint64 {
	return r.d.read(Read, r.at(o), 8, func() uint64 { return r.in.Read64(o) })
}

func (r region) Write8(o bus.Off, v uint8) {
	r.d.write(Write, r.at(o), 1, uint64(v), func() { r.in.Write8(o, v) })
}

func (r region) Write16(o bus.Off, v uint16) {
	r.d.write(Write, r.at(o), 2, uint64(v), func() { r.in.Write16(o, v) })
}

func (r region) Write32(o bus.Off, v uint32) {
	r.d.write(Write, r.at(o), 4, uint64(v), func() { r.in.Write32(o, v) })
}

func (r region) Write64(o bus.Off, v uint64) {
	r.d.write(Write, r.at(o), 8, v, func() { r.in.Write64(o, v) })
}

// Config is the configuration space.
func (d *Device) Config() bus.Config { return config{d, d.in.Config()} }

// config is a config space whose accesses count; bus.Config.
type config struct {
	d  *Device
	in bus.Config
}

func (c config) Size() int { return c.in.Size() }

func (c config) at(o bus.Off) place { return place{class: inConfig, off: o} }

func (c config) Read8(o bus.Off) uint8 {
	return uint8(c.d.read(ConfigRead, c.at(o), 1, func() uint64 { return uint64(c.in.Read8(o)) }))
}

func (c config) Read16(o bus.Off) uint16 {
	return uint16(c.d.read(ConfigRead, c.at(o), 2, func() uint64 { return uint64(c.in.Read16(o)) }))
}

func (c config) Read32(o bus.Off) uint32 {
	return uint32(c.d.read(ConfigRead, c.at(o), 4, func() uint64 { return uint64(c.in.Read32(o)) }))
}

func (c config) Write8(o bus.Off, v uint8) {
	c.d.write(ConfigWrite, c.at(o), 1, uint64(v), func() { c.in.Write8(o, v) })
}

func (c config) Write16(o bus.Off, v uint16) {
	c.d.write(ConfigWrite, c.at(o), 2, uint64(v), func() { c.in.Write16(o, v) })
}

func (c config) Write32(o bus.Off, v uint32) {
	c.d.write(ConfigWrite, c.at(o), 4, uint64(v), func() { c.in.Write32(o, v) })
}
