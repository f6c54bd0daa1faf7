package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ring3dev/ring3/integration/vm"
	"github.com/ring3dev/ring3/tpmdd"
)

// deviantFiles are files that ring3 has not, has otherwise, or has and the kernel has not, by an expression for their paths and where
// they lead in the kernel; DEVICE is the TPM's own directory.
var deviantFiles = []struct{ path, why string }{
	{`DEVICE(/tpm/tpm0)?/ppi(/.*| -> .*)?`, "physical presence is asked for through firmware, and there is none"},
	{`DEVICE/(firmware_node|physical_node|path)( -> .*)?`, "there is no ACPI namespace, though a CRB stands where it would"},
	{`/sys/bus/acpi/devices/(PNP0C31|MSFT0101):00 -> .*/device:02/.*`, "likewise"},
	{`/sys/bus/platform/devices/MSFT0101:00 -> /sys/devices/platform/.*`, "a CRB has no second device, on the platform bus"},
	{`/sys/bus/[a-z]+/drivers/[a-z_]+/(bind|unbind|uevent)`, "a TPM's driver is chosen once"},
	{`/sys/dev/char/10:224 -> .*`, "what stands in /dev are regular files"},
	{`/dev/(tpm0|tpmrm0|hwrng)`, "what stands in /dev are links to regular files"},
	{`/dev/tpm(rm)?0\.sock`, "ring3's alone"},
}

// deviantLines are lines of the log that one of the two has not.
var deviantLines = []struct{ line, why string }{
	{`^ACPI: `, "there is no ACPI"},
	{`^ima: `, "the kernel's measurements"},
	{`^tpm tpm0: starting up the TPM manually$`, "the VM's firmware has started it"},
	{`^tpm0: the emulator's endorsement key was made$`, "where the VM's user made it"},
}

// tpmEntry is a file: what stat says, or where a link leads, and what is in it.
type tpmEntry struct{ stat, text string }

// tpmEntries reads what package tpmseen says of files. The device's directory is called DEVICE, and links are absolute.
func tpmEntries(text string) map[string]tpmEntry {
	device := ""
	for m := range slices.Values(regexp.MustCompile(`(?m)^== (/sys/devices/.*)$`).FindAllStringSubmatch(text, 1)) {
		device = m[1]
	}
	short := func(p string) string {
		if rest, ok := strings.CutPrefix(p, device); ok && device != "" {
			return "DEVICE" + rest
		}
		if path.Base(p) == path.Base(device) && (strings.Contains(p, "/drivers/") || strings.HasPrefix(p, "/sys/bus/pnp/")) {
			return path.Dir(p) + "/DEVICE"
		}
		return p
	}
	entries := map[string]tpmEntry{}
	dir, name := "", ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if d, ok := strings.CutPrefix(line, "== "); ok {
			dir, name = d, ""
			continue
		}
		if strings.HasPrefix(line, "  ") {
			e := entries[name]
			e.text += line[2:] + "\n"
			entries[name] = e
			continue
		}
		f := strings.SplitN(line, " ", 4)
		if len(f) < 4 || len(f[0]) != 1 {
			continue // a line of a log
		}
		at, to, link := strings.Cut(f[3], " -> ")
		if !strings.HasPrefix(at, "/") {
			at = path.Join(dir, at)
		}
		name = short(at)
		e := tpmEntry{stat: strings.Join(f[:3], " ")}
		if link {
			if !strings.HasPrefix(to, "/") {
				to = path.Join(path.Dir(at), to)
			}
			e.stat += " -> " + short(to)
		}
		entries[name] = e
	}
	return entries
}

// alike compares texts, where X and x in the kernel's stand for a digit.
func alike(kernel, ours string) bool {
	if len(kernel) != len(ours) {
		return false
	}
	for i := range kernel {
		switch k, o := kernel[i], ours[i]; {
		case k == o, k == 'X' && strings.IndexByte("0123456789ABCDEF", o) >= 0, k == 'x' && strings.IndexByte("0123456789abcdef", o) >= 0:
		default:
			return false
		}
	}
	return true
}

