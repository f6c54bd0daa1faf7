// Package vfiouser carries a device over a Unix socket: the vfio-user protocol, both sides of it.
//
// The client is a backend like any other: a [bus.Device] that some other process serves, be it
// another ring3, SPDK, or anything that is built with libvfio-user. The server gives any bus.Device
// to any client: a ring3, a program in another language (examples/edu.py), or a virtual machine,
// whose kernel then drives a model in Go (QEMU from 10.1 on: -device vfio-user-pci).
//
//	l, err := vfiouser.Listen("/run/user/1000/edu.sock")
//	s, err := vfiouser.NewServer(dev, vfiouser.ServerOptions{})
//	err = s.Serve(ctx, l)
//
//	dev, err := vfiouser.Dial(ctx, "/run/user/1000/edu.sock", vfiouser.Options{})
//
// # What travels how
//
// A message is a request and its reply. Registers and config space are read with one; a posted
// write is a message without a reply. What is used often travels without:
//
//   - An interrupt is an eventfd of the client's, which the server's device signals.
//   - DMA memory is a memfd of the client's, which the server maps. Where it cannot be passed, the
//     server asks the client to read and write it (DMA_READ, DMA_WRITE).
//   - Parts of a region that are plain memory may be mapped by the client (sparse mmap).
//   - Register writes go through a queue in shared memory, between two sides of this package, or
//     doorbells through libvfio-user's shadow ioeventfds, for others.
//
// # Order
//
// The server handles messages in order, and before each one makes all writes that are in the queue
// or rung. So a read comes after every write before it, whichever way that went. Where
// a client goes past its messages (a mapped part, a shadow ioeventfd), it waits until they were
// handled first.
//
// # The write queue
//
// A client asks for it in VERSION with the capability {"ring3": {"write_queue": {}}}, and the reply
// has {"fd_index": i, "kick_index": k, "entries": n}: descriptors of a sealed memfd and of an eventfd.
// The memory has, each little-endian:
//
//	0x0000  tail, 64 bits: how many writes the client put in, ever
//	0x0040  head, 64 bits: how many of them the device has
//	0x0080  32 bits: 1 while the server sleeps, and must be kicked
//	0x1000  n entries of 32 bytes: offset in 47:0, region in 55:48, log2 of the width in 57:56; the value;
//	        CLOCK_MONOTONIC in ns, or 0; 0
//
// Write number i stands in entry i mod n. The client stores entry, then tail, then looks whether
// the server sleeps, and if so adds to the eventfd; the server says that it sleeps, then looks at tail
// once more. Nothing is merged or dropped: each write reaches the device, in order, in its width.
// A full queue makes the client wait. While a driver is busy the server is awake: it looks for 20 us before
// it sleeps, and up to 200 us where it was woken soon the last times. So a doorbell is three stores.
//
// Devices that are wired to each other ([Group]) are in one order: each entry says when it was written, where the
// reply has "timed": true, and the server makes the earliest first, whichever device's it is.
//
// # What else the two sides of this package say to each other
//
// With {"ring3": {"last_words": true}} and a twin socket the server tells in the end why its device
// died, so [Device.Err] has that reason: a DMA fault with its address, for instance. The message is
// command 0x7233: a number (0 gone, 1 DMA fault, 2 timed out, 3 closed, 4 protocol), and text.
//
// # Configuration space
//
// The server shows it as the kernel's VFIO does. BARs can be written and sized, without effect on
// where the device is. MSI and MSI-X are the server's to program, so their registers, and the
// MSI-X table, are memory of the client's own; a client enables interrupts with SET_IRQS. Bus
// mastering, decoding, power states and all that is the device's own pass through. A function-level
// reset is made as the bus makes it.
//
// # Life and death
//
// A server has one client at a time; a second one is told so (bus.ErrBusy), and others wait their
// turn. A client that says no more, but listens (shutdown(2) of one direction), has its answers first. When
// a client leaves, in whatever way, the server disables interrupts, stops the
// device's DMA, resets it, and takes the memory away: the next client finds a fresh device. A device
// without function reset is reset with [ServerOptions].Reset, where there is one.
//
// When the server ends, however, the client's device is dead: reads give all-ones,
// [Device.Done] is closed, [Device.Err] wraps bus.ErrGone and says why. A server that does not answer
// within [Options].Timeout is dead as well (bus.ErrTimeout), and so is one that breaks the protocol
// (bus.ErrProtocol).
//
// # What is trusted
//
// Neither side trusts what the other sends: sizes, offsets, counts and numbers of descriptors are
// checked before use, and each wait is bounded. A file that the other side passed is mapped only if
// it is a memfd that is sealed against shrinking and of ordinary pages, since it could
// otherwise be cut short under an access (SIGBUS). What is not is read and written through the
// descriptor, or, where it is of huge pages, by message. A file that is shorter than what it is said to hold is a lie: it ends a
// client's connection, and is refused by a server (EINVAL).
//
// What a descriptor gives cannot be taken back: who passes memory trusts the other side
// with its content, and passes the whole file (a client's DMA memory is one of 64 MiB, as a rule).
// [Listen] makes sockets that only their owner may connect to.
//
// Whether an eventfd blocks is up to everybody who has it: a peer can have it block at any time, and keep it
// empty or full. So eventfds are read without blocking, whatever they say (from Linux 5.8 on; before it a peer
// that takes what was just there can make a reader wait). Nobody can write to one so: who is held up is let go
// within a time-out, and the connection ends with bus.ErrProtocol. A client that keeps one full holds up a model
// in Go for half of [ServerOptions].Timeout.
//
// Memory that cannot be passed is the client's to read and write. One that does not answer within half of
// [ServerOptions].Timeout is sent away (bus.ErrTimeout). One that answers late, each time, slows the device and what
// is wired to it for as long as it is there.
//
// # Limits
//
// PCI functions only, not bridges. Migration and dirty-page tracking are not offered. ROMs are not
// served. Windows of DMA memory are whole pages, and are unmapped as they were mapped. The
// client announces write_multiple but never holds writes back to gather them; the server takes them.
//
// # Speed
//
// See `ring3 bench --only vfio-user` and docs/benchmarks.md: a register read is a round trip of some tens of
// microseconds; a queued write some 60 ns, most of it the model's; an interrupt costs no message.
//
// # Locks
//
// Client: irqMu, then a link's mu, then the heap's. Server: the bells' mu while writes are made to the
// device; an out's mu while its eventfd is written to, then the vectors'; config space's device, then its mu.
//
// Sources: libvfio-user (nutanix/libvfio-user), docs and include/vfio-user.h, where the protocol is
// specified as 0.9; QEMU, docs/interop/vfio-user; Linux, include/uapi/linux/vfio.h.
package vfiouser
