package qemu

import (
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

const pageSize = 4096

// lowRAM is what the allocator leaves alone: below it lie firmware, and holes that are
// not RAM.
const lowRAM = 1 << 20

// span is [base, end) in RAM.
type span struct{ base, end uint64 }

// spans are free ranges, sorted, with no two that touch.
type spans []span

// cut takes a part out of span i.
func (f *spans) cut(i int, part span) {
	var rest []span
	if s := (*f)[i]; part.base > s.base {
		rest = append(rest, span{s.base, part.base})
	}
	if s := (*f)[i]; part.end < s.end {
		rest = append(rest, span{part.end, s.end})
	}
	*f = slices.Replace(*f, i, i+1, rest...)
}

// put gives a span back, and joins it with its neighbours.
func (f *spans) put(s span) {
	l := *f
	i, _ := slices.BinarySearchFunc(l, s, func(a, b span) int {
		if a.base < b.base {
			return -1
		}
		return 1
	})
	l = slices.Insert(l, i, s)
	if i+1 < len(l) && l[i].end == l[i+1].base {
		l[i].end = l[i+1].end
		l = slices.Delete(l, i+1, i+2)
	}
	if i > 0 && l[i-1].end == l[i].base {
		l[i-1].end = l[i].end
		l = slices.Delete(l, i, i+1)
	}
	*f = l
}

// ram hands out the machine's memory: first fit over a sorted list of free spans. Memory
// that is freed goes back to the kernel, so what is handed out is always zero.
type ram struct {
	mu     sync.Mutex
	bytes  []byte // all of RAM, mapped
	free   spans
	inUse  int // allocations not yet freed
	closed bool
}

func newRAM(fd int, size int) (*ram, error) {
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("qemu: mapping %d MiB of RAM: %w", size>>20, err)
	}
	return &ram{bytes: b, free: spans{{lowRAM, uint64(size)}}}, nil
}

// fit places a request in a free span, or says that it does not fit.
func fit(s span, size, align, boundary, mask uint64) (uint64, bool) {
	at := (s.base + align - 1) &^ (align - 1)
	if boundary != 0 && at&^(boundary-1) != (at+size-1)&^(boundary-1) {
		at = (at + boundary - 1) &^ (boundary - 1)
		at = (at + align - 1) &^ (align - 1)
	}
	last := at + size - 1
	return at, at >= s.base && last >= at && last < s.end && (mask == 0 || last <= mask)
}

// wholePages is size rounded up to pages.
func wholePages(size int) uint64 { return (uint64(max(size, 0)) + pageSize - 1) &^ (pageSize - 1) }

func pow2(x uint64) bool { return bits.OnesCount64(x) <= 1 }

// checkRequest refuses what no memory could satisfy.
func checkRequest(who string, q bus.DMARequest) error {
	if q.Size <= 0 || !pow2(q.Align) || !pow2(q.Boundary) || q.Boundary != 0 && uint64(q.Size) > q.Boundary {
		return fmt.Errorf("%s: allocating DMA memory: %+v is impossible: want a positive size, powers of two, a boundary not below the size: %w", who, q, bus.ErrNotSupported)
	}
	return nil
}

// noRoom is the error where nothing fits a request.
func noRoom(who string, q bus.DMARequest, of string) error {
	return fmt.Errorf("%s: allocating DMA memory: no %d bytes below %#x with alignment %#x, boundary %#x left of %s: %w",
		who, q.Size, q.Mask, q.Align, q.Boundary, of, unix.ENOMEM)
}

// alloc implements bus.DMA's Alloc for the device named in errors.
func (r *ram) alloc(who string, q bus.DMARequest) (*bus.Memory, error) {
	s, err := r.take(who, q)
	if err != nil {
		return nil, err
	}
	return bus.NewMemory(r.slice(s, q.Size), bus.IOVA(s.base), func() { r.release(s) }), nil
}

// slice is the first size bytes of a span.
func (r *ram) slice(s span, size int) []byte {
	return r.bytes[s.base : s.base+uint64(size) : s.end]
}

// take finds whole pages for a request. Mask and boundary hold for addresses in RAM.
func (r *ram) take(who string, q bus.DMARequest) (span, error) {
	if err := checkRequest(who, q); err != nil {
		return span{}, err
	}
	size := wholePages(q.Size)
	// Whole pages are handed out, but only Size bytes must keep the boundary.
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return span{}, fmt.Errorf("%s: allocating DMA memory: %w", who, bus.ErrClosed)
	}
	for i, s := range r.free {
		at, ok := fit(s, uint64(q.Size), max(q.Align, pageSize), q.Boundary, q.Mask)
		if !ok || at+size > s.end {
			continue
		}
		r.free.cut(i, span{at, at + size})
		r.inUse++
		return span{at, at + size}, nil
	}
	return span{}, noRoom(who, q, fmt.Sprintf("%d MiB", ramSize>>20))
}

// release puts a span back, and gives its pages to the kernel.
func (r *ram) release(s span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inUse--
	if r.closed {
		if r.inUse == 0 {
			_ = unix.Munmap(r.bytes)
		}
		return
	}
	if err := unix.Madvise(r.bytes[s.base:s.end], unix.MADV_REMOVE); err != nil {
		clear(r.bytes[s.base:s.end])
	}
	r.free.put(s)
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
