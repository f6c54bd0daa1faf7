//go:build vm

package guest

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/ioctl"
)

// hostileIoctls are what a borrower might try with a device's file (linux/vfio.h), each with what the kernel says.
func hostileIoctls(fd int) map[string]error {
	const base = 0x3b00
	out := map[string]error{}
	try := func(what string, nr uintptr, words ...uint32) {
		b := make([]byte, 4*len(words))
		for i, w := range words {
			binary.NativeEndian.PutUint32(b[4*i:], w)
		}
		_, err := ioctl.Bytes(fd, base+nr, b)
		out[what] = err
	}
	// Of a container: the numbers of the last two are others' for a device, and they refuse what this says.
	try("VFIO_SET_IOMMU", 102, 3)
	try("VFIO_IOMMU_UNMAP_DMA", 114, 24, 0, 0, 0, 0, 0)
	try("VFIO_IOMMU_MAP_DMA", 113, 32, 3, 0, 0, 0x100000, 0, 4096, 0)
	// Of a group.
	try("VFIO_GROUP_SET_CONTAINER", 104, 0)
	try("VFIO_GROUP_GET_DEVICE_FD", 106, 0x30303030)
	// Of a device: a reset of its bus, which needs the groups' descriptors, or all of them in one iommufd; an interrupt that it has not.
	try("VFIO_DEVICE_PCI_HOT_RESET", 113, 12, 0, 0)
	try("VFIO_DEVICE_SET_IRQS of an index that is none", 110, 20, 0x21, 77, 0, 0)
	try("VFIO_DEVICE_SET_IRQS of vectors that are none", 110, 24, 0x24, 1, 1<<20, 1, 0)
	// Of iommufd, by number.
	try("IOMMU_IOAS_ALLOC", 0x81, 12, 0, 0)
	try("IOMMU_IOAS_MAP", 0x85, 40, 7, 1, 0, 0, 0, 4096, 0, 0x100000, 0)
	try("IOMMU_DESTROY", 0x80, 8, 0)
	try("IOMMU_IOAS_COPY", 0x83, 40, 3, 1, 1, 4096, 0, 0, 0, 0, 0)
	try("IOMMU_IOAS_UNMAP", 0x86, 24, 1, 0, 0, 0xffffffff, 0xffffffff)
	// Of a device that is opened by itself: to bind it to another iommufd, to attach it to other addresses.
	try("VFIO_DEVICE_BIND_IOMMUFD", 118, 16, 0, 0, 0)
	try("VFIO_DEVICE_ATTACH_IOMMUFD_PT", 119, 12, 0, 1)
	try("VFIO_DEVICE_FEATURE of migration", 117, 8, 1|1<<17, 0, 0)
	// Regions that are none, and more than one has.
	try("VFIO_DEVICE_GET_REGION_INFO of an index that is none", 108, 32, 0, 777, 0, 0, 0, 0, 0)
	for what, at := range map[string]int64{"region 0": 0, "the ROM": 6 << 40, "config space": 7 << 40} {
		if b, err := unix.Mmap(fd, at, 1<<30, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
			_ = unix.Munmap(b)
			out["mmap of 1 GiB of "+what] = nil
		} else {
			out["mmap of 1 GiB of "+what] = err
		}
		_, err := unix.Pwrite(fd, []byte{1, 2, 3, 4}, at+1<<39)
		out["write behind "+what] = err
	}
	// The memory of who lent it is not behind it.
	b, err := unix.Mmap(fd, int64(63)<<40, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err == nil {
		_ = unix.Munmap(b)
	}
	out["mmap of no region"] = err
	return out
}
