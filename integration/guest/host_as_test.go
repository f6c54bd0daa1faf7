//go:build vm

package guest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/host"
	"github.com/ring3dev/ring3/sysfs"
)

// portProgram is the name by which this program is a ring3 with one driver: of a PCI Express port.
const portProgram = "ring3-port"

func init() {
	if filepath.Base(os.Args[0]) == portProgram {
		host.Main(portDriver)
	}
}

// portDriver serves ports: it looks at config space and takes the interrupt.
var portDriver = &pci.Driver{
	Name: "port", API: pci.API,
	IDs: []pci.ID{{Vendor: pci.Any, Device: pci.Any, Class: 0x060400, ClassMask: 0xffff00}},
	Probe: func(ctx context.Context, dev bus.Device, env pci.Env) (pci.Instance, error) {
		_, ok := pci.FindCap(dev.Config(), pci.CapPCIe)
		_, ext := pci.FindExtCap(dev.Config(), 1) // Advanced Error Reporting: beyond what the kernel shows to users
		if !ok || !ext || dev.Config().Size() != 4096 {
			return nil, fmt.Errorf("config space of %d bytes: PCI Express capability %v, AER %v", dev.Config().Size(), ok, ext)
		}
		if _, err := dev.EnableIRQs(bus.INTx, 1); err != nil {
			return nil, err
		}
		if _, err := dev.DMA().Alloc(bus.DMARequest{Size: 4096}); err == nil {
			return nil, fmt.Errorf("memory for DMA that nothing confines")
		}
		return port{dev}, nil
	},
}

// port is a port in service.
type port struct{ dev bus.Device }

func (p port) Close() error { return p.dev.DisableIRQs() }

func (p port) Attrs() map[string]*sysfs.File {
	return map[string]*sysfs.File{"port_user": sysfs.Showf("%d", os.Getuid())}
}

// TestRootAsPort opens a root port by UIO as root, becomes nobody, and drives it.
func TestRootAsPort(t *testing.T) {
	leaveNothing(t)
	addr := Address(t, "port0")
	must(t, "bind", addr, "--driver", "uio_pci_generic")
	defer must(t, "unbind", addr)
	refused(t, false, 1, []string{"rp0: " + addr, "sudo ring3 up --as"}, "up", "rp0=uio:"+addr)
	refused(t, false, 1, []string{"--as nobody: only root may become another user"}, "up", "--as", "nobody", "rp0=uio:"+addr)
	refused(t, true, 1, []string{`--as: user "no.one"`}, "up", "--as", "no.one", "rp0=uio:"+addr)

	cmd := exec.Command(os.Args[0], "up", "--as", "nobody", "rp0=uio:"+addr)
	cmd.Args[0] = portProgram
	in := start(t, cmd)
	if want := "rp0: port at " + addr + " (uio)"; !strings.HasPrefix(in.said, want) {
		t.Errorf("it says %q, want %q", in.said, want)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nUid:\t65534\t65534\t65534\t65534\n", "\nCapPrm:\t0000000000000000\n", "\nCapBnd:\t0000000000000000\n", "\nNoNewPrivs:\t1\n"} {
		if !bytes.Contains(status, []byte(want)) {
			t.Errorf("its status lacks %q", want)
		}
	}
	if out := in.sh("cat $TREE/sys/bus/pci/devices/" + addr + "/port_user"); out != "65534\n" {
		t.Errorf("port_user is %q, want nobody", out)
	}
	if n := len(in.sh("cat $TREE/sys/bus/pci/devices/" + addr + "/config")); n != 4096 {
		t.Errorf("config space has %d bytes, want 4096", n)
	}
	if out, code := command(t, false, "ls"); code != 0 || !strings.Contains(out, "rp0") {
		t.Errorf("ls (%d): %s", code, out)
	}
	if code := in.end(unix.SIGINT); code != 0 || in.stderr() != "" {
		t.Errorf("it ends with %d: %s", code, in.stderr())
	}
}

// TestRootAsVFIO does the same with a group that only root may open, and is killed.
func TestRootAsVFIO(t *testing.T) {
	leaveNothing(t)
	a, b := Address(t, "nic0"), Address(t, "nic1")
	must(t, "bind", a, b, "--driver", "vfio-pci")
	defer must(t, "unbind", a, b)
	refused(t, false, 1, []string{"eth0: " + a, "no permission on /dev/vfio/", "--owner"}, "up", "eth0=vfio:"+a)
	for _, end := range []syscall.Signal{unix.SIGKILL, unix.SIGINT} {
		in := start(t, exec.Command(ring3, "up", "--as", "nobody", "eth0=vfio:"+a, "eth1=vfio:"+b))
		if got := in.sh("COUNT=100" + send); got != "100\n" {
			t.Errorf("received %q, want 100", got)
		}
		in.end(end)
	}
}
