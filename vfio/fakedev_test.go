package vfio

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/iova"
)

func (f *fake) deviceInfo(dev int) (flags, regions, irqs uint32, err error) {
	defer f.mu.Unlock()
	if err := f.begin("deviceInfo"); err != nil {
		return 0, 0, 0, err
	}
	fn, err := is[*fakeFunc](f, dev)
	if err != nil {
		return 0, 0, 0, err
	}
	flags = devicePCI
	if fn.canReset {
		flags |= deviceReset
	}
	return flags, 9, 5, nil
}

func (f *fake) regionInfo(dev int, index uint32) ([]byte, error) {
	defer f.mu.Unlock()
	if err := f.begin("regionInfo %d", index); err != nil {
		return nil, err
	}
	fn, err := is[*fakeFunc](f, dev)
	if err != nil {
		return nil, err
	}
	r := regionInfo{flags: regionRead | regionWrite, offset: offsetOf(index)}
	switch {
	case index == 0:
		r.size, r.flags = barSize, r.flags|regionMmap
		if fn.sparse {
			r.sparse, r.areas = true, []iova.Span{{Base: 4096, End: 8192}, {Base: 12288, End: barSize}}
		}
	case index == 1 && fn.io:
		r.size = 32
	case index == regionConfig:
		r.size = cfgSize
	case index > 8:
		return nil, unix.EINVAL
	}
	return regionBytes(r), nil
}

// regionBytes is what the kernel tells of a region.
func regionBytes(r regionInfo) []byte {
	b := make([]byte, regionInfoSize)
	host.PutUint64(b[16:], r.size)
	host.PutUint64(b[24:], uint64(r.offset))
	if r.sparse {
		r.flags |= regionCaps
		put32(b[12:], uint32(len(b)))
		b = append(b, make([]byte, 16)...)
		host.PutUint16(b[32:], capSparse)
		put32(b[40:], uint32(len(r.areas)))
		for _, a := range r.areas {
			b = host.AppendUint64(host.AppendUint64(b, a.Base), a.Size())
		}
	}
	put32(b, uint32(len(b)), r.flags)
	return b
}

func (f *fake) irqInfo(dev int, index uint32) (flags, count uint32, err error) {
	defer f.mu.Unlock()
	if err := f.begin("irqInfo %d", index); err != nil {
		return 0, 0, err
	}
	if _, err := is[*fakeFunc](f, dev); err != nil {
		return 0, 0, err
	}
	return irqEventfd, map[uint32]uint32{irqINTx: 1, irqMSI: 4, irqMSIX: vectors, irqErr: 1, irqReq: 1}[index], nil
}

func (f *fake) setIRQs(dev int, flags, index, start, count uint32, fds []int32) error {
	defer f.mu.Unlock()
	if err := f.begin("setIRQs %#x %d %d %d", flags, index, start, count); err != nil && flags&setEventfd != 0 {
		return err
	}
	fn, err := is[*fakeFunc](f, dev)
	if err != nil {
		return err
	}
	on := fn.irqs[index]
	switch {
	case flags == setNone|setTrigger && count == 0:
		delete(fn.irqs, index)
	case flags == setEventfd|setTrigger && int(count) == len(fds):
		if index == irqMSI && fn.left != 0 && int(count) > fn.left {
			return tooMany(fn.left)
		}
		for other := range fn.irqs {
			if index < irqErr && other < irqErr && other != index {
				return unix.EINVAL // one mode at a time
			}
		}
		if on == nil {
			on = map[uint32]int32{}
			fn.irqs[index] = on
		}
		for i, fd := range fds {
			on[start+uint32(i)] = fd
		}
		if index == irqINTx {
			fn.masked = false
			fn.level()
		}
	case flags == setNone|setMask && index == irqINTx && on != nil:
		fn.masked = true
	case flags == setNone|setUnmask && index == irqINTx && on != nil:
		fn.masked = false
		fn.level()
	default:
		return unix.EINVAL
	}
	return nil
}

// level fires the line where it is high and not masked.
func (fn *fakeFunc) level() {
	status := byte(1 << 4)
	if fn.high {
		status |= 1 << 3
	}
	fn.config(uint64(pci.CfgStatus), status)
	if fd, ok := fn.irqs[irqINTx][0]; ok && fn.high && !fn.masked {
		fn.masked = true
		signal(fd)
	}
}

func signal(fd int32) {
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], 1)
	_, _ = unix.Write(int(fd), b[:])
}

// raise is what a device does for an interrupt, in the mode that is enabled.
func (f *fake) raise(fn *fakeFunc, high bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, index := range []uint32{irqMSIX, irqMSI} {
		if fd, ok := fn.irqs[index][0]; ok && high && fd >= 0 {
			signal(fd)
			return
		}
	}
	fn.high = high
	fn.level()
}

// tell signals one of the interrupts that end a device, as the kernel does.
func (f *fake) tell(fn *fakeFunc, index uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fd, ok := fn.irqs[index][0]; ok {
		signal(fd)
	}
}

// reach is the memory that a device finds at an address, nil where the IOMMU stops it.
func (f *fake) reach(fn *fakeFunc, at bus.IOVA, n int, p perm) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	for base, m := range fn.space.maps {
		if off := uint64(at) - base; uint64(at) >= base && off+uint64(n) <= uint64(len(m.mem)) && m.p&p != 0 {
			return m.mem[off : off+uint64(n)]
		}
	}
	return nil
}

func (f *fake) reset(dev int) error {
	defer f.mu.Unlock()
	if err := f.begin("reset"); err != nil {
		return err
	}
	fn, err := is[*fakeFunc](f, dev)
	if err == nil {
		fn.resets++
	}
	return err
}

func (f *fake) hotResetInfo(dev int) ([]byte, error) {
	defer f.mu.Unlock()
	if err := f.begin("hotResetInfo"); err != nil {
		return nil, err
	}
	fn, err := is[*fakeFunc](f, dev)
	if err != nil || fn.hit == nil {
		return nil, errors.Join(err, unix.ENODEV)
	}
	flags := uint32(0)
	if f.cdevs {
		flags = hotByDevice | hotOwned
		for _, h := range fn.hit {
			if h.group == notOwned {
				flags = hotByDevice
			}
		}
	}
	return hotBytes(flags, fn.hit), nil
}

// hotBytes is what the kernel tells of a bus reset.
func hotBytes(flags uint32, hit []dependent) []byte {
	b := make([]byte, hotInfoSize)
	put32(b[4:], flags, uint32(len(hit)))
	for _, h := range hit {
		b = host.AppendUint32(b, h.group)
		b = host.AppendUint16(b, uint16(h.addr.Domain))
		b = append(b, h.addr.Bus, h.addr.Devfn())
	}
	put32(b, uint32(len(b)))
	return b
}

func (f *fake) hotReset(dev int, groups []int32) error {
	defer f.mu.Unlock()
	if err := f.begin("hotReset"); err != nil {
		return err
	}
	fn, err := is[*fakeFunc](f, dev)
	if err == nil {
		fn.hotWith = groups
		fn.resets++
	}
	return err
}
