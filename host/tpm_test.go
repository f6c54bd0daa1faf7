package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/internal/instance"
	"github.com/ring3dev/ring3/sysfs"
	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/attest"
	"github.com/ring3dev/ring3/tpmdd/measure"
	"github.com/ring3dev/ring3/tpmdd/swtpmtest"
)

// shortDir is a private directory in which sockets have paths that fit.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ring3-tpm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// tpmRig is an attester's and a verifier's shell. The TPM's socket takes one client at a time.
type tpmRig struct {
	t   *testing.T
	dir string
	tpm string
}

func newTPMRig(t *testing.T) *tpmRig {
	t.Setenv(instance.BaseEnv, shortDir(t))
	return &tpmRig{t: t, dir: t.TempDir(), tpm: swtpmtest.Start(t, tpmdd.TPM20).Path()}
}

// run is one ring3 command; @x in args is a file of the rig's.
func (r *tpmRig) run(stdin string, args ...string) (stdout, stderr string, code int) {
	r.t.Helper()
	for i := range args {
		args[i] = strings.ReplaceAll(strings.ReplaceAll(args[i], "@tpm", r.tpm), "@", r.dir+"/")
	}
	var out, errs bytes.Buffer
	code = (&Program{}).Run(r.t.Context(), args, strings.NewReader(stdin), &out, &errs)
	return out.String(), errs.String(), code
}

// ok is a command that succeeds and keeps silent about it.
func (r *tpmRig) ok(args ...string) string {
	r.t.Helper()
	out, errs, code := r.run("", args...)
	if code != 0 || errs != "" {
		r.t.Fatalf("ring3 %v = %d: %s", args, code, errs)
	}
	return out
}

func (r *tpmRig) write(name, content string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(content), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// measure starts a list and measures contents.
func (r *tpmRig) measure(contents ...string) *measure.Log {
	r.t.Helper()
	c, err := attest.Dial(r.tpm)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	m, err := measure.New(r.t.Context(), measure.Options{Chip: c, Family: tpmdd.TPM20})
	if err != nil {
		r.t.Fatal(err)
	}
	for i, s := range contents {
		if err := m.Data(r.t.Context(), fmt.Sprintf("config:eth%d", i), []byte(s)); err != nil {
			r.t.Fatal(err)
		}
	}
	return m.Log()
}

func TestTPMCommands(t *testing.T) {
	r := newTPMRig(t)
	r.write("log", string(r.measure("mtu=9000").ASCII()))
	r.write("known", r.ok("tpm", "digest", "--log", "@log"))
	r.write("id", r.ok("tpm", "identity", "--device", "@tpm"))
	r.write("challenge", r.ok("tpm", "challenge", "@id", "--keep", "@expect"))
	if fi, err := os.Stat(r.dir + "/expect"); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("expect: %v, %v, want mode 600", fi, err)
	}
	r.write("quote", r.ok("tpm", "quote", "--device", "@tpm", "--challenge", "@challenge", "--log", "@log"))
	// The fingerprint is in the report of a verifier that does not know it yet.
	out, errs, code := r.run("", "tpm", "verify", "@quote", "--expect", "@expect", "-json")
	var report attest.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != 1 || errs != "" || report.OK || len(report.Problems) != 1 {
		t.Fatalf("verify without --ek = %d %s %s (%v), want one problem", code, out, errs, err)
	}
	out = r.ok("tpm", "verify", "@quote", "--expect", "@expect", "--ek", report.EK.String(), "--db", "@known")
	if want := "\"config:eth0\" \"mtu=9000\" known as \"config:eth0\"\ntrusted: 2 entries"; !strings.Contains(out, want) {
		t.Errorf("verify = %q, want %q in it", out, want)
	}
	// Another database, and somebody else's key: two lines and the sum.
	r.write("empty", "# nothing\n")
	_, errs, code = r.run("", "tpm", "verify", "@quote", "--expect", "@expect", "--ek", strings.Repeat("00", 32), "--db", "@empty")
	if code != 1 || strings.Count(errs, "\n") != 3 || !strings.Contains(errs, "ring3: ek: fingerprint "+report.EK.String()) ||
		!strings.Contains(errs, "ring3: database: entry 1: \"config:eth0\"") || !strings.Contains(errs, "ring3: not trusted: reasons above: 2\n") {
		t.Errorf("verify = %d:\n%s", code, errs)
	}
	// From now on a nonce is enough.
	nonce := strings.Repeat("5a", 20)
	r.write("quote2", r.ok("tpm", "quote", "--device", "@tpm", "--nonce", nonce, "--log", "@log"))
	r.ok("tpm", "verify", "@quote2", "--nonce", nonce, "--ak", report.AK.String(), "--db", "@known")
}

