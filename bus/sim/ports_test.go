package sim

import (
	"errors"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
)

// tree is a root port with a switch, of which one port has a card, one is empty, and another root port that is empty.
func tree(t *testing.T, props ...string) *Machine {
	t.Helper()
	return started(t, Config{Clock: Stepped, Devices: []DeviceSpec{
		{Name: "rp0", Model: "root-port", Props: props},
		{Name: "up0", Model: "upstream", Bus: "rp0"},
		{Name: "dn0", Model: "downstream", Bus: "up0", Props: props},
		{Name: "dn1", Model: "xio3130-downstream", Bus: "up0", Props: props},
		{Name: "eth0", Model: "e1000e", Bus: "dn0", Props: []string{"aer=on", "pme=on"}},
		{Name: "rp1", Model: "pcie-root-port", Props: props},
		{Name: "edu0", Model: "edu"},
	}})
}

func fnOf(t *testing.T, m *Machine, name string) *pci.Function {
	t.Helper()
	f, err := m.Function(name)
	if err != nil || f == nil {
		t.Fatalf("Function(%s) = %v, %v", name, f, err)
	}
	return f
}

func expOf(t *testing.T, f *pci.Function) pci.Express {
	t.Helper()
	e, ok := pci.FindExpress(f.Config)
	if !ok {
		t.Fatalf("%s has no PCI Express capability", f.Addr)
	}
	return e
}

func TestPortsEnumerate(t *testing.T) {
	bustest.NoLeaks(t)
	m := tree(t)
	for _, c := range []struct{ name, parent, addr string }{
		{"rp0", "", "1000:00:03.0"}, {"up0", "rp0", "1000:01:00.0"}, {"dn0", "up0", "1000:02:00.0"}, {"dn1", "up0", "1000:02:01.0"},
		{"eth0", "dn0", "1000:03:00.0"}, {"rp1", "", "1000:00:04.0"}, {"edu0", "", "1000:00:05.0"},
	} {
		f := fnOf(t, m, c.name)
		up := ""
		if f.Parent != nil {
			up, _, _ = m.Named(f.Parent)
		}
		if f.Addr.String() != c.addr || up != c.parent || f.Err != nil {
			t.Errorf("%s stands at %s under %q (%v), want %s, %q", c.name, f.Addr, up, f.Err, c.addr, c.parent)
		}
	}
	d, err := m.Device("eth0")
	if err != nil {
		t.Fatal(err)
	}
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	const status = 8
	if v := r.Read32(status); v == ^uint32(0) {
		t.Fatalf("STATUS of a card behind a switch = %#x", v)
	}
	// Each bridge above can keep accesses from it.
	for _, name := range []string{"rp0", "up0", "dn0"} {
		c := fnOf(t, m, name).Config
		old := pci.SetCommand(c, 0, pci.CmdMem)
		if v := r.Read32(status); v != ^uint32(0) {
			t.Errorf("%s without Memory Space: STATUS = %#x, want all-ones", name, v)
		}
		pci.SetCommand(c, old, 0)
		buses := c.Read32(brgBuses)
		c.Write32(brgBuses, 0)
		if v := d.Config().Read32(0); v != ^uint32(0) {
			t.Errorf("%s without bus numbers: ID = %#x, want all-ones", name, v)
		}
		c.Write32(brgBuses, buses)
		mem := c.Read32(brgMem)
		c.Write32(brgMem, 0xfff0)
		if v := r.Read32(status); v != ^uint32(0) {
			t.Errorf("%s with a closed window: STATUS = %#x, want all-ones", name, v)
		}
		c.Write32(brgMem, mem)
		if v := r.Read32(status); v == ^uint32(0) {
			t.Errorf("%s as before: STATUS = %#x", name, v)
		}
	}
}

// hotplug does with a slot what a driver does.
func powerOn(f *pci.Function, e pci.Express) {
	sc := f.Config.Read16(e.At + pci.ExpSltCtl)
	f.Config.Write16(e.At+pci.ExpSltCtl, sc&^(pci.SltCtlPowerOff|pci.SltCtlPowerLED)|pci.LEDOn<<8)
}

func powerOff(f *pci.Function, e pci.Express) {
	sc := f.Config.Read16(e.At + pci.ExpSltCtl)
	f.Config.Write16(e.At+pci.ExpSltCtl, sc|pci.SltCtlPowerOff|pci.SltCtlPowerLED)
}

