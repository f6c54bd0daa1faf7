// Package bus is the contract between a driver and whatever carries its device.
//
// A driver is handed a [Device] and nothing else. A backend (QEMU's models
// without a guest, kernel VFIO, kernel UIO, a model in Go) implements it. The
// same driver runs on each of them unchanged.
//
// # Concepts
//
// A Device has an address (only ever used in messages), a config space, numbered
// regions (the BARs of a PCI function), DMA memory, interrupts, a reset, and the
// reason its link died, if it did.
//
// # Rules that every backend keeps
//
//   - One call is one access of exactly that width. Nothing merges, splits,
//     repeats or drops accesses.
//   - A register write is posted: it may complete after the call returned, in
//     program order, and before any later read of that device returns.
//   - A register access returns no error. Once the link is dead every read gives
//     all-ones, as PCI Express does, and [Device.Err] says why it died.
//   - An [IOVA] is what a device sees; it is a type of its own so that nobody
//     hands a device a pointer. DMA memory is never Go heap, except in bus/sim.
//   - An interrupt is an eventfd in the runtime's poller ([IRQ]): waiting costs no
//     thread, closing wakes whoever waits.
//   - A device, and what it writes to memory, is not trusted: read once, check,
//     then use.
//   - Close is idempotent, and ordered: refuse new work, mask interrupts, reset,
//     clear bus mastering, join goroutines, unmap, close.
//
// Package bustest is the conformance suite that holds a backend to these rules.
//
// # What fits through a socket
//
// Everything here is a value, a memory mapping or a descriptor: regions, eventfds
// and DMA memory can be passed to another process (in vfio-user's terms), so a
// driver can be moved into one without being rewritten.
//
// # Units
//
// Offsets and sizes are bytes. Registers are little-endian; methods return host
// integers. Concurrency: all methods of Device, Config and Region are safe for
// concurrent use; an order between goroutines is the caller's business.
package bus
