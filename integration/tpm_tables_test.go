package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/integration/tpmseen"
	"github.com/ring3dev/ring3/internal/swtpm"
)

// insideTPM is set, to a folder for what is seen, in the process that has a TPM of ring3's; whatTPM is what it is to look
// at.
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
	look := map[string]func() string{
		"tpm0":     func() string { return tpmseen.Device(t, false) },
		"tpm0-crb": func() string { return tpmseen.Device(t, true) },
		"tpmrm0":   func() string { return tpmseen.Manager(t) },
		"files":    func() string { return tpmseen.Files(t) },
		"state12":  func() string { return tpmseen.State12(t) },
		"owned":    func() string { tpmseen.TakeOwnership(t); return tpmseen.State12(t) },
		"raw12": func() string {
			p, _ := json.Marshal(tpmseen.Raw12(t))
			return string(p)
		},
	}
	log := func() string {
		out, err := exec.Command(ring3, "dmesg").Output()
		if err != nil {
			t.Fatalf("ring3 dmesg: %v", err)
		}
		return string(out)
	}
	for what := range strings.FieldsSeq(os.Getenv(whatTPM)) {
		before := log()
		seen := tpmSeen{Text: look[what](), Before: tpmseen.Lines(before), Meanwhile: tpmseen.Lines(strings.TrimPrefix(log(), before))}
		p, err := json.Marshal(seen)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, what), p, 0o644)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// tpmSeen is what was seen, and the lines about a TPM that ring3 dmesg had before and got meanwhile.
type tpmSeen struct{ Text, Before, Meanwhile string }

// seeTPM has a process inside ring3 run look at a TPM. The process that serves the files is another, as it must be.
func seeTPM(t *testing.T, spec string, what ...string) []tpmSeen {
	t.Helper()
	if os.Getenv(insideTap) != "" {
		t.Skip("inside")
	}
	bustest.NeedQEMU(t)
	if _, err := exec.LookPath(swtpm.Binary); err != nil {
		t.Skipf("%v; hack/setup installs it", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command(ring3, "run", spec, "--", self, "-test.run=^TestTPMInside$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir(), insideTap+"="+ring3, insideTPM+"="+dir, whatTPM+"="+strings.Join(what, " "))
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestTPMInside") {
		t.Fatalf("ring3 run %s: %v\n%s", spec, err, out)
	}
	var seen []tpmSeen
	for _, w := range what {
		var s tpmSeen
		p, err := os.ReadFile(filepath.Join(dir, w))
		if err == nil {
			err = json.Unmarshal(p, &s)
		}
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, s)
	}
	return seen
}

// deviation is a case of a table in which ring3 does something else than the kernel, and why.
type deviation struct{ group, name, kernel, ring3, why string }

// Reasons that are several cases'.
const (
	noEmptyCalls = "FUSE: a call that moves no bytes ends in the kernel, and never reaches the server"
	notCopied    = "FUSE: the kernel looks at the buffer before it asks the server, so that nothing is lost"
	oneWrite     = "FUSE: the pieces of a writev reach the server as one write"
	regularFile  = "it is a regular file: the node of a character device would lead past the server"
	noPosition   = "FUSE: a file without a position has no pread either"
	shortHeader  = "a header of 10 bytes cannot have a length below: refused, where the kernel hands it to the TPM, which may hang"
	forgotten    = "a session that another open flushed is forgotten; the kernel fails this command, and flushes everything else of this open"
	beyond       = "the kernel reads the rest of the header or the handle from beyond the write"
)

// deviations are of tables.
var deviations = map[string][]deviation{
	"tpm0": {
		{"write", "write 0 bytes", "EINVAL", "0", noEmptyCalls},
		{"write", "write 12 bytes, header says 5", "ECANCELED", "EINVAL", shortHeader},
		{"answers", "poll after it", "OUT|WRNORM", "IN|RDNORM", noEmptyCalls},
		{"answers", "read after it", "0", "20: tag 8001, length 20, code 0x0", noEmptyCalls},
		{"answers", "read after it", "0", "20: tag 8001, length 20, code 0x0", notCopied},
		{"vectors", "writev of 10 and 2 bytes", "EINVAL", "12", oneWrite},
		{"vectors", "writev of two commands", "12", "EBUSY", oneWrite + ": the one before was taken"},
		{"others", "pread at 0", "20", "ESPIPE", noPosition},
		{"others", "pwrite at 0", "12", "ESPIPE", noPosition},
		{"others", "ioctl FIONREAD", "ENOTTY", "EFAULT", regularFile + ": the kernel answers this one itself"},
		{"others", "fstat", "mode 20600, size 0, blocks 0, blksize 4096", "mode 100600, size 0, blocks 0, blksize 4096", regularFile},
	},
	"tpmrm0": {
		{"sessions", "write TPM2_PolicyGetDigest of session 3 after that", "EFAULT", "14", forgotten},
		{"sessions", "read the answer", "0", "44: tag 8001, length 44, code 0x0", forgotten},
		{"sessions", "write TPM2_GetRandom after that", "EFAULT", "12", forgotten},
		{"sessions", "read the answer", "0", "20: tag 8001, length 20, code 0x0", forgotten},
		{"errors", "write TPM2_ReadPublic with half a handle", "EINVAL", "12", beyond + "; here the TPM says what is wrong"},
		{"errors", "read the answer", "0", "10: tag 8001, length 10, code 0x19a", beyond},
		{"errors", "write 0 bytes", "EINVAL", "0", noEmptyCalls},
		{"errors", "write 9 bytes, header says 9", "9", "EINVAL", beyond},
		{"errors", "read the answer", "10: tag 8001, length 10, code 0xb0143", "0", beyond},
		{"errors", "write 12 bytes, header says 5", "ECANCELED", "EINVAL", shortHeader},
	},
}

// deviantLog are the lines that the kernel logged while tables were made and ring3 does not, as the case was another.
var deviantLog = map[string]string{
	"tpm tpm0: Operation Canceled":                                shortHeader,
	"tpm tpm0: tpm2_load_context: failed with a TPM error 0x01CB": forgotten,
	"tpm tpm0: A TPM error (459) occurred flushing context":       forgotten,
}

// TestTPMTables: system calls on ring3's devices give what they give on the kernel's, but for deviations.
func TestTPMTables(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		device string
		tables []string
	}{{"tpm-tis", []string{"tpm0", "tpmrm0"}}, {"tpm-crb", []string{"tpm0-crb"}}} {
		for i, seen := range seeTPM(t, "tpm0=qemu:"+test.device, test.tables...) {
			name := test.tables[i]
			t.Run(name, func(t *testing.T) { sameTable(t, name, seen) })
		}
	}
}

