package qemu

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/iova"
)

const pageSize = 4096

// lowRAM is what the allocator leaves alone: below it lie firmware, and holes that are
// not RAM.
const lowRAM = 1 << 20

// ram hands out the machine's memory: first fit over a sorted list of free spans. Memory
// that is freed goes back to the kernel, so what is handed out is always zero.
type ram struct {
	mu     sync.Mutex
	bytes  []byte // all of RAM, mapped
	free   iova.Spans
	inUse  int // allocations not yet freed
	closed bool
}

func newRAM(fd int, size int) (*ram, error) {
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("qemu: mapping %d MiB of RAM: %w", size>>20, err)
	}
	return &ram{bytes: b, free: iova.Spans{{Base: lowRAM, End: uint64(size)}}}, nil
}

// alloc implements bus.DMA's Alloc for the device named in errors.
func (r *ram) alloc(who string, q bus.DMARequest) (*bus.Memory, error) {
	s, err := r.take(who, q)
	if err != nil {
		return nil, err
	}
	return bus.NewMemory(r.slice(s, q.Size), bus.IOVA(s.Base), func() { r.release(s) }), nil
}

// slice is the first size bytes of a span.
func (r *ram) slice(s iova.Span, size int) []byte {
	return r.bytes[s.Base : s.Base+uint64(size) : s.End]
}

// take finds whole pages for a request. Mask and boundary hold for addresses in RAM.
func (r *ram) take(who string, q bus.DMARequest) (iova.Span, error) {
	if err := iova.Check(who+": allocating", q); err != nil {
		return iova.Span{}, err
	}
	size := iova.Whole(q.Size, pageSize)
	// Whole pages are handed out, but only Size bytes must keep the boundary.
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return iova.Span{}, fmt.Errorf("%s: allocating DMA memory: %w", who, bus.ErrClosed)
	}
	for i, s := range r.free {
		at, ok := iova.Fit(s, uint64(q.Size), max(q.Align, pageSize), q.Boundary, q.Mask)
		if !ok || at+size > s.End {
			continue
		}
		r.free.Cut(i, iova.Span{Base: at, End: at + size})
		r.inUse++
		return iova.Span{Base: at, End: at + size}, nil
	}
	return iova.Span{}, iova.NoRoom(who+": allocating", q, fmt.Sprintf("%d MiB", ramSize>>20))
}

// release puts a span back, and gives its pages to the kernel.
func (r *ram) release(s iova.Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inUse--
	if r.closed {
		if r.inUse == 0 {
			_ = unix.Munmap(r.bytes)
		}
		return
	}
	if err := unix.Madvise(r.bytes[s.Base:s.End], unix.MADV_REMOVE); err != nil {
		clear(r.bytes[s.Base:s.End])
	}
	r.free.Put(s)
}

// close unmaps RAM, or leaves that to the last release: an address that faults would be
// worse than a mapping that stays. It returns how many allocations are not freed.
func (r *ram) close() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed && r.inUse == 0 {
		_ = unix.Munmap(r.bytes)
	}
	r.closed = true
	return r.inUse
}
