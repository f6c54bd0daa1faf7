// Package qemutest opens QEMU's device models in a Go test, as the bus.Device that a driver is
// handed elsewhere:
//
//	func TestReset(t *testing.T) {
//		dev := qemutest.Open(t, "edu")
//		inst := qemutest.Bind(t, dev, mydriver.Driver, nil)
//		...
//	}
//
// Each call starts a QEMU of its own, without a guest, KVM or root, in about 0.1 s; it
// ends with the test, as does what Bind brought up, in the right order. No test meets
// another's device, so tests may run in parallel. What QEMU and the bus have to say goes to
// the test's log.
//
// [Open] is for one device, [Pair] for two network adapters that are wired to each other,
// [Machine] for anything else: it takes a qemu.Config as it is. Options put a device
// below a port ([Under]), behind the IOMMU ([IOMMU]), or set properties of QEMU's model
// ([Props]).
//
// # Where there is no QEMU
//
// A test is skipped, and says why, where qemu-system-x86_64 is missing. With RING3_NEED_QEMU
// set in the environment it fails instead: a CI that installs QEMU should set it, so that
// it cannot pass by testing nothing. Anything else that keeps QEMU from starting, a model
// that it does not have for instance, fails the test.
//
// # What is checked in the end
//
// Cleaning up fails the test if the instance or the machine cannot be closed in order, which
// includes DMA memory that was not freed. Of a machine that the test made die nothing is
// asked. [bustest.NoLeaks], called first, adds descriptors and goroutines; it counts those of
// the whole process, so it is not for parallel tests.
//
// A driver's own tests should run behind the IOMMU too: DMA to memory that was freed, or that
// never was the device's, ends there with bus.ErrDMAFault and an address, instead of passing
// unseen.
package qemutest
