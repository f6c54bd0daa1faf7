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
//	root-port, ioh3420, upstream, downstream
//	             ports of PCI Express, also by QEMU's names pcie-root-port, x3130-upstream and
//	             xio3130-downstream: see Ports
//	tpm-tis      a TPM behind the FIFO of the TPM Interface Specification, as QEMU's tpm-tis: a platform
//	             device. family=1.2 or 2.0, burst=N, delay=DURATION, irq=off, ek=off, misbehave=...
//	tpm-crb      a TPM 2.0 behind a command response buffer, as QEMU's tpm-crb: a platform device.
//	             delay=DURATION, misbehave=...
//
// null and e1000e have aer=on (Advanced Error Reporting) and pme=on (they can signal PME) besides.
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
// # Ports
//
// [DeviceSpec.Bus] puts a device under a port: one device under a root port or downstream port, downstream ports under an
// upstream port. Config accesses find their way by the bus numbers that were written into the ports, whatever they are; a region answers if every
// bridge above it has a window over it and forwards that space; DMA and messages from below need every bridge above to be a bus master. INTx is
// swizzled. A port that sleeps (D3) forwards config accesses only. A bus.Device's Reset is, where the model has no reset of its own, one of the bus on which it stands alone.
//
// Ports have QEMU 7.2's identities, capabilities and reset values, and a test compares all 4096 bytes, and each step of plugging and unplugging. Where
// they differ QEMU's are less than the specification asks for: errors cannot be masked, links cannot be disabled and do not tell of changes of their state, power
// faults cannot interrupt, each error's header is logged over the one before, and a port takes its own message for one from below. QEMU lets config space be written where there is no capability, restores all events of a slot if one is
// cleared that was not set, and swallows correctable errors; nothing of the kind is here. Properties of ports:
//
//	vectors=N, msi=N, intx=on  the kind of interrupts (root-port: vectors=1; ioh3420: msi=2; others: msi=1). Messages: the slot, PME and
//	                           bandwidth 0, errors 1, DPC 2, as far as there are so many
//	slot=N                     physical slot number
//	button, power, attn, led, surprise, hotplug, interlock=off
//	                           what a slot does not have, of what QEMU's have
//	mrl=on                     a sensor of the latch
//	cmd=DURATION               how long a command takes; no-command-completed=on: it is not told
//	auto_eject=off             a card stays in a slot that is off
//	reset_link=on              a reset of the secondary bus shows as link state changes, as on real ports
//	dpc=on                     Downstream Port Containment
//	vc=N                       a Virtual Channel capability with N extended channels
//	pme=on                     PME
//	bw=on                      bandwidth notification, speeds up to 16 GT/s, whatever the card's registers say of its own
//
// # Slots
//
// [Machine.Plug] puts a card into a slot, [Machine.Eject] asks for it back, [Machine.Unplug] pulls it out, [Machine.PressButton], [Machine.OpenLatch],
// [Machine.PowerFault] and [Machine.SetPortLink] do what their names say. A slot without a card is off; one that has a card at the start is on. Software switches it by Slot
// Control. While a card has no power, no link, is contained (DPC) or its bus is held in reset, reads give all-ones. Its link going down resets it
// and all behind it; error logs survive that unless power is lost. A card leaves (Config.Ejected) when power and power indicator are switched off, asked for or
// not, as QEMU's do; from a slot without a power controller by Unplug only.
//
// [Machine.Rescan] enumerates what is new, [Machine.Named] gives its bus.Device. [Machine.Forget] takes functions out of service and
// [Machine.Disconnect] kills what is behind a port for its drivers; the cards stay. Found again they have config space as it was, and fresh registers in their regions.
//
// # Errors, PME, containment, bandwidth
//
// [Machine.InjectError] has a function detect errors (PCI Express Base 5.0, 6.2): Device Status, Advanced Error Reporting with header log, first error
// pointer and, where software enables it, up to eight recorded headers. Messages pass Device Control or SERR# Enable of the function, and of each bridge above
// Bridge Control's SERR# Enable and, if not correctable, its own Device Control or SERR# Enable. One injection sends at most one message of each
// severity. Advisory non-fatal errors are not told from others, nor do links going down by surprise report an error. [Machine.SignalPME] queues
// in the root port. [Machine.TriggerDPC] is an error of programmed I/O; errors that reach a port contain too. Root ports are never busy (RP Busy), and log no TLP
// prefixes. [Machine.SetLinkSpeed] changes a link. An interrupt message is sent when what is enabled and set goes from nothing to something.
//
// # Platform devices
//
// A TPM is no PCI function but stands where firmware says (bus.Platform): MSFT0101 or, for TPM 1.2, PNP0C31.
// It has no config space, no slot, no DMA and no reset of its own; its one region is where it is on a PC,
// 0xfed40000, and 32 KiB further up for each platform device before it. [Machine.Function] gives none, and
// enumeration does not find it, so a machine of platform devices alone has an empty [Machine.Topology].
// Interrupts are INTx on line 5, which all platform devices of a machine share.
//
// # TPMs
//
// Registers behave as those of QEMU 7.2, five localities with requests, seizures and aborts included, where the
// specifications leave it open. Differences, in which QEMU's are wrong: a locality whose command was
// aborted by another begins anew instead of finding what the other left in the buffer; who gives up a locality
// aborts its command; INT_STATUS shows what is enabled only. Registers of the FIFO interface take 8, 16 and
// 32 bits. Measured launch (locality 4), the physical presence interface and CRB interrupts are left out.
//
// A command takes 1 ms of virtual time, or what delay says, and has its effect when that is over. With burst=N the
// FIFO is N bytes deep: no more is announced, and what is written or read beyond what the last read of STS announced
// is lost, or reads 0xff. irq=off has interrupts that can be enabled and never come, for drivers that try them out.
//
// Behind the registers is a [TPM]: the one of [DeviceSpec.TPM], or one that is built in, which has no keys but
// what else a driver and a resource manager need, and whose random numbers are the same in each run:
//
//	2.0  Startup Shutdown SelfTest GetTestResult GetCapability GetRandom PCR_Read PCR_Extend PCR_Reset,
//	     HashSequenceStart SequenceUpdate SequenceComplete (three transient objects),
//	     StartAuthSession PolicyGetDigest (three sessions loaded, 64 in all), ContextSave ContextLoad FlushContext;
//	     banks of SHA-1, SHA-256, SHA-384 and SHA-512; passwords, all of them empty
//	1.2  Startup SaveState SelfTestFull ContinueSelfTest GetTestResult GetCapability GetRandom PCRRead
//	     Extend PCR_Reset ReadPubek (no key with ek=off); no owner, no authorization
//
// Its result codes are those of the reference implementation, but that a wrong tag is answered as hardware does, with tag
// 0x00c4 and 0x1e. A TPM 2.0 that resumes (Startup to a saved state) has
// its PCRs back, but no sessions.
//
// # TPMs that misbehave
//
// misbehave=KIND goes wrong with each command, KIND:N with the N-th only (from 1, since power-on), KIND:N-M
// with those from N to M, KIND:N- from N on. Several are joined by a plus sign: retry:1-3+hang:5. A command counts
// from its first byte (CRB: when it is started), whether or not it is executed.
//
//	long      the answer's header says 4 bytes more than there are
//	short     4 bytes more follow than the header says
//	huge      the answer has 5000 bytes, more than the 4096 that a TPM may give
//	runt      the answer has 6 bytes, less than a header
//	tag       the answer's tag is 0xdead
//	fail      the answer is TPM_FAIL of TPM 1.2, as when QEMU lost its TPM
//	retry     the answer is TPM_RC_RETRY (1.2: TPM_RETRY), and nothing is executed
//	testing   the answer is TPM_RC_TESTING (1.2: TPM_DOING_SELFTEST), and nothing is executed
//	hang      the command ends only when it is aborted
//	wedge     the command does not end even then
//	locality  a request for the locality is ignored; no command comes through then, so none counts
//
// Of tpm-tis alone:
//
//	expect    Expect stays set after the last byte
//	noexpect  Expect is clear from the first byte on
//	burst0    the burst count is 0; the command counts once a driver that saw it writes commandReady
//	storm     the line is high without a cause, from the command's first byte until the next command's
//
// Of tpm-crb alone:
//
//	fatal     the command ends without an answer, and CTRL_STS says that there was an error
//
// What any device can be made to do wrong, such as bits that flip or stick and interrupts that are lost, package
// fault does.
//
// # Config space, regions, reset
//
// A function has the header, base address registers and capabilities that its device has:
// MSI with 64-bit addresses, MSI-X with its table and pending bits, and for PCI Express power
// management (D0, D3) and function-level reset. [Start] enumerates the bus with package pci, so
// addresses, sizes and decoding are what a driver finds on any bus. Where decoding is off, or the
// function sleeps, regions read all-ones.
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
// Platform devices have a line of their own. Messages are writes to an address that stands for eventfds; written elsewhere by a driver's
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
// [Machine.Reset] is power-on reset. [Machine.Unplug] pulls a device out: its registers read all-ones, its Err wraps bus.ErrGone. bus.SaveState
// keeps config space and the MSI-X table, for a reset of a bus.
// [Machine.Close] closes all devices, and reports memory that was not freed.
//
// # Limits
//
// One lock a machine: devices of one machine do not run at the same time, and a doorbell takes as
// long as the work that it causes. No expansion ROMs; functions have no second function beside them; nothing is plugged in on the root bus or inside a switch.
//
// # Locks
//
// Machine.topoMu (Rescan, Forget) before a device's irqMu before Machine.mu. Chips, timers and wires run under Machine.mu and call
// nothing that takes a lock but the logger and Capture. Config.Ejected is called with none held, by whoever made the access.
//
// Sources: PCI Local Bus 3.0; PCI Express Base 3.0 and 5.0; PCI-to-PCI Bridge 1.2; PCI Power Management 1.2; QEMU's docs/specs/edu
// and docs/specs/pci-testdev; Intel 317453
// (8254x) and 317694 (82574L); TCG PC Client Specific TPM Interface Specification (TIS) 1.3; TCG PC Client Platform
// TPM Profile (PTP) 1.05; TPM Main Specification 1.2 parts 2 and 3; TPM 2.0 Library Specification 1.59 parts 2 and 3.
package sim
