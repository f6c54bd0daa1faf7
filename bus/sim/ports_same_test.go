package sim_test

import (
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/qemu/qemutest"
	"github.com/ring3dev/ring3/bus/sim"
)

// portTree is the same on both: a port of each kind with nothing below it that changes it, and occupied slots.
var portTree = []struct{ name, model, under string }{
	{"rp", "pcie-root-port", ""}, {"ioh", "ioh3420", ""}, {"rp2", "pcie-root-port", ""}, {"up", "x3130-upstream", "rp2"},
	{"dn", "xio3130-downstream", "up"}, {"dn2", "xio3130-downstream", "up"}, {"edu0", "edu", "dn2"}, {"rp3", "pcie-root-port", ""}, {"edu1", "edu", "rp3"},
}

// word is one of config space: what it reads as once the bus was enumerated, and which of its bits are kept.
type word struct{ value, rw uint32 }

// words reads all of a port's config space. Bits that would act are left out: Secondary Bus Reset; walk says whether bits are written.
func words(c bus.Config, walk bool) (w [1024]word) {
	for i := range w {
		w[i].value = c.Read32(bus.Off(4 * i))
	}
	if !walk {
		return w
	}
	for i := range w {
		off, ones := bus.Off(4*i), ^uint32(0)
		old := c.Read32(off)
		if off == pci.CfgBridgeCtl&^3 {
			ones &^= uint32(pci.BridgeReset) << 16
		}
		if off == pci.CfgCommand {
			ones, old = 0xffff, old&0xffff // the errors above stay
		}
		c.Write32(off, ones)
		a := c.Read32(off)
		c.Write32(off, 0)
		b := c.Read32(off)
		c.Write32(off, old)
		w[i].rw = a &^ b
	}
	return w
}

// differ are registers of 32 bits in which sim's ports are meant to differ: by offset from the beginning of a capability (cap and ext 0: of config space),
// and in which bits of value and of what can be written.
var differ = []struct {
	cap       uint8
	ext       uint16
	off       bus.Off
	value, rw uint32
	why       string
}{
	{0, 0, pci.CfgBAR0, 0xffffffff, 0, "QEMU's machine has devices of its own that take addresses"},
	{pci.CapPCIe, 0, pci.ExpLnkCap, 0x001003ff, 0, "a downstream port of QEMU's has a link without speed or width, that tells of nothing"},
	{pci.CapPCIe, 0, pci.ExpLnkCtl, 0x20000000, 0x000000d3, "QEMU's links cannot be disabled, and are not active when the card was there from the start (its slots are ACPI's then)"},
	{pci.CapPCIe, 0, pci.ExpSltCtl, 0x00400000, 0x00001002, "nor is it present; nor can power faults and the link's state interrupt"},
	{0, pci.ExtCapAER, pci.AERUncMask, 0, 0x03fff030, "errors cannot be masked in QEMU"},
}

// meant says which bits at an offset may differ.
func meant(c bus.Config, off bus.Off) (value, rw uint32) {
	for _, x := range differ {
		var at bus.Off
		switch {
		case x.cap != 0:
			at, _ = pci.FindCap(c, x.cap)
		case x.ext != 0:
			at, _ = pci.FindExtCap(c, x.ext)
		}
		if off == at+x.off {
			return x.value, x.rw
		}
	}
	return 0, 0
}

// unused says whether a word has bytes of no capability, all of which QEMU lets be written: sim, as hardware, none.
func unused(want, got word) bool {
	return want.rw == 0xffffffff && want.value == 0 && got.value == 0 && (got.rw == 0 || got.rw == 0xffff)
}

