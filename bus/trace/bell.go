package trace

import "github.com/ring3dev/ring3/bus"

// bell is a doorbell register and the ring behind it, as the driver's own writes tell of it.
// All below info is guarded by rec.mu.
type bell struct {
	off  bus.Off
	info *bus.RingInfo

	base  bus.IOVA
	size  uint32  // of the ring, in descriptors
	tail  uint32  // the doorbell's last value
	known bool    // tail is right
	mem   *memory // where the ring is; nil: not looked up, or nowhere
}

// what a write to a register means for a ring.
type what uint8

const (
	setLow what = iota
	setHigh
	setLen
	ring
)

// part is a bell that a register belongs to.
type part struct {
	b    *bell
	what what
}

// findBells makes the doorbells of a register table, by region. In an array of doorbells the
// registers of ring i are as far from those of the first as the doorbells are.
func findBells(regs []bus.Register) map[int][]*bell {
	out := map[int][]*bell{}
	for i := range regs {
		r := &regs[i]
		if r.Ring == nil || r.Ring.Size <= 0 {
			continue
		}
		for k := range max(r.Count, 1) {
			info := *r.Ring
			shift := r.At(k) - r.Off
			info.Low += shift
			info.Len += shift
			if info.High != 0 {
				info.High += shift
			}
			out[r.Region] = append(out[r.Region], &bell{off: r.At(k), info: &info})
		}
	}
	return out
}

// partsTable finds the parts that a register is of. It is looked at in each write.
type partsTable struct {
	parts [][]part
	lo    bus.Off
	index []uint16 // of parts, by word from lo on
}

// maxSpan bounds the table: registers that lie further apart are no rings'.
const maxSpan = 1 << 20

// at are the parts of a register.
func (t *partsTable) at(off bus.Off) []part {
	if i := (off - t.lo) / 4; i < bus.Off(len(t.index)) && off&3 == 0 {
		return t.parts[t.index[i]]
	}
	return nil
}

// partsOf indexes bells by offset.
func partsOf(bells []*bell) (t partsTable) {
	// Registers that are no words are no rings'.
	parts, lo, hi := map[bus.Off][]part{}, ^bus.Off(0), bus.Off(0)
	add := func(off bus.Off, p part) {
		if off&3 == 0 {
			parts[off] = append(parts[off], p)
			lo, hi = min(lo, off), max(hi, off)
		}
	}
	for _, b := range bells {
		add(b.off, part{b, ring})
		add(b.info.Low, part{b, setLow})
		add(b.info.Len, part{b, setLen})
		if b.info.High != 0 {
			add(b.info.High, part{b, setHigh})
		}
	}
	t.lo, t.parts = lo, [][]part{nil}
	if len(parts) == 0 || len(parts) > 1<<15 || hi-lo > maxSpan {
		return t
	}
	t.index = make([]uint16, (hi-lo)/4+1)
	for off, p := range parts {
		t.index[(off-lo)/4] = uint16(len(t.parts))
		t.parts = append(t.parts, p)
	}
	return t
}

// bellWrite records a write to a register that rings depend on, and what it publishes. The
// descriptors are read before the device knows of them: they are still the driver's.
func (g *region) bellWrite(parts []part, width uint8, off bus.Off, v uint64) {
	t := g.d.rec
	t.mu.Lock()
	r := t.slot(Write)
	r.Region, r.Width, r.Off, r.Value = g.index, width, off, v
	for i := range parts {
		if p := &parts[i]; p.what == ring {
			r.Kind = Doorbell
			g.publish(p.b, r, uint32(v))
		} else {
			p.b.configure(p.what, width, v)
		}
	}
	t.done(r)
	t.mu.Unlock()
}

// configure follows the ring's registers. A ring that is set up anew begins at 0, as that of
// every device with such registers does.
func (b *bell) configure(w what, width uint8, v uint64) {
	switch {
	case w == setLow && width == 8:
		b.base = bus.IOVA(v)
	case w == setLow:
		b.base = b.base&^0xffffffff | bus.IOVA(uint32(v))
	case w == setHigh:
		b.base = b.base&0xffffffff | bus.IOVA(v)<<32
	case w == setLen:
		b.size = uint32(v / uint64(b.info.Size))
	}
	b.mem, b.tail, b.known = nil, 0, true
}

// publish records which descriptors a doorbell gave to the device. Called with rec.mu held.
func (g *region) publish(b *bell, r *Record, v uint32) {
	first, known := b.tail, b.known && v < b.size
	b.tail, b.known = v, v < b.size
	if !known || v == first {
		return
	}
	count := v - first
	if v < first {
		count += b.size
	}
	size := uint32(b.info.Size)
	if b.mem == nil {
		if b.mem = g.d.find(b.base, uint64(b.size)*uint64(size)); b.mem == nil {
			return
		}
	}
	// The doorbell's own record has room for it: half the work, and half the cache.
	r.Count, r.desc, r.Aux = count, uint8(min(size, 255)), uint64(first)|uint64(b.size)<<32
	// As many as there is room for, and in one piece up to the ring's end.
	base := b.mem.bytes[b.base-b.mem.iova:]
	k := max(min(count, maxData/size), 1)
	part := min(k, b.size-first)
	n := copy(r.data[:], base[uint64(first)*uint64(size):][:uint64(part)*uint64(size)])
	if part < k {
		n += copy(r.data[n:], base[:uint64(k-part)*uint64(size)])
	}
	r.n = uint8(n)
}

// forgetTails makes the next doorbells say nothing of what they published. Called with rec.mu
// held.
func (d *Device) forgetTails() {
	for _, bells := range d.bells {
		for _, b := range bells {
			b.known = false
		}
	}
}
