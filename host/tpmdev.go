package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/internal/swtpm"
	"github.com/ring3dev/ring3/tpmdd"
)

// isTPM says whether a device is a TPM, as far as its backend knows before it runs.
func isTPM(d DeviceSpec) bool {
	return (d.Backend == "qemu" || d.Backend == "sim") && strings.HasPrefix(d.Device, "tpm-")
}

// tpmName is what a TPM is called: the kernel's tools know no other names.
var tpmName = regexp.MustCompile(`^tpm(0|[1-9][0-9]?)$`)

// checkTPM checks what only a TPM has, and that nothing else has it.
func checkTPM(d DeviceSpec) error {
	switch {
	case !isTPM(d) && d.Backend == "qemu" && len(d.Bus) > 0:
		return usagef("device %s: tpm= and state= are options of qemu:tpm-tis and qemu:tpm-crb", d.Name)
	case !isTPM(d):
		return nil
	case !tpmName.MatchString(d.Name):
		return usagef("device %s: a TPM is named tpm0 to tpm99", d.Name)
	case d.Backend == "qemu" && !qemu.IsTPM(d.Device):
		return usagef("device %s: model %q: the TPMs of this bus are tpm-tis and tpm-crb", d.Name, d.Device)
	case d.IOMMU:
		return usagef("device %s: a TPM masters no bus: iommu=on has nothing to confine", d.Name)
	case d.Device == "tpm-crb" && d.Bus["tpm"] == "1.2":
		return usagef("device %s: a TPM 1.2 has no command response buffer: use qemu:tpm-tis", d.Name)
	}
	return nil
}

// tpmMachine is a QEMU with a TPM, and the swtpm behind it.
type tpmMachine struct {
	machine
	sw  *swtpm.Process
	dir string // to be removed; "": the state is kept
}

// planTPM starts swtpm, then QEMU.
func (s *System) planTPM(c Config, d DeviceSpec, q qemu.Config) starter {
	return func(ctx context.Context) (_ machine, err error) {
		m := &tpmMachine{}
		defer func() {
			if err != nil {
				err = errors.Join(err, m.Close())
			}
		}()
		state := d.Bus["state"]
		if state == "" {
			if m.dir, err = os.MkdirTemp(c.Dir, d.Name+"-state-"); err != nil {
				return nil, fmt.Errorf("%s: making a folder for its state: %w", d.Name, err)
			}
			state = m.dir
		} else if state, err = filepath.Abs(state); err != nil {
			return nil, fmt.Errorf("%s: state=%s: %w", d.Name, d.Bus["state"], err)
		}
		v12 := d.Bus["tpm"] == "1.2"
		sc := swtpm.Config{Name: d.Name, Dir: state, V12: v12, Log: s.log}
		if c.Started != nil {
			sc.Started = func(pid int) { c.Started(pid, "swtpm") }
		}
		if m.sw, err = swtpm.Start(sc); err != nil {
			return nil, err
		}
		spec := &q.Devices[len(q.Devices)-1]
		spec.TPM = &qemu.TPM{Control: m.sw.Control(), HardwareID: "MSFT0101"}
		if v12 {
			spec.TPM.HardwareID = "PNP0C31"
		}
		started, err := qemu.Start(ctx, q)
		m.sw.CloseControl()
		if err != nil {
			return nil, m.sw.Explain(err)
		}
		m.machine = started
		go s.watchEmulator(m)
		return m, nil
	}
}

// watchEmulator tells of an swtpm that ended before its QEMU.
func (s *System) watchEmulator(m *tpmMachine) {
	select {
	case <-m.Done():
	case <-m.sw.Done():
		if m.Err() == nil {
			s.log.Error(m.sw.End())
		}
	}
}

// Close ends QEMU, then swtpm, which writes its state until then.
func (m *tpmMachine) Close() error {
	var err error
	if m.machine != nil {
		err = m.machine.Close()
	}
	err = errors.Join(err, m.sw.Close())
	if m.dir != "" {
		err = errors.Join(err, os.RemoveAll(m.dir))
	}
	return err
}

// tpmNode is what stands on a TPM.
type tpmNode struct {
	chip *tpmdd.Chip
}

// startTPM takes a TPM that has a driver into service.
func (s *System) startTPM(ctx context.Context, b *boundDevice, chip *tpmdd.Chip) error {
	if b.emulator != nil && chip.Family() == tpmdd.TPM12 {
		// A real one comes with its endorsement key.
		made := false
		err := chip.Do(ctx, func(x tpmdd.Exchanger) (err error) {
			made, err = tpmdd.CreateEK(ctx, x)
			return err
		})
		var refused *tpmdd.TPMError // it is disabled, or owned, and has one
		if err != nil && !errors.As(err, &refused) {
			return fmt.Errorf("%s: %w", b.spec.Name, err)
		}
		if made {
			s.log.Info(fmt.Sprintf("%s: the emulator's endorsement key was made", b.spec.Name))
		}
	}
	b.tpm = &tpmNode{chip: chip}
	return nil
}
