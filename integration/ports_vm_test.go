package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/integration/portseen"
	"github.com/ring3dev/ring3/integration/vm"
)

// portsFile is what the kernel's pcieport, pciehp and aer did; beside it is what it was made with.
const portsFile = "testdata/ports/kernel-6.1.txt"

// portTests is how the names of tests begin, after Root, that want a VM with PCI Express ports.
const portTests = "Ports"

// portsTolerance is by how much times may differ between two boots: the machine may be busy, and there may be no KVM.
var portsTolerance = portseen.Tolerance{Part: 0.3, Late: 3 * time.Second}

// portDevices are QEMU's arguments for portseen's topology.
func portDevices() []string {
	// Hot-plug is the ports' own then, not the firmware's.
	args := []string{"-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"}
	for _, d := range portseen.Topology {
		if d.Later {
			continue
		}
		dev := fmt.Sprintf("%s,id=%s,addr=%x", d.Model, d.Name, d.Number)
		if d.Under != "" {
			dev += ",bus=" + d.Under
		}
		switch {
		case d.Slot != 0:
			dev += fmt.Sprintf(",chassis=%d,slot=%d", d.Slot, d.Slot)
		case d.Under != "" && !strings.HasPrefix(d.Model, "x3130"):
			dev += ",romfile="
		}
		args = append(args, "-device", dev)
	}
	return args
}

// keepPorts is told by the test in the VM what was seen. It compares that with what is kept; with RING3_GOLDEN (make golden) it keeps it.
func keepPorts(args json.RawMessage) (any, error) {
	var text string
	if err := json.Unmarshal(args, &text); err != nil {
		return nil, err
	}
	with := filepath.Join(filepath.Dir(portsFile), "MADE-WITH")
	if os.Getenv("RING3_GOLDEN") != "" {
		if err := os.MkdirAll(filepath.Dir(portsFile), 0o755); err != nil {
			return nil, err
		}
		return nil, errors.Join(os.WriteFile(portsFile, []byte(text), 0o644), os.WriteFile(with, []byte(portsVersion()), 0o644))
	}
	kept, err := os.ReadFile(portsFile)
	if err != nil {
		return nil, err
	}
	d := portseen.Compare(string(kept), text, portsTolerance)
	if len(d) == 0 {
		return nil, nil
	}
	had, err := os.ReadFile(with)
	if v := portsVersion(); string(had) != v {
		return fmt.Sprintf("what is kept was made with %s, which may be the reason: this is %s%s", had, v, strings.Join(d, "\n")), err
	}
	return nil, fmt.Errorf("the kernel does otherwise than what is kept; make golden makes it again\n%s", strings.Join(d, "\n"))
}

func portsVersion() string {
	out, _ := exec.Command("qemu-system-x86_64", "--version").Output()
	return fmt.Sprintf("qemu-system-x86_64 %s\n", regexp.MustCompile(`[0-9]+\.[0-9]+`).Find(out))
}

// TestVMPorts plays the scenario of package portseen to ring3 in a VM, which has two ports by UIO, as far as it concerns those; and with RING3_LONG to the
// kernel, whose recording is kept (make golden).
func TestVMPorts(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("the scenario takes minutes, twice")
	}
	vm.Need(t, vmArch)
	if vmArch == "arm64" {
		t.Skip("the scenario is of a q35: ports of the root complex have interrupts and slots of its own")
	}
	s := vm.Suite{
		Package: "integration/guest", Dir: filepath.Dir(ring3),
		Config: vm.Config{
			Arch: vmArch, Devices: portDevices(), Image: image(t), NoIOMMU: true, Modules: []string{"aer_inject"},
			Host: map[string]func(json.RawMessage) (any, error){"ports-golden": keepPorts, "ports-uio": comparePorts},
		},
		Timeout: 5 * time.Minute,
		Want: func(name string) bool {
			if name == "TestRoot"+portTests {
				return os.Getenv("RING3_LONG")+os.Getenv("RING3_GOLDEN") != ""
			}
			return strings.HasPrefix(name, "TestRoot"+portTests)
		},
	}
	s.Run(t)
}
