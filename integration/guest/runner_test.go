//go:build vm

package guest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestBindAgain binds a device again and again, and to nothing, and looks at what is said
// where it cannot be bound.
func TestBindAgain(t *testing.T) {
	addr := Address(t, "nic1")
	dev := filepath.Join("/sys/bus/pci/devices", addr)
	for range 2 { // the second finds it bound already
		Bind(t, addr, "vfio-pci")
	}
	if now, err := os.Readlink(filepath.Join(dev, "driver")); filepath.Base(now) != "vfio-pci" {
		t.Fatalf("the driver of nic1 is %q, %v; want vfio-pci", now, err)
	}
	if b := Bind(t, addr, ""); b.Driver != "" || b.Path != "" {
		t.Errorf("bound to nothing: %+v", b)
	}
	if override := strings.TrimSpace(ReadRoot(t, filepath.Join(dev, "driver_override"))); override != "(null)" {
		t.Errorf("driver_override is %q, want none", override)
	}
	for _, b := range [][2]string{{"0000:77:00.0", "vfio-pci"}, {addr, "no-such-driver"}} {
		if _, err := TryBind(b[0], b[1]); err == nil {
			t.Errorf("%s was bound to %s", b[0], b[1])
		}
	}
	Bind(t, addr, "vfio-pci")
}

// TestBoundIsGivenBack looks at what the test before this one bound.
func TestBoundIsGivenBack(t *testing.T) {
	dev := filepath.Join("/sys/bus/pci/devices", Address(t, "nic1"))
	if now, err := os.Readlink(filepath.Join(dev, "driver")); err == nil && filepath.Base(now) == "vfio-pci" {
		t.Error("nic1 is still bound to vfio-pci")
	}
	if override := strings.TrimSpace(ReadRoot(t, filepath.Join(dev, "driver_override"))); override != "(null)" {
		t.Errorf("driver_override is %q, want none", override)
	}
}

// TestMemlock checks the limit of locked memory: Debian's, and one that was asked for.
func TestMemlock(t *testing.T) {
	for _, want := range []uint64{8 << 20, 64 << 20, 4096} {
		if want != 8<<20 {
			Memlock(t, want)
		}
		var lim unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim); err != nil || lim.Cur != want {
			t.Errorf("RLIMIT_MEMLOCK is %d, %v; want %d", lim.Cur, err, want)
		}
	}
}

// TestAsRoot checks what init does for a test.
func TestAsRoot(t *testing.T) {
	if out, code := RunRoot(t, "sh", "-c", "id; exit 3"); !strings.HasPrefix(out, "uid=0(root)") || code != 3 {
		t.Errorf("RunRoot: %q, status %d; want root's id and 3", out, code)
	}
	const file = "/proc/sys/kernel/hostname"
	WriteRoot(t, file, "renamed\n")
	if got := ReadRoot(t, file); got != "renamed\n" {
		t.Errorf("ReadRoot(%s) = %q, want what was written", file, got)
	}
	WriteRoot(t, file, "ring3vm\n")
	if log := KernelLog(t); !strings.Contains(log, "Linux version 6.1.") {
		t.Errorf("KernelLog has no version: %.200q", log)
	}
	// A program that a test starts cannot reach init.
	out, err := exec.Command("/proc/self/exe", "-test.run=^TestNobody$", "-test.v").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("PASS: TestNobody")) {
		t.Errorf("a child: %v: %s", err, out)
	}
}

// TestNoNewPrivs checks that it holds for all threads, and so for what is started.
func TestNoNewPrivs(t *testing.T) {
	NoNewPrivs(t)
	out, err := exec.Command("/bin/cat", "/proc/self/status").Output()
	if err != nil || !bytes.Contains(out, []byte("NoNewPrivs:\t1\n")) {
		t.Errorf("a child's status, %v: %s", err, out)
	}
}

// TestPlug plugs a NIC in below a port, sees it, and takes it away again.
func TestPlug(t *testing.T) {
	Plug(t, "e1000e", "id=plugged0", "bus=port0", "romfile=")
	var addr string
	eventually(t, "the kernel to see the plugged device", func() bool {
		addr = Address(t, "plugged0")
		_, err := os.Stat(filepath.Join("/sys/bus/pci/devices", addr))
		return err == nil && !strings.HasPrefix(addr, "0000:00:")
	})
	Bind(t, addr, "vfio-pci")
	Unplug(t, "plugged0")
	WaitUnplugged(t, "plugged0", 20*time.Second)
	if _, err := os.Stat(filepath.Join("/sys/bus/pci/devices", addr)); err == nil {
		t.Errorf("%s is still there", addr)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20s for %s", what)
		}
	}
}

// TestRootCapture sends a frame through the kernel's driver and finds it in what QEMU wrote
// down.
func TestRootCapture(t *testing.T) {
	addr := Address(t, "nic0")
	Bind(t, addr, "e1000e")
	names, err := os.ReadDir(filepath.Join("/sys/bus/pci/devices", addr, "net"))
	if err != nil || len(names) != 1 {
		t.Fatalf("the NIC's interfaces: %v, %v", names, err)
	}
	name := names[0].Name()
	stop := Capture(t, "net0")
	if out, code := RunRoot(t, "ip", "link", "set", name, "up"); code != 0 {
		t.Fatalf("ip link set up: %s", out)
	}
	eventually(t, "the link", func() bool {
		b, _ := os.ReadFile(filepath.Join("/sys/class/net", name, "carrier"))
		return string(b) == "1\n"
	})
	frame := append([]byte("\x52\x54\x00\x12\x34\x57\x52\x54\x00\x12\x34\x56\x88\xb5"), bytes.Repeat([]byte("ring3 was here "), 10)...)
	sendRaw(t, name, frame)
	pcap := stop()
	for deadline := time.Now().Add(5 * time.Second); !bytes.Contains(pcap, frame); pcap = append(pcap, stop()...) {
		if time.Now().After(deadline) {
			t.Fatalf("the frame is not among the %d bytes that were captured", len(pcap))
		}
		stop = Capture(t, "net0")
		sendRaw(t, name, frame)
		time.Sleep(50 * time.Millisecond)
	}
}

// sendRaw sends a frame through an interface of the kernel's.
func sendRaw(t *testing.T, name string, frame []byte) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	b, err := os.ReadFile(filepath.Join("/sys/class/net", name, "ifindex"))
	if err != nil {
		t.Fatal(err)
	}
	to := unix.SockaddrLinklayer{}
	for _, c := range bytes.TrimSpace(b) {
		to.Ifindex = to.Ifindex*10 + int(c-'0')
	}
	if err := unix.Sendto(fd, frame, 0, &to); err != nil {
		t.Fatalf("sending a frame through %s: %v", name, err)
	}
}