func TestTPMSealCommands(t *testing.T) {
	r := newTPMRig(t)
	r.write("password", "open\r\nthe second line is not asked for\n")
	for _, pw := range [][]string{nil, {"--password-file", "@password"}} {
		out, errs, code := r.run("a secret", append([]string{"tpm", "seal", "--device", "@tpm"}, pw...)...)
		if code != 0 {
			t.Fatalf("seal = %d %s", code, errs)
		}
		r.write("sealed", out)
		if got := r.ok(append([]string{"tpm", "unseal", "@sealed", "--device", "@tpm"}, pw...)...); got != "a secret" {
			t.Errorf("unseal = %q, want a secret", got)
		}
		if got := r.ok(append([]string{"tpm", "unseal", "@sealed", "--device", "@tpm", "-json"}, pw...)...); !strings.Contains(got, `"YSBzZWNyZXQ="`) {
			t.Errorf("unseal -json = %q", got)
		}
	}
	r.measure()
	_, errs, code := r.run("", "tpm", "unseal", "@sealed", "--device", "@tpm", "--password-file", "@password")
	if code != 1 || !strings.Contains(errs, "PCR sha256:10 is ") || strings.Count(errs, "\n") != 1 {
		t.Errorf("unseal after a change = %d %q, want 1 and a line about PCR sha256:10", code, errs)
	}
}

