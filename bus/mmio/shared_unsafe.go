package mmio

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/ring3dev/ring3/bus"
)

// Shared is memory that other processes have mapped too, as words of 64 bits. What they write is read once and may be
// anything. A store is one store, in program order with those before and after it: when the process ends between two of them, at
// whatever instruction, the other processes see the first and not the second. Safe for concurrent use, as far as memory can be.
type Shared struct{ mem []byte }

// NewShared takes memory that is aligned to 8 bytes (mmap's is to a page) and a multiple of 8 long. It must stay mapped as long as
// the Shared is used.
func NewShared(mem []byte) (Shared, error) {
	if len(mem) == 0 || len(mem)%8 != 0 || addressOf(mem)%8 != 0 {
		return Shared{}, fmt.Errorf("sharing memory: %d bytes, want a multiple of 8, aligned to it: %w", len(mem), bus.ErrProtocol)
	}
	return Shared{mem}, nil
}

// Len is how many words there are.
func (s Shared) Len() int { return len(s.mem) / 8 }

// Part is n words from word i on. It panics, as slicing does, where there are fewer; so do the accesses.
func (s Shared) Part(i, n int) Shared { return Shared{s.mem[8*i : 8*i+8*n : 8*i+8*n]} }

func (s Shared) at(i int) *uint64 {
	// SAFETY: the index is checked by the slice expression; NewShared checked the alignment; the caller keeps the memory mapped.
	return (*uint64)(unsafe.Pointer(&s.mem[8*i : 8*i+8][0]))
}

// Load is one load of word i.
func (s Shared) Load(i int) uint64 { return load64(s.at(i)) }

// Store is one store to word i.
func (s Shared) Store(i int, v uint64) { store64(s.at(i), v) }

// Add adds to word i, in one step for all who do, and returns the sum.
func (s Shared) Add(i int, n uint64) uint64 { return atomic.AddUint64(s.at(i), n) }

// CompareAndSwap sets word i to v where it is old, in one step.
func (s Shared) CompareAndSwap(i int, old, v uint64) bool {
	return atomic.CompareAndSwapUint64(s.at(i), old, v)
}
