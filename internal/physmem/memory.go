// Package physmem is DMA memory by physical addresses, for devices that no IOMMU confines: pieces
// that are contiguous in physical memory, and that the kernel does not move. Backends share it.
package physmem

import (
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/iova"
)

// Memory hands out DMA memory by physical addresses. It takes it from the kernel in blocks, as
// need arises, and keeps one block that nothing is in, so that a driver that allocates and
// frees in turn does not ask the kernel each time. Safe for concurrent use.
type Memory struct {
	who string // "0000:00:05.0"
	src Source

	mu     sync.Mutex
	runs   []*run // the shortest first
	ever   bool   // something was handed out once
	closed bool
}

// Source is where blocks come from: the kernel, in tests a model.
type Source interface {
	// File begins to take huge pages.
	File() (HugeFile, error)
	// Pages is a block of small pages, which the kernel does not move.
	Pages() (*Block, error)
	// Close ends taking; blocks live on.
	Close()
}

// Block is a piece of memory that was taken from the kernel.
type Block struct {
	Bytes []byte
	Phys  []uint64 // of each small page in Bytes
	Free  func()

	used int // allocations in it
}

// New gives out memory of a source, which it closes in the end. who begins its errors.
func New(who string, src Source) *Memory { return &Memory{who: who, src: src} }

// run is memory of a block that is one piece for the device too.
type run struct {
	block *Block
	bytes []byte
	base  uint64 // physical address of bytes
	free  iova.Spans
}

// runs are the pieces of a block that are contiguous for the device.
func (b *Block) runs() []*run {
	page := uint64(pageSize)
	var out []*run
	for i := 0; i < len(b.Phys); {
		n := 1
		for i+n < len(b.Phys) && b.Phys[i+n] == b.Phys[i]+uint64(n)*page {
			n++
		}
		base := b.Phys[i]
		out = append(out, &run{block: b, bytes: b.Bytes[i*pageSize : (i+n)*pageSize], base: base,
			free: iova.Spans{{Base: base, End: base + uint64(n)*page}}})
		i += n
	}
	return out
}

// fit finds room for a request in a span of physical addresses: whole pages.
func fit(q bus.DMARequest, s iova.Span) (iova.Span, bool) {
	page := uint64(pageSize)
	// Whole pages are handed out, but only Size bytes must keep boundary and mask.
	at, ok := iova.Fit(s, uint64(q.Size), max(q.Align, page), q.Boundary, q.Mask)
	got := iova.Span{Base: at, End: at + iova.Whole(q.Size, page)}
	return got, ok && got.End > at && got.End <= s.End
}

// Alloc implements bus.DMA's Alloc.
func (m *Memory) Alloc(q bus.DMARequest) (*bus.Memory, error) {
	step := m.who + ": allocating"
	if err := iova.Check(step, q); err != nil {
		return nil, err
	}
	if q.Size > maxAlloc {
		return nil, iova.NoRoom(step, q, "physical memory")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, fmt.Errorf("%s DMA memory: %w", step, bus.ErrClosed)
	}
	if mem := m.take(q); mem != nil {
		return mem, nil
	}
	why := m.grow(q)
	if mem := m.take(q); mem != nil {
		return mem, nil
	}
	if why == nil {
		why = unix.ENOMEM
	}
	return nil, fmt.Errorf("%s DMA memory: no %d bytes in one piece of physical memory with mask %#x, alignment %#x, boundary %#x: reserve huge pages, as in 'sudo sysctl vm.nr_hugepages=64': %w",
		step, q.Size, q.Mask, q.Align, q.Boundary, why)
}

// maxAlloc bounds a request before it is multiplied with anything.
const maxAlloc = 1 << 40

// take serves a request from what there is. Called with mu held.
func (m *Memory) take(q bus.DMARequest) *bus.Memory {
	for _, r := range m.runs {
		for i, s := range r.free {
			got, ok := fit(q, s)
			if !ok {
				continue
			}
			r.free.Cut(i, got)
			r.block.used++
			m.ever = true
			off := got.Base - r.base
			b := r.bytes[off : off+uint64(q.Size) : off+got.Size()]
			clear(b[:cap(b)])
			return bus.NewMemory(b, bus.IOVA(got.Base), func() { m.release(r, got) })
		}
	}
	return nil
}

// grow takes a block in which a request finds room, if the kernel has one. Called with mu held.
func (m *Memory) grow(q bus.DMARequest) error {
	m.trim(0) // what did not serve may be a part of what does
	b, err := m.huge(q)
	if err == nil {
		m.add(b)
		return nil
	}
	if q.Size > HugeSize {
		return err
	}
	// Small pages as they come may be what is wanted, or the next ones.
	var odd []*Block
	defer func() {
		for _, b := range odd {
			b.Free()
		}
	}()
	const tries = 4
	for range tries {
		b, e := m.src.Pages()
		if e != nil {
			return fmt.Errorf("%w; small pages: %w", err, e)
		}
		if slices.ContainsFunc(b.runs(), func(r *run) bool { _, ok := fit(q, r.free[0]); return ok }) {
			m.add(b)
			return nil
		}
		odd = append(odd, b)
	}
	return err
}

func (m *Memory) add(b *Block) {
	m.runs = append(m.runs, b.runs()...)
	// What is small is used for what is small.
	slices.SortStableFunc(m.runs, func(a, b *run) int { return len(a.bytes) - len(b.bytes) })
}

// release puts memory back, and blocks that nothing is in, but for one, to the kernel.
func (m *Memory) release(r *run, s iova.Span) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r.free.Put(s)
	r.block.used--
	keep := 1
	if m.closed {
		keep = 0
	}
	m.trim(keep)
}

// trim gives blocks back that nothing is in, but for so many. Called with mu held.
func (m *Memory) trim(keep int) {
	var idle []*Block
	for _, r := range m.runs {
		if r.block.used == 0 && !slices.Contains(idle, r.block) {
			idle = append(idle, r.block)
		}
	}
	for _, b := range idle[:max(len(idle)-keep, 0)] {
		m.runs = slices.DeleteFunc(m.runs, func(r *run) bool { return r.block == b })
		b.Free()
	}
}

// Used says whether memory was ever handed out.
func (m *Memory) Used() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ever
}

// Close gives everything back to the kernel, as far as it was freed: the rest when it is.
func (m *Memory) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.closed = true
	m.trim(0)
	m.src.Close()
}
