// Package vfio opens PCI functions through Linux VFIO: an ordinary process gets a device's
// registers, interrupts and DMA, and an IOMMU keeps the device from all memory that was not
// mapped for it. It imports nothing of ring3 but the contract (package bus) and serves on its
// own.
//
//	d, err := vfio.Open(ctx, "0000:03:00.0", vfio.Options{})
//	if err != nil {
//		return err // one line: what is wrong, and what to do
//	}
//	defer d.Close()
//	regs, err := d.Region(0)                       // BAR 0
//	ring, err := d.DMA().Alloc(bus.DMARequest{Size: 64 << 10})
//	irqs, err := d.EnableIRQs(bus.MSIX, 2)
//
// # Concepts
//
// An IOMMU group is the smallest set of functions that the IOMMU can tell from others: inside
// a group they reach each other. So a group is used as a whole: VFIO opens no function while
// another of its group is at a driver of the kernel's (ports and functions without a driver do
// not count). [Look] lists a function's group, and what is in the way.
//
// A [Space] is what devices see of memory: a mapping from IOVAs to pages. Open makes one for
// each device. Devices opened with the same Options.Space share it, and reach each other's
// DMA memory; those of one group must share one, in one process.
//
// There are two ways in, [Group] and [Cdev]: by the group's file /dev/vfio/N and a container,
// /dev/vfio/vfio, with the type1 (version 2) IOMMU; or, from Linux 6.6 on where it is configured
// (CONFIG_VFIO_DEVICE_CDEV), by the device's own file /dev/vfio/devices/vfioN and iommufd,
// /dev/iommu. Unless told, Open takes the second where it is there and may be used.
//
// # Setting up
//
// An IOMMU must be on: in the firmware (VT-d, AMD-Vi) and, for Intel, with intel_iommu=on on the
// kernel's command line. vfio-pci must have the function, and the user its file:
//
//	sudo ring3 bind 0000:03:00.0 --driver vfio-pci --owner $USER
//
// or by hand: modprobe vfio-pci; write vfio-pci to the function's driver_override in sysfs, its
// address to its driver's unbind and to bus/pci/drivers_probe; chown /dev/vfio/N, and
// /dev/vfio/devices/vfioN where there is one. No capability is needed then. /dev/vfio/vfio is
// everybody's as a rule; /dev/iommu is root's, and must be given to the user as well for the second
// way. Neither gives any device away.
//
// Memory for DMA is locked, and counts against RLIMIT_MEMLOCK, which is 8 MiB by default on many
// systems: raise it with memlock in /etc/security/limits.conf, or LimitMEMLOCK= in a systemd
// unit. Open raises nothing; where memory is refused, the soft limit is raised to the hard one
// first. By group and container each process is counted, by iommufd each user.
//
// A privileged process can open the files (Look lists them in Access.Paths) and pass the
// descriptors on: Options.Files.
//
// # Registers
//
// A BAR is mapped when its [Device.Region] is asked for, and handed out as a *mmio.Region. Where
// the kernel lets only areas be mapped, these are mapped and the rest goes through pread and
// pwrite, as do I/O space and BARs that cannot be mapped at all. Config space is vfio-pci's view
// of it: BARs, the interrupt line, MSI and MSI-X are emulated, most of the rest is the device's.
//
// A function that does not decode memory (Command, or a power state other than D0) must not be
// touched where it is mapped: the kernel answers with SIGBUS. Writes to config space that
// switch decoding off suspend the mapped regions, which read all-ones until it is on again. Nothing
// else takes the pages away while the device is open: the kernel waits for this process
// before it lets go of a function, an unplugged one included, and holds accesses back during a
// reset. Only an error that the processor reports as a machine check is SIGBUS, as it is with
// any memory.
//
// # Interrupts
//
// Each vector is an eventfd that the kernel signals. INTx is masked by the kernel when it fires
// and unmasked by the IRQ's Unmask, which is a system call. [Device.EnableIRQs] sets all vectors
// of a mode at once. [Device.SetVector] changes one while the others run.
//
// # DMA memory
//
// Alloc gives anonymous memory, of huge pages if the system has some reserved (nr_hugepages), or
// else so that the kernel can make it of huge pages. Pieces from 2 MiB on are at an IOVA aligned
// alike: the IOMMU then needs one entry where it would need 512. Smaller ones share a huge page,
// so that they are contiguous on the bus as a rule, and are mapped each by itself. Every
// allocation is one mapping of the kernel's: take large pieces, and cut them (package bus/dma). Map lets the device reach
// whole pages that the caller has.
//
// IOVAs are taken from the ranges that the kernel says there are, which leave out those of
// interrupt messages and other reserved ones, above 4 GiB unless a request's mask says otherwise.
// Behind each piece a page is left out. What a device may do follows the request's direction:
// memory that it only reads is mapped for reading.
//
// DMA is a bus.Placer too: memory of another process, at addresses of that process's choice, so that a device
// can be served over vfio-user (package vfiouser).
//
// Memory lives until Free, also when the device is closed or gone: the device does not reach it
// any more, and the bytes stay.
//
// What a device does outside the mappings, the IOMMU stops. VFIO tells an unprivileged process
// nothing of it: the kernel's log has it ("DMAR: [DMA Read NO_PASID] ... fault addr"), and the
// device will miss what it wanted. So there is no bus.ErrDMAFault here.
//
// # The end of a device
//
// When the kernel wants a function back (it is unplugged, or root unbinds it) or the bus
// reports an error, the device ends by itself, within milliseconds: Err says why and wraps
// bus.ErrGone, Done is closed, registers and config space read all-ones, nothing is written, the
// descriptors are closed, the device reaches no memory. Vectors fire no more, and wait until
// DisableIRQs or Close. The driver may go on as long as it likes.
//
// Close does it in the contract's order; the kernel resets the function when its descriptor is
// closed, where the function can be reset.
//
// [Device.Reset] is the function's reset if it has one, else that of the bus or slot, if this process
// has all that stands there.
//
// # A driver in another process
//
// A process that holds a function can lend it to one that drives it, and that may die ([Device.Lend], [Borrow]). What is to outlive the driver stays with
// the lender: the container or IOAS, the group's file, the DMA memory. The borrower gets the device's file, which has registers, config space and
// interrupts, and so is as fast as with a device of its own; for DMA memory it asks.
//
//	loan, err := d.Lend(vfio.LoanOptions{})           // the lender; loan.Call answers
//	d, err := vfio.Borrow(ctx, lender, vfio.Options{}) // the borrower: a bus.Device like any other
//	err = loan.Recall(ctx)                            // the borrower is dead: the next one may come
//
// Memory is made by the lender, in files in memory that cannot be made shorter, and mapped from the lender's own addresses: nothing in a request says what or
// where. Its amount and the number of its pieces are bounded. The lender never looks into it.
//
// Recall comes after the borrower's end, not before, and does this: interrupts off, the function's reset, bus mastering off, the memory away from the
// device, the memory back to the system. A function without a reset (edu is one) is a bus master no more and reaches nothing, but its registers are as
// they were: the next driver resets it by its own means or not at all. That is said once, in the log. Where the
// kernel wants the function back the borrower is told, and has five seconds; then LoanOptions.Overdue.
//
// What a hostile borrower can do with the device's file, by the kernel's rules:
//
//   - VFIO_DEVICE_RESET, VFIO_DEVICE_SET_IRQS, VFIO_DEVICE_IOEVENTFD, power states: of its own function. Interrupts that it leaves are taken off by Recall. Where it
//     replaces what tells the lender of the function's end (SET_IRQS of the indices 3 and 4) the lender sets that again, every two seconds, and the kernel asks again
//     every ten: it can keep the kernel waiting for as long.
//   - VFIO_DEVICE_PCI_HOT_RESET: refused, since it has no group's descriptor; by iommufd it hits the functions of one Space, which are of one IOMMU group.
//   - VFIO_DEVICE_ATTACH_IOMMUFD_PT and DETACH: among the addresses of the Space's own iommufd, of which there is one. Recall attaches again.
//   - VFIO_IOMMU_MAP_DMA, IOMMU_IOAS_MAP and their like: refused. They are of the container's or iommufd's descriptor, which it has not.
//   - Config space: as vfio-pci filters it. BARs, MSI, MSI-X and the reset bits are emulated.
//   - DMA: to its own memory only, and messages of interrupts to its own vectors, where the IOMMU remaps these (VFIO insists).
//   - It can make holes in the memory, and fill them again: that costs up to twice LoanOptions.Bytes.
//
// Functions without an IOMMU are not lent: nothing would contain them.
//
// # Without an IOMMU
//
// Options.NoIOMMU opens a function that vfio-pci has in the kernel's no-IOMMU mode
// (CONFIG_VFIO_NOIOMMU, vfio.enable_unsafe_noiommu_mode=1). It must be asked for, needs
// CAP_SYS_RAWIO and CAP_SYS_ADMIN, and is told in Backend ("vfio:unsafe") and the log. An IOVA
// is a physical address then; memory that is one piece for the device comes from reserved huge
// pages (vm.nr_hugepages) or, up to 2 MiB, from what the kernel has. Map is not there.
//
// # Errors
//
// They name the device, what was being done and the remedy, on one line. They wrap
//
//   - bus.ErrGone: there is no such function, or it went away;
//   - bus.ErrNoIOMMU: nothing confines it;
//   - bus.ErrBusy: a driver of the kernel's has it or a member of its group, or another process
//     has the group;
//   - bus.ErrNotSupported: VFIO cannot do it: a bridge, a function that nobody bound;
//   - fs.ErrPermission: the device file is not this user's;
//   - unix.ENOMEM: the limit of locked memory, with what is locked and wanted.
//
// # Concurrency
//
// All methods are safe for concurrent use. Locks are taken in this order: a Device's, the one of its
// config space, its Space's, that of the Space's memory; a Loan's before its Device's. Unmask waits while the device is being
// reset.
//
// # Limits
//
// PCI only. Not there: SR-IOV tokens, PASIDs, dirty tracking, migration, the expansion ROM, VGA
// regions, memory of other processes. The race detector does not see what a device does.
//
// # Tested
//
// Package integration runs this in a VM, as a user without capabilities behind QEMU's intel-iommu:
// edu, e1000e and e1000 through the conformance suite, both NICs through that of network drivers
// in every interrupt mode, stray DMA, unplugging and unbinding under traffic, kill -9, the limits, bus
// reset, bad input; on Debian's 6.1. By hand, with the same tests: Debian's 7.2 by group, and 6.12 of
// Debian's sources, built with what Debian leaves out: by device file and iommufd all of it, and the
// no-IOMMU mode with traffic between two NICs. On a model of the kernel only: errors that the bus
// reports, and areas of a BAR that are mapped. No physical device so far.
//
// # Sources
//
// linux/vfio.h and linux/iommufd.h (Linux 7.2), Documentation/driver-api/vfio.rst,
// Documentation/userspace-api/iommufd.rst, Documentation/ABI/testing/vfio-bus-pci.
package vfio