// sameFiles compares what ring3 shows with what is kept of the kernel's files, and its log with the kernel's.
func sameFiles(t *testing.T, kept string, seen tpmSeen) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(tpmFilesDir, kept+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range fileDifferences(string(text), seen.Text) {
		t.Errorf("%s: %s", kept, d)
	}
	_, log, _ := strings.Cut(string(text), "== kernel's log")
	if got, want := tpmLog(seen.Before+seen.Meanwhile), tpmLog(log); got != want {
		t.Errorf("%s: ring3 dmesg has\n%s\nthe kernel's has\n%s", kept, got, want)
	}
}

// comparable is what is kept of files that ring3 has, too: not of the firmware's log, nor of a node in the ACPI namespace.
func comparable(text string) string {
	files, _, _ := strings.Cut(text, "== /sys/kernel/security")
	files, _, _ = strings.Cut(files, "== kernel's log")
	if i := strings.Index(files, "== /sys/devices/LNXSYSTM:00"); i >= 0 && strings.Contains(files[:i], "== /sys/devices/") {
		files = files[:i] + files[strings.Index(files, "== /sys/bus"):]
	}
	return files
}

// fileDifferences are those between the kernel's files and ring3's that deviantFiles does not explain.
func fileDifferences(text, seen string) (differences []string) {
	kernel, ours := tpmEntries(comparable(text)), tpmEntries(seen)
	all := maps.Clone(kernel)
	maps.Copy(all, ours)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		k, inKernel := kernel[name]
		o, isOurs := ours[name]
		if inKernel && isOurs && k.stat == o.stat && alike(k.text, o.text) || deviantFile(name, k.stat) {
			continue
		}
		differences = append(differences, fmt.Sprintf("%s: ring3 has (%v)\n%s\n%sthe kernel has (%v)\n%s\n%s", name, isOurs, o.stat, o.text, inKernel, k.stat, k.text))
	}
	return differences
}

