package mmio

import (
	"runtime/debug"

	"github.com/ring3dev/ring3/bus"
)

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
	if b := r.span(off, len(p)); b != nil {
		copy(p, b)
		return
	}
	bus.Ones(p)
}

// WriteBytes copies into memory; bus.Copier.
func (r *Region) WriteBytes(off bus.Off, p []byte) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	copy(r.span(off, len(p)), p)
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
