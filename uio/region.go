package uio

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/mmio"
	"github.com/ring3dev/ring3/internal/fdio"
	"github.com/ring3dev/ring3/internal/physmem"
)

// region is a bus.Region that ends.
type region interface {
	bus.Region
	Close() error
}

// ports is a region in I/O space, by way of a file.
type ports struct{ *fdio.Region }

// Close makes later accesses read all-ones.
func (p ports) Close() error {
	p.Region.Close()
	return nil
}

// Region gives access to a region, mapped when it is first asked for.
func (d *Device) Region(index int) (bus.Region, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.refuseLocked(); err != nil {
		return nil, err
	}
	if r := d.regions[index]; r != nil {
		return r, nil
	}
	for _, info := range d.Regions() {
		if info.Index != index {
			continue
		}
		r, err := d.openRegion(info)
		if err != nil {
			return nil, err
		}
		d.regions[index] = r
		return r, nil
	}
	return nil, fmt.Errorf("%s: no region %d: %w", d.place.name, index, bus.ErrNotSupported)
}

// openRegion maps a region: by sysfs' file of the BAR, which the kernel takes away again when
// the function is removed, or else by the UIO device's map of the same addresses.
func (d *Device) openRegion(info bus.RegionInfo) (region, error) {
	if d.fn == nil {
		for _, w := range d.place.maps {
			if w.index == info.Index {
				return d.mapWindow(w, info)
			}
		}
	}
	if info.Addr == 0 {
		return nil, fmt.Errorf("%s: region %d was not placed: %w", d.place.name, info.Index, bus.ErrNotSupported)
	}
	fd, ok := d.files.resource[info.Index]
	switch {
	case ok && info.Kind == bus.RegionIO:
		r := fdio.NewRegion(info, fd, 0)
		r.OnError(d.configError)
		return ports{r}, nil
	case ok:
		return d.mapAt(fd, 0, info.Addr%uint64(pageSize), info)
	}
	for _, w := range d.place.maps {
		if at := w.addr + w.offset; info.Kind == bus.RegionMem && at == info.Addr && w.size-w.offset >= info.Size {
			return d.mapWindow(w, info)
		}
	}
	if why := d.lacks[fileResource+strconv.Itoa(info.Index)]; why != nil {
		return nil, why
	}
	return nil, fmt.Errorf("%s: region %d: its file is not among those passed, and the UIO driver maps it not: %w", d.place.name, info.Index, bus.ErrNotSupported)
}

// mapWindow maps one of the UIO driver's maps: map N is at page N of the file.
func (d *Device) mapWindow(w window, info bus.RegionInfo) (region, error) {
	return d.mapAt(d.files.uioFD, int64(w.index)*int64(pageSize), w.offset, info)
}

// mapAt maps the region that lies skip bytes behind the place at of a file.
func (d *Device) mapAt(fd int, at int64, skip uint64, info bus.RegionInfo) (region, error) {
	if info.Size == 0 || info.Size > maxMap || skip > maxMap {
		return nil, fmt.Errorf("%s: mapping region %d: %#x bytes, want 1 to %#x: %w", d.place.name, info.Index, info.Size, uint64(maxMap), bus.ErrNotSupported)
	}
	all, err := d.kernel.mmap(fd, at, int(skip+info.Size))
	if err != nil {
		return nil, fmt.Errorf("%s: mapping region %d: %w", d.place.name, info.Index, err)
	}
	r, err := mmio.NewRegion(info, all[skip:skip+info.Size:skip+info.Size], func([]byte) error { return unix.Munmap(all) })
	if err != nil {
		_ = unix.Munmap(all)
		return nil, fmt.Errorf("%s: %w", d.place.name, err)
	}
	return mmio.Guard(r, func() {
		d.end(fmt.Errorf("%s: region %d: the kernel took its pages away: the device was removed: %w", d.place.name, info.Index, bus.ErrGone))
	}), nil
}

// maxMap is the largest region, an exabyte: more does not come from a device.
const maxMap = 1 << 60

var pageSize = unix.Getpagesize()

// kernel is what of the kernel tests replace.
type kernel struct {
	mmap   func(fd int, at int64, n int) ([]byte, error)
	source func() (physmem.Source, error) // of DMA memory
}

var realKernel = kernel{
	mmap: func(fd int, at int64, n int) ([]byte, error) {
		return unix.Mmap(fd, at, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	},
	source: physmem.Open,
}
