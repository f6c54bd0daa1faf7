// Package dpc is the service of Downstream Port Containment: a port that detects an uncorrectable error, or is told of a fatal one, takes its link
// down at once, so that nothing wrong spreads. This driver says what happened, lets the link up again and has all that stands
// below recovered.
//
// It serves root and downstream ports that have the capability, with the kernel's driver name ("dpc"), interrupt ("pcie-dpc") and messages.
// There are no files.
//
// # An event
//
// The interrupt handler acknowledges. The rest is the service's goroutine's: it reads the status and prints it with its reason; an
// error of the port itself is reported and counted as AER does, one of programmed I/O (which only root ports with extensions
// have) with its registers and the header of the request. Then everybody below votes (portbus.Port.Recover) with the link frozen, and
// the port is released: once the link is down, and the root port has nothing under way any more, Trigger Status is cleared,
// the link trains, and what is below is waited for and gets its config space back.
//
// A port that is contained already when the driver comes is released the same way.
//
// # Hot-plug
//
// A card that is pulled out of a slot is an error too, Surprise Down. On a hot-plug port that is no news for this service: it releases the port in
// silence, and hot-plug does the rest (PCI Express Base 6.0, 6.7.6). Any other containment is none of hot-plug's business, though it sees
// the link go down and up: it asks [Service.Recovered].
//
// # Limits
//
// Only ERR_FATAL triggers, beside the port's own errors, as in the kernel: what is not fatal is AER's. Times: 1 s for the link to go down, 1 s for a busy
// root port, 1 s for the link to come back and 100 ms more, 4 s for hot-plug to wait. The trigger by software, DPC Control bit 6, has no
// file.
//
// Sources: PCI Express Base 5.0, 6.2.10, 7.9.15; Linux, drivers/pci/pcie (messages).
package dpc
