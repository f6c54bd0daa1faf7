package class_test

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu/qemutest"
	"github.com/ring3dev/ring3/sysfs"
	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/class"
	"github.com/ring3dev/ring3/tpmdd/tis"
)

// text is a file's, and the errno of reading it.
func text(t *testing.T, root *sysfs.Dir, name string) (string, error) {
	t.Helper()
	d := root.MkdirAll(path.Dir(name))
	f, ok := d.Lookup(path.Base(name)).(*sysfs.File)
	if !ok {
		t.Fatalf("%s: no file", name)
	}
	if f.Show == nil {
		return "", unix.EIO
	}
	var b bytes.Buffer
	err := f.Show(&b)
	return b.String(), err
}

// TestNoEK: what the kernel says of a TPM 1.2 that has no endorsement key. Everything else that it says of TPMs is compared in
// integration, through ring3 run, which makes that key.
func TestNoEK(t *testing.T) {
	var log bytes.Buffer
	d := qemutest.OpenTPM(t, qemutest.TPMConfig{V12: true})
	b := pci.Bind(t.Context(), d.Device, pci.Env{Name: "tpm0", Log: slog.New(slog.NewTextHandler(&log, nil))}, []*pci.Driver{tis.Driver})
	if b.Err != nil {
		t.Fatal(b.Err)
	}
	defer b.Instance.Close()
	var sys sysfs.Dir
	const at = "/devices/pnp0/00:f0/tpm/tpm0/"
	class.Add(&sys, b.Instance.(tpmdd.Instance).Chip(), class.Place{Name: "tpm0", Device: "/devices/pnp0/00:f0", Bus: "pnp", Driver: "tpm_tis", ID: "PNP0C31"})
	kept, err := os.ReadFile("testdata/kernel-6.1/tis12-no-ek.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"enabled", "active", "owned", "temp_deactivated", "caps", "durations", "timeouts", "pubek", "tpm_version_major"} {
		got, err := text(t, &sys, at+name)
		_, want, _ := strings.Cut(string(kept), "4096 "+name+"\n")
		want, _, _ = strings.Cut(want, "\nf ")
		want = strings.TrimPrefix(strings.ReplaceAll("\n"+want+"\n", "\n  |", "\n"), "\n")
		want = strings.TrimPrefix(want, "  (empty)\n")
		if i := strings.Index(want, "== "); i >= 0 {
			want = want[:i]
		}
		if got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	if want := "tpm tpm0: A TPM error (35) occurred attempting to read the PUBEK"; strings.Count(log.String(), want) != 1 {
		t.Errorf("the log is\n%s\nwant once: %s", &log, want)
	}
}

// TestWritable: what can be written, with what result, and what it says then.
func TestWritable(t *testing.T) {
	var sys sysfs.Dir
	class.AddRandom(&sys, "tpm0")
	const at = "/devices/virtual/misc/hw_random/"
	for _, c := range []struct {
		name, write string
		err         error
		want        string
	}{
		{"rng_current", "tpm-rng-0\n", nil, "tpm-rng-0\n"}, {"rng_selected", "", fs.ErrInvalid, "1\n"}, {"rng_current", "virtio_rng.0", unix.ENODEV, "tpm-rng-0\n"},
		{"rng_current", "\n", nil, "tpm-rng-0\n"}, {"rng_selected", "", fs.ErrInvalid, "0\n"}, {"rng_available", "", fs.ErrInvalid, "tpm-rng-0 \n"},
		{"rng_quality", "700", nil, "700\n"}, {"rng_quality", "1025", unix.EINVAL, "700\n"}, {"rng_quality", "x", unix.EINVAL, "700\n"},
		{"power/control", "on\n", nil, "on\n"}, {"power/control", "off", unix.EINVAL, "on\n"}, {"power/async", "enabled", nil, "enabled\n"},
		{"power/runtime_status", "", fs.ErrInvalid, "unsupported\n"},
		{"uevent", "change\n", nil, "MAJOR=10\nMINOR=183\nDEVNAME=hwrng\n"}, {"uevent", "explode", unix.EINVAL, "MAJOR=10\nMINOR=183\nDEVNAME=hwrng\n"},
	} {
		f, ok := sys.MkdirAll(path.Dir(at + c.name)).Lookup(path.Base(c.name)).(*sysfs.File)
		if !ok {
			t.Fatalf("%s: no file", c.name)
		}
		if writable := f.Store != nil && f.Mode&0o222 != 0; writable != (c.err != fs.ErrInvalid) {
			t.Errorf("%s: writable: %v, mode %v", c.name, writable, f.Mode)
		} else if writable {
			if n, err := f.Store(t.Context(), []byte(c.write)); !errors.Is(err, c.err) || err == nil && n != len(c.write) {
				t.Errorf("writing %q to %s = %d, %v, want %v", c.write, c.name, n, err, c.err)
			}
		}
		if got, err := text(t, &sys, at+c.name); got != c.want || err != nil {
			t.Errorf("%s after %q: %q, %v, want %q", c.name, c.write, got, err, c.want)
		}
	}
}