func TestPortsSameAsQEMU(t *testing.T) {
	bustest.NeedQEMU(t)
	var q qemu.Config
	var s sim.Config
	s.Clock = sim.Stepped
	for _, d := range portTree {
		q.Devices = append(q.Devices, qemu.DeviceSpec{Name: d.name, Model: d.model, Bus: d.under})
		s.Devices = append(s.Devices, sim.DeviceSpec{Name: d.name, Model: d.model, Bus: d.under})
	}
	real := qemutest.Machine(t, q)
	m, err := sim.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, d := range portTree {
		if d.model == "edu" {
			continue
		}
		a, err := real.Function(d.name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := m.Function(d.name)
		if err != nil {
			t.Fatal(err)
		}
		if a.Addr != b.Addr || a.Secondary != b.Secondary || a.Subordinate != b.Subordinate {
			t.Errorf("%s: sim has it at %s, buses %d to %d; QEMU at %s, %d to %d", d.name, b.Addr, b.Secondary, b.Subordinate, a.Addr, a.Secondary, a.Subordinate)
		}
		walk := d.name == "rp" || d.name == "ioh" || d.name == "dn"
		want, got := words(a.Config, walk), words(b.Config, walk)
		for i := range want {
			value, rw := meant(b.Config, bus.Off(4*i))
			if (want[i].value^got[i].value)&^value == 0 && (want[i].rw^got[i].rw)&^rw == 0 || unused(want[i], got[i]) {
				continue
			}
			t.Errorf("%s (%s) at %#03x: sim %08x, of which %08x can be written, QEMU %08x, %08x", d.name, d.model, 4*i, got[i].value, got[i].rw, want[i].value, want[i].rw)
		}
	}
}

// slotMachine is what both machines can do with a slot.
type slotMachine interface {
	Function(name string) (*pci.Function, error)
	Eject(name string) error
	Rescan(port *pci.Function) ([]*pci.Function, error)
	Forget(f *pci.Function)
	Topology() *pci.Topology
}

// The same is done to an empty slot on both, and its registers are compared after each step: plug, power on, find, ask for the card, refuse, power off.
func TestSlotSameAsQEMU(t *testing.T) {
	bustest.NeedQEMU(t)
	for _, model := range []string{"pcie-root-port", "ioh3420", "xio3130-downstream"} {
		t.Run(model, func(t *testing.T) { slotSame(t, model) })
	}
}

func slotSame(t *testing.T, model string) {
	type spec struct{ name, model, under string }
	specs := []spec{{"p", model, ""}}
	if model == "xio3130-downstream" {
		specs = []spec{{"r", "pcie-root-port", ""}, {"u", "x3130-upstream", "r"}, {"p", model, "u"}}
	}
	left := make(chan string, 1)
	q, s := qemu.Config{Ejected: func(n string) { left <- n }}, sim.Config{Clock: sim.Stepped, Ejected: func(n string) { left <- n }}
	for _, d := range specs {
		q.Devices = append(q.Devices, qemu.DeviceSpec{Name: d.name, Model: d.model, Bus: d.under})
		s.Devices = append(s.Devices, sim.DeviceSpec{Name: d.name, Model: d.model, Bus: d.under})
	}
	real := qemutest.Machine(t, q)
	m, err := sim.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	want := slotSteps(t, real, func() error { return real.Plug(t.Context(), qemu.DeviceSpec{Name: "c", Model: "e1000e", Bus: "p"}) }, left)
	got := slotSteps(t, m, func() error { return m.Plug(t.Context(), sim.DeviceSpec{Name: "c", Model: "e1000e", Bus: "p"}) }, left)
	t.Logf("QEMU: %+v", want)
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			t.Errorf("step %d: sim %+v, QEMU %+v", i, got[i:], want[i])
			break
		}
	}
}

// step is what a slot says after something was done. That the link's state changed, and is active, is left out: QEMU tells nothing of the one, and of
// the other not by all its ports.
type step struct {
	what     string
	ctl, sta uint16
	behind   int
	refused  bool
}

func slotSteps(t *testing.T, m slotMachine, plug func() error, left <-chan string) (out []step) {
	f, err := m.Function("p")
	if err != nil {
		t.Fatal(err)
	}
	e, _ := pci.FindExpress(f.Config)
	ctl, sta := e.At+pci.ExpSltCtl, e.At+pci.ExpSltSta
	note := func(what string, err error) {
		n := 0
		for _, x := range m.Topology().Functions {
			if x.Parent == f {
				n++
			}
		}
		v := f.Config.Read16(sta)
		out = append(out, step{what, f.Config.Read16(ctl), v &^ pci.SltStaLink, n, err != nil})
		f.Config.Write16(sta, v&pci.SltStaEvents)
		out = append(out, step{what + ", cleared", f.Config.Read16(ctl), f.Config.Read16(sta), n, false})
	}
	set := func(clear, set uint16) { f.Config.Write16(ctl, f.Config.Read16(ctl)&^clear|set) }
	note("at first", nil)
	set(0, pci.SltCtlHP|pci.SltCtlButton|pci.SltCtlCmd|pci.SltCtlPresence)
	note("enabled", nil)
	if err := plug(); err != nil {
		t.Fatal(err)
	}
	note("plugged", nil)
	set(pci.SltCtlPowerOff|pci.SltCtlPowerLED, pci.LEDBlink<<8)
	note("powered on", nil)
	set(pci.SltCtlPowerLED, pci.LEDOn<<8)
	fns, err := m.Rescan(f)
	if err != nil || len(fns) != 1 {
		t.Fatalf("Rescan = %v, %v", fns, err)
	}
	note("found", nil)
	set(pci.SltCtlPowerLED, pci.LEDBlink<<8)
	note("refused", m.Eject("c"))
	set(pci.SltCtlPowerLED, pci.LEDOn<<8)
	note("asked for", m.Eject("c"))
	m.Forget(fns[0])
	set(pci.SltCtlPowerLED, pci.LEDBlink<<8|pci.SltCtlPowerOff)
	note("powered off", nil)
	set(0, pci.SltCtlPowerLED)
	select {
	case <-left:
	case <-t.Context().Done():
	}
	note("gone", nil)
	return out
}
