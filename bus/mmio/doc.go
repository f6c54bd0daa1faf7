// Package mmio is access to device registers that are mapped into this process: loads
// and stores of exactly one width, in program order, that no compiler merges, splits,
// repeats or drops.
//
// # Why assembly
//
// A plain Go store to a mapped register may be merged with its neighbours (three writes
// of a status register became one, and a reset vanished). sync/atomic's store is an
// exchange on amd64, so it also reads the device. The functions here are one
// load or store each, behind a call that the compiler cannot see through.
//
// On amd64 and arm64 they are assembly. Elsewhere they are plain accesses in functions
// that are not inlined, which is the same in practice though no specification promises
// it. Under the race detector they are built on sync/atomic, since it does
// not see assembly: fit for tests on memory, not for devices.
//
// # Order
//
// On amd64 device memory is mapped uncached, loads and stores keep their order, and
// earlier stores to normal memory (descriptors) are visible before a later store to a
// register: no barrier is needed. On arm64 Load ends with, and Store begins with, the
// barrier that Linux's readl and writel have, so the same holds. [WriteBarrier] and
// [ReadBarrier] are for a driver that orders normal memory itself; in memory mapped
// write-combining, put a WriteBarrier before the doorbell.
//
// # Bounds
//
// [Region] wraps a mapping as a bus.Region. It checks bounds and alignment at each
// access, and answers all-ones outside. It is safe for concurrent use, Close included.
// [Guarded] is one whose pages the kernel may take away: a touch then is no SIGBUS that
// ends the process. It costs about 10 ns an access.
package mmio
