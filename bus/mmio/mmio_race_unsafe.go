//go:build race

package mmio

import (
	"sync/atomic"
	"unsafe"
)

// The twin for the race detector: every access is one that it understands. It may read
// where it should only write, and touch the neighbours of a narrow register.

func load32(p *uint32) uint32 { return atomic.LoadUint32(p) }

func load64(p *uint64) uint64 { return atomic.LoadUint64(p) }

func store32(p *uint32, v uint32) { atomic.StoreUint32(p, v) }

func store64(p *uint64, v uint64) { atomic.StoreUint64(p, v) }

func load8(p *uint8) uint8 {
	w, s := word(unsafe.Pointer(p))
	return uint8(atomic.LoadUint32(w) >> s)
}

func load16(p *uint16) uint16 {
	w, s := word(unsafe.Pointer(p))
	return uint16(atomic.LoadUint32(w) >> s)
}

func store8(p *uint8, v uint8) { replace(unsafe.Pointer(p), uint32(v), 0xff) }

func store16(p *uint16, v uint16) { replace(unsafe.Pointer(p), uint32(v), 0xffff) }

func replace(p unsafe.Pointer, v, mask uint32) {
	w, s := word(p)
	for {
		old := atomic.LoadUint32(w)
		if atomic.CompareAndSwapUint32(w, old, old&^(mask<<s)|v<<s) {
			return
		}
	}
}

// word is the aligned word around p, and how far p's bits stand to the left in it. The
// race detector runs on little-endian machines only.
func word(p unsafe.Pointer) (*uint32, uint) {
	low := uintptr(p) & 3
	// SAFETY: the same word of the same mapping: a mapping is page-aligned and whole words long, and p is in it.
	return (*uint32)(unsafe.Add(p, -int(low))), uint(low) * 8
}

var fence atomic.Uint32

// WriteBarrier orders all stores before it before all stores after it.
func WriteBarrier() { Barrier() }

// ReadBarrier orders all loads before it before all loads after it.
func ReadBarrier() { Barrier() }

// Barrier orders all accesses before it before all accesses after it.
func Barrier() { fence.Add(1) }
