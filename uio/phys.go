package uio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/ioctl"
	"github.com/ring3dev/ring3/internal/syspci"
)

// openMemory prepares to give out physical memory, or says why the device cannot use it.
func (d *Device) openMemory() (*memory, error) {
	what := d.place.name + ": dma=unsafe"
	if d.fn == nil {
		return nil, fmt.Errorf("%s: only of a PCI function is it known that it reaches memory at physical addresses: %w", what, bus.ErrNotSupported)
	}
	if g := d.place.fn.Group; g != syspci.NoGroup {
		kind, err := d.tree.sys.GroupType(g)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		if kind != "identity" {
			return nil, fmt.Errorf("%s: the IOMMU translates (group %d is of type %s), so the device does not reach physical addresses: use vfio, or boot with iommu=pt: %w", what, g, kind, bus.ErrNotSupported)
		}
	}
	src, err := d.kernel.source()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	d.log.Warn("DMA without an IOMMU: the device, and any mistake of its driver, can overwrite all memory", "address", d.place.name)
	return &memory{who: d.place.name, src: src}, nil
}

// physical takes memory from the kernel, and asks it for physical addresses; source.
type physical struct{ pagemap *os.File }

// newPhysical checks that this process is told physical addresses.
func newPhysical() (source, error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, fmt.Errorf("physical addresses: %w", err)
	}
	p := &physical{pagemap: f}
	b, err := unix.Mmap(-1, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("physical addresses: mapping a page: %w", err), f.Close())
	}
	defer func() { _ = unix.Munmap(b) }()
	b[0] = 1
	if _, err := p.frames(b); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return p, nil
}

// Entries of /proc/PID/pagemap (admin-guide/mm/pagemap.rst).
const (
	entrySize    = 8
	entryPresent = 1 << 63
	entryFrame   = 1<<55 - 1 // page frame number; 0 where it is not told
)

func (p *physical) close() { _ = p.pagemap.Close() }

// frames is the physical address of each page of b, whose pages are all there.
func (p *physical) frames(b []byte) ([]uint64, error) {
	n := len(b) / pageSize
	raw := make([]byte, n*entrySize)
	if _, err := p.pagemap.ReadAt(raw, int64(ioctl.Address(b)/uintptr(pageSize)*entrySize)); err != nil {
		return nil, fmt.Errorf("physical addresses: reading /proc/self/pagemap: %w", err)
	}
	out := make([]uint64, n)
	for i := range out {
		e := binary.NativeEndian.Uint64(raw[i*entrySize:])
		if e&entryPresent == 0 {
			return nil, fmt.Errorf("physical addresses: page %d of %d is not in memory: %w", i, n, bus.ErrProtocol)
		}
		if e&entryFrame == 0 {
			return nil, fmt.Errorf("physical addresses: the kernel tells them to CAP_SYS_ADMIN only: run as root: %w", unix.EPERM)
		}
		out[i] = (e & entryFrame) * uint64(pageSize)
	}
	return out, nil
}

// pages is 2 MiB of small pages, or one that the kernel made huge by itself. They are pinned:
// locking would keep them in memory, but not where they are.
func (p *physical) pages() (_ *block, err error) {
	all, err := unix.Mmap(-1, 0, 2*hugeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("mapping memory: %w", err)
	}
	pin := -1
	free := func() {
		_ = unix.Munmap(all)
		if pin >= 0 {
			_ = unix.Close(pin)
		}
	}
	defer func() {
		if err != nil {
			free()
		}
	}()
	b := aligned(all)
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // an old kernel, or one built without: small pages then
	if err := unix.Madvise(b, unix.MADV_DONTFORK); err != nil {
		return nil, fmt.Errorf("keeping memory from children: %w", err)
	}
	for i := 0; i < len(b); i += pageSize {
		b[i] = 0 // now there is a page
	}
	if pin, err = ioctl.Pin(b); err != nil {
		return nil, fmt.Errorf("pinning memory by io_uring: %w", err)
	}
	phys, err := p.frames(b)
	if err != nil {
		return nil, err
	}
	return &block{bytes: b, phys: phys, free: free}, nil
}

// aligned is the huge page's worth in twice as much.
func aligned(all []byte) []byte {
	skip := -ioctl.Address(all) & (hugeSize - 1)
	return all[skip : skip+uintptr(len(all))-hugeSize : skip+uintptr(len(all))-hugeSize]
}

// hugePages is a hugeFile of the kernel's.
type hugePages struct {
	p  *physical
	fd int
	n  int
}

func (p *physical) file() (hugeFile, error) {
	fd, err := unix.MemfdCreate("ring3-dma", unix.MFD_CLOEXEC|unix.MFD_HUGETLB|unix.MFD_HUGE_2MB)
	if err != nil {
		return nil, fmt.Errorf("huge pages of 2 MiB: %w", err)
	}
	return &hugePages{p: p, fd: fd}, nil
}

func (h *hugePages) close() { _ = unix.Close(h.fd) }

func (h *hugePages) grow() (uint64, error) {
	at := int64(h.n) * hugeSize
	// Here a page is taken, or there is none: without it the first touch would be a SIGBUS.
	if err := unix.Fallocate(h.fd, 0, at, hugeSize); err != nil {
		return 0, fmt.Errorf("taking a huge page: %w", err)
	}
	h.n++
	b, err := unix.Mmap(h.fd, at, hugeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return 0, fmt.Errorf("mapping a huge page: %w", err)
	}
	defer func() { _ = unix.Munmap(b) }()
	phys, err := h.p.frames(b[:pageSize])
	if err != nil {
		return 0, err
	}
	return phys[0], nil
}

func (h *hugePages) mapPages(pages []int) (_ []byte, free func(), err error) {
	defer h.close() // the mapping keeps the pages
	all, err := unix.Mmap(-1, 0, (len(pages)+1)*hugeSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, nil, fmt.Errorf("mapping %d huge pages: %w", len(pages), err)
	}
	pin := -1
	free = func() {
		_ = unix.Munmap(all)
		if pin >= 0 {
			_ = unix.Close(pin)
		}
	}
	b := aligned(all)
	keep := map[int]bool{}
	for i, n := range pages {
		if err := ioctl.MapOver(b[i*hugeSize:(i+1)*hugeSize], h.fd, int64(n)*hugeSize); err != nil {
			free()
			return nil, nil, fmt.Errorf("mapping huge page %d of %d: %w", i, len(pages), err)
		}
		keep[n] = true
	}
	for n := range h.n {
		if keep[n] {
			continue
		}
		if err := unix.Fallocate(h.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(n)*hugeSize, hugeSize); err != nil {
			free()
			return nil, nil, fmt.Errorf("giving back huge page %d: %w", n, err)
		}
	}
	for i := 0; i < len(b); i += hugeSize {
		b[i] = 0 // the first touch maps it
	}
	// Huge pages stay where they are anyhow, unless somebody takes memory offline.
	pin, _ = ioctl.Pin(b)
	return b, free, nil
}
