// Package rm is the TPM 2.0 resource manager: it gives each of many programs a TPM that looks like its own.
//
//	m, err := rm.New(ctx, chip, log)    // once a chip: asks which commands it has
//	s := m.Open()                       // once an open of /dev/tpmrm0
//	answer, err := s.Transmit(ctx, cmd)
//	s.Close()
//
// # Why
//
// A TPM has room for three objects and three loaded sessions or so, and anybody who knows a handle may use it.
// A [Space] holds what one program loaded: before a command of that program its contexts are loaded into the TPM, after it they
// are saved and the objects flushed. So the TPM is empty between commands, programs do not fill it up for each other, and
// none reaches another's objects.
//
// # Handles
//
// A space has 3 slots for transient objects and 3 for sessions. A program sees virtual handles of
// objects, 0x80FFFFFF less the slot; the real one differs from command to command. How many handles a command has, and whether
// its answer has one, the TPM says itself (TPMA_CC: cHandles, rHandle), but for ContextSave and FlushContext, whose
// handle is a parameter there and is mapped all the same. Handles of any other kind (PCRs, NV, persistent objects,
// hierarchies) go through as they are. So do those of sessions, which stay the same while a session is saved; they are followed,
// not mapped, and another program that knows one may flush it.
//
// What GetCapability says of transient handles is rewritten: own ones become virtual, others are left out. Under
// an audit session it is not, the TPM vouches for the answer there.
//
// ContextSave and ContextLoad by the program work: a saved session is forgotten until the program loads
// it again, and is the program's to flush. A session that ended (continueSession clear) or that was flushed,
// by anybody, is forgotten when it cannot be saved, or loaded, any more.
//
// # Errors
//
// Errors carry an errno, the kernel's.
//
//	EINVAL   a transient handle that the space does not have; a command shorter than its header;
//	         a saved object that the TPM has no key for any more (it was cleared or reset)
//	ENOMEM   no slot for what the command made, which was flushed again; or more than 16 KiB of contexts
//	ENOENT   a saved object is no longer known to the TPM
//	EFAULT   the TPM refused to load or save a context, or said something malformed
//	EIO      what the TPM said is no answer
//	EBADF    the space was closed
//	others   those of the chip
//
// After an error of any kind the sessions of the space are gone, and its objects are as they were before the command.
// So it is in the kernel, where all that is loaded is flushed, and objects are saved already.
//
// A command that the TPM does not have is answered without it: 0x000B0143, TPM_RC_COMMAND_CODE of the
// resource manager's layer.
//
// # Turns
//
// Spaces may be used from any number of goroutines. One command of a space is one [Chip] Do: load, command,
// save. Two commands of the same space go one after the other. A ctx ends the wait for a turn; what was begun runs to its
// end, as the TPM would be left with somebody's objects otherwise. A space that holds nothing sends nothing but the command.
//
// # Where it differs from the kernel
//
// Where a session cannot be loaded Linux tries the same context again for the next session, which is lost with it;
// here only the one is forgotten. After an error Linux keeps the handles of flushed sessions, and flushes
// them again on close, whoever has them by then; here they are forgotten, and Close looks whether a session is
// still the one that was saved before it flushes it. A FlushContext that could not be sent is sent once more.
//
// An object that was made or loaded by a command whose answer was lost stays in the TPM: nobody knows its handle. So in
// the kernel.
//
// # Locks
//
// A space's own turn comes before the chip's.
//
// Sources: TPM 2.0 Library Specification 1.59, part 1, 30 (contexts), part 2, 8.9 (TPMA_CC), 10.8 (capabilities), 14
// (TPMS_CONTEXT), part 3, 28 and 30. Slots, sizes and errnos are those of Linux 6.12, drivers/char/tpm/tpm2-space.c.
package rm
