package fault

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"

	"github.com/ring3dev/ring3/bus/pci"
)

// unit is what a descriptor is taken for: e1000's are 16 bytes, and so are half of NVMe's and virtio's.
const unit = 16

// rings are the pieces of memory that look like rings: those that the device may write and that are small; without any, all that it may
// write. Called with mu held.
func (d *Device) rings() []*piece {
	var small, all []*piece
	for _, p := range d.pieces {
		if !p.writable() {
			continue
		}
		if all = append(all, p); len(p.bytes) <= ringMost {
			small = append(small, p)
		}
	}
	if len(small) == 0 {
		return all
	}
	return small
}

// tears are the kinds that need to know what the device wrote.
var tears = []Kind{DMATorn, DMALost, DMALength}

// watchRings remembers what is in the rings, so that what the device writes from here on can be told, where the plan may want that.
func (d *Device) watchRings() {
	if !d.tearing.Load() {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watch()
}

// watch is watchRings with mu held.
func (d *Device) watch() {
	if !d.tearing.Load() {
		return
	}
	for _, p := range d.rings() {
		p.shadow = append(p.shadow[:0], make([]byte, len(p.bytes))...)
		copyMemory(p.shadow, p.bytes)
	}
}

// flush waits until the device has seen what was written: where writes are posted, a read comes after them.
func (d *Device) flush() {
	if d.tearing.Load() && d.in.Config().Size() > 0 {
		d.in.Config().Read16(pci.CfgCommand)
	}
}

// tear undoes part of what the device wrote since watch. Called with mu held.
func (d *Device) tear(f *Fault) {
	rnd := rand.New(rand.NewPCG(uint64(f.arg()), uint64(f.Kind)))
	keep := f.arg() & 1 * (unit / 2) // where the half begins that stays new
	for _, p := range d.rings() {
		for at := 0; at+unit <= min(len(p.bytes), len(p.shadow)); at += unit {
			was, is := p.shadow[at:at+unit], p.bytes[at:at+unit]
			now := [unit]byte{}
			copyMemory(now[:], is)
			if bytes.Equal(was, now[:]) {
				continue
			}
			switch f.Kind {
			case DMALost:
				copyMemory(is, was)
			case DMATorn:
				old := unit/2 - keep
				copyMemory(is[old:old+unit/2], was[old:old+unit/2])
			case DMALength:
				relength(is, was, now[:], rnd)
			}
		}
	}
}

// relength changes one of the 16-bit fields that the device wrote.
func relength(is, was, now []byte, rnd *rand.Rand) {
	var fields []int
	for i := 0; i < unit; i += 2 {
		if !bytes.Equal(was[i:i+2], now[i:i+2]) {
			fields = append(fields, i)
		}
	}
	i := fields[rnd.IntN(len(fields))]
	v := binary.LittleEndian.Uint16(now[i:])
	odd := []uint16{0, 1, v - 1, v + 1, 2 * v, v ^ 0x8000, 0x7fff, 0xffff}
	var b [2]byte
	binary.LittleEndian.PutUint16(b[:], odd[rnd.IntN(len(odd))])
	copyMemory(is[i:i+2], b[:])
}

// flipMemory inverts a bit of a descriptor that is in use, if one is: where all bytes of a ring are alike nobody has been yet. Called with mu
// held.
func (d *Device) flipMemory(seed int) {
	var used, all [][]byte
	for _, p := range d.rings() {
		for u := range slices.Chunk(p.bytes, unit) {
			var b [unit]byte
			n := copyMemory(b[:], u)
			all = append(all, u)
			if !bytes.Equal(b[1:n], b[:n-1]) {
				used = append(used, u)
			}
		}
	}
	if len(used) == 0 {
		used = all
	}
	if len(used) == 0 {
		return
	}
	rnd := rand.New(rand.NewPCG(uint64(seed), 1))
	u := used[rnd.IntN(len(used))]
	bit := rnd.IntN(8 * len(u))
	var b [1]byte
	copyMemory(b[:], u[bit/8:bit/8+1])
	b[0] ^= 1 << (bit % 8)
	copyMemory(u[bit/8:bit/8+1], b[:])
}

// copyMemory copies between DMA memory and ours. The race detector is not told, as in scribble.
//
//go:norace
func copyMemory(to, from []byte) int {
	n := min(len(to), len(from))
	for i := range n {
		to[i] = from[i]
	}
	return n
}
