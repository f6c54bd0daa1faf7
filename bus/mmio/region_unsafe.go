package mmio

import (
	"fmt"
	"sync"
	"unsafe"

	"github.com/ring3dev/ring3/bus"
)

// Region is a bus.Region over mapped registers. Safe for concurrent use.
type Region struct {
	info bus.RegionInfo
	base uintptr // where mem is, or was before Close: only compared with

	mu    sync.RWMutex
	mem   []byte // nil while suspended and once closed
	aside []byte // mem, while suspended
	unmap func([]byte) error
}

// NewRegion makes a region of a mapping of exactly info.Size bytes. The mapping must be
// aligned to 8 bytes (mmap's are to a page) and a multiple of 4 long. Close calls unmap,
// which may be nil.
func NewRegion(info bus.RegionInfo, mem []byte, unmap func([]byte) error) (*Region, error) {
	if len(mem) == 0 || uint64(len(mem)) != info.Size || len(mem)%4 != 0 || addressOf(mem)%8 != 0 {
		return nil, fmt.Errorf("mapping region %d: %d bytes, want %d, aligned to 8 and a multiple of 4: %w", info.Index, len(mem), info.Size, bus.ErrProtocol)
	}
	return &Region{info: info, base: addressOf(mem), mem: mem, unmap: unmap}, nil
}

func addressOf(mem []byte) uintptr {
	// SAFETY: the address is looked at, and never made a pointer again.
	return uintptr(unsafe.Pointer(&mem[0]))
}

// holds says whether an address lies in the mapping, or did before Close.
func (r *Region) holds(addr uintptr) bool {
	return addr >= r.base && addr-r.base < uintptr(r.info.Size)
}

// Info describes the region.
func (r *Region) Info() bus.RegionInfo { return r.info }

// Close waits for accesses under way and unmaps. Later accesses read all-ones. It is
// idempotent.
func (r *Region) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	mem := r.mem
	if mem == nil {
		mem = r.aside
	}
	r.mem, r.aside = nil, nil
	if mem == nil || r.unmap == nil {
		return nil
	}
	return r.unmap(mem)
}

// Suspend waits for accesses under way. Until Resume, later ones read all-ones and write
// nothing: for a device that does not decode its addresses, where the kernel answers an access
// with SIGBUS.
func (r *Region) Suspend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mem != nil {
		r.mem, r.aside = nil, r.mem
	}
}

// Resume ends Suspend.
func (r *Region) Resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.aside != nil {
		r.mem, r.aside = r.aside, nil
	}
}

// at is the address of n bytes at off; nil outside the region, where it is not aligned,
// and after Close. The caller holds mu while it uses it.
func (r *Region) at(off bus.Off, n uint64) unsafe.Pointer {
	if size := uint64(len(r.mem)); size < n || uint64(off) > size-n || uint64(off)&(n-1) != 0 {
		return nil
	}
	// SAFETY: off+n <= len(mem), which stays mapped while mu is held; NewRegion checked that it is aligned.
	return unsafe.Pointer(&r.mem[off])
}

// Read8 is one load of 8 bits.
func (r *Region) Read8(off bus.Off) uint8 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if p := r.at(off, 1); p != nil {
		return load8((*uint8)(p))
	}
	return ^uint8(0)
}

// Read16 is one load of 16 bits.
func (r *Region) Read16(off bus.Off) uint16 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if p := r.at(off, 2); p != nil {
		return load16((*uint16)(p))
	}
	return ^uint16(0)
}

// Read32 is one load of 32 bits.
func (r *Region) Read32(off bus.Off) uint32 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if p := r.at(off, 4); p != nil {
		return load32((*uint32)(p))
	}
	return ^uint32(0)
}

// Read64 is one load of 64 bits.
func (r *Region) Read64(off bus.Off) uint64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if p := r.at(off, 8); p != nil {
		return load64((*uint64)(p))
	}
	return ^uint64(0)
}

// Write8 is one store of 8 bits.
func (r *Region) Write8(off bus.Off, v uint8) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if p := r.at(off, 1); p != nil {
		store8((*uint8)(p), v)
	}
}

// Write16 is one store of 16 bits.
func (r *Region) Write16(off bus.Off, v uint16) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if p := r.at(off, 2); p != nil {
		store16((*uint16)(p), v)
	}
}

// Write32 is one store of 32 bits.
func (r *Region) Write32(off bus.Off, v uint32) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if p := r.at(off, 4); p != nil {
		store32((*uint32)(p), v)
	}
}

// Write64 is one store of 64 bits.
func (r *Region) Write64(off bus.Off, v uint64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if p := r.at(off, 8); p != nil {
		store64((*uint64)(p), v)
	}
}
