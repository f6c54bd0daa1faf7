package shm

import (
	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/mmio"
)

// Memory is shared memory, however it is reached. Offsets are the package's own, checked against Size when a view is made:
// outside of it nothing is touched. Safe for concurrent use.
type Memory interface {
	Size() int
	// Load32 and Store32 are one access each, at a multiple of 4. What was written before a Store32 is seen before it.
	Load32(off int) uint32
	Store32(off int, v uint32)
	// Fence orders a Store32 before it and a Load32 after it.
	Fence()
	// Read and Write copy.
	Read(off int, p []byte)
	Write(off int, p []byte)
	// Bytes is the memory itself; nil where it is not mapped, or may go away under an access.
	Bytes() []byte
}

// Mapped is memory that this process maps, and that cannot go away: a memfd sealed against shrinking. b begins on a page.
func Mapped(b []byte) Memory { return mapped(b) }

type mapped []byte

func (m mapped) Size() int                 { return len(m) }
func (m mapped) Load32(off int) uint32     { return dma.Load32(m, off) }
func (m mapped) Store32(off int, v uint32) { dma.Store32(m, off, v) } // ordered with the loads after it
func (m mapped) Fence()                    {}
func (m mapped) Read(off int, p []byte)    { copy(p, m[off:off+len(p)]) }
func (m mapped) Write(off int, p []byte)   { copy(m[off:off+len(p)], p) }
func (m mapped) Bytes() []byte             { return m }

// OfRegion is the memory of a device's region: by single accesses and copies, which are safe whatever becomes of the device.
func OfRegion(r bus.Region) Memory { return ofRegion{r} }

type ofRegion struct{ r bus.Region }

func (m ofRegion) Size() int                 { return int(min(m.r.Info().Size, 1<<31-1)) }
func (m ofRegion) Load32(off int) uint32     { return m.r.Read32(bus.Off(off)) }
func (m ofRegion) Store32(off int, v uint32) { mmio.WriteBarrier(); m.r.Write32(bus.Off(off), v) }
func (m ofRegion) Fence()                    { mmio.Barrier() }
func (m ofRegion) Read(off int, p []byte)    { bus.ReadBytes(m.r, bus.Off(off), p) }
func (m ofRegion) Write(off int, p []byte)   { bus.WriteBytes(m.r, bus.Off(off), p) }
func (m ofRegion) Bytes() []byte             { return nil }
