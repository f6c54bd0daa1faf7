// Package tpmdd is the TPM subsystem: what stands between a TPM's registers and the files that a
// program knows from the kernel.
//
//	/dev/tpm0 /dev/tpmrm0       tpmdd/chardev, sockets too
//	virtual handles             tpmdd/rm
//	/sys/class/tpm/tpm0/        tpmdd/class
//	measured start, quotes      tpmdd/measure, tpmdd/attest
//	commands, times, retries    this package: Chip
//	registers                   tpmdd/tis, tpmdd/crb: drivers, each a Transport
//
// # Concepts
//
// A TPM is a command processor. A command is a header of ten bytes (tag, length, ordinal, big-endian) and
// parameters; an answer the same with a result code in the ordinal's place. It takes one command at a
// time, and has no idea who asked. TPM 1.2 and TPM 2.0 are different languages in the same
// envelope; a chip speaks one of them, and [Chip.Family] says which.
//
// A [Transport] moves commands and answers through registers: the FIFO of the TPM Interface Specification (TIS) or
// the command response buffer (CRB). A [Chip] adds what is the same for all of them: who may talk, how
// long each command may take, what is sent again, how the TPM is started and put to sleep.
//
// # One command at a time
//
// [Chip.Transmit] sends one command and gives its answer to its sender only. [Chip.Do] keeps the
// chip for several commands in a row, which is how a resource manager loads contexts, sends a program's command and
// saves contexts again with nobody in between. Whoever waits for the chip waits in a queue, first come first served.
//
// # Errors
//
// Errors wrap two values: what a program sees, which is the errno that the kernel's driver gives, and the sentinel
// of package bus for Go code.
//
//	ETIME      ErrTimeout    the TPM did not answer within the command's duration; the command was aborted
//	EIO        ErrProtocol   what the TPM said breaks its specification, retries included
//	ECANCELED                the command was cancelled
//	EPIPE      ErrGone       the device is gone, or the chip was closed or is asleep
//	EPIPE      ErrTimeout    the TPM does not give the interface to anybody: no locality, no power
//	EBUSY      ErrTimeout    the TPM took no more bytes in time
//	EFAULT     ErrProtocol   the answer is not as long as its header says
//	EINTR                    ctx ended while another command was being executed
//	E2BIG, ENODATA, EINVAL   the command's own length is wrong; nothing was sent
//
// An answer with a TPM's error code in it is an answer, and no error here.
//
// # Times
//
// Every wait is bounded. Timeouts A to D bound the interface's own steps, durations the commands: TPM 2.0's are
// fixed, TPM 1.2's are read from the chip. See [Timeouts] and [Chip.Duration].
//
// # Locks
//
// A chip's turn (a queue) comes before everything else; a transport's methods run with the turn held, but for
// Cancel, which anybody may call at any time.
//
// Sources: TCG PC Client Specific TPM Interface Specification 1.3; TCG PC Client Platform TPM Profile
// for TPM 2.0 (PTP) 1.05; TPM Main Specification 1.2 parts 2 and 3; TPM 2.0 Library Specification 1.59
// parts 2 and 3. Errnos, retries and times are those of Linux 6.12.
package tpmdd
