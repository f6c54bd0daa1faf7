package vfio

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/ioctl"
	"github.com/ring3dev/ring3/internal/iova"
)

// hugePage is the size of page that is worth the trouble: one entry of the IOTLB instead of 512.
const hugePage = 2 << 20

// DMA gives memory that all devices of the space reach, those that come later too. It is for
// when one device is to read what another wrote; a device's own is Device.DMA.
func (s *Space) DMA() bus.DMA { return dmaOf{space: s, pages: PagesAuto} }

// dmaOf is memory for the devices of a space; bus.DMA.
type dmaOf struct {
	space *Space
	owner *Device // nil: the space
	pages Pages
}

func (a dmaOf) step(what string) string {
	if a.owner == nil {
		return "vfio: " + what
	}
	return a.owner.Address() + ": " + what
}

// check refuses early what there is no memory for. It returns the size in whole pages.
func (a dmaOf) check(step string, q bus.DMARequest) (uint64, error) {
	if a.owner != nil {
		if err := a.owner.Err(); err != nil {
			return 0, fmt.Errorf("%s DMA memory: %w", step, err)
		}
	}
	if err := iova.Check(step, q); err != nil {
		return 0, err
	}
	const most = 1 << 47 // what a process has
	if q.Size > most {
		return 0, iova.NoRoom(step, q, "this process's addresses")
	}
	return iova.Whole(q.Size, pageSize), nil
}

// Alloc gives zeroed memory, made of huge pages where that pays.
func (a dmaOf) Alloc(q bus.DMARequest) (*bus.Memory, error) {
	step := a.step("allocating")
	size, err := a.check(step, q)
	if err != nil {
		return nil, err
	}
	var mem []byte
	var unmap func()
	if a.pages == PagesAuto && size < hugePage {
		mem, unmap, err = a.space.arenas.take(size)
	} else {
		mem, unmap, err = anonymous(size, a.pages)
	}
	if err != nil {
		return nil, fmt.Errorf("%s DMA memory: %d bytes: %w", step, size, err)
	}
	better := uint64(0)
	if size >= hugePage && a.pages != PagesSmall {
		better = hugePage
	}
	m, err := a.place(step, q, mem, better)
	if err != nil {
		unmap()
		return nil, err
	}
	return bus.NewMemory(mem[:q.Size:q.Size], bus.IOVA(m.at.Base), func() {
		a.space.remove(m)
		unmap()
	}), nil
}

// Map lets the device touch whole pages that the caller has, Go's heap included. They are
// locked in memory until Free. What is behind b up to the page's end must be the caller's
// too: cap(b) says so.
func (a dmaOf) Map(b []byte, q bus.DMARequest) (*bus.Memory, error) {
	step := a.step("mapping")
	if q.Size == 0 {
		q.Size = len(b)
	}
	size, err := a.check(step, q)
	switch {
	case err != nil:
		return nil, err
	case q.Size > len(b) || size > uint64(cap(b)):
		return nil, fmt.Errorf("%s DMA memory: %d bytes of a slice of %d, capacity %d: want whole pages of %d: %w", step, q.Size, len(b), cap(b), pageSize, bus.ErrNotSupported)
	case uint64(ioctl.Address(b))%pageSize != 0:
		return nil, fmt.Errorf("%s DMA memory: the memory does not begin on a page: %w", step, bus.ErrNotSupported)
	}
	better := uint64(0)
	if uint64(ioctl.Address(b))%hugePage == 0 && size >= hugePage {
		better = hugePage
	}
	m, err := a.place(step, q, b[:size:size], better)
	if err != nil {
		return nil, err
	}
	return bus.NewMemory(b[:q.Size:q.Size], bus.IOVA(m.at.Base), func() { a.space.remove(m) }), nil
}

func (a dmaOf) place(step string, q bus.DMARequest, mem []byte, better uint64) (*mapping, error) {
	perms := []perm{permission(q.Dir)}
	if q.Dir == bus.ToDevice {
		// The kernel pins what it finds for reading: of pages that nobody wrote to yet, a page
		// of zeros that is everybody's, which the first store then replaces for this process
		// alone (fixed in 6.2).
		if err := lockable(uint64(len(mem))); err != nil {
			return nil, fmt.Errorf("%s DMA memory: %w", step, err)
		}
		if unix.Madvise(mem, unix.MADV_POPULATE_WRITE) != nil {
			// A kernel before 5.14, which has them for writing too; or the caller's memory is not
			// to be written.
			perms = []perm{permRead | permWrite, permRead}
		}
	}
	return a.space.place(step, a.owner, q, mem, better, perms)
}

