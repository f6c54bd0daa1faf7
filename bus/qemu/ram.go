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

// ram hands out the machine's memory: first fit over a sorted list of free spans. Memory
// that is freed goes back to the kernel, so what is handed out is always zero.
type ram struct {
	mu     sync.Mutex
	bytes  []byte // all of RAM, mapped
	free   []span
	inUse  int // allocations not yet freed
	closed bool
}

func newRAM(fd int, size int) (*ram, error) {
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("qemu: mapping %d MiB of RAM: %w", size>>20, err)
	}
	return &ram{bytes: b, free: []span{{lowRAM, uint64(size)}}}, nil
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

func pow2(x uint64) bool { return bits.OnesCount64(x) <= 1 }

// alloc implements bus.DMA's Alloc for the device named in errors.
func (r *ram) alloc(who string, q bus.DMARequest) (*bus.Memory, error) {
	size := (uint64(max(q.Size, 0)) + pageSize - 1) &^ (pageSize - 1)
	if q.Size <= 0 || !pow2(q.Align) || !pow2(q.Boundary) || q.Boundary != 0 && uint64(q.Size) > q.Boundary {
		return nil, fmt.Errorf("%s: allocating DMA memory: %+v is impossible: want a positive size, powers of two, a boundary not below the size: %w", who, q, bus.ErrNotSupported)
	}
	// Whole pages are handed out, but only Size bytes must keep the boundary.
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("%s: allocating DMA memory: %w", who, bus.ErrClosed)
	}
	for i, s := range r.free {
		at, ok := fit(s, uint64(q.Size), max(q.Align, pageSize), q.Boundary, q.Mask)
		if !ok || at+size > s.end {
			continue
		}
		var rest []span
		if at > s.base {
			rest = append(rest, span{s.base, at})
		}
		if at+size < s.end {
			rest = append(rest, span{at + size, s.end})
		}
		r.free = slices.Replace(r.free, i, i+1, rest...)
		r.inUse++
		b := r.bytes[at : at+uint64(q.Size) : at+size]
		return bus.NewMemory(b, bus.IOVA(at), func() { r.release(span{at, at + size}) }), nil
	}
	return nil, fmt.Errorf("%s: allocating DMA memory: no %d bytes below %#x with alignment %#x, boundary %#x left of %d MiB: %w",
		who, q.Size, q.Mask, q.Align, q.Boundary, ramSize>>20, unix.ENOMEM)
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
	i, _ := slices.BinarySearchFunc(r.free, s, func(a, b span) int {
		if a.base < b.base {
			return -1
		}
		return 1
	})
	r.free = slices.Insert(r.free, i, s)
	if i+1 < len(r.free) && r.free[i].end == r.free[i+1].base {
		r.free[i].end = r.free[i+1].end
		r.free = slices.Delete(r.free, i+1, i+2)
	}
	if i > 0 && r.free[i-1].end == r.free[i].base {
		r.free[i-1].end = r.free[i].end
		r.free = slices.Delete(r.free, i, i+1)
	}
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
