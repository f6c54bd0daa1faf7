package vfio

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/ioctl"
)

// kernel is what this package asks of the kernel, one method an operation. Descriptors are
// real ones: they are read, written, mapped and closed beside it. Tests have a model of it.
type kernel interface {
	open(path string) (int, error)
	access(path string) error // whether open may succeed

	// A container, /dev/vfio/vfio.
	version(container int) (int, error)
	supports(container int, kind int) (bool, error)
	setIOMMU(container int, kind int) error
	iommuInfo(container int) ([]byte, error)
	mapDMA(container int, iova uint64, mem []byte, p perm) error
	unmapDMA(container int, iova, size uint64) error

	// A group, /dev/vfio/N.
	groupFlags(group int) (uint32, error)
	setContainer(group, container int) error
	deviceOf(group int, name string) (int, error)

	// iommufd, /dev/iommu, and a device of its own, /dev/vfio/devices/vfioN.
	newIOAS(iommu int) (uint32, error)
	ioasRanges(iommu int, ioas uint32) (ranges []byte, align uint64, err error)
	mapIOAS(iommu int, ioas uint32, iova uint64, mem []byte, p perm) error
	unmapIOAS(iommu int, ioas uint32, iova, size uint64) error
	bind(dev, iommu int) error
	attach(dev int, ioas uint32) error

	// A device, however it was opened.
	deviceInfo(dev int) (flags, regions, irqs uint32, err error)
	regionInfo(dev int, index uint32) ([]byte, error)
	irqInfo(dev int, index uint32) (flags, count uint32, err error)
	setIRQs(dev int, flags, index, start, count uint32, fds []int32) error
	reset(dev int) error
	hotResetInfo(dev int) ([]byte, error)
	hotReset(dev int, groups []int32) error
}

// linux is the kernel. Its structures are in the machine's order; those that may grow begin
// with their length.
type linux struct{}

var host = binary.NativeEndian

func put32(b []byte, vs ...uint32) {
	for i, v := range vs {
		host.PutUint32(b[4*i:], v)
	}
}

