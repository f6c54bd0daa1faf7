package integration

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// Tests of TPMs drive the programs that others wrote for them, as scripts of testdata/tpm, through `ring3 run`.

// tpmPackages are Debian's names of the packages of what these tests run.
var tpmPackages = map[string]string{
	"swtpm": "swtpm", "tpm2_getrandom": "tpm2-tools", "tcsd": "trousers", "tpm_version": "tpm-tools",
	"tpm2_ptool": "libtpm2-pkcs11-tools", "pkcs11-tool": "opensc", "ssh-keygen": "openssh-client", "openssl": "openssl",
	"libtpm2_pkcs11.so": "libtpm2-pkcs11-1", "tpm2.so": "tpm2-openssl",
}

// lacks names what is missing of programs, and of modules (*.so); "": nothing.
func lacks(names ...string) string {
	for _, n := range names {
		if strings.HasSuffix(n, ".so") {
			if module(n) == "" {
				return n
			}
			continue
		}
		_, err := exec.LookPath(n)
		for _, dir := range sbin {
			if err != nil {
				_, err = exec.LookPath(filepath.Join(dir, n))
			}
		}
		if err != nil {
			return n
		}
	}
	return ""
}

// sbin is where a user's PATH may not look.
var sbin = []string{"/usr/local/sbin", "/usr/sbin", "/sbin"}

// module finds a library that programs load by its path.
func module(name string) string {
	for _, dir := range []string{"pkcs11", "ossl-modules"} {
		if found, _ := filepath.Glob(filepath.Join("/usr/lib*", "*", dir, name)); len(found) > 0 {
			return found[0]
		}
	}
	return ""
}

// needTools skips a test where something is missing; with RING3_NEED_QEMU it fails.
func needTools(t *testing.T, names ...string) {
	t.Helper()
	what := lacks(append([]string{"qemu-system-x86_64", "swtpm"}, names...)...)
	switch {
	case what == "":
	case os.Getenv("RING3_NEED_QEMU") != "":
		t.Fatalf("needs %s (Debian: apt-get install %s), and RING3_NEED_QEMU is set", what, tpmPackages[what])
	default:
		t.Skipf("needs %s (Debian: apt-get install %s)", what, tpmPackages[what])
	}
}

// tpmDir is a folder for a test's files, with a short name, as those of sockets are limited.
func tpmDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ring3-tpm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// tpmEnv is the environment of a user whose run folder and temporary files are in dir.
func tpmEnv(dir string) []string {
	path := append([]string{os.Getenv("PATH")}, sbin...)
	return []string{"PATH=" + strings.Join(path, ":"), "XDG_RUNTIME_DIR=" + dir, "TMPDIR=" + dir, "HOME=" + dir, "LC_ALL=C"}
}

// tpmRun runs `ring3 run ARGS`, as somebody, which is to succeed and to leave nothing in its run folder. It returns what was
// written to stdout.
func tpmRun(t *testing.T, as []string, dir string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	argv := append(slices.Clone(as), append([]string{ring3, "run"}, args...)...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = tpmEnv(dir), dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		t.Fatalf("ring3 run %s: %v\n%s%s", strings.Join(args, " "), err, &stdout, &stderr)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "ring3", "*")); len(left) > 0 {
		t.Errorf("left over in the run folder: %v", left)
	}
	return stdout.String()
}

// tpmScript is the absolute name of a script of testdata/tpm, and its text.
func tpmScript(t *testing.T, name string) (path, text string) {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata/tpm", name))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, string(b)
}

// stepLine is where a script says that a step is done.
var stepLine = regexp.MustCompile(`(?m)(?:^|; )step (?:'([^']*)'|([^'\s(]+))$`)

// checkSteps wants a script's "ok STEP" lines, all of them and in their order, and nothing else.
func checkSteps(t *testing.T, script, printed string) {
	t.Helper()
	var want strings.Builder
	for _, m := range stepLine.FindAllStringSubmatch(script, -1) {
		fmt.Fprintf(&want, "ok %s\n", m[1]+m[2])
	}
	if printed != want.String() || printed == "" {
		t.Errorf("the script printed\n%swant\n%s", printed, &want)
	}
}

// TestTPMTools runs tpm2-tools on both of QEMU's TPMs, and as an ordinary user.
func TestTPMTools(t *testing.T) {
	t.Parallel()
	needTools(t, "tpm2_getrandom")
	_, text := tpmScript(t, "tools.sh")
	for _, c := range []struct {
		name, device string
		as           []string
	}{
		{"tis", "qemu:tpm-tis", nil},
		{"crb", "qemu:tpm-crb", nil},
		{"unprivileged", "qemu:tpm-tis", asNobody()},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name == "unprivileged" && c.as == nil {
				t.Skip("so are the others")
			}
			dir := tpmDir(t)
			if c.as != nil {
				dir = folder(t)
			}
			// A user cannot reach the source tree, perhaps.
			checkSteps(t, text, tpmRun(t, c.as, dir, "tpm0="+c.device, "--", "sh", "-c", text))
		})
	}
}

