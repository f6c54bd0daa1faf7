//go:build vm

package guest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// kernelNIC is a NIC that the kernel's e1000e has, as on any machine.
func kernelNIC(t *testing.T, id string) (addr, name string) {
	t.Helper()
	addr = Address(t, id)
	Bind(t, addr, "e1000e")
	return addr, iface(t, addr)
}

// state is what a binding changes.
func state(t *testing.T, addr string) string {
	t.Helper()
	override, err := os.ReadFile("/sys/bus/pci/devices/" + addr + "/driver_override")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("driver %s, override %s", driver(addr), override)
}

// TestRootBindUnbind takes a NIC from the kernel, to nobody, and back.
func TestRootBindUnbind(t *testing.T) {
	leaveNothing(t)
	addr, _ := kernelNIC(t, "nic0")
	WriteRoot(t, "/sys/bus/pci/devices/"+addr+"/driver_override", "\n")
	before := state(t, addr)
	// A dry run needs no rights and changes nothing.
	out, code := command(t, false, "bind", "-n", addr, "--driver", "vfio-pci", "--owner", "nobody")
	for _, want := range []string{"echo vfio-pci > /sys/bus/pci/devices/" + addr + "/driver_override\n", "/e1000e/unbind\n", "/vfio-pci/bind\n", "chown nobody /dev/vfio/"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("bind -n: exit status %d, %s, want %q", code, out, want)
		}
	}
	refused(t, false, 1, []string{"only root may", "sudo ring3 bind " + addr + " --driver vfio-pci"}, "bind", addr, "--driver", "vfio-pci")
	if now := state(t, addr); now != before {
		t.Errorf("without root %s became %s", before, now)
	}
	for _, d := range []string{"vfio-pci", "uio_pci_generic"} {
		out := must(t, "bind", addr, "--driver", d, "--owner", "nobody")
		node := strings.TrimSuffix(strings.Fields(out[strings.Index(out, "/dev/"):])[0], ",")
		if want := addr + ": from e1000e to " + d; !strings.HasPrefix(out, want) || driver(addr) != d {
			t.Errorf("bind says %q, the driver is %s; want %q", out, driver(addr), want)
		}
		var st unix.Stat_t
		if err := unix.Stat(node, &st); err != nil || st.Uid != Nobody {
			t.Errorf("%s belongs to %d (%v), want nobody", node, st.Uid, err)
		}
		out, code = command(t, false, "ls")
		ready := map[string]string{"vfio-pci": "ready", "uio_pci_generic": "sudo ring3 up --as nobody NAME=uio:" + addr}[d]
		if code != 0 || !strings.Contains(out, addr) || !strings.Contains(out, "root, nobody") || !strings.Contains(out, ready) {
			t.Errorf("ls says (%d) %s, want %s, who may open it, and %q", code, out, addr, ready)
		}
		if out = must(t, "unbind", addr); out != addr+": from "+d+" to e1000e\n" {
			t.Errorf("unbind says %q", out)
		}
		if now := state(t, addr); now != before {
			t.Errorf("after unbind %s, want %s", now, before)
		}
		if _, err := os.Stat(node); err == nil {
			t.Errorf("%s is still there", node)
		}
		iface(t, addr) // the kernel's driver works again
	}
}

// TestRootBindInUse binds nothing that is in use, but by --takeover.
func TestRootBindInUse(t *testing.T) {
	leaveNothing(t)
	addr, name := kernelNIC(t, "nic0")
	before := state(t, addr)
	run := func(argv ...string) {
		if out, code := RunRoot(t, argv...); code != 0 {
			t.Fatalf("%v: %s", argv, out)
		}
	}
	run("ip", "link", "set", name, "up")
	refused(t, true, 1, []string{addr + ": binding: in use: interface " + name + " is up;", "--takeover"}, "bind", addr, "--driver", "vfio-pci")
	run("ip", "addr", "add", "10.9.8.7/24", "dev", name)
	run("ip", "route", "add", "default", "via", "10.9.8.1", "dev", name)
	refused(t, true, 1, []string{"interface " + name + " is up and has the default route"}, "bind", addr, "--driver", "vfio-pci")
	if now := state(t, addr); now != before {
		t.Errorf("refusing changed %s to %s", before, now)
	}
	if out := must(t, "bind", addr, "--driver", "vfio-pci", "--takeover"); !strings.Contains(out, "taking away: "+addr+": interface "+name) || driver(addr) != "vfio-pci" {
		t.Errorf("--takeover says %q, the driver is %s", out, driver(addr))
	}
	must(t, "unbind", addr)

	// It is in use by who has it open, then.
	must(t, "bind", addr, "--driver", "vfio-pci", "--owner", "nobody")
	in := up(t, "--no-mount", "eth0=vfio:"+addr)
	for _, args := range [][]string{{"unbind", addr}, {"bind", addr, "--driver", "uio_pci_generic"}} {
		refused(t, true, 1, []string{"in use: process ", "(ring3) has /dev/vfio/", "--takeover"}, args...)
	}
	// Asked back, it is given.
	must(t, "unbind", addr, "--takeover")
	if code := in.wait(); code != 1 || strings.Count(in.stderr(), "\n") != 1 || !strings.Contains(in.stderr(), addr) {
		t.Errorf("ring3 up ends with %d, want 1 and one line about %s: %s", code, addr, in.stderr())
	}
	if driver(addr) != "e1000e" {
		t.Errorf("the driver is %q", driver(addr))
	}
}

