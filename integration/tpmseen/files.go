package tpmseen

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Files is what there is of a TPM in /sys/class, of its device, its driver and the links to them, and in /dev.
func Files(t testing.TB) string {
	t.Helper()
	var b bytes.Buffer
	device, err := filepath.EvalSymlinks("/sys/class/tpm/tpm0/device")
	if err != nil {
		t.Fatalf("there is no TPM: %v", err)
	}
	for _, dir := range []string{"/sys/class/tpm", "/sys/class/tpmrm", device} {
		Tree(t, &b, dir)
	}
	if node, err := filepath.EvalSymlinks(filepath.Join(device, "firmware_node")); err == nil {
		Tree(t, &b, node)
	}
	driver, err := filepath.EvalSymlinks(filepath.Join(device, "driver"))
	if err != nil {
		t.Fatal(err)
	}
	Tree(t, &b, driver)
	b.WriteString("== links\n")
	for _, pattern := range []string{"/sys/bus/*/devices/MSFT0101*", "/sys/bus/*/devices/PNP0C31*", "/sys/bus/pnp/devices/" + filepath.Base(device), "/sys/dev/char/10:224", "/sys/class/misc/*tpm*", "/sys/class/misc/hw_random"} {
		links, _ := filepath.Glob(pattern)
		for _, l := range links {
			entry(t, &b, l, l)
		}
	}
	b.WriteString("== files\n")
	for _, pattern := range []string{"/sys/class/misc/hw_random/rng_*", "/dev/tpm*", "/dev/hwrng"} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			entry(t, &b, f, f)
		}
	}
	return b.String()
}

// State12 is what the files of a TPM 1.2 say that depend on its state.
func State12(t testing.TB) string {
	t.Helper()
	var b bytes.Buffer
	for _, g := range []struct {
		dir   string
		files []string
	}{
		{"/sys/class/tpm/tpm0", []string{"enabled", "active", "owned", "temp_deactivated", "caps", "durations", "timeouts", "pcrs", "pubek", "tpm_version_major", "pcr-sha1/0", "pcr-sha1/16"}},
		{"/sys/class/misc/hw_random", []string{"rng_available", "rng_current"}},
	} {
		fmt.Fprintf(&b, "== %s\n", g.dir)
		for _, f := range g.files {
			entry(t, &b, g.dir+"/"+f, f)
		}
	}
	return b.String()
}

// Raw12 is what files of a TPM 1.2 say that two systems say alike of the same TPM, as it is.
func Raw12(t testing.TB) map[string]string {
	t.Helper()
	said := map[string]string{}
	for _, f := range []string{"enabled", "active", "owned", "temp_deactivated", "caps", "durations", "timeouts", "pubek", "tpm_version_major"} {
		text, err := os.ReadFile("/sys/class/tpm/tpm0/" + f)
		if err != nil {
			t.Error(err)
		}
		said[f] = string(text)
	}
	return said
}

// Tree adds a folder with everything in it.
func Tree(t testing.TB, b *bytes.Buffer, dir string) {
	t.Helper()
	fmt.Fprintf(b, "== %s\n", dir)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == "wakeup" {
			return fs.SkipDir // numbered by the order of all drivers
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		entry(t, b, path, rel)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// kinds are the letters of ls.
var kinds = map[uint32]byte{unix.S_IFREG: 'f', unix.S_IFDIR: 'd', unix.S_IFLNK: 'l', unix.S_IFCHR: 'c'}

// entry adds one file: what stat says, where a link leads, what is in it. Of power, which is about time, only names.
func entry(t testing.TB, b *bytes.Buffer, path, name string) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Errorf("%s: %v", path, err)
		return
	}
	kind := kinds[st.Mode&unix.S_IFMT]
	fmt.Fprintf(b, "%c %04o ", kind, st.Mode&0o7777)
	switch kind {
	case 'c':
		fmt.Fprintf(b, "%d:%d %s\n", unix.Major(st.Rdev), unix.Minor(st.Rdev), name)
		return
	case 'l':
		to, err := os.Readlink(path)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(b, "- %s -> %s\n", name, to)
		return
	case 'd':
		fmt.Fprintf(b, "- %s\n", name)
		return
	}
	fmt.Fprintf(b, "%d %s\n", st.Size, name)
	if st.Mode&0o444 == 0 || filepath.Base(filepath.Dir(path)) == "power" {
		return
	}
	text, err := os.ReadFile(path)
	contents(b, name, text, err)
}

// contents adds what a file says, masked.
func contents(b *bytes.Buffer, name string, text []byte, err error) {
	var errno unix.Errno
	switch {
	case errors.As(err, &errno):
		fmt.Fprintf(b, "  ! %s\n", unix.ErrnoName(errno))
	case err != nil:
		fmt.Fprintf(b, "  ! %v\n", err)
	case len(text) == 0:
		b.WriteString("  (empty)\n")
	case bytes.IndexByte(text, 0) >= 0 && len(text) > 64:
		b.WriteString("  (binary)\n")
	case bytes.IndexByte(text, 0) >= 0:
		fmt.Fprintf(b, "  (bytes: % x)\n", text)
	default:
		for line := range strings.Lines(masked(name, string(text))) {
			rest, ok := strings.CutSuffix(line, "\n")
			fmt.Fprintf(b, "  |%s\n", unprintable.ReplaceAllStringFunc(rest, func(s string) string { return fmt.Sprintf("\\x%02x", s[0]) }))
			if !ok {
				b.WriteString("  (no newline)\n")
			}
		}
	}
}

var (
	unprintable = regexp.MustCompile(`[^ -~\t]`)
	digests     = regexp.MustCompile(`\b[0-9A-F]{40,}\b|\b(?:[0-9A-F]{2} ){20}`)
	modulus     = regexp.MustCompile(`(?m)^([0-9a-f]{2} ){15}[0-9a-f]{2} ?$`)
	lowDigest   = regexp.MustCompile(`\b[0-9a-f]{40,}\b`)
	constant    = regexp.MustCompile(`^(?:[0 ]+|[F ]+)$`)
	upper       = regexp.MustCompile(`[0-9A-F]`)
	lower       = regexp.MustCompile(`[0-9a-f]`)
)

// masked hides what another TPM, or another firmware, says otherwise: digests but for the constant ones, and the
// endorsement key.
func masked(name, text string) string {
	text = digests.ReplaceAllStringFunc(text, func(d string) string {
		if constant.MatchString(d) {
			return d
		}
		return upper.ReplaceAllString(d, "X")
	})
	for _, r := range []*regexp.Regexp{modulus, lowDigest} {
		text = r.ReplaceAllStringFunc(text, func(d string) string {
			if constant.MatchString(d) {
				return d
			}
			return lower.ReplaceAllString(d, "x")
		})
	}
	return text
}

var (
	aboutTPM  = regexp.MustCompile(`(?i)tpm|MSFT0101|PNP0C31|fed4`)
	timestamp = regexp.MustCompile(`^\[ *[0-9.]+\] `)
	address   = regexp.MustCompile(`0x[0-9A-Fa-f]{8,}`)
)

// Lines are the lines of a text that are about a TPM, without times and addresses.
func Lines(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if line = address.ReplaceAllString(timestamp.ReplaceAllString(line, ""), "0x..."); aboutTPM.MatchString(line) {
			b.WriteString(line)
		}
	}
	return b.String()
}