// TestTPM12Tools runs tpm-tools on a TPM 1.2, which is reset in between and keeps its state, and tcsd its keys: with `ring3 run`,
// then with `ring3 shell`, from another folder.
func TestTPM12Tools(t *testing.T) {
	t.Parallel()
	needTools(t, "tcsd", "tpm_version")
	dir := tpmDir(t)
	path, text := tpmScript(t, "tools12.sh")
	// What comes after the reset stands first.
	again, first, ok := strings.Cut(text, "\texit\n")
	if !ok {
		t.Fatal("tools12.sh has no exit")
	}
	const device = "tpm0=qemu:tpm-tis,tpm=1.2,state=state"
	checkSteps(t, first, printable(tpmRun(t, nil, dir, "--tcsd", device, "--", "sh", path, dir)))
	up := startRing3(t, []string{"env", "-C", dir}, tpmEnv(dir), "up", device)
	shell := exec.Command(ring3, "shell", "--tcsd", "--", "sh", path, dir, "again")
	shell.Dir, shell.Env = "/", tpmEnv(dir)
	var stderr bytes.Buffer
	shell.Stderr = &stderr
	out, err := shell.Output()
	if err != nil {
		t.Errorf("ring3 shell --tcsd: %v\n%s", err, &stderr)
	}
	checkSteps(t, again, printable(string(out)))
	up.stop(t)
}

// printable leaves out lines with bytes that are no text: tpm-tools 1.3.9 writes some.
func printable(s string) string {
	var out strings.Builder
	for l := range strings.Lines(s) {
		if i := strings.Index(l, "ok "); i > 0 {
			l = l[i:]
		}
		out.WriteString(l)
	}
	return out.String()
}

// mode is an operational mode of a TPM 1.2.
type mode struct{ enabled, active, owned bool }

// report is what mode12.sh prints in that mode: what the TPM's flags are, what it does, and how it refuses the rest.
func (m mode) report() string {
	digit := map[bool]int{true: 1}
	pcrs, pubek, key, own := 1656, 902, "yes", ""
	refuse := func(why string) { pcrs, pubek, key, own = 0, 0, why, why }
	switch {
	case !m.enabled:
		refuse("TPM is disabled")
	case !m.active:
		refuse("TPM is deactivated")
	case m.owned: // and the key is the owner's to read
		pubek, own = 0, "The TPM target command has been disabled"
	}
	s := fmt.Sprintf("%d %d %d %d \npcrs: %d\npubek: %d\ncaps: 67\nversion: yes\nselftest: yes\ngetpubek: %s\n",
		digit[m.enabled], digit[m.active], digit[m.owned], digit[!m.active], pcrs, pubek, key)
	if own != "" {
		s += "takeownership: " + own + "\n"
	}
	return s
}

// TestTPM12Modes goes through the eight operational modes of a TPM 1.2 (enabled, active, owned). Each change is made by
// tpm-tools and looked at after a reset.
func TestTPM12Modes(t *testing.T) {
	t.Parallel()
	needTools(t, "tcsd", "tpm_version")
	dir := tpmDir(t)
	path, _ := tpmScript(t, "mode12.sh")
	disable, _ := tpmScript(t, "disable12.sh")
	device := "tpm0=qemu:tpm-tis,tpm=1.2,state=" + filepath.Join(dir, "state")
	seen := map[mode]bool{}
	for _, c := range []struct {
		mode
		then string // changes
	}{
		{mode{true, true, false}, ""}, // as an emulator is delivered; then disable12.sh
		{mode{false, true, false}, "enable own"},
		{mode{true, true, true}, "disable"},
		{mode{false, true, true}, "enable deactivate disable"},
		{mode{false, false, true}, "enable"},
		{mode{true, false, true}, "activate"},
		{mode{true, true, true}, "clear"},
		{mode{false, false, false}, "enable"},
		{mode{true, false, false}, "activate"},
		{mode{true, true, false}, ""},
	} {
		args := append([]string{"--tcsd", device, "--", "sh", path}, strings.Fields(c.then)...)
		if got, want := tpmRun(t, nil, dir, args...), c.report(); got != want {
			t.Fatalf("in mode %+v the TPM is and does\n%swant\n%s", c.mode, got, want)
		}
		if len(seen) == 0 {
			tpmRun(t, nil, dir, device, "--", "sh", disable)
		}
		seen[c.mode] = true
	}
	if len(seen) != 8 {
		t.Errorf("%d modes were seen, want 8", len(seen))
	}
}

// TestTPMPKCS11 has an SSH key in the TPM.
func TestTPMPKCS11(t *testing.T) {
	t.Parallel()
	needTools(t, "tpm2_getrandom", "tpm2_ptool", "pkcs11-tool", "ssh-keygen", "openssl", "libtpm2_pkcs11.so")
	path, text := tpmScript(t, "pkcs11.sh")
	checkSteps(t, text, tpmRun(t, nil, tpmDir(t), "tpm0=qemu:tpm-crb", "--", "sh", path, module("libtpm2_pkcs11.so")))
}

// TestTPMTLS has the key of a TLS server in the TPM.
func TestTPMTLS(t *testing.T) {
	t.Parallel()
	needTools(t, "tpm2_getrandom", "openssl", "tpm2.so")
	path, text := tpmScript(t, "tls.sh")
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	checkSteps(t, text, tpmRun(t, nil, tpmDir(t), "tpm0=qemu:tpm-tis", "--", "sh", path, port))
}
