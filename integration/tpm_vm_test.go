package integration

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/integration/vm"
	"github.com/ring3dev/ring3/internal/swtpm"
	"github.com/ring3dev/ring3/tpmdd"
)

// Where the tests of packages below tpmdd find what the kernel's files said, and how its devices behaved.
const (
	tpmFilesDir   = "../tpmdd/class/testdata/kernel-6.1"
	tpmDevicesDir = "../tpmdd/chardev/testdata/kernel-6.1"
)

// tpmTests is how the names of tests begin, after Root, that want a VM with a TPM.
const tpmTests = "TPM"

// keepTPM is told by tests in the VM what the kernel says of a TPM. It compares that with what is kept; with
// RING3_GOLDEN (make golden) it keeps it. The texts of a VM's own name are of the class, those called tpm0 and
// tpmrm0 of a device.
func keepTPM(vmName string) func(json.RawMessage) (any, error) {
	return func(args json.RawMessage) (any, error) {
		var a struct{ Name, Text string }
		if err := json.Unmarshal(args, &a); err != nil {
			return nil, err
		}
		file := filepath.Join(tpmDevicesDir, a.Name+".txt")
		if !strings.HasPrefix(a.Name, "tpm") {
			name := strings.TrimSuffix(vmName+"-"+a.Name, "-")
			file = filepath.Join(tpmFilesDir, name+".txt")
		}
		if os.Getenv("RING3_GOLDEN") != "" {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				return nil, err
			}
			return nil, errors.Join(os.WriteFile(file, []byte(a.Text), 0o644), os.WriteFile(tpmMadeWith, []byte(tpmVersions()), 0o644))
		}
		had, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		d := diff.Diff(file, had, "the kernel now", []byte(a.Text))
		if d == nil {
			return nil, nil
		}
		with, err := os.ReadFile(tpmMadeWith)
		if v := tpmVersions(); string(with) != v {
			return fmt.Sprintf("what is kept was made with %s, which may be the reason: this is %s%s", with, v, d), err
		}
		return nil, fmt.Errorf("the kernel says otherwise than what is kept; make golden makes it again\n%s", d)
	}
}

// tpmMadeWith says what the texts were made with: where the firmware puts a TPM, and what answers, are matters of
// QEMU's and swtpm's versions.
const tpmMadeWith = tpmFilesDir + "/MADE-WITH"

var tpmVersions = sync.OnceValue(func() string {
	var s strings.Builder
	for _, program := range []string{"qemu-system-x86_64", swtpm.Binary} {
		out, _ := exec.Command(program, "--version").Output()
		fmt.Fprintf(&s, "%s %s\n", program, regexp.MustCompile(`[0-9]+\.[0-9]+`).Find(out))
	}
	return s.String()
})

// tpmSuite runs tests in a VM that has a TPM, named as the text that is kept of it.
func tpmSuite(t *testing.T, name string, tpm *vm.TPM, tests ...string) {
	t.Helper()
	s := newTPMSuite(t, tpm, tests...)
	s.Config.Host = map[string]func(json.RawMessage) (any, error){"tpm-golden": keepTPM(name)}
	s.Run(t)
}

// newTPMSuite is tests in a VM that has a TPM.
func newTPMSuite(t *testing.T, tpm *vm.TPM, tests ...string) *vm.Suite {
	t.Helper()
	if os.Getenv("RING3_LONG") == "" && os.Getenv("RING3_GOLDEN") == "" {
		t.Skip("a boot for two states that TestTPMTree compares with what was taken down: RING3_LONG=1, make test-long")
	}
	needTPM(t)
	return &vm.Suite{
		Package: "integration/guest", Dir: filepath.Dir(ring3),
		Config: vm.Config{
			Arch: vmArch, Image: image(t), TPM: tpm,
			// QEMU's own processor is AMD's, for which this kernel takes no random numbers of a CRB.
			Devices: []string{"-cpu", "max,vendor=GenuineIntel"},
		},
		Timeout: 5 * time.Minute,
		Want: func(name string) bool {
			name, ok := strings.CutPrefix(name, "TestRoot"+tpmTests)
			return ok && slices.Contains(tests, name)
		},
	}
}

