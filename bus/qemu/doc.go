// Package qemu is the virtual bus: the device models of a stock
// qemu-system-x86_64, driven without a guest, without KVM, without root and without a
// kernel module.
//
// # How it works
//
// [Start] runs QEMU with a q35 machine whose CPU executes three bytes of firmware:
// disable interrupts, halt, stay halted. Virtual time runs, so the models' timers do.
// The machine's RAM is a memfd that this process maps too: it is the DMA memory, and
// an IOVA is simply an offset in it (QEMU maps guest-physical address X at byte X).
// A device can touch nothing but that RAM.
//
// Registers are reached over QEMU's qtest protocol, a line of text an access, on a
// socket pair that QEMU inherits: there is no socket in the file system. Writes are
// posted: they are sent without waiting for the reply, and QEMU handles them in order,
// so a later read flushes them, and so does what QEMU's monitor is asked for (an error,
// a card in a slot): that is another way, which would overtake them.
//
// MSI and MSI-X are eventfds: the machine has an ivshmem-doorbell device whose peer is
// this process, and a vector's message address is ivshmem's doorbell register, its data
// the number of an eventfd. The device's interrupt message then is a doorbell write,
// and QEMU signals the eventfd. INTx arrives as asynchronous qtest messages, is
// level-triggered and shared, and is masked when it fires until [bus.IRQ.Unmask].
//
// Nobody else assigns resources here, so Start enumerates the bus with package pci:
// bridges are numbered, BARs sized and placed, decoding enabled.
//
// # Wires
//
// Network models are connected by a hub: two wired NICs share one; a NIC without a
// wire has a hub of its own, on which frames go nowhere. QEMU's hub queues, reorders
// and drops when the far end has no descriptors; netdev.Wire keeps that from
// happening.
//
// # Hot-plug
//
// Ports have PCI Express native hot-plug: what a guest's port driver would do, somebody here does by the port's own registers
// (Slot Control and Slot Status). [Machine.Plug] puts a device into an empty slot of a root port or of a switch's downstream port, and
// its button is pressed. The slot is off: once Power Controller Control was cleared the device answers, and [Machine.Rescan]
// enumerates it in the windows and bus numbers that the port kept ([Config].Reserve). [Machine.Eject] presses the button of a slot
// that is taken. Whoever drives the port stops the device, calls [Machine.Forget], and turns power and the power
// indicator off; then QEMU removes it, and [Config].Ejected says that its name is free. There is no surprise removal in QEMU:
// [Machine.Disconnect], and then power off, is what comes next to it.
//
// A bus.Device that was forgotten, disconnected or removed is dead: reads give all-ones and writes go nowhere, though QEMU itself
// reads 0 where a device was, as it does between power off and one of these calls. Its interrupt vectors are free at once, its DMA memory
// when it was freed.
//
// Write-1-to-clear only those events of Slot Status that were read as set: QEMU restores all otherwise. Poll and clear Command
// Completed after each write of Slot Control.
//
// # Errors
//
// [Machine.InjectError] makes a port, or a virtio device with aer=on, report an uncorrectable error. It is routed to the
// root port where Command has SERR#, Device Control the error's kind, and Bridge Control of the ports above SERR#. Of other models
// QEMU 7.2 routes none, and correctable ones not at all. A device's state over a reset that is not its own is kept by
// [bus.SaveState]: config space, what is set of Advanced Error Reporting, and where MSI-X goes.
//
// # The IOMMU
//
// A device with [DeviceSpec].IOMMU stands behind QEMU's intel-iommu, which this package
// programs: it has a domain of its own, and reaches only the memory that was allocated for
// it and not freed, in the direction that was asked for, at addresses that have nothing to do
// with RAM's. No two devices of a machine are given the same address, each piece is
// followed by a page that is never mapped, and what was freed is used again late. Free
// returns when the device cannot reach the memory any more.
//
// DMA to anything else is stopped before it touches memory, and the device with it: its Done
// closes, [bus.Device.Err] wraps [bus.ErrDMAFault] and tells address and reason, accesses
// read all-ones. The other devices live on. A fault is found by the next call of Err, or
// within 20 ms. Devices of the machine without the option reach all of its RAM, as ever,
// the IOMMU's tables included.
//
// Such a device can be served to another process (package vfiouser), since it reaches that process's
// memory at that process's addresses: [bus.Placer]. A file of the process's becomes a DIMM that is plugged
// into the machine (some 5 ms), up to 256 files at once, and unplugged after the last use; the IOMMU maps
// what is to be reached of it. The file must be a memfd that is sealed against shrinking.
//
// It costs: see `ring3 bench`, iommu. Memory of 2 MiB and more is mapped in pages of 2 MiB, of
// which QEMU's cache of 1024 translations holds more.
//
// QEMU has one fault record. Where a second device faults before the first one's is read, it
// is stopped but not told apart; its next fault is. A write to memory for reading only, or
// the reverse, is not told if the device used that page the right way before. Behind a
// conventional PCI bridge a device with the option must stand alone, since all that is
// there looks the same to the IOMMU. A device that is plugged in later can have the option only if one had it
// from the beginning.
//
// # Life and death
//
// QEMU is a child with a parent-death signal, and runs under its own seccomp filter, where it was built with one: it starts no program. When it ends, however,
// the link of every device on it is dead: reads give all-ones, writes go nowhere, [bus.Device.Err] tells
// the exit status and QEMU's last words. Every wait on the socket is bounded
// (AnswerTimeout); a QEMU that does not answer is declared dead, and killed by who started it.
//
// # Two processes
//
// [Start] is [Launch] and [Attach] in one. They can be two processes: a supervisor has the [Process], which is QEMU, its monitor, RAM and eventfds; a worker has a
// [Machine] made of its [Parts], which are descriptors. So registers, DMA memory and interrupts cost a worker what they cost anybody, and nothing of them passes
// through the supervisor. What needs QEMU's monitor, a worker asks for ([Monitor]): to plug a device in or out, to inject an error, to set a link.
// [Process.Execute] does nothing else, and of models only those of a short list, without properties that name something of the host's.
//
//	p, err := qemu.Launch(ctx, c)            // supervisor
//	parts, err := p.Parts()                  // to the worker, as they are
//	m, err := qemu.Attach(ctx, c, parts, mon) // worker
//	...                                      // it dies
//	err = p.Quiesce(ctx)                     // supervisor; then Parts again, for the next
//
// When a worker has died, by whatever it died of, Quiesce reads its answers off the socket up to the answer to a command that nobody can have guessed, resets
// the machine as a whole, which masks interrupts, resets devices and ends bus mastering in one step of QEMU's, checks that, and empties RAM. It takes some 5 ms, and
// Attach, which enumerates the bus anew, some 10. What was plugged in stays in its slot, powered on. A command that was cut short, a socket that was
// shut down, a device model that gave up: these end QEMU, and Quiesce says so (bus.ErrGone): the next worker needs another QEMU.
//
// The exceptions: edu goes on copying for 100 ms after a reset, without bus mastering, and that is waited for. A TPM would lose its PCRs with a reset, so its machine is not reset: the command is
// aborted (2 s at most), interrupts are switched off, localities given up; it masters no bus. Frames that a hub holds back for a NIC without descriptors are there still.
//
// Whoever holds the qtest socket holds the whole machine: a worker could make QEMU end, or fill 512 MiB of RAM, but reaches nothing outside of it. Inside of it devices of one
// machine are one group, with one worker. Each device has an address space of its own where that is asked for ([DeviceSpec].IOMMU). It is not the default, also
// not under a supervisor: what the data path pays is far from nothing: between a sixth and three fifths of the
// rate (`ring3 bench iommu`). Launch, Quiesce and Attach take no longer.
//
// # Limits
//
// One access takes a round trip (about 40 us) for a read and a system call (about 5 us)
// for a posted write. Devices on one machine share its RAM: without an IOMMU nothing keeps
// one from writing to another's buffers. Function reset works where the model has FLR, or stands
// alone below a bridge. Nothing can be plugged in on the root bus or below a conventional bridge, downstream ports not at all, and a
// capture not begin later. Below a conventional bridge devices are numbered from 1. Needs QEMU 6.1 or later; tested with 7.2.
//
// Sources: QEMU's documentation (docs/devel/qtest, docs/specs/ivshmem-spec,
// docs/interop/qmp-spec, docs/specs/acpi_mem_hotplug); Intel Virtualization Technology for Directed I/O (legacy mode,
// second-level tables); Intel 3 Series Express Chipset datasheet (PCIEXBAR);
// Intel ICH9 datasheet (PIRQ routing).
package qemu
