package mmio

import (
	"encoding/binary"
	"runtime"
	"runtime/debug"

	"github.com/ring3dev/ring3/bus"
)

// anyCopy says that memory of a device may be copied as any other. Elsewhere it may be mapped so that an access which is not aligned to
// its width faults, and copy makes such.
const anyCopy = runtime.GOARCH == "amd64"

// span is the n bytes at off; nil outside the region and after Close. The caller holds mu while it uses it.
func (r *Region) span(off bus.Off, n int) []byte {
	if size := uint64(len(r.mem)); uint64(off) > size || uint64(n) > size-uint64(off) {
		return nil
	}
	return r.mem[off : int(off)+n : int(off)+n]
}

// ReadBytes copies out of memory; bus.Copier.
func (r *Region) ReadBytes(off bus.Off, p []byte) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	b := r.span(off, len(p))
	switch {
	case b == nil:
		bus.Ones(p)
	case anyCopy:
		copy(p, b)
	default:
		r.readAligned(off, p)
	}
}

// WriteBytes copies into memory; bus.Copier.
func (r *Region) WriteBytes(off bus.Off, p []byte) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	b := r.span(off, len(p))
	switch {
	case b == nil:
	case anyCopy:
		copy(b, p)
	default:
		r.writeAligned(off, p)
	}
}

// readAligned copies by aligned accesses of 64 and of 8 bits. The caller checked that all is inside, and holds mu.
func (r *Region) readAligned(off bus.Off, p []byte) {
	for len(p) > 0 {
		if off&7 == 0 && len(p) >= 8 {
			binary.LittleEndian.PutUint64(p, load64((*uint64)(r.at(off, 8))))
			off, p = off+8, p[8:]
			continue
		}
		p[0] = load8((*uint8)(r.at(off, 1)))
		off, p = off+1, p[1:]
	}
}

func (r *Region) writeAligned(off bus.Off, p []byte) {
	for len(p) > 0 {
		if off&7 == 0 && len(p) >= 8 {
			store64((*uint64)(r.at(off, 8)), binary.LittleEndian.Uint64(p))
			off, p = off+8, p[8:]
			continue
		}
		store8((*uint8)(r.at(off, 1)), p[0])
		off, p = off+1, p[1:]
	}
}

// ReadBytes copies out of memory; bus.Copier. Where some of it is not there, all of p is all-ones.
func (g *Guarded) ReadBytes(off bus.Off, p []byte) {
	done := false
	defer func() {
		if !done {
			bus.Ones(p)
		}
	}()
	defer g.caught(debug.SetPanicOnFault(true))
	g.r.ReadBytes(off, p)
	done = true
}

// WriteBytes copies into memory, or some of it where the rest is not there; bus.Copier.
func (g *Guarded) WriteBytes(off bus.Off, p []byte) {
	defer g.caught(debug.SetPanicOnFault(true))
	g.r.WriteBytes(off, p)
}
