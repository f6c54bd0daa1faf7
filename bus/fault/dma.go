package fault

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/ring3dev/ring3/bus"
)

// ringMost is the largest piece of memory that is taken for a ring: 4096 descriptors of 16
// bytes.
const ringMost = 64 << 10

// piece is memory that the driver holds.
type piece struct {
	bytes  []byte
	dir    bus.Direction
	n      int // the access that made it
	free   func()
	shadow []byte // what was in it when that was last looked at
}

// writable says whether the device may write it.
func (p *piece) writable() bool { return p.dir != bus.ToDevice }

// DMA gives memory that is remembered until it is freed.
func (d *Device) DMA() bus.DMA { return memory{d} }

type memory struct{ d *Device }

// Alloc is the device's.
func (m memory) Alloc(r bus.DMARequest) (*bus.Memory, error) {
	t := m.d.step(Alloc, place{class: call, n: int(Alloc)}, 0, uint64(max(r.Size, 0)))
	if err := m.d.refuse(t, fmt.Sprintf("allocating %d bytes of DMA memory", r.Size)); err != nil {
		return nil, err
	}
	mem, err := m.d.in.DMA().Alloc(r)
	return m.d.keep(t, mem, err, r)
}

// Map is the device's.
func (m memory) Map(b []byte, r bus.DMARequest) (*bus.Memory, error) {
	t := m.d.step(Map, place{class: call, n: int(Map)}, 0, uint64(len(b)))
	if err := m.d.refuse(t, fmt.Sprintf("mapping %d bytes for DMA", len(b))); err != nil {
		return nil, err
	}
	mem, err := m.d.in.DMA().Map(b, r)
	return m.d.keep(t, mem, err, r)
}

// Place is bus.Placer's, where the device's DMA is one.
func (m memory) Place(w bus.Window) (release func(), err error) {
	d := m.d
	t := d.step(Map, place{class: call, n: int(Map)}, 0, w.Size)
	if err := d.refuse(t, fmt.Sprintf("placing %d bytes at %#x", w.Size, uint64(w.IOVA))); err != nil {
		return nil, err
	}
	p, ok := d.in.DMA().(bus.Placer)
	if !ok {
		return nil, fmt.Errorf("%s: placing DMA memory: %w", d.Address(), bus.ErrNotSupported)
	}
	if release, err = p.Place(w); err != nil {
		d.after(t, w.Size)
		return nil, err
	}
	// Its bytes may go as soon as it is released.
	mem, _ := d.keep(t, bus.NewMemory(w.Bytes, w.IOVA, release), nil, bus.DMARequest{Size: int(w.Size), Dir: w.Dir})
	return mem.Free, nil
}

// keep remembers memory until it is freed. It stays the driver's when the link dies.
func (d *Device) keep(t ticket, mem *bus.Memory, err error, r bus.DMARequest) (*bus.Memory, error) {
	if err != nil {
		d.after(t, uint64(max(r.Size, 0)))
		return nil, err
	}
	p := &piece{bytes: mem.Bytes, dir: r.Dir, n: t.n, free: mem.Free}
	d.mu.Lock()
	d.pieces = append(d.pieces, p)
	d.mu.Unlock()
	d.after(t, uint64(r.Size))
	return bus.NewMemory(mem.Bytes, mem.IOVA, func() {
		d.mu.Lock()
		d.pieces = slices.DeleteFunc(d.pieces, func(q *piece) bool { return q == p })
		d.mu.Unlock()
		mem.Free()
	}), nil
}

// Held says what the driver holds: "DMA memory of access 12, 4096 bytes", "2 vectors". A driver
// that is closed, or was never opened, holds nothing.
func (d *Device) Held() []string {
	var held []string
	d.mu.Lock()
	for _, p := range d.pieces {
		held = append(held, fmt.Sprintf("DMA memory of access %d, %d bytes", p.n, len(p.bytes)))
	}
	d.mu.Unlock()
	d.vecMu.Lock()
	defer d.vecMu.Unlock()
	if d.irqs != nil {
		held = append(held, fmt.Sprintf("%d interrupt vectors", len(d.irqs.out)))
	}
	return held
}

// garbage fills what looks like rings with what a broken device might write. Called with mu held, so that nothing is freed meanwhile.
func (d *Device) garbage(seed int) {
	for i, p := range d.rings() {
		scribble(p.bytes, rand.New(rand.NewPCG(uint64(seed), uint64(i))))
	}
}

// scribble fills memory at random, words with many ones among others, since flags are what a
// driver looks at. The race detector is not told: a device's writes are not ordered by anything it
// knows.
//
//go:norace
func scribble(b []byte, r *rand.Rand) {
	for len(b) >= 8 {
		v := r.Uint64()
		switch v >> 61 {
		case 0:
			v = ^uint64(0)
		case 1:
			v |= r.Uint64()
		case 2:
			v &= r.Uint64()
		}
		binary.LittleEndian.PutUint64(b, v)
		b = b[8:]
	}
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}
