package sim

import (
	"fmt"
	"reflect"
	"slices"
	"sync"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/iova"
)

const pageSize = 4096

// The addresses that DMA memory is given. They are the machine's: no two of its devices have
// memory at the same place, so what one is told of another's is told apart.
const (
	lowIOVA  = 1 << 20
	highIOVA = 1 << 46
	// maxDMA is the most memory that one machine has: a driver that asks for more is mistaken.
	maxDMA = 4 << 30
)

// addresses is what they are taken from.
func addresses() *iova.Pool {
	return iova.NewPool(pageSize, iova.Spans{{Base: lowIOVA, End: highIOVA}})
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// piece is memory that a device may touch.
type piece struct {
	base, end uint64
	dir       bus.Direction
	b         []byte
	mem       bus.WindowMemory // where b is nil: it is elsewhere, and copied from and to
}

// pieces are a device's, sorted. It looks first where it found something last: a device goes
// back and forth between a ring and buffers.
type pieces struct {
	all    []piece
	hit    [2]int
	placed bool // some are of another process, or were
}

// find is the piece that the n bytes at a are of, nil where they are not all of one.
func (p *pieces) find(a bus.IOVA, n int) *piece {
	at := uint64(a)
	for k, i := range p.hit {
		if i < len(p.all) {
			if x := &p.all[i]; at >= x.base && at < x.end {
				if k != 0 {
					p.hit[0], p.hit[1] = i, p.hit[0]
				}
				return x.holding(at, n)
			}
		}
	}
	lo, hi := 0, len(p.all)
	for lo < hi {
		if mid := (lo + hi) / 2; p.all[mid].end <= at {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(p.all) || at < p.all[lo].base {
		return nil
	}
	p.hit[0], p.hit[1] = lo, p.hit[0]
	return p.all[lo].holding(at, n)
}

// holding is x, which begins at or before at, if it has n bytes there.
func (x *piece) holding(at uint64, n int) *piece {
	if n < 0 || uint64(n) > x.end-at {
		return nil
	}
	return x
}

// slice is the n bytes at a, which the piece holds; nil where it is elsewhere.
func (x *piece) slice(a bus.IOVA, n int) []byte {
	if x.b == nil {
		return nil
	}
	o := int(uint64(a) - x.base)
	return x.b[o : o+n : o+n]
}

// read copies from the piece, and write to it. False: it is elsewhere, and whoever has it did not
// answer.
func (x *piece) read(a bus.IOVA, p []byte) bool {
	if b := x.slice(a, len(p)); b != nil {
		copy(p, b)
		return true
	}
	_, err := x.mem.ReadAt(p, int64(uint64(a)-x.base))
	return err == nil
}

func (x *piece) write(a bus.IOVA, p []byte) bool {
	if b := x.slice(a, len(p)); b != nil {
		copy(b, p)
		return true
	}
	_, err := x.mem.WriteAt(p, int64(uint64(a)-x.base))
	return err == nil
}

// overlaps says whether a device has memory in [base, end).
func (p *pieces) overlaps(base, end uint64) bool {
	return slices.ContainsFunc(p.all, func(x piece) bool { return x.base < end && base < x.end })
}

func (p *pieces) add(x piece) {
	i, _ := slices.BinarySearchFunc(p.all, x.base, func(y piece, at uint64) int { return compare(y.base, at) })
	p.all = slices.Insert(p.all, i, x)
}

func (p *pieces) remove(base uint64) {
	i, ok := slices.BinarySearchFunc(p.all, base, func(y piece, at uint64) int { return compare(y.base, at) })
	if ok {
		p.all = slices.Delete(p.all, i, i+1)
	}
}

// dmaOf is what a device may touch; bus.DMA.
type dmaOf struct{ d *device }

// Alloc takes memory from the Go heap, where the race detector sees it.
func (a dmaOf) Alloc(q bus.DMARequest) (*bus.Memory, error) {
	pages, err := a.check("allocating", q)
	if err != nil {
		return nil, err
	}
	m := a.d.m
	m.lock()
	free := maxDMA - m.dmaBytes
	m.unlock()
	if pages > free {
		return nil, a.full("allocating", q)
	}
	// Objects of whole pages are aligned to one.
	return a.add("allocating", q, make([]byte, pages), pages)
}

// Map lets the device touch memory that the caller has.
func (a dmaOf) Map(b []byte, q bus.DMARequest) (*bus.Memory, error) {
	if q.Size == 0 {
		q.Size = len(b)
	}
	pages, err := a.check("mapping", q)
	switch {
	case err != nil:
		return nil, err
	case q.Size > len(b):
		return nil, a.d.errorf("mapping DMA memory: %d bytes of a slice of %d: %w", q.Size, len(b), bus.ErrNotSupported)
	case reflect.ValueOf(b).Pointer()%pageSize != 0:
		return nil, a.d.errorf("mapping DMA memory: the memory does not begin on a page: %w", bus.ErrNotSupported)
	}
	return a.add("mapping", q, b[:q.Size:q.Size], pages)
}

// check says how many bytes of pages a request takes.
func (a dmaOf) check(step string, q bus.DMARequest) (uint64, error) {
	if err := a.d.Err(); err != nil {
		return 0, stepError(step, err)
	}
	if a.d.isPlatform() {
		return 0, a.none(step)
	}
	if err := iova.Check(a.who(step), q); err != nil {
		return 0, err
	}
	pages := iova.Whole(q.Size, pageSize)
	if pages > maxDMA {
		return 0, a.full(step, q)
	}
	return pages, nil
}

// none is for a device that masters no bus.
func (a dmaOf) none(step string) error {
	return stepError(step, a.d.errorf("a platform device does no DMA: %w", bus.ErrNotSupported))
}

func (a dmaOf) full(step string, q bus.DMARequest) error {
	return iova.NoRoom(a.who(step), q, fmt.Sprintf("%d MiB", maxDMA>>20))
}

func (a dmaOf) add(step string, q bus.DMARequest, b []byte, pages uint64) (*bus.Memory, error) {
	d, m := a.d, a.d.m
	m.lock()
	defer m.unlock()
	if err := d.errLocked(); err != nil {
		return nil, stepError(step, err)
	}
	if m.dmaBytes+pages > maxDMA {
		return nil, a.full(step, q)
	}
	v, ok := m.iovas.Take(q, 0, iova.None)
	if ok && d.memory.overlaps(v.Base, v.Base+pages) { // with what was placed
		m.iovas.Put(v)
		ok = false
	}
	if !ok {
		return nil, a.full(step, q)
	}
	at := v.Base
	m.dmaBytes += pages
	d.memory.add(piece{base: at, end: at + uint64(q.Size), dir: q.Dir, b: b[:q.Size:q.Size]})
	return bus.NewMemory(b[:q.Size:q.Size], bus.IOVA(at), func() {
		m.lock()
		defer m.unlock()
		d.memory.remove(at)
		m.iovas.Put(v)
		m.dmaBytes -= pages
	}), nil
}

// who begins an error.
func (a dmaOf) who(step string) string {
	return a.d.Address() + " " + a.d.spec.Name + ": " + step
}

// Place lets the device reach memory of another process; bus.Placer.
func (a dmaOf) Place(w bus.Window) (release func(), err error) {
	d, m := a.d, a.d.m
	base, end := uint64(w.IOVA), uint64(w.IOVA)+w.Size
	if w.Size == 0 || end < base || w.Bytes == nil && w.Mem == nil || w.Bytes != nil && uint64(len(w.Bytes)) != w.Size {
		return nil, d.errorf("placing DMA memory: %d bytes at %#x, of which %d are mapped: %w", w.Size, base, len(w.Bytes), bus.ErrNotSupported)
	}
	m.lock()
	defer m.unlock()
	if err := d.errLocked(); err != nil {
		return nil, stepError("placing", err)
	}
	if d.isPlatform() {
		return nil, a.none("placing")
	}
	if d.memory.overlaps(base, end) {
		return nil, d.errorf("placing DMA memory: %d bytes at %#x: the device has memory there: %w", w.Size, base, bus.ErrBusy)
	}
	d.memory.placed = true
	d.memory.add(piece{base, end, w.Dir, w.Bytes, w.Mem})
	return sync.OnceFunc(func() {
		m.lock()
		defer m.unlock()
		d.memory.remove(base)
	}), nil
}

func stepError(step string, err error) error {
	return fmt.Errorf("%s DMA memory: %w", step, err)
}