// TestTPMDifferences: whichever line is missing is noticed.
func TestTPMDifferences(t *testing.T) {
	t.Parallel()
	for _, kept := range []string{"tis20", "crb20", "tis12", "tis12-owned"} {
		text, err := os.ReadFile(filepath.Join(tpmFilesDir, kept+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		same := comparable(string(text))
		if d := fileDifferences(string(text), same); d != nil {
			t.Errorf("%s and itself differ: %s", kept, d)
		}
		lines := strings.SplitAfter(strings.TrimSuffix(same, "\n"), "\n")
		missed := 0
		for i, line := range lines {
			name := line[strings.LastIndexByte(line[:strings.Index(line+" -> ", " -> ")], ' ')+1:]
			if strings.HasPrefix(line, "== ") || strings.Contains(name, "ppi") {
				continue // a group's name; what deviantFiles has
			}
			if fileDifferences(string(text), strings.Join(slices.Delete(slices.Clone(lines), i, i+1), "")) == nil {
				missed++
				t.Logf("%s: not compared: %s", kept, line)
			}
		}
		if missed > 20 { // contents of ppi, the other deviantFiles
			t.Errorf("%s: %d of %d lines could be missing, want 20 or fewer", kept, missed, len(lines))
		}
	}
}

func deviantFile(name, stat string) bool {
	if _, to, ok := strings.Cut(stat, " -> "); ok {
		name += " -> " + to
	}
	return deviant().MatchString(name)
}

// deviant matches the paths of deviantFiles.
var deviant = sync.OnceValue(func() *regexp.Regexp {
	var paths []string
	for _, d := range deviantFiles {
		paths = append(paths, d.path)
	}
	return regexp.MustCompile("^(?:" + strings.Join(paths, "|") + ")$")
})

// tpmLog are the lines of a log that both should have, without addresses.
func tpmLog(text string) string {
	address := regexp.MustCompile(`^(tpm_(?:tis|crb)) [0-9A-Z]+:[0-9a-f]+:?[0-9a-f]*: `)
	var b strings.Builder
next:
	for line := range strings.Lines(text) {
		if strings.Contains(line, ", lines about it") {
			continue
		}
		for _, d := range deviantLines {
			if regexp.MustCompile(d.line).MatchString(strings.TrimSuffix(line, "\n")) {
				continue next
			}
		}
		b.WriteString(address.ReplaceAllString(line, "$1 ADDRESS: "))
	}
	return b.String()
}

// TestTPMTree: ring3's files of a TPM are the kernel's, but for deviantFiles, and what it logs about it is what the kernel does.
func TestTPMTree(t *testing.T) {
	t.Parallel()
	off := func(cmd []byte) string {
		dir := t.TempDir()
		tpmCommands(t, dir, true, present12(0x0020), present12(0x0008), cmd)
		return ",tpm=1.2,state=" + dir
	}
	t.Run("tis20", func(t *testing.T) { sameFiles(t, "tis20", seeTPM(t, "tpm0=qemu:tpm-tis", "files")[0]) })
	t.Run("crb20", func(t *testing.T) { sameFiles(t, "crb20", seeTPM(t, "tpm0=qemu:tpm-crb", "files")[0]) })
	t.Run("tis12", func(t *testing.T) {
		seen := seeTPM(t, "tpm0=qemu:tpm-tis,tpm=1.2", "files", "owned")
		// The kernel was asked for the key before it was made, too.
		seen[0].Meanwhile += "tpm tpm0: A TPM error (35) occurred attempting to read the PUBEK\n"
		sameFiles(t, "tis12", seen[0])
		seen[1].Before += "tpm tpm0: A TPM error (35) occurred attempting to read the PUBEK\n"
		sameFiles(t, "tis12-owned", seen[1])
	})
	t.Run("disabled", func(t *testing.T) {
		sameFiles(t, "tis12-disabled", seeTPM(t, "tpm0=qemu:tpm-tis"+off(tpmdd.Command(tpmdd.TagRequest12, ordPhysicalDisable)), "state12")[0])
	})
	t.Run("inactive", func(t *testing.T) {
		sameFiles(t, "tis12-inactive", seeTPM(t, "tpm0=qemu:tpm-tis"+off(tpmdd.Command(tpmdd.TagRequest12, ordPhysicalSetDeactivated, 1)), "state12")[0])
	})
}

// TestVMTPMSame12: of the same TPM 1.2, what the kernel's driver says in a VM is what ring3 says without one.
func TestVMTPMSame12(t *testing.T) {
	dir := t.TempDir()
	kernel := map[string]string{}
	tpmSuite12Raw(t, dir, kernel)
	var ours map[string]string
	if err := json.Unmarshal([]byte(seeTPM(t, "tpm0=qemu:tpm-tis,tpm=1.2,state="+dir, "raw12")[0].Text), &ours); err != nil {
		t.Fatal(err)
	}
	if len(kernel) == 0 || !strings.Contains(kernel["pubek"], "Modulus length: 256\n") {
		t.Fatalf("the kernel says %q", kernel)
	}
	for name, text := range kernel {
		if ours[name] != text {
			t.Errorf("%s: ring3 says\n%s\nthe kernel says\n%s", name, ours[name], text)
		}
	}
}

func tpmSuite12Raw(t *testing.T, dir string, said map[string]string) {
	t.Helper()
	suite := newTPMSuite(t, &vm.TPM{Model: "tpm-tis", V12: true, Dir: dir}, "12Raw")
	suite.Config.Host = map[string]func(json.RawMessage) (any, error){
		"tpm-raw": func(args json.RawMessage) (any, error) { return nil, json.Unmarshal(args, &said) },
	}
	suite.Run(t)
}
