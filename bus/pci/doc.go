// Package pci is what drivers and backends share about PCI: addresses, identification,
// config space, capabilities, interrupts, enumeration, driver matching, and how a function
// looks in sysfs.
//
// # For a driver
//
// A [Driver] lists the [ID]s it serves and has a Probe; [Bind] matches a device against a
// list of drivers and says what became of it: bound, skipped or failed, with the reason.
// In Probe a driver uses [SetCommand] (bus mastering is its own act), [FindCap] and
// [FindExtCap]; interrupts come from bus.Device. Walks over capabilities end, and stay
// inside config space, whatever a device answers.
//
// # For a backend
//
// A backend that carries a whole bus, with nobody to assign resources, implements
// [Access] and calls [Enumerate]: bridges are numbered, BARs sized and placed, windows
// set, decoding enabled. What is wrong with one function is told in its Err and harms no
// other. [Topology.Rescan] and [Topology.Forget] serve hot-plug: what is new gets what nobody has
// of the bus numbers and windows of the bridge above it, and what is known stays where it is. How much a
// hot-plug port keeps for that is [EnumerateReserving]'s to say. A backend that programs interrupt
// messages itself uses [OpenMSI] and [OpenMSIX]; INTx has [INTxPin], [INTxPending] and
// [CmdINTxDisable].
//
// # For a host
//
// [Sysfs] shows functions as /sys/bus/pci and /sys/devices do.
//
// # Limits
//
// Not there: CardBus bridges, SR-IOV, resizable BARs, ARI (more than 8 functions),
// subtractive decoding, I/O and memory windows that avoid ISA and VGA ranges. Expansion ROMs
// are never enabled.
//
// # Concurrency
//
// Functions of this package keep no state. [MSI], [MSIX] and [Topology] belong to one
// goroutine at a time; [Sysfs] is safe for concurrent use.
//
// Sources: PCI Local Bus 3.0; PCI-to-PCI Bridge Architecture 1.2; PCI Express Base 3.0;
// PCI Bus Power Management 1.2; Linux, Documentation/ABI/testing/sysfs-bus-pci.
package pci
