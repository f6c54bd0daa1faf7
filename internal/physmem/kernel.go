package physmem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/ioctl"
)

var pageSize = os.Getpagesize()

// physical takes memory from the kernel, and asks it for physical addresses; Source.
type physical struct{ pagemap *os.File }

// newPhysical checks that this process is told physical addresses.
func Open() (Source, error) {
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

// Close ends taking; blocks live on.
func (p *physical) Close() { _ = p.pagemap.Close() }

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

// Pages is 2 MiB of small pages, or one that the kernel made huge by itself. They are pinned:
// locking would keep them in memory, but not where they are.
func (p *physical) Pages() (_ *Block, err error) {
	all, err := unix.Mmap(-1, 0, 2*HugeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
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
	return &Block{Bytes: b, Phys: phys, Free: free}, nil
}

// aligned is the huge page's worth in twice as much.
func aligned(all []byte) []byte {
	skip := -ioctl.Address(all) & (HugeSize - 1)
	return all[skip : skip+uintptr(len(all))-HugeSize : skip+uintptr(len(all))-HugeSize]
}

// hugePages is a HugeFile of the kernel's.
type hugePages struct {
	p  *physical
	fd int
	n  int
}

// File begins to take huge pages.
func (p *physical) File() (HugeFile, error) {
	fd, err := unix.MemfdCreate("ring3-dma", unix.MFD_CLOEXEC|unix.MFD_HUGETLB|unix.MFD_HUGE_2MB)
	if err != nil {
		return nil, fmt.Errorf("huge pages of 2 MiB: %w", err)
	}
	return &hugePages{p: p, fd: fd}, nil
}

// Close gives all pages back that were not mapped.
func (h *hugePages) Close() { _ = unix.Close(h.fd) }

// Grow takes one more.
func (h *hugePages) Grow() (uint64, error) {
	at := int64(h.n) * HugeSize
	// Here a page is taken, or there is none: without it the first touch would be a SIGBUS.
	if err := h.fallocate(0, at); err != nil {
		return 0, fmt.Errorf("taking a huge page: %w", err)
	}
	h.n++
	b, err := unix.Mmap(h.fd, at, HugeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
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

// fallocate takes a page, or gives it back. Any signal interrupts it, those of Go's scheduler too.
func (h *hugePages) fallocate(mode uint32, at int64) error {
	for {
		if err := unix.Fallocate(h.fd, mode, at, HugeSize); err != unix.EINTR {
			return err
		}
	}
}

// lastFile is a descriptor above those of devices, and below the usual limit of 1024.
const lastFile = 1000

// MapPages maps these.
func (h *hugePages) MapPages(pages []int) (_ []byte, free func(), err error) {
	defer h.Close() // the mapping keeps the pages
	all, err := unix.Mmap(-1, 0, (len(pages)+1)*HugeSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
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
		if err := ioctl.MapOver(b[i*HugeSize:(i+1)*HugeSize], h.fd, int64(n)*HugeSize); err != nil {
			free()
			return nil, nil, fmt.Errorf("mapping huge page %d of %d: %w", i, len(pages), err)
		}
		keep[n] = true
	}
	for n := range h.n {
		if keep[n] {
			continue
		}
		if err := h.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(n)*HugeSize); err != nil {
			free()
			return nil, nil, fmt.Errorf("giving back huge page %d: %w", n, err)
		}
	}
	for i := 0; i < len(b); i += HugeSize {
		b[i] = 0 // the first touch maps it
	}
	// Huge pages stay where they are anyhow, unless somebody takes memory offline.
	if pin, err = ioctl.Pin(b); err != nil {
		// Where io_uring is forbidden the file holds them, and a process that is killed lets go of its
		// files in the order of their numbers: of the device first, which then stops, of this one last.
		if pin, err = unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, lastFile); err != nil {
			free()
			return nil, nil, fmt.Errorf("holding on to %d huge pages: %w", len(pages), err)
		}
	}
	return b, free, nil
}
