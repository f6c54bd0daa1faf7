// Package fdio is registers behind pread(2) and pwrite(2): config space and BARs as VFIO and
// sysfs offer them. Each access is one system call of exactly its width.
package fdio

import (
	"encoding/binary"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// Space is a stretch of a file whose bytes are registers. An access that is not aligned to
// its width or does not lie inside reads all-ones or writes nothing, and so does one
// that the kernel refuses: a device that is gone. Safe for concurrent use, Close included.
type Space struct {
	fd    int
	base  int64
	size  uint64
	fault func(error)

	mu     sync.RWMutex // held while fd is used
	closed bool
}

// NewSpace is size bytes of fd from base on. fd stays the caller's, who calls Close before
// closing it.
func NewSpace(fd int, base int64, size uint64) *Space { return &Space{fd: fd, base: base, size: size} }

// OnError has f called, after the access, with why the kernel refused one inside the space:
// io.ErrUnexpectedEOF where it gave fewer bytes. It is for before the first access. f may
// call Close.
func (s *Space) OnError(f func(error)) { s.fault = f }

// Close waits for accesses under way and makes later ones read all-ones.
func (s *Space) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// ok says whether there is such an access. The caller holds mu.
func (s *Space) ok(off bus.Off, width uint64) bool {
	o := uint64(off)
	return o&(width-1) == 0 && o < s.size && s.size-o >= width && !s.closed
}

func (s *Space) read(off bus.Off, width uint64) uint64 {
	var b [8]byte
	if !s.access(off, b[:width], false) {
		return ^uint64(0)
	}
	return binary.LittleEndian.Uint64(b[:])
}

func (s *Space) write(off bus.Off, v, width uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	s.access(off, b[:width], true)
}

// access is one system call over len(b) bytes, and says whether it did all of them.
func (s *Space) access(off bus.Off, b []byte, write bool) bool {
	s.mu.RLock()
	if !s.ok(off, uint64(len(b))) {
		s.mu.RUnlock()
		return false
	}
	n, err := 0, error(unix.EINTR)
	for err == unix.EINTR {
		if write {
			n, err = unix.Pwrite(s.fd, b, s.base+int64(off))
		} else {
			n, err = unix.Pread(s.fd, b, s.base+int64(off))
		}
	}
	s.mu.RUnlock()
	if err == nil && n != len(b) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && s.fault != nil {
		s.fault(err)
	}
	return err == nil
}

// Config is a config space; bus.Config.
type Config struct{ Space }

// NewConfig is size bytes of fd from base on: 256 or 4096.
func NewConfig(fd int, base int64, size int) *Config {
	return &Config{Space{fd: fd, base: base, size: uint64(size)}}
}

// Size is 256 or 4096.
func (c *Config) Size() int { return int(c.size) }

// Region is a BAR; bus.Region. In I/O space there are no accesses of 64 bits.
type Region struct {
	Space
	info bus.RegionInfo
}

// NewRegion is the region of fd that begins at base and has info's size.
func NewRegion(info bus.RegionInfo, fd int, base int64) *Region {
	return &Region{Space: Space{fd: fd, base: base, size: info.Size}, info: info}
}

// Info describes the region.
func (r *Region) Info() bus.RegionInfo { return r.info }

// Read8 is one access of 8 bits.
func (s *Space) Read8(o bus.Off) uint8 { return uint8(s.read(o, 1)) }

// Read16 is one access of 16 bits.
func (s *Space) Read16(o bus.Off) uint16 { return uint16(s.read(o, 2)) }

// Read32 is one access of 32 bits.
func (s *Space) Read32(o bus.Off) uint32 { return uint32(s.read(o, 4)) }

// Write8 is one access of 8 bits.
func (s *Space) Write8(o bus.Off, v uint8) { s.write(o, uint64(v), 1) }

// Write16 is one access of 16 bits.
func (s *Space) Write16(o bus.Off, v uint16) { s.write(o, uint64(v), 2) }

// Write32 is one access of 32 bits.
func (s *Space) Write32(o bus.Off, v uint32) { s.write(o, uint64(v), 4) }

// Read64 is one access of 64 bits.
func (r *Region) Read64(o bus.Off) uint64 {
	if r.info.Kind == bus.RegionIO {
		return ^uint64(0)
	}
	return r.read(o, 8)
}

// Write64 is one access of 64 bits.
func (r *Region) Write64(o bus.Off, v uint64) {
	if r.info.Kind != bus.RegionIO {
		r.write(o, v, 8)
	}
}