// TestTPMOfInstance finds the TPM and the list where a running instance has them.
func TestTPMOfInstance(t *testing.T) {
	r := newTPMRig(t)
	a := &app{Program: &Program{}}
	if _, err := os.Stat("/dev/tpm0"); err != nil { // or a TPM 1.2 may be the machine's
		if got, err := a.placeTPM(""); err != nil || got.path != "/dev/tpmrm0" || got.in != nil {
			t.Errorf("placeTPM without an instance = %+v, %v, want /dev/tpmrm0", got, err)
		}
	}
	in, err := instance.Create(instance.Options{Name: "r0", Measure: "tpm1"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	}()
	// tpm1 is measured into, and tpm0 is another one.
	other := swtpmtest.Start(t, tpmdd.TPM20).Path()
	for name, to := range map[string]string{"tpm0.sock": other, "tpmrm0.sock": other, "tpm1.sock": r.tpm, "tpmrm1.sock": r.tpm} {
		if err := os.Symlink(to, filepath.Join(in.Dir(), name)); err != nil {
			t.Fatal(err)
		}
	}
	var root sysfs.Dir
	ima := root.MkdirAll("/sys/kernel/security/ima")
	s, err := in.Serve(instance.TreeHandlers(&root))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	nonce := strings.Repeat("5a", 16)
	if _, errs, code := r.run("", "tpm", "quote", "--nonce", nonce); code != 1 || !strings.Contains(errs, "r0: /sys/kernel/security/ima/binary_runtime_measurements: ") {
		t.Errorf("quote without a list = %d %s", code, errs)
	}
	for name, f := range r.measure("mtu=9000").Files() {
		ima.Put(name, f)
	}
	for _, c := range []struct {
		args []string
		want int
	}{
		{nil, 2},
		{[]string{"--device", "@tpm"}, 2},
		{[]string{"--device", filepath.Join(in.Dir(), "tpm1.sock")}, 2},
		{[]string{"--device", other}, 0}, // never the list of another TPM
		{[]string{"--device", filepath.Join(in.Dir(), "tpmrm0.sock")}, 0},
	} {
		var q attest.Quote
		if err := attest.Read(strings.NewReader(r.ok(append([]string{"tpm", "quote", "--nonce", nonce}, c.args...)...)), &q); err != nil {
			t.Fatal(err)
		}
		entries, err := measure.Parse(q.Log)
		if err != nil || len(entries) != c.want {
			t.Errorf("quote %v: log = %v, %v, want %d entries", c.args, entries, err, c.want)
		}
		if got := bytes.Equal(q.PCRs[measure.DefaultPCR], make([]byte, 32)); got != (c.want == 0) {
			t.Errorf("quote %v: PCR 10 is %s", c.args, q.PCRs[measure.DefaultPCR])
		}
	}
}

// TestWhichTPM is an instance that measures nothing.
func TestWhichTPM(t *testing.T) {
	r := &tpmRig{t: t, dir: t.TempDir()}
	t.Setenv(instance.BaseEnv, shortDir(t))
	in, err := instance.Create(instance.Options{Name: "r0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	tpm12, tpm20 := swtpmtest.Start(t, tpmdd.TPM12).Path(), swtpmtest.Start(t, tpmdd.TPM20).Path()
	sock := func(name string) string { return filepath.Join(in.Dir(), name+".sock") }
	quote := []string{"tpm", "quote", "--nonce", strings.Repeat("5a", 16)}
	for _, c := range []struct {
		name string
		add  map[string]string
		args []string
		code int
		want string
	}{
		{"none", nil, quote, 1, "ring3: r0 has no TPM: want --device PATH for another\n"},
		{"one of TPM 1.2", map[string]string{"tpm0": tpm12}, quote, 1, "ring3: tpm0 is a TPM 1.2: quotes and seals need a TPM 2.0\n"},
		{"identity", nil, []string{"tpm", "identity"}, 1, "ring3: tpm0 is a TPM 1.2: quotes and seals need a TPM 2.0\n"},
		{"named", nil, []string{"tpm", "identity", "--device", sock("tpm0")}, 1, "it is a TPM 1.2: quotes and seals need a TPM 2.0"},
		{"several", map[string]string{"tpm1": tpm20, "tpmrm1": tpm20}, quote, 2, "ring3: r0 has the TPMs tpm0 and tpm1, and measures into none: want --device " + sock("tpmrmN") + "\n"},
		{"one that is named", nil, []string{"tpm", "identity", "--device", sock("tpmrm1")}, 0, ""},
	} {
		for name, to := range c.add {
			if err := os.Symlink(to, sock(name)); err != nil {
				t.Fatal(err)
			}
		}
		if _, errs, code := r.run("", c.args...); code != c.code || !strings.Contains(errs, c.want) || strings.Count(errs, "\n") > 1 {
			t.Errorf("%s: %v = %d %q, want %d %q", c.name, c.args, code, errs, c.code, c.want)
		}
	}
	if err := os.Remove(sock("tpm0")); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := r.run("", quote...); code != 1 || !strings.Contains(errs, "r0 measures nothing, so there is no list: was it started with --measure?") {
		t.Errorf("quote of the only TPM, of which there is no list = %d %q", code, errs)
	}
	r.ok(append(quote, "--log", "/dev/null")...)
}

func TestTPMUsage(t *testing.T) {
	r := &tpmRig{t: t, dir: t.TempDir()}
	t.Setenv(instance.BaseEnv, shortDir(t))
	r.write("id", "{}")
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"tpm", 2, ""},
		{"tpm frob", 2, "tpm"},
		{"tpm quote", 2, "either --challenge FILE or --nonce HEX"},
		{"tpm quote --nonce xy", 2, "--nonce"},
		{"tpm quote --nonce 00 --challenge x", 2, "either"},
		{"tpm quote --nonce 00 --pcrs 24", 2, "--pcrs"},
		{"tpm quote --nonce 00 --bank md5", 2, "--bank \"md5\""},
		{"tpm challenge @id", 2, "--keep"},
		{"tpm challenge @id --keep @new", 1, "its kind is"},
		{"tpm challenge", 2, "want"},
		{"tpm verify @id", 2, "either --expect FILE, or both"},
		{"tpm verify @id --nonce 00", 2, "either --expect FILE, or both"},
		{"tpm verify @id --expect x --nonce 00 --ak 00", 2, "either --expect FILE, or both"},
		{"tpm verify @id --nonce 00 --ak 00 --ek 00", 2, "--ek 00: want 64"},
		{"tpm verify @id --nonce 00 --ak 00 --ek-roots @id", 1, "no certificate in it"},
		{"tpm verify @id --nonce 00 --ak 00 --pcr 16", 2, "--pcr: PCR 16: want 10 to 15"},
		{"tpm verify @id --nonce 00 --ak 00 --bank md5", 2, "--bank \"md5\""},
		{"tpm verify @none --nonce 00 --ak 00", 1, "no such file"},
		{"tpm unseal @id", 1, "its kind is"},
		{"tpm identity --device @none", 1, "opening the TPM: stat"},
		{"tpm digest @none", 1, "digest: open"},
		{"tpm digest --log @id", 1, "measurement list"},
	} {
		_, errs, code := r.run("", strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(errs, c.want) || strings.Count(errs, "\n") > 1 {
			t.Errorf("ring3 %s = %d %q, want %d and a line with %q", c.args, code, errs, c.code, c.want)
		}
	}
	if _, err := os.Stat(r.dir + "/new"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a challenge that failed left its file: %v", err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r.write("x", "x")
	if got := r.ok("tpm", "digest"); !strings.HasPrefix(got, "sha256:") || !strings.HasSuffix(got, "  "+exe+"\n") {
		t.Errorf("digest = %q, want this program's", got)
	}
	if got, want := r.ok("tpm", "digest", "@x"), "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881  "+r.dir+"/x\n"; got != want {
		t.Errorf("digest = %q, want %q", got, want)
	}
}
