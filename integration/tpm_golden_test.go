package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestGoldenTPM checks that a difference to what the kernel said of a TPM is noticed.
func TestGoldenTPM(t *testing.T) {
	t.Setenv("RING3_GOLDEN", "")
	for _, test := range []struct{ vm, name, file string }{
		{"tis20", "", filepath.Join(tpmFilesDir, "tis20.txt")},
		{"tis12", "owned", filepath.Join(tpmFilesDir, "tis12-owned.txt")},
		{"tis20", "tpm0", filepath.Join(tpmDevicesDir, "tpm0.txt")},
	} {
		text, err := os.ReadFile(test.file)
		if err != nil {
			t.Fatal(err)
		}
		say := func(text string) (any, error) {
			t.Helper()
			args, err := json.Marshal(map[string]string{"name": test.name, "text": text})
			if err != nil {
				t.Fatal(err)
			}
			return keepTPM(test.vm)(args)
		}
		if d, err := say(string(text)); d != nil || err != nil {
			t.Errorf("%s: the same text: %v, %v, want no difference", test.file, d, err)
		}
		// An error, or a note where the versions of QEMU or swtpm are others.
		if d, err := say(strings.Replace(string(text), ": ", " ", 1)); d == nil && err == nil {
			t.Errorf("%s: a text with a change: no difference, want one", test.file)
		}
	}
}
