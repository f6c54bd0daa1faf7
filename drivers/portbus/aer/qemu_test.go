package aer_test

import (
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/aerinject"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/qemu/qemutest"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/aer"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
)

// QEMU's ports, and what kernel 6.1 said of the same errors there, word for word but for addresses.
func TestQEMU(t *testing.T) {
	bustest.NoLeaks(t)
	b, err := portbus.New(&aer.Driver)
	if err != nil {
		t.Fatal(err)
	}
	reset := vote{bus.NeedReset, bus.NoVote, bus.Recovered}
	c := &calls{votes: votes{"eth0": ok, "eth1": reset, "eth2": reset}}
	m := qemutest.Machine(t, qemu.Config{Devices: []qemu.DeviceSpec{
		{Name: "rp0", Model: "pcie-root-port"}, {Name: "eth0", Model: "e1000e", Bus: "rp0"},
		{Name: "rp1", Model: "ioh3420"}, {Name: "sw0", Model: "x3130-upstream", Bus: "rp1"}, {Name: "dn0", Model: "xio3130-downstream", Bus: "sw0"},
		{Name: "eth1", Model: "e1000e", Bus: "dn0"},
		{Name: "rp2", Model: "pcie-root-port"}, {Name: "vn0", Model: "virtio-net-pci", Bus: "rp2", Props: []string{"aer=on", "disable-legacy=on"}},
	}})
	r := porttest.Over(t, m, porttest.Options{Bus: b, Drivers: []*pci.Driver{c.driver()}, Profile: "6.1", Wrap: func(_ string, d bus.Device) bus.Device {
		pci.EnableErrors(d.Config())
		return d
	}})
	for _, tt := range []struct {
		at  string
		e   pci.AERError
		log []string // without "ADDRESS: " where the address is the port's own; "^" is the root port
	}{
		{"rp0", pci.AERError{Uncorrectable: uncTO}, []string{
			"pcieport rp0: AER: Uncorrected (Non-Fatal) error message received from rp0",
			"pcieport rp0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer, (Requester ID)",
			"pcieport rp0:   device [1b36:000c] error status/mask=00004000/00000000",
			"pcieport rp0:    [14] CmpltTO                (First)",
			"pcieport rp0: AER: device recovery successful",
		}},
		{"rp0", pci.AERError{Uncorrectable: uncDLP}, []string{
			"pcieport rp0: AER: Uncorrected (Fatal) error message received from rp0",
			"pcieport rp0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Data Link Layer, (Receiver ID)",
			"pcieport rp0:   device [1b36:000c] error status/mask=00000010/00000000",
			"pcieport rp0:    [ 4] DLP                    (First)",
			"pcieport rp0: AER: Root Port link has been reset (0)",
			"pcieport rp0: AER: device recovery successful",
		}},
		{"dn0", pci.AERError{Uncorrectable: uncMalf, Header: [4]uint32{0x11, 0x22, 0x33, 0x44}}, []string{
			"pcieport rp1: AER: Uncorrected (Fatal) error message received from dn0",
			"pcieport dn0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer, (Receiver ID)",
			"pcieport dn0:   device [104c:8233] error status/mask=00040000/00000000",
			"pcieport dn0:    [18] MalfTLP                (First)",
			"pcieport dn0: AER:   TLP Header: 00000011 00000022 00000033 00000044",
			"pcieport dn0: AER: Downstream Port link has been reset (0)",
			"pcieport dn0: AER: device recovery successful",
		}},
		{"vn0", pci.AERError{Uncorrectable: uncUnsup, Header: [4]uint32{1, 2, 3, 4}}, []string{
			"pcieport rp2: AER: Uncorrected (Non-Fatal) error message received from vn0",
			"pci vn0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer, (Requester ID)",
			"pci vn0:   device [1af4:1041] error status/mask=00100000/00000000",
			"pci vn0:    [20] UnsupReq               (First)",
			"pci vn0: AER:   TLP Header: 00000001 00000002 00000003 00000004",
			"pci vn0: AER: can't recover (no error_detected callback)",
			"pcieport rp2: AER: device recovery failed",
		}},
		{"vn0", pci.AERError{Uncorrectable: uncMalf, Header: [4]uint32{1, 2, 3, 4}}, []string{
			"pcieport rp2: AER: Uncorrected (Fatal) error message received from vn0",
			"pci vn0: AER: PCIe Bus Error: severity=Uncorrected (Fatal), type=Inaccessible, (Unregistered Agent ID)",
			"pci vn0: AER: can't recover (no error_detected callback)",
			"pcieport rp2: AER: Root Port link has been reset (0)",
			"pcieport rp2: AER: device recovery failed",
		}},
	} {
		r.ForgetRecords()
		if err := m.InjectError(tt.at, tt.e); err != nil {
			t.Fatal(err)
		}
		r.AwaitLine(t, "AER: device recovery")
		if g, w := strings.Join(shortened(t, m, r), "\n\t"), strings.Join(tt.log, "\n\t"); g != w {
			t.Errorf("an error of %s says\n\t%s\nwant\n\t%s", tt.at, g, w)
		}
	}
	for n, want := range map[string][3]uint64{"rp0": {1, 1, 0}, "rp1": {0, 1, 0}, "rp2": {1, 1, 0}} {
		f, _ := m.Function(n)
		if x := f.AER; x.Root(pci.AERNonFatal) != want[0] || x.Root(pci.AERFatal) != want[1] || x.Root(pci.AERCorrectable) != want[2] {
			t.Errorf("%s received %d, %d, %d, want %v", n, x.Root(pci.AERNonFatal), x.Root(pci.AERFatal), x.Root(pci.AERCorrectable), want)
		}
	}
	if got := strings.Join(c.take(), ", "); got != "eth0 detected false, eth0 mmio, eth0 resume, eth0 detected true, eth0 mmio, eth0 resume, eth1 detected true, eth1 reset, eth1 resume" {
		t.Errorf("calls = %s", got)
	}
}

