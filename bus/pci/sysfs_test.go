package pci

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/sysfs"
)

// export writes a tree to a directory, as a mount would show it.
func export(t *testing.T, d *sysfs.Dir, dir string) {
	t.Helper()
	for _, name := range d.Names() {
		at := filepath.Join(dir, name)
		var err error
		switch n := d.Lookup(name).(type) {
		case *sysfs.Dir:
			if err = os.Mkdir(at, 0o755); err == nil {
				export(t, n, at)
			}
		case *sysfs.Link:
			err = os.Symlink(n.Target, at)
		case *sysfs.File:
			var b []byte
			if b, err = n.ReadAll(); err == nil {
				err = os.WriteFile(at, b, 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func text(t *testing.T, root *sysfs.Dir, at string) string {
	t.Helper()
	n, err := root.Walk(at)
	if err != nil {
		t.Fatalf("%s: %v", at, err)
	}
	b, err := n.(*sysfs.File).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", at, err)
	}
	return string(b)
}

// sysfsTree has a bridge, a NIC with a driver behind it, and a device without.
func sysfsTree(t *testing.T) (*Sysfs, *sysfs.Dir, *Topology) {
	t.Helper()
	nic := device(0x8086, 0x10d3).bar(0, 128<<10, 0).bar(2, 32, barIO).bar(4, 1<<20, bar64|barPrefetch).rom(CfgROM, 256<<10)
	nic.set32(CfgRevision, 0x02000003)
	nic.set16(CfgSubVendor, 0x8086)
	nic.set16(CfgSubDevice, 0xa01f)
	nic.cap(0xe0, CapPCIe, 0, 0x02, 0)
	nic.set32(0xe0+ExpLnkCap, 0x11)
	nic.set16(0xe0+ExpLnkSta, 0x11)
	up := bridge(modelBus{0: nic}).rootPort(false)
	up.set32(CfgRevision, 0x06040000)
	plain := device(0x1234, 0x11e8).bar(0, 1<<20, 0).bar(1, 8192, bar64)
	plain.set32(CfgRevision, 0x00ff0010)
	plain.size = 256
	top := enumerate(t, modelBus{0x08: up, 0x20: plain}, testWindows)
	root := &sysfs.Dir{}
	s := NewSysfs(root)
	for _, f := range top.Functions {
		var i SysfsInfo
		if f.Addr.Bus == 1 {
			i = SysfsInfo{Driver: "e1000e", IRQ: 124, MSI: map[int]bus.IRQMode{124: bus.MSIX, 125: bus.MSIX},
				Attrs: map[string]*sysfs.File{"own": sysfs.Showf("1")}}
		}
		s.Add(f, nil, i).MkdirAll("net")
	}
	return s, root, top
}

func TestSysfsFiles(t *testing.T) {
	_, root, _ := sysfsTree(t)
	const nic = "bus/pci/devices/1000:01:00.0/"
	for at, want := range map[string]string{
		nic + "vendor":             "0x8086\n",
		nic + "device":             "0x10d3\n",
		nic + "subsystem_vendor":   "0x8086\n",
		nic + "subsystem_device":   "0xa01f\n",
		nic + "class":              "0x020000\n",
		nic + "revision":           "0x03\n",
		nic + "irq":                "124\n",
		nic + "enable":             "1\n",
		nic + "numa_node":          "-1\n",
		nic + "power_state":        "D0\n",
		nic + "modalias":           "pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00\n",
		nic + "current_link_speed": "2.5 GT/s PCIe\n",
		nic + "max_link_width":     "1\n",
		nic + "msi_irqs/125":       "msix\n",
		nic + "own":                "1\n",
		nic + "uevent": "DRIVER=e1000e\nPCI_CLASS=20000\nPCI_ID=8086:10D3\nPCI_SUBSYS_ID=8086:A01F\nPCI_SLOT_NAME=1000:01:00.0\n" +
			"MODALIAS=pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00\n",
		nic + "resource": "0x00000000c0040000 0x00000000c005ffff 0x0000000000040200\n" +
			"0x0000000000000000 0x0000000000000000 0x0000000000000000\n" +
			"0x000000000000c000 0x000000000000c01f 0x0000000000040101\n" +
			"0x0000000000000000 0x0000000000000000 0x0000000000000000\n" +
			"0x0000000100000000 0x00000001000fffff 0x000000000014220c\n" +
			"0x0000000000000000 0x0000000000000000 0x0000000000000000\n" +
			"0x00000000c0000000 0x00000000c003ffff 0x0000000000046200\n" +
			strings.Repeat("0x0000000000000000 0x0000000000000000 0x0000000000000000\n", 6),
		"devices/pci1000:00/1000:00:01.0/secondary_bus_number":   "1\n",
		"devices/pci1000:00/1000:00:01.0/subordinate_bus_number": "1\n",
		"devices/pci1000:00/1000:00:01.0/resource": strings.Repeat("0x0000000000000000 0x0000000000000000 0x0000000000000000\n", 13) +
			"0x000000000000c000 0x000000000000cfff 0x0000000000000101\n" +
			"0x00000000c0000000 0x00000000c00fffff 0x0000000000000200\n" +
			"0x0000000100000000 0x00000001000fffff 0x0000000000102201\n" +
			"0x0000000000000000 0x0000000000000000 0x0000000000000000\n",
		"devices/pci1000:00/1000:00:04.0/enable":                                "0\n",
		"devices/pci1000:00/1000:00:04.0/class":                                 "0x00ff00\n",
		"devices/pci1000:00/1000:00:04.0/uevent":                                "PCI_CLASS=FF00\nPCI_ID=1234:11E8\nPCI_SUBSYS_ID=0000:0000\nPCI_SLOT_NAME=1000:00:04.0\nMODALIAS=pci:v00001234d000011E8sv00000000sd00000000bc00scFFi00\n",
		"bus/pci/drivers/e1000e/1000:01:00.0/irq":                               "124\n",
		"bus/pci/devices/1000:01:00.0/../vendor":                                "0x1b36\n", // the bridge
		"bus/pci/devices/1000:01:00.0/driver/../../devices/1000:00:04.0/device": "0x11e8\n",
	} {
		if got := text(t, root, at); got != want {
			t.Errorf("%s = %q\nwant %q", at, got, want)
		}
	}
	for at, want := range map[string]string{
		"bus/pci/devices/1000:01:00.0":                           "../../../devices/pci1000:00/1000:00:01.0/1000:01:00.0",
		"bus/pci/drivers/e1000e/1000:01:00.0":                    "../../../../devices/pci1000:00/1000:00:01.0/1000:01:00.0",
		"devices/pci1000:00/1000:00:01.0/1000:01:00.0/driver":    "../../../../bus/pci/drivers/e1000e",
		"devices/pci1000:00/1000:00:01.0/1000:01:00.0/subsystem": "../../../../bus/pci",
	} {
		dir, ok := lookupDir(root, filepath.Dir(at))
		if !ok {
			t.Fatalf("%s: no such directory", at)
		}
		if l, ok := dir.Lookup(filepath.Base(at)).(*sysfs.Link); !ok || l.Target != want {
			t.Errorf("%s -> %v, want %s", at, l, want)
		}
	}
}

func TestSysfsConfig(t *testing.T) {
	_, root, top := sysfsTree(t)
	f := top.Find(Addr{0x1000, 1, 0, 0})
	n, _ := root.Walk("bus/pci/devices/1000:01:00.0/config")
	file := n.(*sysfs.File)
	if file.Size != 4096 {
		t.Errorf("size of config = %d, want 4096", file.Size)
	}
	b, err := file.ReadAll()
	if s := f.Config.(*space); err != nil || !bytes.Equal(b, s.data[:]) {
		t.Errorf("config differs from config space (%v)", err)
	}
	for off := range int64(9) {
		for size := range 9 {
			p := make([]byte, size)
			if n, err := file.ReadAt(p, off); n != size || err != nil || !bytes.Equal(p, b[off:int(off)+size]) {
				t.Errorf("ReadAt(%d bytes, %d) = %d, %v, % x, want % x", size, off, n, err, p, b[off:int(off)+size])
			}
		}
	}
	for off, want := range map[int64]int{4095: 1, 4090: 6, 4096: 0, 1 << 40: 0, -1: 0} {
		if n, err := file.ReadAt(make([]byte, 64), off); n != want || err != nil {
			t.Errorf("ReadAt(64 bytes, %d) = %d, %v, want %d", off, n, err, want)
		}
		if n, err := file.WriteAt(make([]byte, 64), max(off, 4096)); n != 0 || err != nil {
			t.Errorf("WriteAt outside = %d, %v, want 0", n, err)
		}
	}
	if n, err := file.WriteAt([]byte{0x07, 0x04}, 4); n != 2 || err != nil || f.Config.Read16(CfgCommand) != 0x0407 {
		t.Errorf("Command after a write of config = %#x (%d, %v), want 0x0407", f.Config.Read16(CfgCommand), n, err)
	}
	if s := f.Config.(*space); s.misuse != 0 {
		t.Errorf("%d accesses out of bounds or unaligned", s.misuse)
	}
	n, _ = root.Walk("bus/pci/devices/1000:00:04.0/config")
	if got := n.(*sysfs.File).Size; got != 256 {
		t.Errorf("size of a conventional function's config = %d, want 256", got)
	}
}

func TestSysfsRebindRemove(t *testing.T) {
	s, root, top := sysfsTree(t)
	f := top.Find(Addr{0x1000, 1, 0, 0})
	s.Add(f, nil, SysfsInfo{})
	if _, err := root.Walk("bus/pci/drivers/e1000e/1000:01:00.0"); err == nil {
		t.Error("the driver still has its device after it was unbound")
	}
	if got := text(t, root, "bus/pci/devices/1000:01:00.0/uevent"); strings.Contains(got, "DRIVER") {
		t.Errorf("uevent of an unbound function = %q, want no DRIVER", got)
	}
	s.Add(f, nil, SysfsInfo{Driver: "other"})
	s.Remove(top.Find(Addr{0x1000, 0, 1, 0})) // the bridge, and so what is behind it
	for _, at := range []string{"bus/pci/devices/1000:01:00.0", "bus/pci/devices/1000:00:01.0", "bus/pci/drivers/other/1000:01:00.0", "devices/pci1000:00/1000:00:01.0"} {
		if _, err := root.Walk(at); err == nil {
			t.Errorf("%s is still there after Remove", at)
		}
	}
	text(t, root, "bus/pci/devices/1000:00:04.0/vendor")
	s.Remove(f) // gone already
}

// The kernel's own files of this machine's functions, made anew from their config space.
func TestKernelAgrees(t *testing.T) {
	dirs, _ := filepath.Glob("/sys/bus/pci/devices/*")
	if len(dirs) == 0 {
		t.Skip("this machine shows no PCI functions")
	}
	compared := 0
	for _, dir := range dirs {
		read := func(name string) string {
			b, _ := os.ReadFile(filepath.Join(dir, name))
			return string(b)
		}
		a, err := ParseAddr(filepath.Base(dir))
		if err != nil {
			t.Errorf("ParseAddr of the kernel's %s: %v", dir, err)
			continue
		}
		c := newSpace(256)
		copy(c.data[:], read("config"))
		f := &Function{Addr: a, ID: ReadID(c), Config: c, Header: c.data[CfgHeader] &^ headerMulti}
		if f.Header != HeaderDevice {
			continue
		}
		// Sizes are not in config space: the kernel measured them when it started.
		lines := strings.Split(strings.TrimSpace(read("resource")), "\n")
		for i, line := range lines[:min(6, len(lines))] {
			v := strings.Fields(line)
			start, _ := strconv.ParseUint(v[0], 0, 64)
			end, _ := strconv.ParseUint(v[1], 0, 64)
			reg := c.Read32(CfgBAR0 + bus.Off(4*i))
			if end == 0 {
				continue
			}
			r := bus.RegionInfo{Index: i, Addr: start, Size: end - start + 1}
			if reg&barIO != 0 {
				r.Kind = bus.RegionIO
			} else {
				r.Is64, r.Prefetch = reg&barType == bar64, reg&barPrefetch != 0
			}
			f.BARs = append(f.BARs, r)
		}
		driver := ""
		if to, err := os.Readlink(filepath.Join(dir, "driver")); err == nil {
			driver = filepath.Base(to)
		}
		root := &sysfs.Dir{}
		NewSysfs(root).Add(f, nil, SysfsInfo{Driver: driver})
		for _, name := range []string{"vendor", "device", "subsystem_vendor", "subsystem_device", "class", "revision", "modalias", "uevent", "local_cpus", "local_cpulist", "resource", "driver_override", "ari_enabled", "broken_parity_status", "msi_bus"} {
			want := read(name)
			got := text(t, root, "bus/pci/devices/"+a.String()+"/"+name)
			if name == "resource" {
				// The ROM and what SR-IOV adds are not compared.
				want, got = strings.Join(strings.SplitAfter(want, "\n")[:6], ""), strings.Join(strings.SplitAfter(got, "\n")[:6], "")
			}
			if want == "" {
				continue // this kernel has no such file
			}
			compared++
			if got != want {
				t.Errorf("%s of %s = %q, the kernel's %q", name, a, got, want)
			}
		}
	}
	t.Logf("%d files of %d functions", compared, len(dirs))
}

// The real lspci reads the tree.
func TestLspci(t *testing.T) {
	lspci, err := exec.LookPath("lspci")
	if err != nil {
		t.Skip("needs lspci (Debian: apt-get install pciutils)")
	}
	_, root, _ := sysfsTree(t)
	dir := t.TempDir()
	export(t, root, dir)
	run := func(args ...string) string {
		cmd := exec.Command(lspci, append([]string{"-A", "linux-sysfs", "-O", "sysfs.path=" + dir + "/bus/pci"}, args...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("lspci %v: %v: %s", args, err, stderr.String())
		}
		// What it says of kernel modules is about this machine.
		if stderr.Len() > 0 && !strings.Contains(stderr.String(), "libkmod") {
			t.Errorf("lspci %v complains: %s", args, stderr.String())
		}
		return string(out)
	}
	if got, want := run("-D", "-n"), "1000:00:01.0 0604: 1b36:000c\n1000:00:04.0 00ff: 1234:11e8 (rev 10)\n1000:01:00.0 0200: 8086:10d3 (rev 03)\n"; got != want {
		t.Errorf("lspci -D -n:\n%s\nwant\n%s", got, want)
	}
	got := run("-D", "-n", "-v", "-s", "1000:01:00.0")
	for _, want := range []string{
		"Subsystem: 8086:a01f", "IRQ 124", "Memory at c0040000 (32-bit, non-prefetchable) [size=128K]", "I/O ports at c000 [size=32]",
		"Memory at 100000000 (64-bit, prefetchable) [size=1M]", "Expansion ROM at c0000000 [disabled] [size=256K]", "Kernel driver in use: e1000e",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("lspci -v has no %q:\n%s", want, got)
		}
	}
	got = run("-D", "-n", "-v", "-s", "1000:00:01.0")
	for _, want := range []string{"primary=00, secondary=01, subordinate=01", "I/O behind bridge: c000-cfff", "Memory behind bridge: c0000000-c00fffff", "Prefetchable memory behind bridge: 100000000-1000fffff"} {
		// Older versions write leading zeros.
		if !strings.Contains(got, want) && !strings.Contains(strings.NewReplacer(": 0000c000-0000", ": c000-", ": 0000000", ": ", "-0000000", "-").Replace(got), want) {
			t.Errorf("lspci -v has no %q:\n%s", want, got)
		}
	}
	if got, want := run("-t", "-n"), "[1000:00]-+-01.0-[01]----00.0"; !strings.Contains(got, want) {
		t.Errorf("lspci -t:\n%s\nhas no %s", got, want)
	}
}
