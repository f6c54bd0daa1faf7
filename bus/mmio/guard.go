package mmio

import (
	"runtime/debug"

	"github.com/ring3dev/ring3/bus"
)

// Guarded is a Region whose memory may vanish under an access: the kernel takes a BAR's
// pages away when the function is unplugged, or stops decoding, and a touch is a SIGBUS then,
// which would end the process. Here it reads all-ones or writes nothing, and fault is told.
// Safe for concurrent use.
type Guarded struct {
	r     *Region
	fault func()
}

// Guard wraps r. fault is called, in the goroutine of the access, each time that an access hit
// memory that is not there; it may Close the region.
func Guard(r *Region, fault func()) *Guarded { return &Guarded{r: r, fault: fault} }

// caught is to be deferred around an access: it recovers from a fault inside the region and
// from nothing else. old is what SetPanicOnFault was before.
func (g *Guarded) caught(old bool) {
	debug.SetPanicOnFault(old)
	v := recover()
	if v == nil {
		return
	}
	if f, ok := v.(interface{ Addr() uintptr }); !ok || !g.r.holds(f.Addr()) {
		panic(v)
	}
	g.fault()
}

// Info describes the region.
func (g *Guarded) Info() bus.RegionInfo { return g.r.Info() }

// Close is Region's.
func (g *Guarded) Close() error { return g.r.Close() }

// Read8 is one load of 8 bits.
func (g *Guarded) Read8(off bus.Off) (v uint8) {
	v = ^v
	defer g.caught(debug.SetPanicOnFault(true))
	return g.r.Read8(off)
}

// Read16 is one load of 16 bits.
func (g *Guarded) Read16(off bus.Off) (v uint16) {
	v = ^v
	defer g.caught(debug.SetPanicOnFault(true))
	return g.r.Read16(off)
}

// Read32 is one load of 32 bits.
func (g *Guarded) Read32(off bus.Off) (v uint32) {
	v = ^v
	defer g.caught(debug.SetPanicOnFault(true))
	return g.r.Read32(off)
}

// Read64 is one load of 64 bits.
func (g *Guarded) Read64(off bus.Off) (v uint64) {
	v = ^v
	defer g.caught(debug.SetPanicOnFault(true))
	return g.r.Read64(off)
}

// Write8 is one store of 8 bits.
func (g *Guarded) Write8(off bus.Off, v uint8) {
	defer g.caught(debug.SetPanicOnFault(true))
	g.r.Write8(off, v)
}

// Write16 is one store of 16 bits.
func (g *Guarded) Write16(off bus.Off, v uint16) {
	defer g.caught(debug.SetPanicOnFault(true))
	g.r.Write16(off, v)
}

// Write32 is one store of 32 bits.
func (g *Guarded) Write32(off bus.Off, v uint32) {
	defer g.caught(debug.SetPanicOnFault(true))
	g.r.Write32(off, v)
}

// Write64 is one store of 64 bits.
func (g *Guarded) Write64(off bus.Off, v uint64) {
	defer g.caught(debug.SetPanicOnFault(true))
	g.r.Write64(off, v)
}
