package vfio

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/iova"
)

func (f *fake) version(c int) (int, error) {
	defer f.mu.Unlock()
	if err := f.begin("version"); err != nil {
		return 0, err
	}
	_, err := is[*fakeSpace](f, c)
	return apiVersion, err
}

func (f *fake) supports(c, kind int) (bool, error) {
	defer f.mu.Unlock()
	if err := f.begin("supports %d", kind); err != nil {
		return false, err
	}
	return kind == kindType1v2 || kind == kindNone, nil
}

func (f *fake) setIOMMU(c, kind int) error {
	defer f.mu.Unlock()
	if err := f.begin("setIOMMU %d", kind); err != nil {
		return err
	}
	s, err := is[*fakeSpace](f, c)
	if err == nil {
		s.kind = kind
	}
	return err
}

func (f *fake) iommuInfo(c int) ([]byte, error) {
	defer f.mu.Unlock()
	if err := f.begin("iommuInfo"); err != nil {
		return nil, err
	}
	s, err := is[*fakeSpace](f, c)
	if err != nil {
		return nil, err
	}
	return iommuBytes(f.pages, f.ranges, f.avail-len(s.maps)), nil
}

// iommuBytes is what the kernel tells of an IOMMU.
func iommuBytes(pages uint64, ranges []iova.Span, avail int) []byte {
	b := make([]byte, 24)
	put32(b[4:], iommuPageSizes|iommuCaps)
	host.PutUint64(b[8:], pages)
	put32(b[16:], 24)
	b = append(b, make([]byte, 16)...)
	host.PutUint16(b[24:], capRanges)
	put32(b[28:], uint32(40+16*len(ranges)))
	put32(b[32:], uint32(len(ranges)))
	for _, r := range ranges {
		b = host.AppendUint64(host.AppendUint64(b, r.Base), r.End-1)
	}
	at := len(b)
	b = append(b, make([]byte, 16)...)
	host.PutUint16(b[at:], capAvail)
	put32(b[at+8:], uint32(avail))
	put32(b, uint32(len(b)))
	return b
}

// mapAt is what both APIs do to map.
func (f *fake) mapAt(fd int, at uint64, mem []byte, p perm) error {
	s, err := is[*fakeSpace](f, fd)
	if err != nil {
		return err
	}
	size := uint64(len(mem))
	inside := false
	for _, r := range f.ranges {
		inside = inside || at >= r.Base && at+size <= r.End
	}
	if !inside || at%4096 != 0 || size%4096 != 0 || size == 0 {
		return unix.EINVAL
	}
	locked := size
	for o, m := range s.maps {
		if at < o+uint64(len(m.mem)) && o < at+size {
			return unix.EEXIST
		}
		locked += uint64(len(m.mem))
	}
	if len(s.maps) >= f.avail {
		return unix.ENOSPC
	}
	if p&permWrite != 0 && unix.Madvise(mem, unix.MADV_POPULATE_WRITE) != nil {
		return unix.EFAULT // it cannot be written
	}
	if f.memlock != 0 && locked > f.memlock {
		return unix.ENOMEM
	}
	s.maps[at] = fakeMap{mem, p}
	return nil
}

func (f *fake) unmapAt(fd int, at, size uint64) error {
	s, err := is[*fakeSpace](f, fd)
	if err != nil {
		return err
	}
	if m, ok := s.maps[at]; !ok || uint64(len(m.mem)) != size {
		return unix.ENOENT
	}
	delete(s.maps, at)
	return nil
}

func (f *fake) mapDMA(c int, at uint64, mem []byte, p perm) error {
	defer f.mu.Unlock()
	if err := f.begin("mapDMA"); err != nil {
		return err
	}
	if s, err := is[*fakeSpace](f, c); err != nil || s.kind != kindType1v2 {
		return unix.EINVAL
	}
	return f.mapAt(c, at, mem, p)
}

func (f *fake) unmapDMA(c int, at, size uint64) error {
	defer f.mu.Unlock()
	_ = f.begin("unmapDMA")
	return f.unmapAt(c, at, size)
}

func (f *fake) groupFlags(g int) (uint32, error) {
	defer f.mu.Unlock()
	if err := f.begin("groupFlags"); err != nil {
		return 0, err
	}
	x, err := is[*fakeGroup](f, g)
	if err == nil && x.viable {
		return groupViable, nil
	}
	return 0, err
}

func (f *fake) setContainer(g, c int) error {
	defer f.mu.Unlock()
	if err := f.begin("setContainer"); err != nil {
		return err
	}
	x, err := is[*fakeGroup](f, g)
	s, err2 := is[*fakeSpace](f, c)
	if err == nil {
		x.container = s
	}
	return errors.Join(err, err2)
}

func (f *fake) deviceOf(g int, name string) (int, error) {
	defer f.mu.Unlock()
	if err := f.begin("deviceOf %s", name); err != nil {
		return -1, err
	}
	x, err := is[*fakeGroup](f, g)
	fn := f.funcs[name]
	switch {
	case err != nil:
		return -1, err
	case fn == nil || fn.group != x.n:
		return -1, unix.ENODEV
	case x.container == nil || x.container.kind == 0:
		return -1, unix.EINVAL
	}
	fn.space = x.container
	return f.openDevice(fn)
}

func (f *fake) newIOAS(i int) (uint32, error) {
	defer f.mu.Unlock()
	if err := f.begin("newIOAS"); err != nil {
		return 0, err
	}
	s, err := is[*fakeSpace](f, i)
	if err == nil {
		s.kind = 1
	}
	return 7, err
}

func (f *fake) ioasRanges(i int, id uint32) ([]byte, uint64, error) {
	defer f.mu.Unlock()
	if err := f.begin("ioasRanges"); err != nil {
		return nil, 0, err
	}
	var b []byte
	for _, r := range f.ranges {
		b = host.AppendUint64(host.AppendUint64(b, r.Base), r.End-1)
	}
	return b, f.pages & -f.pages, nil
}

func (f *fake) mapIOAS(i int, id uint32, at uint64, mem []byte, p perm) error {
	defer f.mu.Unlock()
	if err := f.begin("mapIOAS"); err != nil {
		return err
	}
	if id != 7 {
		return unix.ENOENT
	}
	return f.mapAt(i, at, mem, p)
}

func (f *fake) unmapIOAS(i int, id uint32, at, size uint64) error {
	defer f.mu.Unlock()
	_ = f.begin("unmapIOAS")
	return f.unmapAt(i, at, size)
}

func (f *fake) bind(dev, iommu int) error {
	defer f.mu.Unlock()
	if err := f.begin("bind"); err != nil {
		return err
	}
	fn, err := is[*fakeFunc](f, dev)
	if err != nil {
		return err
	}
	if !f.groups[fn.group].viable {
		return unix.EBUSY
	}
	fn.space, err = is[*fakeSpace](f, iommu)
	return err
}

func (f *fake) attach(dev int, id uint32) error {
	defer f.mu.Unlock()
	if err := f.begin("attach"); err != nil {
		return err
	}
	fn, err := is[*fakeFunc](f, dev)
	if err == nil && (fn.space == nil || id != 7) {
		return unix.ENOENT
	}
	return err
}
