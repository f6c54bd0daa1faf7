// Package class shows a TPM as the kernel's /sys/class/tpm does: the files of tpm0, by family, and the
// links around them.
//
//	devices/platform/MSFT0101:00/tpm/tpm0/        a TPM 2.0's files; TPM 1.2: devices/pnp0/00:NN/tpm/tpm0/;
//	                                              with a command response buffer: devices/LNXSYSTM:00/LNXSYBUS:00/MSFT0101:00/
//	devices/platform/MSFT0101:00/tpmrm/tpmrm0/    TPM 2.0
//	class/tpm/tpm0, class/tpmrm/tpmrm0            links to these
//	class/misc/hw_random                          the random number generator that the TPM is, too
//
// # Formats
//
// One show asks the TPM once, when the file is read. Where a TPM 1.2 answers with an error, its files are empty,
// as the kernel's are; a file of a PCR has as many zero bytes as the code says then, which in the kernel is an accident. docs/abi
// has the formats, integration/tpm_tree_test.go the comparison with the kernel.
//
// # What is missing
//
// ppi/: physical presence is asked for through firmware, and there is none on this bus. null_name, which
// kernels have that are built with CONFIG_TCG_TPM2_HMAC.
//
// Sources: Linux 6.12, Documentation/ABI/stable/sysfs-class-tpm.
package class
