// Package tpmseen looks at a TPM as a program does: at its files in /sys and at what system calls on its devices give. The
// very same code runs in a VM, where the kernel makes these files (integration/guest), and within ring3 run, where ring3 does
// (integration/tpm_tables_test.go), so that the two can be compared line by line. READMEs below tpmdd's testdata tell the
// formats.
package tpmseen