// sameTable compares a table with what is kept of the kernel's.
func sameTable(t *testing.T, name string, seen tpmSeen) {
	kept, err := os.ReadFile(filepath.Join(tpmDevicesDir, name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	known := deviations[strings.TrimSuffix(name, "-crb")]
	used := make([]bool, len(known))
	table, log, _ := strings.Cut(string(kept), "== kernel's log meanwhile\n")
	kernel, ours := strings.Split(table, "\n"), strings.Split(seen.Text, "\n")
	if len(kernel) != len(ours) {
		t.Fatalf("%d lines, want %d:\n%s", len(ours), len(kernel), seen.Text)
	}
	group := ""
	for i, line := range kernel {
		if g, ok := strings.CutPrefix(line, "== "); ok {
			group = g
		}
		if line == ours[i] || explained(known, used, group, line, ours[i]) {
			continue
		}
		t.Errorf("%s: %q, and the kernel: %q", group, ours[i], line)
	}
	for i, d := range known {
		// What might hang is not tried with a CRB.
		if !used[i] && !(d.why == shortHeader && name == "tpm0-crb") {
			t.Errorf("%s: %s: no such deviation any more", d.group, d.name)
		}
	}
	var want strings.Builder
	for line := range strings.Lines(log) {
		if deviantLog[strings.TrimSuffix(line, "\n")] == "" {
			want.WriteString(line)
		}
	}
	if seen.Meanwhile != want.String() {
		t.Errorf("ring3 dmesg got\n%s\nwant\n%s", seen.Meanwhile, want.String())
	}
}

// explained says whether a difference is one of those that are known.
func explained(known []deviation, used []bool, group, kernel, ours string) bool {
	for i, d := range known {
		if !used[i] && d.group == group && kernel == d.name+": "+d.kernel && ours == d.name+": "+d.ring3 {
			used[i] = true
			return true
		}
	}
	return false
}