func clearEvents(f *pci.Function, e pci.Express) uint16 {
	v := f.Config.Read16(e.At + pci.ExpSltSta)
	f.Config.Write16(e.At+pci.ExpSltSta, v)
	return v
}

func TestPlugCycles(t *testing.T) {
	bustest.NoLeaks(t)
	var left []string
	m := started(t, Config{Clock: Stepped, Ejected: func(n string) { left = append(left, n) }, Devices: []DeviceSpec{{Name: "rp0", Model: "root-port"}}})
	rp := fnOf(t, m, "rp0")
	e := expOf(t, rp)
	for i := range 1000 {
		if err := m.Plug(t.Context(), DeviceSpec{Name: "eth0", Model: "e1000e", Bus: "rp0"}); err != nil {
			t.Fatal(err)
		}
		if v := clearEvents(rp, e); v != pci.SltStaButton|pci.SltStaPresence|pci.SltStaPresent && i == 0 {
			t.Fatalf("Slot Status after plugging = %#x", v)
		}
		if fns, err := m.Rescan(rp); len(fns) != 0 || err != nil {
			t.Fatalf("Rescan of a slot without power = %v, %v", fns, err)
		}
		powerOn(rp, e)
		if v := clearEvents(rp, e); v != pci.SltStaCmd|pci.SltStaLink|pci.SltStaPresent {
			t.Fatalf("Slot Status after power = %#x", v)
		}
		fns, err := m.Rescan(nil)
		if err != nil || len(fns) != 1 {
			t.Fatalf("Rescan = %v, %v", fns, err)
		}
		name, d, ok := m.Named(fns[0])
		if !ok || name != "eth0" || d.Err() != nil {
			t.Fatalf("Named = %s, %v, %v", name, d, ok)
		}
		r, err := d.Region(0)
		if err != nil || r.Read32(8) == ^uint32(0) {
			t.Fatalf("Region = %v", err)
		}
		if err := m.Eject("eth0"); err != nil {
			t.Fatal(err)
		}
		d.Close()
		m.Forget(fns[0])
		powerOff(rp, e)
		clearEvents(rp, e)
		if len(left) != i+1 || len(m.Topology().Functions) != 1 || !errors.Is(d.Err(), bus.ErrClosed) {
			t.Fatalf("cycle %d: %d left, %d functions, %v", i, len(left), len(m.Topology().Functions), d.Err())
		}
	}
	if len(m.dead) != 0 || len(m.devices) != 1 {
		t.Errorf("%d dead devices, %d in all, want 0, 1", len(m.dead), len(m.devices))
	}
}

func TestErrorsRouted(t *testing.T) {
	m := tree(t)
	rp := fnOf(t, m, "rp0")
	aer, _ := pci.FindExtCap(rp.Config, pci.ExtCapAER)
	rp.Config.Write32(aer+pci.AERRootCmd, pci.RootCmdAll)
	for _, n := range []string{"rp0", "up0", "dn0", "eth0"} {
		f := fnOf(t, m, n)
		e := expOf(t, f)
		f.Config.Write16(e.At+pci.ExpDevCtl, f.Config.Read16(e.At+pci.ExpDevCtl)|pci.DevCtlErrors)
		if f.IsBridge() {
			f.Config.Write16(pci.CfgBridgeCtl, pci.BridgeSERR)
		}
	}
	if err := m.InjectError("eth0", pci.AERError{Uncorrectable: 1 << 14, Header: [4]uint32{1, 2, 3, 4}}); err != nil {
		t.Fatal(err)
	}
	eth := fnOf(t, m, "eth0")
	ea, _ := pci.FindExtCap(eth.Config, pci.ExtCapAER)
	if v, h := eth.Config.Read32(ea+pci.AERUncSta), eth.Config.Read32(ea+pci.AERHeader+4); v != 1<<14 || h != 2 {
		t.Errorf("status %#x, header %#x, want %#x, 2", v, h, 1<<14)
	}
	if v, src := rp.Config.Read32(aer+pci.AERRootSta), rp.Config.Read32(aer+pci.AERErrSrc); v != pci.RootStaUnc|pci.RootStaNonFatal || src != 0x03000000 {
		t.Errorf("Root Error Status %#x, source %#x, want 0x24, 0x03000000", v, src)
	}
}
