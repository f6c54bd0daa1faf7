package qemutest

import (
	"os"
	"os/exec"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/internal/swtpm"
)

// TPM is a TPM of QEMU's with swtpm behind it.
type TPM struct {
	Device   bus.Device
	Machine  *qemu.Machine
	Emulator *swtpm.Process
}

// TPMConfig says which. The zero value is a TPM 2.0 behind tpm-tis whose state is thrown away.
type TPMConfig struct {
	Model string   // "" means tpm-tis
	V12   bool     // a TPM 1.2
	State string   // a folder; "": one that ends with the test
	Trace *os.File // QEMU's lines of accesses, or nil
}

// OpenTPM starts swtpm and a QEMU with a TPM, and opens it. All of it ends with the test.
func OpenTPM(t testing.TB, c TPMConfig) *TPM {
	t.Helper()
	bustest.NeedQEMU(t)
	if _, err := exec.LookPath(swtpm.Binary); err != nil {
		if os.Getenv("RING3_NEED_QEMU") != "" {
			t.Fatalf("RING3_NEED_QEMU is set, and there is no %s", swtpm.Binary)
		}
		t.Skipf("no %s here", swtpm.Binary)
	}
	if c.State == "" {
		c.State = t.TempDir()
	}
	if c.Model == "" {
		c.Model = "tpm-tis"
	}
	sw, err := swtpm.Start(swtpm.Config{Name: "tpm0", Dir: c.State, V12: c.V12})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sw.Close() })
	id := "MSFT0101"
	if c.V12 {
		id = "PNP0C31"
	}
	m := Machine(t, qemu.Config{Devices: []qemu.DeviceSpec{{Name: "tpm0", Model: c.Model, TPM: &qemu.TPM{Control: sw.Control(), HardwareID: id, Trace: c.Trace}}}})
	sw.CloseControl()
	return &TPM{Device: Device(t, m, "tpm0"), Machine: m, Emulator: sw}
}
