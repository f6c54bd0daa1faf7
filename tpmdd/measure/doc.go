// Package measure makes the start of drivers visible to somebody who does not trust this machine: it extends a PCR
// of a TPM with the digest of everything that is started, keeps the list of what that was in the format of Linux's
// IMA, and refuses to start what is not known.
//
//	m, err := measure.New(ctx, measure.Options{Chip: chip, Family: chip.Family(), DB: db, Policy: measure.PolicyDeny})
//	err = m.Self(ctx)                              // the running binary, drivers and all
//	err = m.Data(ctx, "config:eth0", []byte(line)) // what it is told to do
//	rom, err := m.ReadFile(ctx, "/lib/firmware/x") // the bytes that were measured, not a second read of the file
//	tree := m.Log().Files()                        // /sys/kernel/security/ima/...
//	refuse := measure.Refuse(m.PCR(), family)      // for the character devices
//
// # Concepts
//
// A PCR can only be extended: its new value is the hash of the old one and of what is added. Whoever knows the list
// of what was added can compute the value ([Replay]); nobody can add to the list, take from it or reorder it and arrive at
// the same value. The list is therefore no secret and needs no protection: the TPM signs the PCR (package
// tpmdd/attest), the verifier replays the list.
//
// Everything is measured before it is used, and read once: [Measurer.File] takes a descriptor, [Measurer.ReadFile]
// gives the bytes that it hashed. A file whose size or time changes meanwhile is an error. The running binary is read
// through /proc/self/exe, which is the file that runs whatever its path leads to now; the kernel lets nobody
// write to it.
//
// Only ring3 extends the PCR. Programs reach the TPM through character devices, which ask [Refuse]
// about each command first. That holds while it measures, so the PCR is one that nobody can reset at another time: 10 to 15 ([CheckPCR]).
//
// # The list
//
// An entry is a template: named fields, each with its length, of which the digests are made. Two of IMA's are used.
//
//	ima-ng    d-ng|n-ng        a file: its SHA-256, its path
//	ima-buf   d-ng|n-ng|buf    a configuration: the SHA-256 of the data, a name, the data themselves
//
// d-ng is "sha256:", a zero byte, the digest. n-ng is the name with a zero byte; blanks in it become underscores, as
// IMA does, and so do control characters, which IMA leaves and which would let a path write lines of its own into
// the list. The first entry is boot_aggregate, which ties the list to this boot: an ima-ng entry of the SHA-256 over the
// PCRs 0 to 9 of the SHA-256 bank, without which nothing is measured; on a TPM 1.2 the SHA-1 over the PCRs 0 to 7.
//
// Binary form, each number a little-endian u32: PCR, template digest (20 bytes), length of the template's name, name, length of
// the template's data, data (per field: length, bytes). ASCII form, one line each:
//
//	10 <40 hex digits> ima-ng sha256:<64 hex digits> /usr/bin/ring3
//	10 <40 hex digits> ima-buf sha256:<64 hex digits> config:eth0 71656d753a6531303030
//
// The template digest is a hash of the template's data, and is what the PCR is extended with. Every bank that
// has the PCR is extended, with the digest in its own algorithm (Linux 5.8 and later); a bank of an algorithm that is not
// in Go's library gets the SHA-1 with zeros behind it, as IMA's unmapped ones do. The list shows the SHA-1; since
// Linux 6.10 there is a file for each bank beside it, with that bank's digest: ascii_runtime_measurements_sha256.
// What was measured already is not measured again.
//
// An entry whose template digest is zero is a violation: the PCR was extended with ones instead. Violations counts them.
//
// # Unknown digests
//
// A [Database] lists what is known. A digest that is not in it is measured all the same, so that the verifier sees
// the attempt; then the [Policy] decides.
//
//	log     a warning; it is started
//	deny    EPERM; it is not started, other things may be
//	lock    EPERM; the PCR is extended with random bytes that nobody keeps, and this Measurer allows nothing any more
//
// After lock the list has a violation, named "locked:" and the culprit's name, so that a reader learns what happened. No
// list replays to the PCR's value any more, this one neither: a violation stands for ones, and it was extended with
// something else. What was sealed to the PCR cannot be unsealed, until the TPM is reset.
//
// # Errors
//
// Errors name the device, the thing measured, what was seen and wanted. They wrap EPERM where a policy
// denied, bus.ErrBusy where the PCR was extended before (a list that starts here could never be replayed: reset the
// machine or take another PCR), bus.ErrNotSupported where the PCR has no SHA-256 bank (of a TPM 2.0). When the TPM fails in the middle of
// an extension nobody knows whether it happened: that error is given to everything afterwards, and nothing is started.
//
// # Locks
//
// A Measurer's lock is held while the TPM works, so that the list and the PCR have the same order; the log's own
// is held only to look. All types are safe for concurrent use.
//
// Sources: Linux 6.12 security/integrity/ima (ima_template_lib.c, ima_fs.c, ima_crypto.c, ima_queue.c, ima_init.c),
// Documentation/security/IMA-templates.rst; TPM 2.0 Library Specification 1.59 part 3, 22 (integrity collection);
// TPM Main Specification 1.2 part 3, 16.
package measure
