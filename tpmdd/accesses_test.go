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
	for _, c := range []struct {
		name string
		cmd  []byte
		most int
	}{
		{"GetRandom(32)", random(tpmdd.TPM20, 32), 40},
		{"PCR_Read", tpmdd.Command(tpmdd.TagNoSessions, tpmdd.CCPCRRead, 0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 1), 51},
		{"PCR_Extend", tpmdd.Command(tpmdd.TagSessions, tpmdd.CCPCRExtend, append([]byte{
			0, 0, 0, 16, // PCR 16
			0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, // no password
			0, 0, 0, 1, 0, 0x0b, // one SHA-256
		}, make([]byte, 32)...)...), 52},
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