// needTPM skips a test, or fails it, where no VM with a TPM can be booted.
func needTPM(t *testing.T) {
	t.Helper()
	vm.Need(t, vmArch)
	if vmArch != "" && vmArch != "amd64" {
		t.Skip("QEMU's TPMs on arm64 are others, of which no firmware tells the kernel here")
	}
	if _, err := exec.LookPath(swtpm.Binary); err != nil {
		if os.Getenv(vm.NeedVM) != "" {
			t.Fatalf("%v; hack/setup installs it", err)
		}
		t.Skipf("%v; hack/setup installs it", err)
	}
}

func TestVMTPMTIS20(t *testing.T) {
	tpmSuite(t, "tis20", &vm.TPM{Model: "tpm-tis", Dir: t.TempDir()}, "Files", "Device", "Manager", "Shell")
}

func TestVMTPMCRB20(t *testing.T) {
	tpmSuite(t, "crb20", &vm.TPM{Model: "tpm-crb", Dir: t.TempDir()}, "Files", "Device", "Shell")
}

func TestVMTPMTIS12(t *testing.T) {
	tpmSuite(t, "tis12", &vm.TPM{Model: "tpm-tis", V12: true, Dir: t.TempDir()}, "12Files")
}

// TestVMTPMDisabled12 and TestVMTPMInactive12 are about TPMs 1.2 that are switched off. The kernel's word for them was
// taken down; whether it still says so is asked in the long run only.
func TestVMTPMDisabled12(t *testing.T) {
	off12(t, "disabled", tpmdd.Command(tpmdd.TagRequest12, ordPhysicalDisable))
}

func TestVMTPMInactive12(t *testing.T) {
	off12(t, "inactive", tpmdd.Command(tpmdd.TagRequest12, ordPhysicalSetDeactivated, 1))
}

func off12(t *testing.T, name string, cmd []byte) {
	t.Helper()
	needTPM(t)
	dir := t.TempDir()
	tpmCommands(t, dir, true, present12(0x0020), present12(0x0008), cmd)
	tpmSuite(t, "tis12-"+name, &vm.TPM{Model: "tpm-tis", V12: true, Dir: dir}, "12Off")
}

// Ordinals of TPM 1.2 that want physical presence (part 2, 17).
const (
	ordPhysicalDisable        = 0x70
	ordPhysicalSetDeactivated = 0x72
	ordPhysicalPresence       = 0x4000000a
)

// present12 is TSC_PhysicalPresence: 0x0020 lets software say it, 0x0008 says that somebody is there.
func present12(what byte) []byte {
	return tpmdd.Command(tpmdd.TagRequest12, ordPhysicalPresence, 0, what)
}

// tpmCommands has a TPM, started with the state in dir and with no machine around it, do some commands.
func tpmCommands(t *testing.T, dir string, v12 bool, cmds ...[]byte) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "swtpm"), os.NewFile(uintptr(pair[1]), "swtpm")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	args := []string{"socket", "--fd", "3", "--tpmstate", "dir=" + dir + ",mode=0600", "--flags", "not-need-init,startup-clear"}
	if !v12 {
		args = append(args, "--tpm2")
	}
	cmd := exec.Command(swtpm.Binary, args...)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	for _, c := range cmds {
		answer := make([]byte, 10)
		_, err := conn.Write(c)
		if err == nil {
			_, err = io.ReadFull(conn, answer)
		}
		if code := binary.BigEndian.Uint32(answer[6:]); err != nil || code != 0 {
			t.Errorf("swtpm answers %x to %x, %v", answer, c, err)
			break
		}
	}
	conn.Close() // its end, since it has one connection
	if err := cmd.Wait(); err != nil {
		t.Errorf("swtpm: %v\n%s", err, &said)
	}
}
