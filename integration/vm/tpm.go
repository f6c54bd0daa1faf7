package vm

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/ring3dev/ring3/internal/swtpm"
)

// TPM is a TPM of the VM's, with swtpm behind it. The firmware starts it and measures into its PCRs before the kernel
// runs, also where QEMU is given the kernel; a TPM 1.2's physical presence it locks.
type TPM struct {
	Model string // "tpm-tis" or "tpm-crb"
	V12   bool   // a TPM 1.2 instead of a TPM 2.0
	Dir   string // swtpm's state, which ring3 can use before and afterwards; "": one that is thrown away
	Trace string // a file that gets a line for each access to a register of tpm-tis (Accesses); "": none
}

// tpmModels are QEMU's, and whether they take a TPM 1.2.
var tpmModels = map[string]bool{"tpm-tis": true, "tpm-crb": false}

// start starts swtpm for a VM whose files are in dir, and returns QEMU's arguments for it. QEMU inherits the control
// channel (Control) as fd.
func (t *TPM) start(dir string, fd int) (*swtpm.Process, []string, error) {
	if v12, ok := tpmModels[t.Model]; !ok || t.V12 && !v12 {
		return nil, nil, fmt.Errorf("vm: a TPM of model %q (1.2: %v), want tpm-tis, or tpm-crb with a TPM 2.0", t.Model, t.V12)
	}
	state := t.Dir
	if state == "" {
		state = filepath.Join(dir, "tpm")
	}
	p, err := swtpm.Start(swtpm.Config{Name: "tpm0", Dir: state, V12: t.V12})
	if err != nil {
		return nil, nil, fmt.Errorf("vm: %w", err)
	}
	argv := []string{"-chardev", fmt.Sprintf("socket,id=tpmctl,fd=%d", fd), "-tpmdev", "emulator,id=tpm0,chardev=tpmctl",
		"-device", t.Model + ",tpmdev=tpm0"}
	if t.Trace != "" {
		// QEMU runs in a folder of its own.
		trace, err := filepath.Abs(t.Trace)
		if err != nil {
			_ = p.Close()
			return nil, nil, fmt.Errorf("vm: %w", err)
		}
		argv = slices.Concat(argv, []string{"-trace", "tpm_tis_mmio_read", "-trace", "tpm_tis_mmio_write", "-D", trace})
	}
	return p, argv, nil
}