// TestRootBindFails has the kernel refuse steps of a bind: all is as before.
func TestRootBindFails(t *testing.T) {
	leaveNothing(t)
	addr, _ := kernelNIC(t, "nic0")
	Modprobe(t, "vfio-pci")
	before := state(t, addr)
	readOnly := func(path string) (undo func()) {
		t.Helper()
		if out, err := exec.Command("mount", "--bind", path, path).CombinedOutput(); err != nil {
			t.Fatalf("mount: %v: %s", err, out)
		}
		if out, err := exec.Command("mount", "-o", "remount,bind,ro", path).CombinedOutput(); err != nil {
			t.Fatalf("mount: %v: %s", err, out)
		}
		return func() {
			if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	}
	for path, says := range map[string]string{
		"/sys/bus/pci/drivers/vfio-pci/bind": "vfio-pci refuses it: ",
		"/dev/vfio":                          "giving /dev/vfio/",
	} {
		undo := readOnly(path)
		refused(t, true, 1, []string{addr + ": binding: " + says, "read-only file system"}, "bind", addr, "--driver", "vfio-pci", "--owner", "nobody")
		undo()
		if now := state(t, addr); now != before {
			t.Errorf("after failing at %s: %s, want %s", path, now, before)
		}
		iface(t, addr)
	}
}

// TestRootBindRefused asks for what cannot be.
func TestRootBindRefused(t *testing.T) {
	leaveNothing(t)
	port := Address(t, "port0")
	refused(t, true, 1, []string{port + ": binding: vfio-pci takes no bridges", "--driver uio_pci_generic"}, "bind", port, "--driver", "vfio-pci")
	refused(t, true, 1, []string{"0000:7f:00.0: no such PCI function"}, "bind", "0000:7f:00.0", "--driver", "vfio-pci")
	refused(t, true, 2, []string{`--driver "e1000e": want one of vfio-pci, uio_pci_generic`}, "bind", port, "--driver", "e1000e")
	refused(t, true, 1, []string{`user "no.one"`}, "bind", port, "--driver", "uio_pci_generic", "--owner", "no.one")

	// Two of one group: one alone is refused, with the command for both.
	NeedSharedGroup(t)
	a, b := Address(t, "shared0"), Address(t, "shared1")
	Bind(t, a, "e1000")
	Bind(t, b, "e1000")
	refused(t, true, 1, []string{"changes hands as a whole", b, "driver e1000", "sudo ring3 bind " + a + " " + b + " --driver vfio-pci --owner nobody"},
		"bind", a, "--driver", "vfio-pci", "--owner", "nobody")
	must(t, "bind", a, b, "--driver", "vfio-pci", "--owner", "nobody")
	in := up(t, "--no-mount", "eth0=vfio:"+a, "eth1=vfio:"+b) // in one address space
	code, said := in.end(unix.SIGINT), in.stderr()
	for line := range strings.Lines(said) { // neither has a reset of its own, which is worth a warning, and no more
		if !strings.Contains(line, ": it cannot be reset when its driver dies: the function has no reset, and its bus's would hit ") {
			t.Errorf("ring3 up of both says %s", line)
		}
	}
	if code != 0 {
		t.Errorf("ring3 up of both ends with %d: %s", code, said)
	}
	if out := must(t, "unbind", a); !strings.Contains(out, b+" of the same IOMMU group is still bound for nobody") {
		t.Errorf("unbind of one says %q", out)
	}
	must(t, "unbind", b)
	if driver(a) != "e1000" || driver(b) != "e1000" {
		t.Errorf("the drivers are %q and %q", driver(a), driver(b))
	}
}

// TestNoIOMMUBind: without an IOMMU there is UIO, and VFIO says so.
func TestNoIOMMUBind(t *testing.T) {
	addr := Address(t, "nic0")
	refused(t, false, 1, []string{"no IOMMU confines this device", "switch it on in the machine's setup", "--driver uio_pci_generic"}, "bind", "-n", addr, "--driver", "vfio-pci")
	if out, code := command(t, false, "bind", "-n", addr, "--driver", "uio_pci_generic"); code != 0 {
		t.Errorf("bind -n to uio_pci_generic: exit status %d: %s", code, out)
	}
	out, code := command(t, false, "ls", "--hw")
	if code != 0 || !strings.Contains(out, "no IOMMU: sudo ring3 bind "+addr+" --driver uio_pci_generic") {
		t.Errorf("ls --hw: exit status %d: %s", code, out)
	}
}
