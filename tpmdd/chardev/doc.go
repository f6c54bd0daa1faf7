// Package chardev is what a program finds behind /dev/tpm0 and /dev/tpmrm0: streams that take a command with one write and give
// its answer to reads.
//
//	d := chardev.New(chip, manager, chardev.Options{})
//	f, err := d.OpenTPM(flags)   // /dev/tpm0: one opener at a time, the TPM as it is
//	f, err := d.OpenRM(flags)    // /dev/tpmrm0: any number, each with a space of its own (tpmdd/rm); TPM 2.0 only
//	n, err := f.Write(ctx, cmd, flags)
//	n, err = f.Read(ctx, p, flags)
//
// A [File] has the methods of a stream of internal/node: flags are those that the open file has
// at the time, of which O_NONBLOCK counts, in Write.
//
// # Write
//
// One write is one command, whole. What is sent is as long as the command's header says; more may be written.
//
//	E2BIG    more than 4096 bytes
//	EBUSY    an answer is there of which nothing was read, or a command that was written with O_NONBLOCK is on its way
//	EINVAL   fewer than 6 bytes, or fewer than the header says
//	ENODATA  the header says 0
//	EPIPE    the chip is gone
//	others   those of the chip (package tpmdd) and of the resource manager (package rm)
//
// Without O_NONBLOCK Write returns when the command is done, with what became of it. With O_NONBLOCK it returns at
// once; the next Read gives the errno. After part of an answer was read a command may be written, and the
// rest of the answer is lost.
//
// # Read
//
// Read gives what there is of the answer, up to the length of p, and forgets it: the file's copy is zeroed. A read
// of no bytes discards the answer. Where there is nothing Read returns 0 and no error, O_NONBLOCK or
// not. While a command is on its way Read waits for it, O_NONBLOCK or not.
//
// An answer that nobody read 120 s after it came, or the errno in its place, is discarded. [Options.Warn] is
// told then, in the kernel's words.
//
// # Poll
//
// Readable (POLLIN|POLLRDNORM) while there is an answer, or part of one, or an errno; else writable (POLLOUT|POLLWRNORM); neither
// while a command is on its way. The kernel's poll does not return then: it waits for the lock that the
// command has.
//
// # Interrupts and closing
//
// A ctx ends waiting, with EINTR: for the command of another thread on the same file, or for the chip. A command that
// the TPM has runs to its end. Close waits for a command on its way; then the space is flushed, and /dev/tpm0 may be
// opened again. Anything on a closed file is EBADF.
//
// # Policy
//
// [Options.Refuse] sees each command, of both devices, exactly as it would be sent, before anything of it is. What it returns is
// the answer; nil lets the command through. On /dev/tpmrm0 transient handles in it are the program's virtual ones.
//
// # Sockets
//
// [ServeSocket] gives a device to those who have no FUSE: each connection is an open file. Its comment says how.
//
// # Where it differs from the kernel
//
// A write that is refused leaves the rest of a partly read answer alone. The 120 s of an answer end when the
// next command is written; in Linux they may end while that one runs, and take its answer. A Read right after a write with
// O_NONBLOCK waits; in Linux it gives 0 in the moment before the worker starts. The kernel waits without heeding
// signals. Its warning has the pid of whatever runs when the time is over, which is 0 on an idle CPU, and 0 here.
//
// # Locks
//
// A file's mu is held for moments only. Neither a space's nor the chip's turn is waited for with it.
//
// Sources: the semantics are those of Linux 6.12, drivers/char/tpm/tpm-dev-common.c, tpm-dev.c and tpmrm-dev.c.
package chardev
