package host

import (
	"strings"
	"testing"

	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/netdev"
)

func TestNodes(t *testing.T) {
	sys := &node.Dir{}
	if err := exportNodes(sys, Facts{}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"online": "0\n", "possible": "0\n", "node0/cpulist": "", "node0/cpumap": ""}
	for name, w := range want {
		n, err := sys.Walk(nodePath[1:] + "/" + name)
		f, ok := n.(*node.File)
		if err != nil || !ok {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := f.ReadAll(); err != nil || w != "" && string(got) != w || len(got) < 2 {
			t.Errorf("%s = %q, %v, want %q", name, got, err, w)
		}
	}
	sys = &node.Dir{}
	if err := exportNodes(sys, Facts{Nodes: "0-1"}); err != nil || len(sys.Names()) != 0 {
		t.Errorf("beside the machine's own nodes there is %v, %v, want nothing", sys.Names(), err)
	}
}

func TestMachineColumns(t *testing.T) {
	s := netdev.Stats{RxPackets: 1, TxBytes: 2}
	addMachine(&s, strings.Fields("3393 33 1 2 0 0 0 0 4444 44 3 4 0 0 0 0"))
	want := netdev.Stats{RxPackets: 34, RxBytes: 3393, RxErrors: 1, RxDropped: 2, TxBytes: 4446, TxPackets: 44, TxErrors: 3, TxDropped: 4}
	if s != want {
		t.Errorf("addMachine makes %+v, want %+v", s, want)
	}
	addMachine(&s, nil) // a line that is no line
	if s != want {
		t.Errorf("addMachine of nothing makes %+v, want %+v", s, want)
	}
}

// TestNamedLo: a device that the user calls lo takes its place.
func TestNamedLo(t *testing.T) {
	for _, c := range []struct {
		device string
		there  bool
	}{{"eth0=sim:null", true}, {"lo=sim:null", false}} {
		p, err := ParsePlan([]string{c.device}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if lo, err := newLoopback(t.Context(), &p, nil); err != nil || (lo != nil) != c.there {
			t.Errorf("with %s there is our lo: %v, %v, want %v", c.device, lo != nil, err, c.there)
		}
	}
}

// TestHiddenInterrupts: of a kernel interface with one of our names no line is shown.
func TestHiddenInterrupts(t *testing.T) {
	nic := &boundDevice{spec: DeviceSpec{Name: "eth0"}, net: netdev.NewLoopback("eth0")}
	disk := &boundDevice{spec: DeviceSpec{Name: "nvme0"}}
	table := irqTable{rows: []irqRow{{owner: nic}, {owner: disk}}}
	for line, want := range map[string]bool{
		" 26:   7   PCI-MSIX-0000:00:04.0   0-edge      eth0-rx-0\n":           true,
		" 26:   7   PCI-MSIX-0000:00:04.0   0-edge      eth0\n":                true,
		" 16:   7   IO-APIC  16-fasteoi   ehci_hcd:usb1, eth0, snd\n":          true,
		" 26:   7   PCI-MSIX-0000:00:04.0   0-edge      eth01-rx-0\n":          false,
		" 26:   7   PCI-MSIX-0000:00:04.0   0-edge      nvme0\n":               false,
		"NMI:   0          0   Non-maskable interrupts\n":                      false,
		"           CPU0       CPU1       \n":                                  false,
		" 27:   7   PCI-MSIX-0000:00:05.0   0-edge      virtio-eth0-input.0\n": false,
	} {
		if got := table.hides(line); got != want {
			t.Errorf("hides(%q) = %v, want %v", line, got, want)
		}
	}
}
