//go:build !amd64 && !arm64 && !race

package mmio

import "sync/atomic"

//go:noinline
func load8(p *uint8) uint8 { return *p }

//go:noinline
func load16(p *uint16) uint16 { return *p }

//go:noinline
func load32(p *uint32) uint32 { return *p }

//go:noinline
func load64(p *uint64) uint64 { return *p }

//go:noinline
func store8(p *uint8, v uint8) { Barrier(); *p = v }

//go:noinline
func store16(p *uint16, v uint16) { Barrier(); *p = v }

//go:noinline
func store32(p *uint32, v uint32) { Barrier(); *p = v }

//go:noinline
func store64(p *uint64, v uint64) { Barrier(); *p = v }

var fence atomic.Uint32

// WriteBarrier orders all stores before it before all stores after it.
func WriteBarrier() { Barrier() }

// ReadBarrier orders all loads before it before all loads after it.
func ReadBarrier() { Barrier() }

// Barrier orders all accesses before it before all accesses after it.
func Barrier() { fence.Add(1) }
