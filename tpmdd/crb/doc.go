// Package crb drives a TPM 2.0 behind the command response buffer (CRB) of the PC Client Platform TPM
// Profile (PTP): a control area of registers, and a buffer in device memory for the command and the answer.
//
// Firmware calls such a device MSFT0101, as it does one with a FIFO (package tis); INTERFACE_ID tells them apart.
// This driver uses locality 0, polls, and serves buffers that lie in the device's own region. TPMs that are started through
// firmware (ACPI, ARM's SMC) have no such region, and are not served.
//
// # A command
//
// Locality 0 is requested and cmdReady wakes the TPM up. The command goes into the buffer, in words of 64
// bits; START is set, and cleared by the TPM when the answer lies in the buffer. goIdle and relinquish end it.
//
// # Errors
//
// Those of package tpmdd. CTRL_STS.tpmSts says that the TPM is in a state from which only a reset leads: EIO, for this
// command and all that come.
//
// Sources: TCG PC Client Platform TPM Profile 1.05, 6.5.3; QEMU's docs/specs/tpm.
package crb
