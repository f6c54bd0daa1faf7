//go:build vm

package guest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRootTPMShell: inside ring3 run on a machine that has a TPM itself, tpm0 is ring3's, beside the machine's device, which stays
// whole.
func TestRootTPMShell(t *testing.T) {
	own, err := filepath.EvalSymlinks("/sys/class/tpm/tpm0/device")
	if err != nil {
		t.Fatal(err)
	}
	driver, err := os.Readlink(own + "/driver")
	if err != nil {
		t.Fatal(err)
	}
	model, want := "tpm-tis", "/sys/devices/platform/MSFT0101:01"
	if filepath.Base(driver) == "tpm_crb" {
		model, want = "tpm-crb", "/sys/devices/LNXSYSTM:00/LNXSYBUS:00/MSFT0101:01"
	}
	script := `cd -P /sys/class/tpm/tpm0/device && pwd; cat uevent tpm/tpm0/tpm_version_major tpm/tpm0/pcr-sha1/0
		ls ` + own + `; cat ` + own + `/tpm/tpm0/pcr-sha256/7 ` + own + `/tpm/tpm0/dev; ls /dev | grep tpm`
	cmd := exec.Command("ring3", "run", "tpm0=sim:"+model, "--", "sh", "-c", script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("ring3 run: %v\n%s", err, out)
	}
	t.Logf("%s", out)
	for _, line := range []string{
		want, "DRIVER=" + filepath.Base(driver), "2", strings.Repeat("0", 40), // ring3's, into which nobody has measured
		"tpmrm", strings.TrimSuffix(ReadRoot(t, "/sys/class/tpm/tpm0/pcr-sha256/7"), "\n"), "10:224", "tpm0", "tpm0.sock", "tpmrm0",
	} {
		if !strings.Contains("\n"+string(out), "\n"+line+"\n") {
			t.Errorf("inside there is no line %q", line)
		}
	}
}
