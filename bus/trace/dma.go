package trace

import (
	"fmt"
	"slices"
	"sync"

	"github.com/ring3dev/ring3/bus"
)

// dmaOf is a traced source of DMA memory.
type dmaOf struct {
	d   *Device
	dma bus.DMA
}

// memory is a piece that the driver has, for finding rings in it.
type memory struct {
	iova  bus.IOVA
	bytes []byte
}

func (a dmaOf) Alloc(r bus.DMARequest) (*bus.Memory, error) {
	m, err := a.dma.Alloc(r)
	return a.got(OpAlloc, m, r.Size, err)
}

func (a dmaOf) Map(b []byte, r bus.DMARequest) (*bus.Memory, error) {
	m, err := a.dma.Map(b, r)
	return a.got(OpMap, m, len(b), err)
}

// got records what was allocated or mapped. The memory is remembered also while nothing is
// recorded: rings may be in it later.
func (a dmaOf) got(op Op, m *bus.Memory, size int, err error) (*bus.Memory, error) {
	d := a.d
	if err != nil {
		d.note(func(r *Record) { r.Op, r.Aux = op, uint64(max(size, 0)); r.setErr(d.Address(), err) }, DMA)
		return nil, err
	}
	own := &memory{iova: m.IOVA, bytes: m.Bytes}
	t := d.rec
	t.mu.Lock()
	d.mems = append(d.mems, own)
	t.mu.Unlock()
	size = len(m.Bytes)
	d.note(func(r *Record) { r.Op, r.Value, r.Aux = op, uint64(own.iova), uint64(size) }, DMA)
	return bus.NewMemory(m.Bytes, m.IOVA, func() {
		d.forget(own)
		d.note(func(r *Record) { r.Op, r.Value, r.Aux = OpFree, uint64(own.iova), uint64(size) }, DMA)
		m.Free()
	}), nil
}

// Place is bus.Placer's, where the device's DMA is one. What is not mapped is not looked into.
func (a dmaOf) Place(w bus.Window) (func(), error) {
	d := a.d
	p, ok := a.dma.(bus.Placer)
	if !ok {
		return nil, fmt.Errorf("%s: placing DMA memory: %w", d.Address(), bus.ErrNotSupported)
	}
	release, err := p.Place(w)
	d.note(func(r *Record) {
		r.Op, r.Value, r.Aux = OpMap, uint64(w.IOVA), w.Size
		r.setErr(d.Address(), err)
	}, DMA)
	if err != nil {
		return nil, err
	}
	own := &memory{iova: w.IOVA, bytes: w.Bytes}
	t := d.rec
	t.mu.Lock()
	d.mems = append(d.mems, own)
	t.mu.Unlock()
	return sync.OnceFunc(func() {
		d.forget(own)
		d.note(func(r *Record) { r.Op, r.Value, r.Aux = OpFree, uint64(w.IOVA), w.Size }, DMA)
		release()
	}), nil
}

// forget drops memory that is about to be freed, and the rings in it. Whoever reads a ring
// holds the lock, so none is read after that.
func (d *Device) forget(m *memory) {
	t := d.rec
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(d.mems, m); i >= 0 {
		d.mems = slices.Delete(d.mems, i, i+1)
	}
	for _, bells := range d.bells {
		for _, b := range bells {
			if b.mem == m {
				b.mem, b.known = nil, false
			}
		}
	}
}

// find is the piece that holds n bytes at addr; nil: none does. Called with rec.mu held.
func (d *Device) find(addr bus.IOVA, n uint64) *memory {
	for _, m := range d.mems {
		size := uint64(len(m.bytes))
		if addr >= m.iova && uint64(addr-m.iova) < size && n <= size-uint64(addr-m.iova) {
			return m
		}
	}
	return nil
}