// shortened are the messages, with names instead of addresses.
func shortened(t *testing.T, m *qemu.Machine, r *porttest.Rig) (lines []string) {
	t.Helper()
	var names []string
	for _, f := range m.Topology().Functions {
		if n, _, ok := m.Named(f); ok {
			names = append(names, f.Addr.String(), n)
		}
	}
	short := strings.NewReplacer(names...)
	for _, l := range r.Lines() {
		lines = append(lines, short.Replace(l.Text))
	}
	return lines
}

// Errors that are injected as the kernel's aer_inject does, and what kernel 6.1 said of them, one after the other, on the same devices.
func TestInjected(t *testing.T) {
	bustest.NoLeaks(t)
	b, err := portbus.New(&aer.Driver)
	if err != nil {
		t.Fatal(err)
	}
	c := &calls{votes: votes{"eth0": {bus.NeedReset, bus.NoVote, bus.Recovered}, "eth1": {bus.NeedReset, bus.NoVote, bus.Recovered}}}
	m := qemutest.Machine(t, qemu.Config{Devices: []qemu.DeviceSpec{
		{Name: "rp0", Model: "pcie-root-port"}, {Name: "eth0", Model: "e1000e", Bus: "rp0"},
		{Name: "rp1", Model: "ioh3420"}, {Name: "sw0", Model: "x3130-upstream", Bus: "rp1"}, {Name: "dn0", Model: "xio3130-downstream", Bus: "sw0"},
		{Name: "eth1", Model: "e1000e", Bus: "dn0"},
	}})
	in := aerinject.NewInjector(aerinject.Options{})
	r := porttest.Over(t, m, porttest.Options{Bus: b, Drivers: []*pci.Driver{c.driver()}, Profile: "6.1", Wrap: func(name string, d bus.Device) bus.Device {
		pci.EnableErrors(d.Config())
		w := aerinject.Wrap(d)
		f, err := m.Function(name)
		if err != nil {
			t.Fatal(err)
		}
		root := f
		for root.Parent != nil {
			root = root.Parent
		}
		in.Add(f.Addr, w, root.Addr)
		return w
	}})
	for _, tt := range []struct {
		at   string
		e    pci.AERError
		log  []string
		last string
	}{
		{"eth0", pci.AERError{Correctable: corBadTLP}, []string{
			"pcieport rp0: AER: Corrected error message received from eth0",
			"fake eth0: PCIe Bus Error: severity=Corrected, type=Data Link Layer, (Receiver ID)",
			"fake eth0:   device [8086:10d3] error status/mask=00000040/0000e000",
			"fake eth0:    [ 6] BadTLP                ",
		}, "BadTLP"},
		{"rp0", pci.AERError{Correctable: 0x1001}, []string{
			"pcieport rp0: AER: Corrected error message received from rp0",
			"pcieport rp0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Transmitter ID)",
			"pcieport rp0:   device [1b36:000c] error status/mask=00001001/0000e000",
			"pcieport rp0:    [ 0] RxErr                  (First)",
			"pcieport rp0:    [12] Timeout               ",
		}, "Timeout"},
		{"rp0", pci.AERError{Correctable: 8}, []string{
			"pcieport rp0: AER: Corrected error message received from rp0",
			"pcieport rp0: PCIe Bus Error: severity=Corrected, type=Transaction Layer, (Receiver ID)",
			"pcieport rp0:   device [1b36:000c] error status/mask=00000008/0000e000",
			"pcieport rp0:    [ 3] Unknown Error Bit     ",
		}, "Unknown"},
		{"eth0", pci.AERError{Uncorrectable: 0x1000, Header: [4]uint32{0x11, 0x22, 0x33, 0x44}}, []string{
			"pcieport rp0: AER: Uncorrected (Non-Fatal) error message received from eth0",
			"fake eth0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer, (Receiver ID)",
			"fake eth0:   device [8086:10d3] error status/mask=00001000/00000000",
			"fake eth0:    [12] TLP                   ",
			"fake eth0: AER:   TLP Header: 00000011 00000022 00000033 00000044",
			"pcieport rp0: AER: device recovery successful",
		}, "recovery"},
		{"eth1", pci.AERError{Correctable: corBadTLP, Uncorrectable: uncMalf, Header: [4]uint32{1, 2, 3, 4}}, []string{
			"pcieport rp1: AER: Corrected error message received from eth1",
			"fake eth1: PCIe Bus Error: severity=Corrected, type=Data Link Layer, (Receiver ID)",
			"fake eth1:   device [8086:10d3] error status/mask=00000040/0000e000",
			"fake eth1:    [ 6] BadTLP                ",
			"pcieport rp1: AER: Uncorrected (Fatal) error message received from eth1",
			"fake eth1: AER: PCIe Bus Error: severity=Uncorrected (Fatal), type=Inaccessible, (Unregistered Agent ID)",
			"pcieport dn0: AER: Downstream Port link has been reset (0)",
			"pcieport dn0: AER: device recovery successful",
		}, "recovery"},
		{"rp0", pci.AERError{Uncorrectable: uncDLP | uncTO}, []string{
			"pcieport rp0: AER: Uncorrected (Fatal) error message received from rp0",
			"pcieport rp0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Data Link Layer, (Requester ID)",
			"pcieport rp0:   device [1b36:000c] error status/mask=00004010/00000000",
			"pcieport rp0:    [ 4] DLP                   ",
			"pcieport rp0:    [14] CmpltTO               ",
			"pcieport rp0: AER: Root Port link has been reset (0)",
			"pcieport rp0: AER: device recovery successful",
		}, "recovery"},
		{"rp0", pci.AERError{Uncorrectable: uncTO}, []string{ // the fatal bit has stayed
			"pcieport rp0: AER: Uncorrected (Non-Fatal) error message received from rp0",
			"pcieport rp0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Data Link Layer, (Requester ID)",
			"pcieport rp0:   device [1b36:000c] error status/mask=00004010/00000000",
			"pcieport rp0:    [ 4] DLP                   ",
			"pcieport rp0:    [14] CmpltTO               ",
			"pcieport rp0: AER: device recovery successful",
		}, "recovery"},
	} {
		r.ForgetRecords()
		f, err := m.Function(tt.at)
		if err != nil {
			t.Fatal(err)
		}
		a := f.Addr
		if err := in.Inject(aerinject.Record{Domain: a.Domain, Bus: a.Bus, Dev: a.Dev, Fn: a.Fn, Error: tt.e}); err != nil {
			t.Fatal(err)
		}
		r.AwaitLine(t, tt.last)
		r.Await(t, "the end", func() bool { return len(r.Lines()) >= len(tt.log) })
		if g, w := strings.Join(shortened(t, m, r), "\n\t"), strings.Join(tt.log, "\n\t"); g != w {
			t.Errorf("an error of %s says\n\t%s\nwant\n\t%s", tt.at, g, w)
		}
	}
}
