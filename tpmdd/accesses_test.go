package tpmdd_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/qemu/qemutest"
	"github.com/ring3dev/ring3/tpmdd"
)

// TestAccesses: a command takes half of the register accesses that the kernel's tpm_tis takes for it, 81, 102 and 104, as QEMU
// counts them for both.
func TestAccesses(t *testing.T) {
	trace, err := os.Create(filepath.Join(t.TempDir(), "trace"))
	if err != nil {
		t.Fatal(err)
	}
	defer trace.Close()
	r := bring(t, qemutest.TPMConfig{Trace: trace}, nil)
	count := func() int {
		b, err := os.ReadFile(trace.Name())
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(b, []byte("tpm_tis_mmio"))
	}
	// settled is the count once QEMU has done the writes that nobody waits for.
	settled := func() int {
		for n := -1; ; time.Sleep(2 * time.Millisecond) {
			if _, err := r.Machine.Execute("query-status", nil); err != nil {
				t.Fatal(err)
			}
			last := n
			if n = count(); n == last {
				return n
			}
		}
	}
	sha256, _ := tpmdd.FindBank(0x000b)
	for _, c := range []struct {
		name string
		cmd  []byte
		most int
	}{
		{"GetRandom(32)", tpmdd.GetRandom(tpmdd.TPM20, 32), 40},
		{"PCR_Read", tpmdd.PCRRead(sha256.Alg, 16), 51},
		{"PCR_Extend", tpmdd.PCRExtend(16, tpmdd.Digest{Alg: sha256.Alg, Sum: make([]byte, sha256.Size)}), 52},
	} {
		var n []int
		for range 9 {
			before := settled()
			if _, err := tpmdd.Ask(t.Context(), r, c.name, c.cmd); err != nil {
				t.Fatal(err)
			}
			n = append(n, settled()-before)
		}
		slices.Sort(n)
		t.Logf("%s: %v accesses", c.name, n)
		if n[4] > c.most || n[0] < 10 {
			t.Errorf("%s takes %v register accesses, want %d at most, and 10 at least", c.name, n, c.most)
		}
	}
}
