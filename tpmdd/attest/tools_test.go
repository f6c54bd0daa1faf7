package attest

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/measure"
	"github.com/ring3dev/ring3/tpmdd/swtpmtest"
)

// bridgeEnv makes this binary what tpm2-tools start to reach a socket.
const bridgeEnv = "RING3_TEST_TPM_BRIDGE"

func TestMain(m *testing.M) {
	path := os.Getenv(bridgeEnv)
	if path == "" {
		os.Exit(m.Run())
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go func() {
		_, _ = io.Copy(c, os.Stdin)
		os.Exit(0)
	}()
	_, _ = io.Copy(os.Stdout, c)
}

// tool runs one of tpm2-tools, which have their own implementation of all this.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	exe, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no %s here", name)
	}
	out, err := exec.Command(exe, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// TestCheckquote has tpm2-tools judge our quote, and our key.
func TestCheckquote(t *testing.T) {
	for _, without_ := range []uint16{0, 0x23} { // ECC
		mc := start(t, measure.Options{}, known)
		mc.x = without{mc.tpm, without_}
		nonce := []byte("0123456789abcdef")
		q, err := mc.Quote(QuoteOptions{Nonce: nonce, Bank: measure.SHA256, PCRs: allPCRs, Log: mc.log})
		if err != nil {
			t.Fatal(err)
		}
		ak, err := ParsePublic(q.AK)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKIXPublicKey(ak.Key)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		file := func(name string, p []byte) string {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, p, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
		pub := file("ak.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
		attest, sig := file("attest", q.Attest), file("sig", q.Signature)
		tool(t, "tpm2_checkquote", "-u", pub, "-m", attest, "-s", sig, "-g", "sha256", "-q", fmt.Sprintf("%x", nonce))
		if exe, err := exec.LookPath("tpm2_checkquote"); err == nil {
			if out, err := exec.Command(exe, "-u", pub, "-m", attest, "-s", sig, "-g", "sha256", "-q", "00").CombinedOutput(); err == nil {
				t.Errorf("tpm2_checkquote accepts another nonce: %s", out)
			}
		}
		out := tool(t, "tpm2_print", "-t", "TPM2B_PUBLIC", file("ak.pub", q.AK))
		if want := "value: fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign\n"; !strings.Contains(out, want) {
			t.Errorf("tpm2_print =\n%swant %s", out, want)
		}
	}
}

// TestFingerprintIsTheToolsEK: tpm2_createek and openssl lead to the same fingerprint.
func TestFingerprintIsTheToolsEK(t *testing.T) {
	tpm := swtpmtest.Start(t, tpmdd.TPM20)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	pub, ctx := filepath.Join(dir, "ek.pem"), filepath.Join(dir, "ek.ctx")
	t.Setenv(bridgeEnv, tpm.Path())
	tool(t, "tpm2_createek", "-T", "cmd:exec "+exe, "-G", "rsa", "-c", ctx, "-u", pub, "-f", "pem")
	p, err := os.ReadFile(pub)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(p)
	if block == nil {
		t.Fatalf("%s: no PEM", p)
	}
	id, err := Open(t.Context(), "tpm0", tpm).Identity()
	if err != nil {
		t.Fatal(err)
	}
	ek, err := ParsePublic(id.EK)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ek.Fingerprint()
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%x", measure.SHA256.Sum(block.Bytes)); got.String() != want {
		t.Errorf("Fingerprint = %s, want %s", got, want)
	}
}
