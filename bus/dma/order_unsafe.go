package dma

import (
	"sync/atomic"
	"unsafe"
)

// Load32 reads 4 bytes at off, once, as the device wrote them (little-endian). off must
// be a multiple of 4; it panics, as indexing does, where off+4 exceeds len(b).
func Load32(b []byte, off int) uint32 {
	_ = b[off : off+4]
	// SAFETY: bounds checked above; DMA memory is page-aligned and off a multiple of 4; b keeps the mapping's slice alive.
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&b[off])))
}

// Load64 reads 8 bytes at off, once. off must be a multiple of 8.
func Load64(b []byte, off int) uint64 {
	_ = b[off : off+8]
	// SAFETY: as in Load32, with 8.
	return atomic.LoadUint64((*uint64)(unsafe.Pointer(&b[off])))
}

// Store32 writes 4 bytes at off after all stores before it. off must be a multiple of 4.
func Store32(b []byte, off int, v uint32) {
	_ = b[off : off+4]
	// SAFETY: as in Load32.
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&b[off])), v)
}

// Store64 writes 8 bytes at off after all stores before it. off must be a multiple of 8.
func Store64(b []byte, off int, v uint64) {
	_ = b[off : off+8]
	// SAFETY: as in Load32, with 8.
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&b[off])), v)
}