// physical is memory of a device that no IOMMU confines; bus.DMA.
type physical struct{ d *Device }

// Alloc gives out memory whose IOVA is its physical address.
func (a physical) Alloc(q bus.DMARequest) (*bus.Memory, error) {
	if err := a.d.Err(); err != nil {
		return nil, fmt.Errorf("allocating DMA memory: %w", err)
	}
	return a.d.phys.Alloc(q)
}

// Map is not there: the caller's memory is not one piece for the device.
func (a physical) Map([]byte, bus.DMARequest) (*bus.Memory, error) {
	return nil, a.d.errorf("mapping a caller's memory: without an IOMMU it is not one piece for the device: %w", bus.ErrNotSupported)
}

// anonymous is memory of size bytes, a multiple of the page size, and what unmaps it.
func anonymous(size uint64, p Pages) (mem []byte, unmap func(), err error) {
	const prot = unix.PROT_READ | unix.PROT_WRITE
	const flags = unix.MAP_ANON | unix.MAP_PRIVATE
	huge := size >= hugePage && p != PagesSmall
	if whole := (size + hugePage - 1) &^ (hugePage - 1); huge && whole-size <= whole/8 {
		// The kernel reserves the pages here, or refuses: a touch finds them later.
		if all, err := unix.Mmap(-1, 0, int(whole), prot, flags|unix.MAP_HUGETLB|unix.MAP_HUGE_2MB); err == nil {
			return all[:size:size], func() { _ = unix.Munmap(all) }, nil
		}
	}
	room := size
	if huge {
		room += hugePage
	}
	all, err := unix.Mmap(-1, 0, int(room), prot, flags)
	if err != nil {
		return nil, nil, os.NewSyscallError("mmap", err)
	}
	mem, unmap = all[:size:size], func() { _ = unix.Munmap(all) }
	if huge {
		off := -uint64(ioctl.Address(all)) & (hugePage - 1)
		mem = all[off : off+size : off+size]
		_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // a kernel without them has small pages
	} else if p == PagesSmall {
		_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
	}
	return mem, unmap, nil
}

// raiseMemlock raises this process's soft limit of locked memory to the hard one, and says
// whether that changed something.
func raiseMemlock() bool {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l) != nil || l.Cur >= l.Max {
		return false
	}
	l.Cur = l.Max
	return unix.Setrlimit(unix.RLIMIT_MEMLOCK, &l) == nil
}

// lockable says, before memory is touched, why so much of it can never be locked.
func lockable(size uint64) error {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l) != nil || size <= l.Max || mayLock() {
		return nil
	}
	return whyNotMapped(unix.ENOMEM, size, true)
}

// mayLock says whether this process is beyond the limit of locked memory: CAP_IPC_LOCK.
func mayLock() bool {
	caps, err := strconv.ParseUint(status("CapEff"), 16, 64)
	return err == nil && caps&(1<<unix.CAP_IPC_LOCK) != 0
}

// whyNotMapped adds cause and remedy to the kernel's refusal to map size bytes. perUser says
// that all of this user's processes are counted, which nobody tells.
func whyNotMapped(err error, size uint64, perUser bool) error {
	switch {
	case errors.Is(err, unix.ENOMEM):
		var l unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l) != nil || mayLock() {
			return err
		}
		locked := kB("VmLck") + kB("VmPin")
		if l.Cur == unix.RLIM_INFINITY || locked+size <= l.Cur && !perUser {
			return err
		}
		return fmt.Errorf("locking %s: the limit is %s, %s are locked already: raise it (ulimit -l as root, memlock in /etc/security/limits.conf, LimitMEMLOCK= in a systemd unit): %w",
			inKiB(size), inKiB(l.Cur), inKiB(locked), err)
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("the kernel takes no more pieces (vfio_iommu_type1's dma_entry_limit): allocate fewer, larger ones: %w", err)
	}
	return err
}

func inKiB(n uint64) string { return fmt.Sprintf("%d KiB", n>>10) }

// kB is a line of this process's status that counts kB, in bytes.
func kB(field string) uint64 {
	n, _ := strconv.ParseUint(strings.TrimSuffix(status(field), " kB"), 10, 53)
	return n << 10
}

// status is a line of this process's status; "" where there is none.
func status(field string) string {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
