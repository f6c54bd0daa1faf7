//go:build (amd64 || arm64) && !race

package mmio

// One access each, of exactly the width. p must be aligned to it and mapped.

//go:noescape
func load8(p *uint8) uint8

//go:noescape
func load16(p *uint16) uint16

//go:noescape
func load32(p *uint32) uint32

//go:noescape
func load64(p *uint64) uint64

//go:noescape
func store8(p *uint8, v uint8)

//go:noescape
func store16(p *uint16, v uint16)

//go:noescape
func store32(p *uint32, v uint32)

//go:noescape
func store64(p *uint64, v uint64)

// WriteBarrier orders all stores before it, write-combining ones too, before all stores
// after it.
func WriteBarrier()

// ReadBarrier orders all loads before it before all loads after it.
func ReadBarrier()

// Barrier orders all accesses before it before all accesses after it.
func Barrier()
