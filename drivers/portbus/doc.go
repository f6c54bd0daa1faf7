// Package portbus drives PCI Express ports: root ports, both kinds of ports of a switch, and root complex event
// collectors. A port offers several services at once (it reports errors, takes cards, wakes the system up, contains
// failures), but only one driver can own it. So this driver owns the port, and hands each service to a driver of its own: services
// are written, registered and taken away on their own, before or after the hardware appears.
//
// It is the port bus driver of Nguyen, Sy and Carbonari (PCI Express Port Bus Driver Support for Linux, OLS 2005), with the names
// and files that today's kernel has.
//
// # Concepts
//
//   - A [Bus] is the bus "pci_express": drivers of services, and the services that ports offer. A program has one for each
//     set of devices; there is no global one. [Bus.PortDriver] is the PCI driver, "pcieport", that claims ports for it.
//   - A [Port] is one port in service.
//   - A [Device] is one service of one port, as its driver gets it: "1000:00:04.0:pcie004". The number is the port's type less four,
//     and the service's bit.
//   - A [ServiceDriver] serves one [Service] of ports of one type, or of all.
//
// # Services
//
//	0x01 PME   power management events                root ports and event collectors
//	0x02 AER   Advanced Error Reporting               those with the capability (since 6.2: root ports and collectors only)
//	0x04 HP    hot-plug                               root and downstream ports with a hot-plug slot
//	0x08 DPC   Downstream Port Containment            those with the capability and AER (in 2005 this bit was VC's)
//	0x10 BW    link bandwidth notification            root and downstream ports whose link tells
//	0x20 VC    Virtual Channel                        those with the capability; the kernel has no such service
//
// Each has a package below this one.
//
// # What a service may touch
//
// [Device.Config] is the service's own view of config space: the header's identification, and the registers of its
// own capability. Everything else reads all-ones and ignores writes: Command with bus mastering, the interrupt
// capabilities, base addresses, other services' capabilities. Registers that services share (Device, Link, Slot, Root
// and Bridge Control) are read freely and changed with [Device.Modify], which is one locked read-modify-write of those bits that belong to the
// service. Ownership of bits is a table, in view.go. An extended capability ends where the next begins; one whose registers have no room
// before that is not used, and a message says so.
//
// [Port.Member], [Port.Function] and [Port.Hierarchy] show the port as a function among others. There its config space is whole, and takes no
// writes; its device gives no interrupts, regions, DMA memory or resets. What of the port's a service must change, and what is neither its own capability nor a shared
// control register, has a function here: [ClearErrors], [ClearStatus], [ClearDevice], [TakePME], [PowerUp], [ResetFunction].
//
// So far it is enforced. Functions below the port, which error recovery must read, clear and reset, are whole devices for any service
// ([Port.Below], and Find of another address), and so are the config spaces of what stands above a function (Parent of a pci.Function):
// there services keep to what they are for by themselves.
//
// # Interrupts
//
// The driver asks for as many MSI-X (else MSI) vectors as there are, up to 32, reads the message number of each service (those of PME,
// hot-plug and bandwidth notification in the Express capability, that of AER in Root Error Status, that of DPC in
// its capability), and then enables exactly as many as the highest needs. Where a service's number lies beyond what there is, or there are
// no messages, all share INTx; where that is missing too a service has no interrupt and must poll.
// A service calls [Device.Handle] in its Probe. Services that share a vector are called one after the other at each
// interrupt, each looks whether it was meant, and what /proc/interrupts shows is all their names.
//
// A handler acknowledges and signals a goroutine of its service's; it must not wait. A service that is taken away first
// disables its interrupt in hardware, then its handler is removed: when that returns, it does not run. INTx that nobody feels meant
// by is left masked after [strayLimit] times in a row, as the kernel does ("nobody cared").
//
// # Errors and recovery
//
// [Port.Report] prints an error in the kernel's words and counts it. [Port.Recover] is the recovery of all that stands below a port: each
// driver votes (bus.ErrorHandler), the link is reset if it must be, and traffic goes on, or is given up. AER and DPC call it. A service, or a port, that
// is taken away while it recovers waits until that is done, for 5 s and as long as a driver takes: nothing stays reset and not restored, and no driver stopped
// for want of a word. Where that is too short a line says so.
//
// A function is gone if its device says so, or its Vendor ID reads all-ones. An error status may read all-ones and be true.
//
// # Looks
//
// A port tells what happens by interrupts alone, and one that was reset by itself, or lost a write, has forgotten for what. So each port is looked at every [LookEvery] ([Bus.SetLook]): Command, the
// number of the bus behind it, where its messages go (bus.IRQKeeper), and of each service that is a [Keeper] its control register and its status. What is found twice is set up again, what
// stands is taken in, and one line says so; no interrupt is counted for it. After a reset, which a lost bus number or message tells, what stands behind it is brought back by recovery, as from an error. What does not
// stay as it is written is left alone after a few looks, messages too, and resets nothing any more; what stands at each look is taken in further on, ever more seldom. The first look also
// finds out once more what the port offers. A port whose config space reads all-ones at several looks, or that offers something else than it did, is as good as gone: [Port.Err] says so, and it is
// for a driver anew. Nobody looks at a port that is suspended, or being reset. The kernel does nothing of this.
//
// # Power
//
// A Port is a bus.PowerHandler: its services are suspended, the last first, and resumed in order. The host
// suspends leaves before ports, root ports last.
//
// # Locks
//
// A Device's mu is held while its driver's Probe or Close runs; Bus.mu guards lists only, and nothing foreign is called under it; Port.regs
// guards read-modify-writes; a look tries Device.mu, and waits for it nowhere; a vector's mu is held while handlers run. A recovery has its root port's turn while it
// asks drivers and resets, and waits for no lock that whoever waits for it could hold. Order: Device.mu, Bus.mu, vector.mu, Port.regs.
//
// Sources: PCI Express Base 5.0, 6.2, 6.7, 7.5.3, 7.8, 7.9; Linux, Documentation/PCI/pciebus-howto, pcieaer-howto,
// pci-error-recovery; the paper above.
package portbus
