package vfio

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/mmio"
	"github.com/ring3dev/ring3/internal/fdio"
	"github.com/ring3dev/ring3/internal/iova"
)

// window is a region in use.
type window interface {
	bus.Region
	// Suspend makes accesses read all-ones until Resume: the device does not decode.
	Suspend()
	Resume()
	Close() error
}

// Region maps a BAR the first time, and hands out the same registers from then on. What the
// kernel does not let a process map is read and written by system calls.
func (d *Device) Region(index int) (bus.Region, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.Err(); err != nil {
		return nil, err
	}
	w := d.open[index]
	if w == nil {
		var err error
		if w, err = d.window(index); err != nil {
			return nil, d.errorf("region %d: %w", index, err)
		}
		d.open[index] = w
		d.cfg.watch(w)
	}
	return w, nil
}

func (d *Device) window(index int) (window, error) {
	var info *bus.RegionInfo
	for i := range d.fn.BARs {
		if d.fn.BARs[i].Index == index {
			info = &d.fn.BARs[i]
		}
	}
	if info == nil {
		return nil, fmt.Errorf("there is none: %w", bus.ErrNotSupported)
	}
	r := d.bars[index]
	switch {
	case r.flags&regionMmap == 0 || info.Kind == bus.RegionIO:
		return &plain{fdio.NewRegion(*info, d.fd, r.offset)}, nil
	case r.sparse:
		return d.sparse(*info, r)
	}
	return d.mapped(*info, r, iova.Span{End: r.size})
}

// mapped maps a part of a region that begins on a page. info has the part's size.
func (d *Device) mapped(info bus.RegionInfo, r regionInfo, part iova.Span) (*mmio.Region, error) {
	prot := 0
	if r.flags&regionRead != 0 {
		prot |= unix.PROT_READ
	}
	if r.flags&regionWrite != 0 {
		prot |= unix.PROT_WRITE
	}
	// A BAR that is smaller than a page has the page for itself where it can be mapped.
	all, err := unix.Mmap(d.fd, r.offset+int64(part.Base), int((part.Size()+pageSize-1)&^(pageSize-1)), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	m, err := mmio.NewRegion(info, all[:part.Size()], func([]byte) error { return unix.Munmap(all) })
	if err != nil {
		_ = unix.Munmap(all)
	}
	return m, err
}

// plain is a region that is not mapped.
type plain struct{ *fdio.Region }

// The kernel answers an access that is not decoded with an error, which reads all-ones.
func (p *plain) Suspend() {}
func (p *plain) Resume()  {}
func (p *plain) Close() error {
	p.Region.Close()
	return nil
}

// sparse is a region of which areas are mapped. What lies between is read and written by
// system calls.
type sparse struct {
	*fdio.Region
	areas []area // sorted
}

type area struct {
	iova.Span
	*mmio.Region
}

func (d *Device) sparse(info bus.RegionInfo, r regionInfo) (*sparse, error) {
	s := &sparse{Region: fdio.NewRegion(info, d.fd, r.offset)}
	for _, a := range r.areas {
		part := info
		part.Size = a.Size()
		m, err := d.mapped(part, r, a)
		if err != nil {
			_ = s.Close()
			return nil, err
		}
		s.areas = append(s.areas, area{a, m})
	}
	return s, nil
}

func (s *sparse) Suspend() {
	for _, a := range s.areas {
		a.Region.Suspend()
	}
}

func (s *sparse) Resume() {
	for _, a := range s.areas {
		a.Region.Resume()
	}
}

func (s *sparse) Close() error {
	s.Region.Close()
	var err error
	for _, a := range s.areas {
		if e := a.Region.Close(); e != nil {
			err = e
		}
	}
	return err
}

// at is what an access of n bytes goes to: an area that it lies in as a whole, or the file.
func (s *sparse) at(off bus.Off, n uint64) (bus.Region, bus.Off) {
	for i := range s.areas {
		if a := &s.areas[i]; a.Holds(uint64(off)) && a.End-uint64(off) >= n {
			return a.Region, off - bus.Off(a.Base)
		}
	}
	return s.Region, off
}

// Read8 is one access of 8 bits.
func (s *sparse) Read8(o bus.Off) uint8 { r, o := s.at(o, 1); return r.Read8(o) }

// Read16 is one access of 16 bits.
func (s *sparse) Read16(o bus.Off) uint16 { r, o := s.at(o, 2); return r.Read16(o) }

// Read32 is one access of 32 bits.
func (s *sparse) Read32(o bus.Off) uint32 { r, o := s.at(o, 4); return r.Read32(o) }

// Read64 is one access of 64 bits.
func (s *sparse) Read64(o bus.Off) uint64 { r, o := s.at(o, 8); return r.Read64(o) }

// Write8 is one access of 8 bits.
func (s *sparse) Write8(o bus.Off, v uint8) { r, o := s.at(o, 1); r.Write8(o, v) }

// Write16 is one access of 16 bits.
func (s *sparse) Write16(o bus.Off, v uint16) { r, o := s.at(o, 2); r.Write16(o, v) }

// Write32 is one access of 32 bits.
func (s *sparse) Write32(o bus.Off, v uint32) { r, o := s.at(o, 4); r.Write32(o, v) }

// Write64 is one access of 64 bits.
func (s *sparse) Write64(o bus.Off, v uint64) { r, o := s.at(o, 8); r.Write64(o, v) }
