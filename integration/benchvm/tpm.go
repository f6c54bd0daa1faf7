package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"

	"github.com/ring3dev/ring3/integration/benchvm/row"
	"github.com/ring3dev/ring3/integration/vm"
	"github.com/ring3dev/ring3/internal/swtpm"
)

// addTPM gives the VM a new TPM whose register accesses are written down, or notes why there is none.
func (p *program) addTPM(c *vm.Config, dir string) {
	if _, err := exec.LookPath(swtpm.Binary); err != nil {
		p.plan.NoTPM = fmt.Sprintf("%v; hack/setup installs it", err)
		return
	}
	c.TPM = &vm.TPM{Model: "tpm-tis", Dir: filepath.Join(dir, "tpm"), Trace: filepath.Join(dir, "tpm.trace")}
}

// accesses counts the accesses to registers of each command that was sent in the VM.
func (p *program) accesses(t *vm.TPM) error {
	if t == nil {
		return nil
	}
	f, err := os.Open(t.Trace)
	if err != nil {
		return err
	}
	defer f.Close()
	all, err := vm.Exchanges(f)
	if err != nil {
		return err
	}
	set := row.Set{Bench: "tpm", Only: regexp.MustCompile(p.plan.Only)}
	for _, c := range row.TPMCommands {
		name := "kernel " + c.Name
		for _, e := range all {
			if set.Wants(name) && bytes.Equal(e.Command, c.Command) {
				set.Add(name, "reads", float64(e.Reads))
				set.Add(name, "writes", float64(e.Writes))
			}
		}
	}
	for _, r := range set.Rows() {
		if err := p.emit(r); err != nil {
			return err
		}
	}
	return nil
}
