package integration

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/integration/vm"
)

// TestVMShell types into the shell that make vm gives. It takes a boot, so only make test-long
// runs it.
func TestVMShell(t *testing.T) {
	if os.Getenv("RING3_LONG") == "" {
		t.Skip("it takes a boot; RING3_LONG is not set")
	}
	vm.Need(t, vmArch)
	argv := []string{"run", "./vm/shell"}
	if vmArch != "" {
		argv = append(argv, "-arch", vmArch)
	}
	cmd := exec.CommandContext(t.Context(), "go", argv...)
	// go run does not pass signals on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	timer := time.AfterFunc(vm.BootTimeout+5*time.Minute, func() { _ = cmd.Cancel() })
	defer timer.Stop()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pr, w := io.Pipe()
	r := bufio.NewReader(pr)
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		w.Close()
		ended <- err
	}()
	// What is typed before the shell is there is lost.
	said := readUntil(t, r, "QEMU's monitor and back.")
	said += readUntil(t, r, "# ", "$ ")
	for _, line := range []string{"ring3 ls --hw", "nobody id", "exit"} {
		if _, err := io.WriteString(stdin, line+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	rest, _ := io.ReadAll(r)
	said += string(rest)
	if err := <-ended; err != nil {
		t.Errorf("the shell: %v", err)
	}
	for _, want := range []string{"0000:00:04.0: from e1000e to vfio-pci", "uid=65534(nobody)", "/dev/vfio/"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if t.Failed() {
		t.Logf("it said:\n%s", said)
	}
}

// readUntil reads until one of some texts came, and returns all that it read.
func readUntil(t *testing.T, r *bufio.Reader, texts ...string) string {
	t.Helper()
	var said []byte
	for {
		b, err := r.ReadByte()
		if err != nil {
			t.Fatalf("%v before %q came:\n%s", err, texts, said)
		}
		said = append(said, b)
		for _, text := range texts {
			if bytes.HasSuffix(said, []byte(text)) {
				return string(said)
			}
		}
	}
}
