package integration

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/integration/vm"
)

// nics are what the VM has: pairs of NICs that are wired, and other devices, by their ids.
var nics = []string{
	"-netdev", "hubport,id=net0,hubid=0", "-device", "e1000e,id=nic0,netdev=net0,mac=52:54:00:12:34:56,addr=4,romfile=",
	"-netdev", "hubport,id=net1,hubid=0", "-device", "e1000e,id=nic1,netdev=net1,mac=52:54:00:12:34:57,addr=5,romfile=",
	"-netdev", "hubport,id=net2,hubid=1", "-device", "e1000,id=old0,netdev=net2,mac=52:54:00:12:34:58,addr=6,romfile=",
	"-netdev", "hubport,id=net3,hubid=1", "-device", "e1000,id=old1,netdev=net3,mac=52:54:00:12:34:59,addr=7,romfile=",
	"-device", "edu,id=edu0,addr=8",
	// A root port with nothing below it, and one with a NIC that can be unplugged.
	"-device", "pcie-root-port,id=port0,chassis=1,slot=1,addr=9",
	"-device", "pcie-root-port,id=port1,chassis=2,slot=2,addr=a",
	"-netdev", "hubport,id=net4,hubid=2", "-device", "e1000e,id=hot0,netdev=net4,bus=port1,mac=52:54:00:12:34:5a,romfile=",
	// Two NICs that share an IOMMU group, since they are behind one bridge to conventional PCI.
	"-device", "pcie-pci-bridge,id=bridge0,addr=b",
	"-netdev", "hubport,id=net5,hubid=3", "-device", "e1000,id=shared0,netdev=net5,bus=bridge0,mac=52:54:00:12:34:5b,addr=1,romfile=",
	"-netdev", "hubport,id=net6,hubid=3", "-device", "e1000,id=shared1,netdev=net6,bus=bridge0,mac=52:54:00:12:34:5c,addr=2,romfile=",
}

// host is what tests may ask of this machine.
var host = map[string]func(json.RawMessage) (any, error){"pktgen": guestlessPktgen, "pktgen-golden": goldenPktgen}

// programs that the VM has.
var programs = []string{"fusermount3", "sh", "bash", "cat", "ls", "sleep", "grep", "sed", "awk", "head", "tail", "id", "env", "mkdir", "mktemp", "stat", "rm", "chmod", "chown", "dmesg", "ip", "mount", "umount", "kill"}

// foreign builds ring3 for VMs of another architecture, once for all of them.
var foreign = sync.OnceValue(func() error { return vm.Build(vmArch, "cmd/ring3", ring3+"-"+vmArch) })

// image is what VMs have beside init and the tests: ring3 and programs.
func image(t *testing.T) *vm.Image {
	t.Helper()
	root, err := vm.Programs(vmArch)
	if err != nil {
		t.Fatal(err)
	}
	exe := ring3
	if root != "" { // this machine's does not run there
		exe += "-" + vmArch
		if err := foreign(); err != nil {
			t.Fatal(err)
		}
	}
	i := &vm.Image{Root: root}
	i.AddFile("/usr/bin/ring3", exe, 0o755)
	for _, p := range programs {
		if err := i.AddProgram(p); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

// noIOMMU is how the names of tests begin that want a VM without an IOMMU.
const noIOMMU = "TestNoIOMMU"

// TestVM runs the tests of package guest in a VM with an IOMMU; -run TestVM/NAME runs one.
func TestVM(t *testing.T) {
	t.Parallel()
	vm.Need(t, vmArch)
	s := vm.Suite{
		Package: "integration/guest", Dir: filepath.Dir(ring3),
		Config:  vm.Config{Arch: vmArch, Devices: nics, Image: image(t), Host: host},
		Timeout: 5 * time.Minute, // TestRootPktgen takes one on a quiet machine
		Want: func(name string) bool {
			for _, elsewhere := range []string{noIOMMU, "TestRoot" + vfioUserTests, "TestRoot" + tpmTests, "TestRoot" + portTests, "TestRoot" + fabricTests, "TestRoot" + containTests} {
				if strings.HasPrefix(name, elsewhere) {
					return false
				}
			}
			return true
		},
	}
	s.Run(t)
}

// TestVMNoIOMMU runs those that want a VM without one.
func TestVMNoIOMMU(t *testing.T) {
	t.Parallel()
	vm.Need(t, vmArch)
	s := vm.Suite{
		Package: "integration/guest", Dir: filepath.Dir(ring3),
		Config: vm.Config{Arch: vmArch, Devices: nics, Image: image(t), NoIOMMU: true},
		Want:   func(name string) bool { return strings.HasPrefix(name, noIOMMU) },
	}
	s.Run(t)
}
