package bench

import (
	"os"
	"path/filepath"
	"testing"
)

// TestScratch: what a killed benchmark leaves goes with the next one, and what another one has stays.
func TestScratch(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	killed, err := newScratch()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(killed.path, "tpm2-00.permall"), []byte("state"), 0o600); err != nil {
		t.Fatal(err)
	}
	running, err := newScratch()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(killed.path); err != nil {
		t.Errorf("the folder of a benchmark that runs: %v", err)
	}
	killed.lock.Close() // as the end of its process does
	elsewhere := filepath.Join(t.TempDir(), "precious")
	if err := os.Mkdir(elsewhere, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, filepath.Join(dir, scratchPrefix+"link")); err != nil {
		t.Fatal(err)
	}
	last, err := newScratch()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(killed.path); !os.IsNotExist(err) {
		t.Errorf("the folder of a benchmark that was killed is left (%v)", err)
	}
	for _, path := range []string{running.path, elsewhere} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []*scratch{running, last} {
		if err := s.remove(); err != nil {
			t.Error(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 1 {
		t.Errorf("left: %q, want the link alone", left)
	}
}
