// Package uio carries devices by Linux' UIO: a small driver in the kernel hands a device's
// registers and its interrupt to a process. It serves any PCI function, bridges and PCI
// Express ports included (which VFIO refuses), through uio_pci_generic, and whatever else has a
// UIO driver with maps.
//
// # When to use it
//
// UIO confines nothing. Where there is an IOMMU, package vfio is the better way for all that
// does DMA. UIO is for what does none (a port's services, a board's own registers), and for
// machines without an IOMMU by somebody who knows the risk.
//
// # Setting up
//
//	sudo ring3 bind 0000:00:05.0 --driver uio_pci_generic    # or by hand:
//	  modprobe uio_pci_generic
//	  echo uio_pci_generic > /sys/bus/pci/devices/0000:00:05.0/driver_override
//	  echo 0000:00:05.0 > /sys/bus/pci/drivers_probe         # unbind another driver before
//	sudo ring3 up --as $USER rp0=uio:0000:00:05.0
//
// [Open] takes the PCI address, or "uio0" or "/dev/uio0" for any UIO device.
//
// # Why root
//
// Of a function's files only /dev/uioN can be given to a user. The kernel shows who opens
// config space without CAP_SYS_ADMIN 64 of its bytes, whatever the file's mode says, and the
// files of its BARs are root's. (By /dev/uioN, uio_pci_generic lets its owner map BARs in 32-bit memory
// all the same: who owns that node of a device that does DMA reaches all memory.) So root opens ([OpenFiles]) and drops its rights afterwards, or
// passes the descriptors on ([Files.Named], [FilesOf]): what they allow was decided when they
// were opened. That is what `ring3 up --as` does. Whoever holds config space holds the
// device: he may move its BARs and, where the device can, have it write to all of memory.
//
// # What a Device has
//
//   - Config space: all of it, by the file config. [Open] fails where the kernel shows less.
//     Without PCI there is none: its size is 0, and it reads all-ones.
//   - Regions: a function's BARs by the files resourceN, in memory space mapped, in I/O space a
//     system call an access; where there is no such file, the driver's maps. Without PCI a
//     region is a map: map N, less the offset that its first registers have in it. Region.Addr
//     is physical.
//   - One interrupt, INTx. The kernel masks it when it fires, and [bus.IRQ.Unmask] lets it
//     through again: with uio_pci_generic by Command's bit INTx-Disable, which is not the
//     driver's to write meanwhile, else by a write to /dev/uioN. Interrupts that came while
//     nobody waited are counted. MSI and MSI-X are not there.
//   - Reset, where the kernel knows one for the function (its file reset); the kernel restores
//     config space.
//   - [Device.Function]: what package pci says of a function. Of a bridge it has the bus
//     numbers; its windows are the kernel's business.
//
// # PCI Express ports
//
// A port's services (package portbus: errors, hot-plug, power management events) run on a real port, with its INTx:
//
//	sudo ring3 bind 0000:00:04.0 --driver uio_pci_generic
//	sudo ring3 up --as $USER rp0=uio:0000:00:04.0
//
// The kernel's pcieport lets go of the port, and its own services of it end; they come back with 'ring3 unbind'. What is
// behind the port stays with the kernel and its drivers. So three things are left to root, and a message asks for each:
//
//   - A card came and its slot is on: echo 1 > /sys/bus/pci/rescan has the kernel find it.
//   - A card goes: echo 1 > /sys/bus/pci/devices/ADDRESS/remove, before its slot is off, for which its button leaves 5 s. Later does too, but
//     the kernel's driver has a dead device meanwhile.
//   - A fatal error had the link reset, and with it what the kernel's drivers use: remove, then rescan.
//
// Drivers of the kernel's are not asked whether they can go on after an error. An error that one of their devices reports is counted at the port, and
// has no details: nobody but root may read beyond the first 64 bytes of that device's config space.
//
// When the process ends, uio_pci_generic clears the port's bus mastering (below), so nothing behind it does DMA or interrupts by messages, until pcieport, or
// another process, has the port.
//
// # DMA
//
// DMA().Alloc says [bus.ErrNoIOMMU]. With [Options.DMAUnsafe] it gives out memory at its
// physical address, and a device, or a driver's mistake, can then overwrite anything. Open
// refuses it where it cannot work: without CAP_SYS_ADMIN (the kernel tells physical addresses to
// nobody else, so not after `--as` either), where an IOMMU translates for the device (the
// type of its group is not "identity"), and for a device that is on no PCI bus.
//
// A device needs memory that is one piece in physical memory, and that stays where it is: a
// locked page does not, since the kernel may move it. So memory comes from huge pages of 2 MiB, as
// long as some are reserved ('sudo sysctl vm.nr_hugepages=64', or better hugepages=64 at
// boot, which makes them neighbours); several make one piece where they are neighbours. Without
// them it comes from small pages that io_uring pins, and is what the kernel has in one
// piece, at most 2 MiB. Mask, boundary and alignment hold for physical addresses. Of few pages
// below a mask many must be reserved: the kernel gives the highest first. What cannot be had is
// an error that says so.
//
// Close resets a device that was given memory, if the kernel knows a reset, and clears its bus
// mastering. Memory not yet freed stays until it is.
//
// # Death
//
// When the function is unplugged, or unbound from its driver, the device is dead: Done closes,
// Err wraps [bus.ErrGone], regions and config space read all-ones, and nothing is mapped any
// more. The kernel tells of it at /dev/uioN if the device has an interrupt; otherwise the
// next access to config space, or the next touch of a BAR whose pages the kernel took away
// (no SIGBUS ends the process), finds it out.
//
// Close leaves a bridge's bus mastering on: it is for what is behind it. uio_pci_generic however
// clears bus mastering, of bridges too, when the last of its files is closed.
//
// # Limits
//
// No I/O ports of UIO drivers that are not BARs (portio). A map whose size is no multiple of
// a page cannot be mapped. Physical addresses are taken for bus addresses, and caches for
// coherent with DMA: so it is with PCI on PCs and on servers, and not on every board.
// Big-endian machines are not served. Tested with Linux 6.1, in a VM.
//
// # Concurrency
//
// All methods are safe for concurrent use. Locks: resetMu and irqMu before mu; none is held
// while a driver's code runs.
//
// Sources: Linux, Documentation/driver-api/uio-howto.rst (uio_pci_generic, maps, the interrupt
// count), Documentation/ABI/testing/sysfs-bus-pci, sysfs-kernel-iommu_groups,
// Documentation/admin-guide/mm/pagemap.rst; PCI Local Bus 3.0; PCI-to-PCI Bridge 1.2.
package uio
