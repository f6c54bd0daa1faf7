// Package sim is a bus of device models written in Go, in this process: nothing needs to be
// installed, no privilege is needed, and nothing runs beside the program.
//
//	m, err := sim.Start(ctx, sim.Config{Devices: []sim.DeviceSpec{{Name: "edu0", Model: "edu"}}})
//	dev, err := m.Device("edu0") // a bus.Device like any other
//
// Its use is the same as that of package qemu, and the conformance suites pass on both: where
// they differ, the model here is wrong, unless this page says so. Package simtest opens a model in
// a test, in one line.
//
// # Models
//
//	edu          QEMU's educational device (docs/specs/edu). dma_mask=N: the highest address it reaches
//	pci-testdev  QEMU's test device (docs/specs/pci-testdev): a region of memory and one of I/O space
//	null         an 82574L that swallows what it is to send when the doorbell rings, and with rx=N
//	             fills every receive descriptor that it is given with a frame of N bytes: what is measured
//	             then is the driver. mac=ADDRESS
//	e1000, e1000-82545em, e1000e
//	             82540EM, 82545EM and 82574L, which can be wired. mac=ADDRESS
//
// [Models] lists them with their properties. On ring3's command line they begin with "sim.":
// eth0=sim:null,sim.rx=60.
//
// Of edu, a transfer that leaves the buffer is ignored and reported (see Stray DMA) where QEMU
// aborts or corrupts itself; the last byte of the buffer is usable; a factorial takes 10 us.
// null has no moderation, no filters and no offloads, and its interrupts are those of an
// 82574L; it costs 2 to 3 ns a descriptor. A frame to receive is written into a buffer when that
// is first used and left alone then, so a program that changes what it received finds its
// changes again.
//
// # The gigabit controllers
//
// They are modelled after Intel's manuals, with the subsystem IDs of Intel's own cards: filters,
// all sizes of buffers, both formats of descriptors, checksums, segmentation, VLAN tags, two queues
// each way with RSS (82574L), pause frames, the EEPROM, the PHY, statistics. What takes time is what
// delays and throttles interrupts, a pause, and negotiating the link (500 ms); the rest is done
// when it is asked for. A link is up from the start, and its partner can do everything.
//
// A frame for which there is no descriptor waits in the packet buffer (PBA: 48 KiB, in the
// 82574L 20 KiB) and is missed, and counted in MPC, when that is full. Pause frames are sent as it fills
// and empties.
//
// Left out: packet split, wake-up, management, timestamps, half duplex, the flash (an empty region).
// A doorbell sends at most 64 MiB; the rest follows 1 ms later.
//
// Where QEMU 7.2 differs it is wrong, and the tests of package sim that run on both name it: its 82540EM
// hears nothing for 1 s after a write to RCTL, does not verify checksums, and keeps its registers
// through CTRL.RST; its 82574L cuts what is to be segmented into IP fragments, forgets the
// tag in legacy descriptors and throttles without being asked to; both send an empty segment after
// a last one that is full, and take frames of up to 1526 bytes as not long.
//
// # Config space, regions, reset
//
// A function has the header, base address registers and capabilities that its device has:
// MSI with 64-bit addresses, MSI-X with its table and pending bits, and for PCI Express power
// management (D0, D3) and function-level reset. [Start] enumerates the bus with package pci, so
// addresses, sizes and decoding are what a driver finds on any bus. Where decoding is off, or the
// function sleeps, regions read all-ones. All functions stand on the root bus.
//
// # DMA
//
// [bus.DMA] hands out memory from the Go heap, so that the race detector sees who writes what
// before which doorbell: run tests with -race. It has addresses of its own, from 1 MiB up, first
// fit; a page that is nobody's follows each piece. Map takes a caller's page-aligned memory.
//
// What is shared with a driver that polls is written with single ordered stores (package
// dma), all else with plain ones.
//
// # Stray DMA
//
// A device reaches the memory that was allocated for it, from the first byte asked for to the
// last, in the direction that was asked for, and nothing else: not what belongs to other devices, not
// what was freed, and nothing at all while bus mastering is off. What it writes elsewhere is dropped, what it reads is ones, and
// [Machine.StrayDMA] tells of it: a test checks that it says 0 in the end. The first of each
// device is logged.
//
// # Interrupts
//
// Messages are writes to an address that stands for eventfds; written elsewhere by a driver's
// mistake they are stray DMA. INTx is level-triggered, shared by functions whose slots are four
// apart, and masked when it fires until [bus.IRQ.Unmask].
//
// # Time
//
// Models live in virtual time: a transfer that takes 100 ms, an interrupt that is held back.
// [Config.Clock] says how it passes. [RealTime] follows the wall clock. [Stepped] moves by
// [Machine.Advance] only. [Eager] jumps to whatever comes next when nobody does anything else, so
// that tests do not wait.
//
// What is deterministic: a chip runs only inside an access or a timer, one at a time; timers fire
// in the order of their times, those for the same moment in the order of their making; addresses
// depend on the order of requests alone. There is no chance anywhere. So with a Stepped clock
// and accesses from one goroutine every run is the same. With an Eager
// clock the times are the same, but how far a driver that pauses gets between two timers is not.
// Interrupts wake goroutines, and when those run is the scheduler's.
//
// # Wires
//
// Two network devices are connected by naming them in [Config.Wires]. A frame is in the other
// device's memory when the write of the doorbell that sent it returns; where that device
// has no room it does what its datasheet says, as a rule it drops it. Nothing queues, reorders or
// delays. [Machine.SetLink] pulls the cable out. [DeviceSpec.Capture] sees what
// passes.
//
// # Life and death
//
// [Machine.Unplug] pulls a device out: its registers read all-ones, its Err wraps bus.ErrGone.
// [Machine.Close] closes all devices, and reports memory that was not freed.
//
// # Limits
//
// One lock a machine: devices of one machine do not run at the same time, and a doorbell takes as
// long as the work that it causes. No bridges, no expansion ROMs, no hot-plug, no errors of
// the PCI Express fabric.
//
// # Locks
//
// A device's irqMu before Machine.mu. Chips, timers and wires run under Machine.mu and call
// nothing that takes a lock but the logger and Capture.
//
// Sources: PCI Local Bus 3.0; PCI Express Base 3.0; PCI Power Management 1.2; QEMU's docs/specs/edu
// and docs/specs/pci-testdev; Intel 317453
// (8254x) and 317694 (82574L).
package sim