func (linux) open(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func (linux) access(path string) error {
	return unix.Faccessat(unix.AT_FDCWD, path, unix.R_OK|unix.W_OK, unix.AT_EACCESS)
}

func (linux) version(c int) (int, error) { return ioctl.Value(c, reqVersion, 0) }

func (linux) supports(c, kind int) (bool, error) {
	n, err := ioctl.Value(c, reqExtension, uintptr(kind))
	return n > 0, err
}

func (linux) setIOMMU(c, kind int) error {
	_, err := ioctl.Value(c, reqSetIOMMU, uintptr(kind))
	return err
}

// maxInfo is the most that the kernel may have to tell.
const maxInfo = 1 << 20

// grow asks for a structure that begins with its length: first with size bytes, then with as
// many as the kernel says there are.
func grow(fd int, req uintptr, size int, fill func([]byte)) ([]byte, error) {
	for {
		b := make([]byte, size)
		fill(b)
		put32(b, uint32(size))
		if _, err := ioctl.Bytes(fd, req, b); err != nil {
			return nil, err
		}
		n := host.Uint32(b)
		if n > maxInfo {
			return nil, fmt.Errorf("the kernel has %d bytes to tell, want %d at most: %w", n, maxInfo, bus.ErrProtocol)
		}
		if int(n) <= size {
			return b, nil
		}
		size = int(n)
	}
}

func (linux) iommuInfo(c int) ([]byte, error) {
	return grow(c, reqIOMMUInfo, iommuInfoSize, func([]byte) {})
}

func (linux) mapDMA(c int, iova uint64, mem []byte, p perm) error {
	var b [32]byte
	flags := uint32(0)
	if p&permRead != 0 {
		flags |= mapRead
	}
	if p&permWrite != 0 {
		flags |= mapWrite
	}
	put32(b[:], uint32(len(b)), flags)
	host.PutUint64(b[16:], iova)
	host.PutUint64(b[24:], uint64(len(mem)))
	_, err := ioctl.Memory(c, reqMapDMA, b[:], 8, mem)
	return err
}

func (linux) unmapDMA(c int, iova, size uint64) error {
	var b [24]byte
	put32(b[:], uint32(len(b)))
	host.PutUint64(b[8:], iova)
	host.PutUint64(b[16:], size)
	if _, err := ioctl.Bytes(c, reqUnmapDMA, b[:]); err != nil {
		return err
	}
	if got := host.Uint64(b[16:]); got != size {
		return fmt.Errorf("%d of %d bytes were mapped: %w", got, size, bus.ErrProtocol)
	}
	return nil
}

func (linux) groupFlags(g int) (uint32, error) {
	var b [8]byte
	put32(b[:], uint32(len(b)))
	_, err := ioctl.Bytes(g, reqGroupStatus, b[:])
	return host.Uint32(b[4:]), err
}

func (linux) setContainer(g, c int) error {
	var b [4]byte
	put32(b[:], uint32(c))
	_, err := ioctl.Bytes(g, reqSetContainer, b[:])
	return err
}

func (linux) deviceOf(g int, name string) (int, error) {
	fd, err := ioctl.Bytes(g, reqDeviceFD, append([]byte(name), 0))
	if err == nil {
		unix.CloseOnExec(fd)
	}
	return fd, err
}

func (linux) newIOAS(i int) (uint32, error) {
	var b [12]byte
	put32(b[:], uint32(len(b)))
	_, err := ioctl.Bytes(i, reqIOASAlloc, b[:])
	return host.Uint32(b[8:]), err
}

func (linux) ioasRanges(i int, ioas uint32) ([]byte, uint64, error) {
	for n := uint32(16); ; {
		var b [32]byte
		out := make([]byte, 16*n)
		put32(b[:], uint32(len(b)), ioas, n)
		_, err := ioctl.Out(i, reqIOASRanges, b[:], 16, out)
		have := host.Uint32(b[8:])
		if errors.Is(err, unix.EMSGSIZE) && have > n && have <= maxInfo/16 {
			n = have
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		return out[:16*min(n, have)], host.Uint64(b[24:]), nil
	}
}

func (linux) mapIOAS(i int, ioas uint32, iova uint64, mem []byte, p perm) error {
	var b [40]byte
	flags := uint32(ioasFixed)
	if p&permRead != 0 {
		flags |= ioasRead
	}
	if p&permWrite != 0 {
		flags |= ioasWrite
	}
	put32(b[:], uint32(len(b)), flags, ioas)
	host.PutUint64(b[24:], uint64(len(mem)))
	host.PutUint64(b[32:], iova)
	_, err := ioctl.Memory(i, reqIOASMap, b[:], 16, mem)
	return err
}

func (linux) unmapIOAS(i int, ioas uint32, iova, size uint64) error {
	var b [24]byte
	put32(b[:], uint32(len(b)), ioas)
	host.PutUint64(b[8:], iova)
	host.PutUint64(b[16:], size)
	_, err := ioctl.Bytes(i, reqIOASUnmap, b[:])
	return err
}

func (linux) bind(dev, iommu int) error {
	var b [16]byte
	put32(b[:], uint32(len(b)), 0, uint32(iommu))
	_, err := ioctl.Bytes(dev, reqBind, b[:])
	return err
}

func (linux) attach(dev int, ioas uint32) error {
	var b [12]byte
	put32(b[:], uint32(len(b)), 0, ioas)
	_, err := ioctl.Bytes(dev, reqAttach, b[:])
	return err
}

func (linux) deviceInfo(dev int) (flags, regions, irqs uint32, err error) {
	var b [16]byte
	put32(b[:], uint32(len(b)))
	_, err = ioctl.Bytes(dev, reqDeviceInfo, b[:])
	return host.Uint32(b[4:]), host.Uint32(b[8:]), host.Uint32(b[12:]), err
}

func (linux) regionInfo(dev int, index uint32) ([]byte, error) {
	return grow(dev, reqRegionInfo, regionInfoSize, func(b []byte) { put32(b[8:], index) })
}

func (linux) irqInfo(dev int, index uint32) (flags, count uint32, err error) {
	var b [16]byte
	put32(b[:], uint32(len(b)), 0, index)
	_, err = ioctl.Bytes(dev, reqIRQInfo, b[:])
	return host.Uint32(b[4:]), host.Uint32(b[12:]), err
}

// setIRQs allocates nothing where there are few descriptors: it is in the path of a
// level-triggered interrupt.
func (linux) setIRQs(dev int, flags, index, start, count uint32, fds []int32) error {
	var few [irqSetSize + 4*16]byte
	var b []byte
	if size := irqSetSize + 4*len(fds); size <= len(few) {
		b = few[:size]
	} else {
		b = make([]byte, size)
	}
	put32(b, uint32(len(b)), flags, index, start, count)
	for i, fd := range fds {
		put32(b[irqSetSize+4*i:], uint32(fd))
	}
	n, err := ioctl.Bytes(dev, reqSetIRQs, b)
	if err == nil && n > 0 {
		return tooMany(n) // what PCI says where there are fewer vectors than were asked for
	}
	return err
}

func (linux) reset(dev int) error {
	_, err := ioctl.Value(dev, reqReset, 0)
	return err
}

func (linux) hotResetInfo(dev int) ([]byte, error) {
	for n := 16; ; {
		b := make([]byte, hotInfoSize+hotEntrySize*n)
		put32(b, uint32(len(b)))
		_, err := ioctl.Bytes(dev, reqHotResetInfo, b)
		have := int(host.Uint32(b[8:]))
		if errors.Is(err, unix.ENOSPC) && have > n && have <= maxInfo/hotEntrySize {
			n = have
			continue
		}
		return b, err
	}
}

func (linux) hotReset(dev int, groups []int32) error {
	b := make([]byte, hotInfoSize+4*len(groups))
	put32(b, uint32(len(b)), 0, uint32(len(groups)))
	for i, g := range groups {
		put32(b[hotInfoSize+4*i:], uint32(g))
	}
	_, err := ioctl.Bytes(dev, reqHotReset, b)
	return err
}

// tooMany says that there are no more vectors than its value.
type tooMany int

func (n tooMany) Error() string { return fmt.Sprintf("the kernel has %d vectors left", int(n)) }
func (n tooMany) Unwrap() error { return bus.ErrNotSupported }
