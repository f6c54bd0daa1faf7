package vm

import "testing"

// TestTPMRefused checks what QEMU would only say when it ends.
func TestTPMRefused(t *testing.T) {
	for _, tpm := range []TPM{{}, {Model: "tpm-spapr"}, {Model: "tpm-crb", V12: true}} {
		if p, _, err := tpm.start(t.TempDir(), 3); err == nil {
			_ = p.Close()
			t.Errorf("start of %+v = nil, want an error", tpm)
		}
	}
}
