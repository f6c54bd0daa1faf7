package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/integration/tpmseen"
)

// insideTPM is set, to a folder for what is seen, in the process that has a TPM of ring3's; whatTPM is what it is to look at.
const (
	insideTPM = "RING3_TPM_INSIDE"
	whatTPM   = "RING3_TPM_WHAT"
)

// TestTPMInside is a part of other tests: it looks at ring3's TPM as tests of package guest look at the kernel's.
func TestTPMInside(t *testing.T) {
	dir := os.Getenv(insideTPM)
	if dir == "" {
		t.Skip("part of other tests")
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Error(err)
		}
	}
	look := map[string]func() string{
		"tpm0":     func() string { return tpmseen.Device(t, false) },
		"tpm0-crb": func() string { return tpmseen.Device(t, true) },
		"tpmrm0":   func() string { return tpmseen.Manager(t) },
		"files":    func() string { return tpmseen.Files(t) },
		"state12":  func() string { return tpmseen.State12(t) },
	}
	log := func() string {
		out, err := exec.Command(ring3, "dmesg").Output()
		if err != nil {
			t.Fatalf("ring3 dmesg: %v", err)
		}
		return tpmseen.Lines(string(out))
	}
	for what := range strings.FieldsSeq(os.Getenv(whatTPM)) {
		before := log()
		write(what+"-before", before)
		write(what, look[what]())
		write(what+"-meanwhile", strings.TrimPrefix(log(), before))
	}
}

// seeTPM has a process inside ring3 run look at a TPM. It gives what that saw, by name.
func seeTPM(t *testing.T, spec string, what ...string) map[string]string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := t.TempDir()
	cmd := exec.Command(ring3, "run", spec, "--", self, "-test.run=^TestTPMInside$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+run, insideTap+"="+ring3, insideTPM+"="+dir, whatTPM+"="+strings.Join(what, " "))
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestTPMInside") {
		t.Fatalf("ring3 run %s: %v\n%s", spec, err, out)
	}
	seen := map[string]string{}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		seen[f.Name()] = string(text)
	}
	return seen
}

func TestTPMTables(t *testing.T) {
	for k, v := range seeTPM(t, "tpm0=qemu:tpm-tis", "files", "tpm0", "tpmrm0") {
		os.WriteFile("/tmp/eq-tis-"+k, []byte(v), 0o644)
	}
	for k, v := range seeTPM(t, "tpm0=qemu:tpm-crb", "files", "tpm0-crb") {
		os.WriteFile("/tmp/eq-crb-"+k, []byte(v), 0o644)
	}
	for k, v := range seeTPM(t, "tpm0=qemu:tpm-tis,tpm=1.2", "files", "state12") {
		os.WriteFile("/tmp/eq-12-"+k, []byte(v), 0o644)
	}
}
