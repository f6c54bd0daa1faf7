//go:build vm

package guest

import (
	"encoding/json"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/integration/vm/wire"
)

// Nobody is the user and group that tests run as.
const Nobody = wire.Nobody

var (
	connMu sync.Mutex
	// conn leads to init, which is root, and through it to the host. No program that a test
	// starts inherits it.
	conn = sync.OnceValue(func() *wire.Conn {
		fd, err := strconv.Atoi(os.Getenv(wire.FD))
		if err != nil {
			return nil
		}
		unix.CloseOnExec(fd)
		return wire.NewConn(os.NewFile(uintptr(fd), "init"))
	})
)

func init() {
	conn()
	os.Unsetenv(wire.FD)
}

// try asks init or the host for something. result may be nil.
func try(op string, args, result any) error {
	connMu.Lock()
	defer connMu.Unlock()
	return conn().Call(op, args, result)
}

func ask(t testing.TB, op string, args, result any) {
	t.Helper()
	if conn() == nil {
		t.Fatalf("this is no VM: %s is not set; run go test ./integration -run TestVM", wire.FD)
	}
	if err := try(op, args, result); err != nil {
		t.Fatal(err)
	}
}

// Address is where a device stands: by the id that integration/vm_test.go gave it, or Plug.
func Address(t testing.TB, id string) string {
	t.Helper()
	var addr string
	ask(t, wire.OpAddress, id, &addr)
	return addr
}

// Bind gives the device at addr to a driver of the kernel's ("vfio-pci", "uio_pci_generic",
// "e1000e"; "" is none), which is loaded first. Nobody may open what then stands for it in /dev.
// At the end of the test init gives it back to whom it had before.
func Bind(t testing.TB, addr, driver string) wire.Bound {
	t.Helper()
	var b wire.Bound
	ask(t, wire.OpBind, wire.Bind{Addr: addr, Driver: driver, Owner: Nobody}, &b)
	return b
}

// TryBind is Bind with its error.
func TryBind(addr, driver string) (wire.Bound, error) {
	var b wire.Bound
	err := try(wire.OpBind, wire.Bind{Addr: addr, Driver: driver, Owner: Nobody}, &b)
	return b, err
}

// Modprobe loads a module that Config.Modules names, and those that it needs.
func Modprobe(t testing.TB, name string, params ...string) {
	t.Helper()
	ask(t, wire.OpModprobe, wire.Modprobe{Name: name, Params: params}, nil)
}

// Memlock sets how much memory this process may lock, from wire.DefaultMemlock on.
func Memlock(t testing.TB, bytes uint64) {
	t.Helper()
	ask(t, wire.OpMemlock, bytes, nil)
}

// ReadRoot reads a file as root.
func ReadRoot(t testing.TB, path string) string {
	t.Helper()
	var f wire.File
	ask(t, wire.OpRead, wire.File{Path: path}, &f)
	return string(f.Data)
}

// WriteRoot writes to a file that is there, as root, with one write.
func WriteRoot(t testing.TB, path, data string) {
	t.Helper()
	ask(t, wire.OpWrite, wire.File{Path: path, Data: []byte(data)}, nil)
}

// RunRoot runs a program as root, waits for its end, and returns what it said and its exit
// status (-1: it was killed).
func RunRoot(t testing.TB, argv ...string) (string, int) {
	t.Helper()
	var r wire.Ran
	path, err := exec.LookPath(argv[0])
	if err != nil {
		t.Fatal(err)
	}
	argv[0] = path
	ask(t, wire.OpRun, wire.Command{Argv: argv, Root: true}, &r)
	return string(r.Output), r.Code
}

// NeedSharedGroup skips the rest of a test that wants two devices in one IOMMU group where the
// kernel makes no such group of shared0 and shared1.
func NeedSharedGroup(t testing.TB) {
	t.Helper()
	if runtime.GOARCH == "arm64" {
		t.Skip("the SMMUv3 driver of this kernel confines only one of the devices behind a bridge to conventional PCI")
	}
}

// AsNobody makes a command of a test that is root run as nobody, without capabilities.
func AsNobody(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: Nobody, Gid: Nobody}}
	home := "/run/user/" + strconv.Itoa(Nobody)
	cmd.Env = append(cmd.Environ(), "HOME="+home, "XDG_RUNTIME_DIR="+home, "USER=nobody")
	if cmd.Dir == "" {
		cmd.Dir = home
	}
	return cmd
}

// NoNewPrivs keeps this process, and what it starts, from gaining privileges by any program,
// fusermount3 too.
func NoNewPrivs(t testing.TB) {
	t.Helper()
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); errno != 0 {
		t.Fatalf("prctl(PR_SET_NO_NEW_PRIVS): %v", errno)
	}
}

// KernelLog is what the kernel's log has, oldest first, read as root.
func KernelLog(t testing.TB) string {
	t.Helper()
	out, code := RunRoot(t, "dmesg")
	if code != 0 {
		t.Fatalf("dmesg: exit status %d: %s", code, out)
	}
	return out
}

// QMP runs a command of QEMU's and returns its result.
func QMP(t testing.TB, cmd string, args map[string]any) json.RawMessage {
	t.Helper()
	var b json.RawMessage
	if args != nil {
		var err error
		if b, err = json.Marshal(args); err != nil {
			t.Fatal(err)
		}
	}
	var result json.RawMessage
	ask(t, wire.OpQMP, wire.QMP{Execute: cmd, Arguments: b}, &result)
	return result
}

// AskHost asks the host for what integration/vm_test.go has in Config.Host under that name.
// result may be nil.
func AskHost(t testing.TB, name string, args, result any) {
	t.Helper()
	ask(t, wire.OpHost+name, args, result)
}

// Plug adds a device to the VM: Plug(t, "e1000e", "id=hot1", "bus=port0", "netdev=net4").
func Plug(t testing.TB, model string, props ...string) {
	t.Helper()
	args := map[string]any{"driver": model}
	for _, p := range props {
		k, v, _ := strings.Cut(p, "=")
		args[k] = v
	}
	QMP(t, "device_add", args)
}

// Unplug asks the VM's kernel to let a device go and returns at once: the kernel asks its
// driver for it.
func Unplug(t testing.TB, id string) {
	t.Helper()
	QMP(t, "device_del", map[string]any{"id": id})
}

// WaitUnplugged waits until the kernel let an unplugged device go.
func WaitUnplugged(t testing.TB, id string, limit time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		var gone bool
		ask(t, wire.OpGone, id, &gone)
		if gone {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the kernel has not let %s go after %v", id, limit)
		}
	}
}

// Capture begins to write down, in QEMU, what passes a netdev ("net0" is nic0's). The
// function that it returns ends that and returns a pcap file.
func Capture(t testing.TB, netdev string) (stop func() []byte) {
	t.Helper()
	ask(t, wire.OpCapture, netdev, nil)
	return func() []byte {
		t.Helper()
		var b []byte
		ask(t, wire.OpCaptured, netdev, &b)
		return b
	}
}
