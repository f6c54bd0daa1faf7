// Package hwbind gives PCI functions of the machine to a driver in user space, and back: it
// binds them to vfio-pci or uio_pci_generic, remembers what had them before, gives their
// device nodes to a user, and undoes all that.
//
// # What is done
//
// [Machine.PlanBind] looks at everything first and refuses what must not be, naming why; the
// [Plan] it returns says what it will do as lines of shell, and Run does it:
//
//	modprobe vfio-pci                                   # where the driver is not there
//	echo vfio-pci > .../ADDR/driver_override            # only this driver may have it
//	echo ADDR > .../ADDR/driver/unbind
//	echo ADDR > .../drivers/vfio-pci/bind               # answers with the driver's own errno
//	chown USER /dev/vfio/GROUP
//
// Before anything changes, what was is written to a file in Machine.State. Where a step
// fails, all that was done is undone, for each function of the plan, and the driver that was
// there has the function again. [Machine.PlanUnbind] is the way back. Without the file (a
// function that somebody else bound, /run emptied) it clears the override and lets the kernel
// find a driver.
//
// # What is refused
//
//   - A function in use ([Machine.Uses]): an interface that is up, or whose default route goes
//     through it; a disk that is mounted, is swap, or carries something that is; virtual
//     functions; another process that has its nodes open. Request.Takeover overrides.
//   - With vfio-pci: a bridge; no IOMMU; another member of the function's IOMMU group at a
//     kernel driver, since the kernel lets nobody open such a group. One plan may bind several
//     functions, so that a group can change hands.
//
// # Limits
//
// Interfaces in another network namespace and mounts in another mount namespace cannot be
// seen. For the first, a network driver without any interface in sight counts as in use; for
// the second, the disk is opened exclusively, which fails where anybody has it.
//
// Sources: the kernel's Documentation/ABI/testing/sysfs-bus-pci (driver_override),
// Documentation/driver-api/vfio.rst and uio-howto.rst, proc(5) for mountinfo, swaps,
// net/route, net/ipv6_route.
package hwbind
