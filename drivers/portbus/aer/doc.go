// Package aer serves Advanced Error Reporting of root ports and event collectors: a function that detects an error sends a message up to
// its root port, which interrupts, and this service finds out who it was, tells what the kernel would tell, counts, and takes the
// devices concerned through recovery.
//
// # Life of an error
//
//  1. A function sets a bit in its status register. Unless the bit is masked, and where Device Control lets it, it sends a message: correctable, or, by its
//     severity register, non-fatal or fatal.
//  2. The root port remembers the first message of each kind, with who sent it, and whether there were more; it interrupts.
//  3. The handler takes that over, clears it, and looks again: no interrupt comes while something is left. Up to 128 messages wait in a queue; more are
//     counted, and one line tells of them.
//  4. The service's goroutine counts the message for the root port (aer_rootport_total_err_*), and looks for the source: the function the message
//     names; where the name is of bus 0, which some ports say for want of better, or there were more messages, all functions in
//     service that have such an error, at most five.
//  5. Each is reported (package portbus, Port.Report), and counted (aer_dev_*).
//  6. A correctable error is cleared. For a non-fatal one the drivers below the port whose link is concerned are asked what they need; for a fatal one
//     all behind that port is reset, too (package portbus, Port.Recover).
//
// # Masks and severities
//
// There are no files for them, as there are none in the kernel: they are set in config space (setpci), and are read afresh for each error. A masked bit
// is not reported, though it shows in the status; a bit in Uncorrectable Error Severity makes its error fatal.
//
// # Limits
//
//   - A function that reports a fatal error stands behind a link that cannot be relied on; unless it is a port above a link, its registers
//     are not read, and it is reported as inaccessible, uncounted.
//   - A port's own fatal error stays in its status register: recovery clears what is not fatal, and what was reset. The next error of that
//     port shows both. So it is in the kernel.
//   - Two messages within a few microseconds of the same function and the same kind can become one line and one count: the registers hold one bit.
//   - What an event collector collects for is found on its own bus only.
//   - An error whose port nobody serves is recovered from the next port above that somebody does serve.
//   - There is no rate limit (the kernel has one since 6.16), but where status is set again faster than the handler clears it, looks
//     are 10 to 160 ms apart, and what comes between is one message with "Multiple". A status that does not clear at all is one message a look.
//   - Correctable errors have no First Error Pointer; bit 0 is said to be the first all the same, as kernels say that clear their stacks.
//   - Without an interrupt there is no service.
//
// # Suspend, unbind
//
// A suspended port, and one that the service is taken from, does not interrupt, and forgets what it received. A recovery that is
// under way is finished first, with its reset and all that drivers are to be told. Errors go on being recorded by the functions.
//
// Sources: PCI Express Base 5.0, 6.2 and 7.8.4; Linux, Documentation/PCI/pcieaer-howto.
package aer
