//go:build vm

package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/integration/tpmseen"
)

// TestRootTPMDevice writes down what system calls on /dev/tpm0 give, one case a line. integration/tpm_vm_test.go
// keeps it below tpmdd/chardev/testdata.
func TestRootTPMDevice(t *testing.T) {
	driver, err := os.Readlink("/sys/class/tpm/tpm0/device/driver")
	if err != nil {
		t.Fatal(err)
	}
	name := "tpm0"
	crb := filepath.Base(driver) == "tpm_crb"
	if crb {
		name = "tpm0-crb"
	}
	keepTable(t, name, func() string { return tpmseen.Device(t, crb) })
}

// TestRootTPMManager writes down what /dev/tpmrm0, the kernel's resource manager, does, likewise.
func TestRootTPMManager(t *testing.T) {
	keepTable(t, "tpmrm0", func() string { return tpmseen.Manager(t) })
}

// keepTable has the host keep a table and what the kernel logs while it is made, or compare it with what was seen before.
func keepTable(t *testing.T, name string, table func() string) {
	t.Helper()
	before := KernelLog(t)
	text := table()
	keepTPM(t, name, text+"== kernel's log meanwhile\n"+tpmseen.Lines(strings.TrimPrefix(KernelLog(t), before)))
}
