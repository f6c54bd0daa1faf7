package vm

import (
	"bytes"
	"strings"
	"testing"
)

func TestExchanges(t *testing.T) {
	const trace = `tpm_tis_mmio_read  read.1(0x00000000) = 0x00000081
tpm_tis_mmio_write write.1(0x00000000) = 0x00000002
tpm_tis_mmio_write write.1(0x00000000) = 0x00000020
qemu: something else
tpm_tis_mmio_write write.1(0x00000000) = 0x00000002
tpm_tis_mmio_read  read.1(0x00000000) = 0x000000a1
tpm_tis_mmio_write write.1(0x00000024) = 0x00000080
tpm_tis_mmio_write write.4(0x00000080) = 0x44332211
tpm_tis_mmio_read  read.4(0x00000018) = 0x04100000
tpm_tis_mmio_write write.1(0x00000000) = 0x00000020
tpm_tis_mmio_write write.1(0x00000024) = 0x00000080
`
	all, err := Exchanges(strings.NewReader(trace))
	if err != nil || len(all) != 1 {
		t.Fatalf("Exchanges = %+v, %v, want one", all, err)
	}
	if e := all[0]; !bytes.Equal(e.Command, []byte{0x80, 0x11, 0x22, 0x33, 0x44}) || e.Reads != 2 || e.Writes != 4 {
		t.Errorf("Exchanges = %+v, want 80 11 22 33 44, 2 reads, 4 writes", e)
	}
	if all, err := Exchanges(strings.NewReader("tpm_tis_mmio_write write.9\n")); err == nil {
		t.Errorf("Exchanges of what is no access = %v, want an error", all)
	}
}
