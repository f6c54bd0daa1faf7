//go:build vm

package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/integration/portseen"
	"github.com/ring3dev/ring3/integration/vm/wire"
)

// TestRootPorts plays the scenario of package portseen to the kernel's pcieport, pciehp and aer. integration/ports_vm_test.go keeps what is
// seen below integration/testdata/ports.
func TestRootPorts(t *testing.T) {
	Modprobe(t, "aer_inject")
	Modprobe(t, "e1000e")
	// The driver of the channel to the host takes every device of its kind; this one shall have none.
	if err := os.WriteFile("/sys/bus/pci/drivers/virtio-pci/unbind", []byte(Address(t, "vn0")), 0); err != nil {
		t.Fatal(err)
	}
	log, err := portseen.KernelLog()
	if err != nil {
		t.Fatal(err)
	}
	events, err := portseen.KernelEvents()
	if err != nil {
		t.Fatal(err)
	}
	r := portseen.Recorder{Roots: portseen.Roots{Sys: "/sys", Dev: "/dev"}, Player: monitor{}, Log: log, Events: events}
	text, err := r.Record(t.Context(), portseen.Scenario)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	var difference string
	if err := try(wire.OpHost+"ports-golden", text, &difference); err != nil {
		t.Error(err)
	}
	if difference != "" {
		t.Log(difference)
	}
}

// monitor is the hardware: QEMU.
type monitor struct{}

func (monitor) Address(name string) (string, error) {
	var addr string
	err := try(wire.OpAddress, name, &addr)
	return addr, err
}

func (monitor) Plug(name, model, port string) error {
	return qmp("device_add", map[string]any{"driver": model, "id": name, "bus": port, "addr": "0", "romfile": ""}, nil)
}

func (monitor) Unplug(name string) error { return qmp("device_del", map[string]any{"id": name}, nil) }

func (monitor) Unplugged(name string) (bool, error) {
	var gone bool
	err := try(wire.OpGone, name, &gone)
	return gone, err
}

func (monitor) Inject(name, bit string, header []uint32) error {
	line := fmt.Sprintf("pcie_aer_inject_error %s %s", name, bit)
	for _, h := range header {
		line += fmt.Sprintf(" %#x", h)
	}
	var said string
	if err := qmp("human-monitor-command", map[string]any{"command-line": line}, &said); err != nil {
		return err
	}
	if !strings.HasPrefix(said, "OK ") {
		return fmt.Errorf("%s: QEMU says %q, want OK", line, said)
	}
	return nil
}

// qmp runs a command of QEMU's. result may be nil.
func qmp(cmd string, args map[string]any, result any) error {
	b, err := json.Marshal(args)
	if err != nil {
		return err
	}
	return try(wire.OpQMP, wire.QMP{Execute: cmd, Arguments: b}, result)
}
