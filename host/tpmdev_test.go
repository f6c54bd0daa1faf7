package host

import (
	"path/filepath"
	"testing"

	"github.com/ring3dev/ring3/tpmdd"
)

// TestFreeInstance: each TPM has a place of its own, though each machine of QEMU's calls its own MSFT0101:00.
func TestFreeInstance(t *testing.T) {
	if old, _ := filepath.Glob("/sys/bus/*/devices/MSFT0101:*"); old != nil {
		t.Skipf("the machine has %v, so numbers are others", old)
	}
	s := &System{}
	for range 3 {
		s.bound = append(s.bound, &boundDevice{tpm: &tpmNode{chip: &tpmdd.Chip{}}}, &boundDevice{})
	}
	for i, want := range []string{"MSFT0101:00", "MSFT0101:01", "MSFT0101:02"} {
		if got := s.freeInstance(s.bound[2*i], "MSFT0101"); got != want {
			t.Errorf("freeInstance of TPM %d = %q, want %q", i, got, want)
		}
	}
}
