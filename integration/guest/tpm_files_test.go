//go:build vm

package guest

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/integration/tpmseen"
	"github.com/ring3dev/ring3/integration/vm/wire"
)

// TestRootTPMFiles writes down every file that the kernel makes for a TPM. integration/tpm_vm_test.go keeps it below
// tpmdd/class/testdata, where a README tells the format. By its file's name it comes before the tests that the kernel's log
// tells of.
func TestRootTPMFiles(t *testing.T) { filesOfTPM(t) }

func filesOfTPM(t *testing.T) {
	t.Helper()
	b := bytes.NewBufferString(tpmseen.Files(t))
	securityfs(t, b)
	for _, file := range []string{"/proc/interrupts", "/proc/iomem", "/proc/ioports"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(b, "== %s, lines about it\n%s", file, tpmseen.Lines(string(text)))
	}
	fmt.Fprintf(b, "== kernel's log, lines about it\n%s", tpmseen.Lines(KernelLog(t)))
	keepTPM(t, "", b.String())
}

// keepTPM has the host keep what was captured, or compare it with what it kept. Where that was made with other
// versions of QEMU or swtpm a difference is no failure.
func keepTPM(t *testing.T, name, text string) {
	t.Helper()
	var difference string
	if err := try(wire.OpHost+"tpm-golden", map[string]string{"name": name, "text": text}, &difference); err != nil {
		t.Error(err)
	}
	if difference != "" {
		t.Log(difference)
	}
}

// securityfs adds the firmware's log of what it measured.
func securityfs(t *testing.T, b *bytes.Buffer) {
	t.Helper()
	const dir = "/sys/kernel/security"
	if err := unix.Mount("securityfs", dir, "securityfs", 0, ""); err != nil {
		t.Fatalf("mounting securityfs: %v", err)
	}
	defer func() { _ = unix.Unmount(dir, 0) }()
	if _, err := os.Stat(dir + "/tpm0"); err != nil {
		fmt.Fprintf(b, "== %s/tpm0\nnone\n", dir)
		return
	}
	tpmseen.Tree(t, b, dir+"/tpm0")
}
