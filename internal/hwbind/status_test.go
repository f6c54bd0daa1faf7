package hwbind

import (
	"os"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/syspci"
)

func TestStatus(t *testing.T) {
	k := newModel(t)
	bound := k.add("0000:00:03.0", classEthernet, "e1000e", 3)
	uio := k.add("0000:00:04.0", classEthernet, "e1000e", 4)
	k.addNet("0000:00:03.0/net/eth0", false)
	k.addNet("0000:00:04.0/net/eth1", false)
	k.add("0000:00:05.0", classEthernet, "e1000e", 5)
	k.addNet("0000:00:05.0/net/eth2", true)
	k.add("0000:00:06.0", classEthernet, "", 6)
	k.add("0000:00:06.1", classHost, "e1000e", 6)
	k.add("0000:00:1c.0", classPort, "pcieport", 7)
	k.add("0000:00:1f.0", classHost, "", syspci.NoGroup)
	for a, driver := range map[pci.Addr]string{bound: VFIO, uio: UIO} {
		if _, _, err := k.fullBind(Request{Addrs: []pci.Addr{a}, Driver: driver}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := k.m.Status(true)
	if err != nil {
		t.Fatal(err)
	}
	me := userName(os.Geteuid())
	want := []struct {
		usable bool
		why    string
	}{
		{true, ""},
		{os.Geteuid() == 0, map[bool]string{true: "", false: "sudo ring3 up --as " + me + " NAME=uio:0000:00:04.0"}[os.Geteuid() == 0]},
		{false, "driver e1000e has it, and interface eth2 is up"},
		{false, "no driver has it: sudo ring3 bind 0000:00:06.0 0000:00:06.1 --driver vfio-pci --owner " + me},
		{false, "driver e1000e has it: sudo ring3 bind 0000:00:06.1 --driver vfio-pci --owner " + me},
		{false, "driver pcieport has it: sudo ring3 bind 0000:00:1c.0 --driver uio_pci_generic"},
		{false, "no driver has it, and no IOMMU: sudo ring3 bind 0000:00:1f.0 --driver uio_pci_generic"},
	}
	if len(list) != len(want) {
		t.Fatalf("%d functions, want %d", len(list), len(want))
	}
	for i, w := range want {
		if s := list[i]; s.Usable != w.usable || !strings.Contains(s.Why, w.why) || w.why == "" && s.Why != "" {
			t.Errorf("%s: usable %v, %q, want %v, %q", s.Address, s.Usable, s.Why, w.usable, w.why)
		}
	}
	if s := list[0]; s.Kind != "Ethernet controller" || s.Name != "Intel Corporation 82574L Gigabit Network Connection" || s.Class != "020000" {
		t.Errorf("class %s, %q, name %q", s.Class, s.Kind, s.Name)
	}
	if got := list[3].Members; len(got) != 2 || got[1] != "0000:00:06.1" {
		t.Errorf("members of group 6: %q", got)
	}

	// A function of the group that a kernel driver takes keeps it closed.
	k.add("0000:00:03.1", classEthernet, "e1000e", 3)
	list, err = k.m.Status(false)
	if err != nil || len(list) != 2 || list[0].Usable || !strings.Contains(list[0].Why, "IOMMU group 3 also holds 0000:00:03.1 (8086:10d3, driver e1000e): sudo ring3 bind 0000:00:03.1 --driver vfio-pci") {
		t.Errorf("a group that is not whole: %+v, %v", list[0], err)
	}
}

func TestUdev(t *testing.T) {
	k, a := withNIC(t)
	vfio := k.m.Udev(Request{Addrs: []pci.Addr{a}, Driver: VFIO, Owner: alice})
	for _, want := range []string{
		`KERNEL=="0000:00:04.0", ATTR{driver_override}="vfio-pci", RUN{builtin}+="kmod load vfio-pci"`,
		`chown alice /dev/vfio/$$(basename $$(readlink /sys/bus/pci/devices/$kernel/iommu_group))`,
		`SUBSYSTEM=="vfio-dev", KERNELS=="0000:00:04.0", OWNER="alice"`,
	} {
		if !strings.Contains(vfio, want) {
			t.Errorf("rules %s\nwant %s in them", vfio, want)
		}
	}
	uio := k.m.Udev(Request{Addrs: []pci.Addr{a}, Driver: UIO, Owner: alice})
	if want := `ACTION=="add", SUBSYSTEM=="uio", KERNELS=="0000:00:04.0", OWNER="alice"`; !strings.Contains(uio, want) || strings.Contains(uio, "vfio") {
		t.Errorf("rules %s\nwant %s", uio, want)
	}
	if rules := k.m.Udev(Request{Addrs: []pci.Addr{a}, Driver: VFIO}); strings.Contains(rules, "chown") {
		t.Errorf("rules without an owner: %s", rules)
	}
}

func TestFindUser(t *testing.T) {
	if u, err := FindUser("root"); err != nil || u.UID != 0 {
		t.Errorf("root is %v, %v", u, err)
	}
	if u, err := FindUser("123456789"); err != nil || u.UID != 123456789 {
		t.Errorf("a number is %v, %v", u, err)
	}
	if a, err := FindAccount("root"); err != nil || a.UID != 0 || a.Home == "" || len(a.Groups) == 0 || a.Groups[0] != 0 {
		t.Errorf("the account of root is %+v, %v", a, err)
	}
	var a Account
	if err := a.parse("alice:x:1000:1001:Alice,,,:/home/alice:/bin/bash\n"); err != nil || a.Name != "alice" || a.UID != 1000 || a.GID != 1001 || a.Home != "/home/alice" {
		t.Errorf("a line of passwd is %+v, %v", a, err)
	}
	for _, line := range []string{"", "alice", "alice:x:a:1:::", "alice:x:1:-1:::"} {
		if a.parse(line) == nil {
			t.Errorf("the line %q is taken", line)
		}
	}
	for _, name := range []string{"nobody-of-this-name", "", "-1", "99999999999"} {
		if u, err := FindUser(name); err == nil {
			t.Errorf("user %q is %v, want an error", name, u)
		}
	}
}
