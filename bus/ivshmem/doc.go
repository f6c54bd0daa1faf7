// Package ivshmem is a peer of an ivshmem server, as a device on a bus: what QEMU's ivshmem-doorbell is for a
// virtual machine, for a process, with no QEMU. A driver of that device works on both.
//
// # The device
//
// It is a platform device with the hardware ID "IVSHMEM" (there is no PCI function, and no config space), and with these regions:
//
//	region 0  256 bytes  registers: IntrMask at 0 (which does nothing), IntrStatus at 4, IVPosition at 8: the own ID,
//	                     Doorbell at 12: a write of peer<<16 | vector signals that peer's eventfd
//	region 1             the shared memory, BAR 2 of the PCI function
//
// Its interrupts are the eventfds that the server gave for the own ID, as MSI-X vectors. It masters no bus.
//
// The memory is a [bus.Holder]: a driver that works in it may hold it over the end of the device.
//
// # The protocol
//
// QEMU's docs/specs/ivshmem-spec, "Client-Server protocol": messages of 8 bytes, little-endian, some with a descriptor. The server sends
// version 0, the own ID, -1 with the memory, for each vector of each other peer its ID with an eventfd, and for each own vector
// the own ID with one; and later the same for peers that come, and a bare ID for one that goes. The
// device lives as long as the connection: when that ends, it is gone (bus.ErrGone), and nothing brings it back.
//
// # Trust
//
// Everything the server sends is checked: the order and number of messages, that memory is a file that is sealed against
// shrinking (a touch would be a SIGBUS otherwise), that what is to be signalled is an eventfd. A server that breaks the protocol
// is told apart in the error: bus.ErrProtocol.
//
// Sources: QEMU docs/specs/ivshmem-spec.rst; eventfd(2), memfd_create(2), fcntl(2) "File Sealing".
package ivshmem
