package vfiouser

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// windows are the client's DMA memory. One goroutine at a time.
type windows struct {
	x      *session
	all    []*window // sorted
	mapped int       // of them
}

// A process has 65530 mappings, as a rule, and Go's runtime dies of having no more. What is above this is read and
// written through its file.
const (
	maxMapped    = 4096 // windows of one client
	maxAllMapped = 16384
)

// allMapped are the windows that all servers of this process have mapped.
var allMapped atomic.Int64

// window is memory of the client's at an address.
type window struct {
	base, size uint64
	file       *os.File // nil: the client reads and writes it itself
	b          []byte   // mapped, where it stays
	of         *windows // which count it then
	release    func()   // takes it away from the device; nil: the device never had it
}

// add is DMA_MAP.
func (d *windows) add(r *reader, m *message) error {
	q := r.dmaMap()
	const known = dmaReadable | dmaWriteable | dmaMmap | dmaFileIO
	end := q.addr + q.size
	switch {
	case r.short || len(r.b) != 0 || q.argsz < dmaMapSize:
		return errShort
	case q.flags&^known != 0 || q.flags&(dmaReadable|dmaWriteable) == 0 || len(m.fds) > 1 || len(m.fds) == 0 && q.flags&(dmaMmap|dmaFileIO) != 0:
		return fmt.Errorf("flags %#x with %d descriptors: %w", q.flags, len(m.fds), unix.EINVAL)
	case q.size == 0 || end < q.addr || (q.addr|q.size|q.offset)&(pageSize-1) != 0 || q.offset+q.size < q.offset || q.offset+q.size > 1<<62:
		return fmt.Errorf("%#x bytes at %#x, offset %#x: want whole pages: %w", q.size, q.addr, q.offset, unix.EINVAL)
	case len(d.all) >= ownMaps:
		return fmt.Errorf("there are %d windows already: %w", len(d.all), unix.ENOSPC)
	}
	i, _ := d.find(q.addr)
	if i > 0 && d.all[i-1].base+d.all[i-1].size > q.addr || i < len(d.all) && d.all[i].base < end {
		return fmt.Errorf("%#x bytes at %#x: there are some already: %w", q.size, q.addr, unix.EEXIST)
	}
	w := &window{base: q.addr, size: q.size}
	if len(m.fds) == 1 {
		w.file = m.take(0, "client memory")
	}
	if err := d.place(w, q); err != nil {
		w.close()
		return err
	}
	d.all = slices.Insert(d.all, i, w)
	return nil
}

// find is where a window with that address is, or would be.
func (d *windows) find(addr uint64) (int, bool) {
	return slices.BinarySearchFunc(d.all, addr, func(w *window, at uint64) int {
		switch {
		case w.base < at:
			return -1
		case w.base > at:
			return 1
		}
		return 0
	})
}

// place maps a window and gives it to the device.
func (d *windows) place(w *window, q dmaMap) error {
	p, ok := d.x.dev.DMA().(bus.Placer)
	if !ok {
		return fmt.Errorf("the device takes no memory at a client's addresses: %w", bus.ErrNotSupported)
	}
	at := bus.Window{IOVA: bus.IOVA(q.addr), Size: q.size, File: w.file, Off: int64(q.offset)}
	switch q.flags & (dmaReadable | dmaWriteable) {
	case dmaReadable:
		at.Dir = bus.ToDevice
	case dmaWriteable:
		at.Dir = bus.FromDevice
	}
	firmware := w.file == nil
	if w.file != nil && isHuge(int(w.file.Fd())) {
		w.file.Close()
		w.file, at.File, at.Off = nil, nil, 0
	}
	if w.file != nil {
		b, stays, err := mapFile(w.file, at.Off, q.size)
		if err != nil {
			return err
		}
		if stays && q.flags&dmaFileIO == 0 && d.mapped < maxMapped && allMapped.Load() < maxAllMapped {
			w.b, w.of = b, d
			d.mapped++
			allMapped.Add(1)
		} else if b != nil {
			_ = unix.Munmap(b)
		}
	}
	at.Bytes, at.Mem = w.b, d.memory(w, at.Off)
	release, err := p.Place(at)
	if errors.Is(err, bus.ErrNotSupported) && firmware {
		// A virtual machine's firmware, as a rule: no device goes there. One that does is stray.
		d.x.srv.o.Log.Debug(d.x.srv.errorf("the client's memory at %#x, %#x bytes, is out of the device's reach: %w", w.base, w.size, err).Error())
		return nil
	}
	w.release = release
	return err
}

// memory is what copies from and to a window.
func (d *windows) memory(w *window, off int64) bus.WindowMemory {
	if w.file == nil {
		return &remote{d.x, w.base, w.size}
	}
	return &fileMemory{w.file, off, int64(w.size)}
}

// fileMemory is a window whose file may shrink: it is read and written, not touched.
type fileMemory struct {
	f         *os.File
	off, size int64
}

var errOutside = errors.New("outside the window")

// fits bounds a copy.
func fits(p []byte, off, size int64) error {
	if off < 0 || off > size || int64(len(p)) > size-off {
		return errOutside
	}
	return nil
}

func (m *fileMemory) ReadAt(p []byte, off int64) (int, error) {
	if err := fits(p, off, m.size); err != nil {
		return 0, err
	}
	return m.f.ReadAt(p, m.off+off)
}

func (m *fileMemory) WriteAt(p []byte, off int64) (int, error) {
	if err := fits(p, off, m.size); err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(m.f.Fd()), &st); err != nil || st.Size-m.off-off < int64(len(p)) {
		return 0, io.ErrUnexpectedEOF // it must not grow
	}
	return m.f.WriteAt(p, m.off+off)
}

// remove is DMA_UNMAP: when it is answered, the device does not reach the memory any more.
func (d *windows) remove(r *reader) (writer, error) {
	q := r.dmaUnmap()
	if r.short || len(r.b) != 0 || q.argsz < dmaUnmapSize {
		return nil, errShort
	}
	switch {
	case q.flags == unmapAll && q.addr == 0 && q.size == 0:
		d.close()
	case q.flags != 0:
		return nil, fmt.Errorf("flags %#x: %w", q.flags, bus.ErrNotSupported)
	default:
		i, ok := d.find(q.addr)
		if !ok || d.all[i].size != q.size {
			return nil, fmt.Errorf("%#x bytes at %#x: there is no such window: %w", q.size, q.addr, unix.ENOENT)
		}
		d.all[i].close()
		d.all = slices.Delete(d.all, i, i+1)
	}
	w := d.x.begin()
	w.dmaUnmap(q)
	return w, nil
}

func (d *windows) close() {
	for _, w := range d.all {
		w.close()
	}
	d.all = nil
}

func (w *window) close() {
	if w.release != nil {
		w.release()
	}
	if w.b != nil {
		_ = unix.Munmap(w.b)
		w.of.mapped--
		allMapped.Add(-1)
	}
	if w.file != nil {
		w.file.Close()
	}
}
