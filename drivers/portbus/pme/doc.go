// Package pme is the service of power management events: a device that sleeps below a root port, and is woken up by what it watches (a packet,
// a key, a card), sends a PME message; the root port interrupts, and this driver wakes the device up.
//
// It serves root ports and event collectors, with the kernel's driver name ("pcie_pme"), interrupt ("PCIe PME") and messages. There are no files.
//
// # An event
//
// Root Status names one requester at a time; others wait in the port (PME Pending). The interrupt handler disables the interrupt and leaves
// the rest to the service's goroutine, which takes one after the other: it clears PME Status, so that the next can show, looks
// for the device of that name, clears PME_Status in its power management capability, and wakes it up. PME_En is cleared too, or
// the device would go on asking: whoever suspends it the next time sets it again. A message that came from where no device has its
// PME_Status set is "Spurious".
//
// Behind a bridge to conventional PCI, PME is a wire: the bridge signals for all of them, with its secondary bus's number, so all behind it are asked.
// The root port may signal in its own name, for itself or for what is no PCI Express device at all.
//
// # Waking up
//
// Where the bus has an owner that implements pci.Waker, it is asked: it knows what it suspended. Otherwise a function that is not
// in D0 is brought there, and its driver, if it is a bus.PowerHandler, resumed.
//
// # Storms
//
// After [burst] events without a pause the service pauses for [pause], with the interrupt disabled: a device that asks forever costs little, and
// keeps nobody from being served. A port whose PME Pending never ends is left for that long too.
//
// # Power
//
// When the port is suspended its interrupt is left on if something below may wake the system up (PME_En), else it is disabled.
//
// Sources: PCI Express Base 5.0, 5.3.3, 6.1.6, 7.5.3.12 to 7.5.3.14; PCI Power Management 1.2, 3.2.4; Linux, drivers/pci/pcie (messages).
package pme
