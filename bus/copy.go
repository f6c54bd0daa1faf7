package bus

import "encoding/binary"

// Copier is implemented by a Region that copies many bytes faster than by one call for eight. It is for memory, where an access
// has no effect but that: of what width the accesses are, and in which order, is not said. What does not lie
// inside the region as a whole reads all-ones, or is not written.
type Copier interface {
	ReadBytes(off Off, p []byte)
	WriteBytes(off Off, p []byte)
}

// ReadBytes copies out of a region of memory as r does it best.
func ReadBytes(r Region, off Off, p []byte) {
	if c, ok := r.(Copier); ok {
		c.ReadBytes(off, p)
		return
	}
	if !inside(r, off, len(p)) {
		Ones(p)
		return
	}
	for len(p) > 0 {
		switch n := step(r, off, len(p)); n {
		case 8:
			binary.LittleEndian.PutUint64(p, r.Read64(off))
			off, p = off+8, p[8:]
		case 4:
			binary.LittleEndian.PutUint32(p, r.Read32(off))
			off, p = off+4, p[4:]
		default:
			p[0] = r.Read8(off)
			off, p = off+1, p[1:]
		}
	}
}

// WriteBytes copies into a region of memory as r does it best.
func WriteBytes(r Region, off Off, p []byte) {
	if c, ok := r.(Copier); ok {
		c.WriteBytes(off, p)
		return
	}
	if !inside(r, off, len(p)) {
		return
	}
	for len(p) > 0 {
		switch n := step(r, off, len(p)); n {
		case 8:
			r.Write64(off, binary.LittleEndian.Uint64(p))
			off, p = off+8, p[8:]
		case 4:
			r.Write32(off, binary.LittleEndian.Uint32(p))
			off, p = off+4, p[4:]
		default:
			r.Write8(off, p[0])
			off, p = off+1, p[1:]
		}
	}
}

// Ones fills p with what is read where there is nothing.
func Ones(p []byte) {
	for i := range p {
		p[i] = 0xff
	}
}

func inside(r Region, off Off, n int) bool {
	size := r.Info().Size
	return uint64(off) <= size && uint64(n) <= size-uint64(off)
}

// step is the widest access for the next of n bytes.
func step(r Region, off Off, n int) int {
	switch {
	case off&7 == 0 && n >= 8 && r.Info().Kind == RegionMem:
		return 8
	case off&3 == 0 && n >= 4:
		return 4
	}
	return 1
}

// Holder is implemented by a Region that is ordinary memory of this process, which cannot go away under an access.
type Holder interface {
	// Hold is that memory, which stays where it is until release is called, even if the device is closed before: what is
	// written then reaches nobody. nil: there is none, or not any more.
	Hold() (b []byte, release func())
}

// Hold is a region's memory, if it is a Holder; else nil, and a release that does nothing.
func Hold(r Region) (b []byte, release func()) {
	if h, ok := r.(Holder); ok {
		if b, release = h.Hold(); b != nil {
			return b, release
		}
	}
	return nil, func() {}
}
