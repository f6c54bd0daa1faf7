// Package tis drives a TPM behind the FIFO of the TPM Interface Specification (TIS), which TPM 2.0's
// PC Client Platform TPM Profile (PTP) has too: memory-mapped registers, a page for each locality.
//
// Firmware calls such a device MSFT0101 (TPM 2.0) or PNP0C31 (TPM 1.2). This driver uses locality 0.
//
// # A command
//
// The locality is requested, and the TPM becomes ready. The command goes into the FIFO, no more at a time
// than the burst count says; a write to STS starts it. When the answer is there (dataAvail), its header is read,
// which says how long it is, then the rest. commandReady frees the FIFO, and the locality is given back.
//
// # Accesses
//
// An access may cost as much as a system call and a round trip, so each is made once, and of 32 bits where the
// interface takes that (INTF_CAPABILITY, data transfer size). TPM2_GetRandom of 32 bytes takes 25, where a driver that
// moves bytes takes 81.
//
// # Interrupts
//
// One is asked for: data available. The first command at probe shows whether it comes; where it does not, and where it
// does not stop coming, the driver polls, and says so in the kernel's words. Whoever waits looks at STS now and then
// all the same, so a lost interrupt costs milliseconds and not the command. The wait acknowledges: the line is masked from
// its firing until then, and INT_STATUS belongs to the active locality.
//
// # Errors
//
// Those of package tpmdd. A step that breaks the protocol on the way in (Expect is wrong, no burst count) is retried by
// starting the command again, up to 50 times; an answer with bytes left over is read again (responseRetry), as often.
//
// # Locks
//
// A Transport's methods are called one at a time, but for Cancel; the handler of the interrupt only signals.
//
// Sources: TCG PC Client Specific TPM Interface Specification 1.3, 5; TCG PC Client Platform TPM Profile 1.05, 6;
// QEMU's docs/specs/tpm.
package tis
