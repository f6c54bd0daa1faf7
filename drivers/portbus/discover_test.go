package portbus

import (
	"errors"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus/internal/portmodel"
)

// all is a port with everything.
func all(t pci.ExpType) portmodel.Spec {
	return portmodel.Spec{Type: t, Slot: true, AER: true, DPC: pci.DPCCapRP, BW: true, VC: 2}
}

func TestServices(t *testing.T) {
	for _, c := range []struct {
		what    string
		spec    portmodel.Spec
		profile string
		want    string
	}{
		{"root port with everything", all(pci.ExpRootPort), "", "pcie001 pcie002 pcie004 pcie008 pcie010 pcie020"},
		{"upstream port", all(pci.ExpUpstream), "", "pcie120"},
		{"upstream port", all(pci.ExpUpstream), "6.1", "pcie102 pcie120"},
		{"downstream port", all(pci.ExpDownstream), "", "pcie204 pcie208 pcie210 pcie220"},
		{"downstream port", all(pci.ExpDownstream), "6.1", "pcie202 pcie204 pcie208 pcie210 pcie220"},
		{"event collector", all(pci.ExpCollector), "", "pcie601 pcie602 pcie620"},
		{"bare root port", portmodel.Spec{Type: pci.ExpRootPort}, "", "pcie001"},
		{"bare upstream port", portmodel.Spec{Type: pci.ExpUpstream}, "", ""},
		{"bare downstream port", portmodel.Spec{Type: pci.ExpDownstream}, "", ""},
		{"DPC without AER", portmodel.Spec{Type: pci.ExpRootPort, DPC: pci.DPCCapRP}, "", "pcie001"},
		{"QEMU's pcie-root-port", portmodel.Spec{Type: pci.ExpRootPort, Slot: true, AER: true, BW: true}, "6.1", "pcie001 pcie002 pcie004 pcie010"},
	} {
		bustest.NoLeaks(t)
		r := &rig{T: t, model: portmodel.New(c.spec), tree: &portmodel.Tree{}}
		r.bus, _ = New()
		r.bind(c.profile)
		if got := strings.Join(names(r.bus.Devices()), " "); got != c.want {
			t.Errorf("services of a %s, profile %q = %q, want %q", c.what, c.profile, got, c.want)
		}
		if err := r.port.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
		if got := r.bus.Devices(); len(got) != 0 {
			t.Errorf("services after Close = %q, want none", names(got))
		}
	}
}

// A slot that says it has no hot-plug gives no such service.
func TestNoHotPlug(t *testing.T) {
	m := portmodel.New(portmodel.Spec{Type: pci.ExpRootPort, Slot: true})
	m.Set32(portmodel.Express+pci.ExpSltCap, pci.SltCapHotPlug, 0)
	r := &rig{T: t, model: m, tree: &portmodel.Tree{}}
	r.bus, _ = New()
	r.bind("")
	equal(t, "services", names(r.bus.Devices()), []string{"pcie001"})
}

// What is no port, or says nonsense, is skipped in words; nothing of it stays.
func TestNotAPort(t *testing.T) {
	for _, c := range []struct {
		what  string
		spec  portmodel.Spec
		spoil func(*portmodel.Port)
		want  error
	}{
		{"no capability", portmodel.Spec{Type: pci.ExpRootPort, NoExp: true}, nil, pci.ErrSkip},
		{"endpoint", portmodel.Spec{Type: pci.ExpEndpoint}, nil, pci.ErrSkip},
		{"bridge to PCI", portmodel.Spec{Type: pci.ExpToPCI}, nil, pci.ErrSkip},
		{"reserved type", portmodel.Spec{Type: 0xf}, nil, pci.ErrSkip},
		{"list that loops", portmodel.Spec{Type: pci.ExpRootPort}, func(p *portmodel.Port) { p.Set(portmodel.PM, 0xffff, pci.CapPM|uint16(portmodel.PM)<<8) }, pci.ErrSkip},
		{"list that leads into the header", portmodel.Spec{Type: pci.ExpRootPort}, func(p *portmodel.Port) { p.Set(portmodel.PM, 0xffff, pci.CapPM|0x10<<8) }, pci.ErrSkip},
		{"capability at the end", portmodel.Spec{Type: pci.ExpRootPort}, func(p *portmodel.Port) {
			p.Set(portmodel.PM, 0xffff, pci.CapPM|0xfc<<8)
			p.Set(0xfc, 0xffff, pci.CapPCIe)
			p.Set(0xfe, 0xffff, 2|uint16(pci.ExpRootPort)<<4)
		}, pci.ErrSkip},
		{"dead", portmodel.Spec{Type: pci.ExpRootPort}, (*portmodel.Port).Die, pci.ErrSkip},
	} {
		bustest.NoLeaks(t)
		m := portmodel.New(c.spec)
		if c.spoil != nil {
			c.spoil(m)
		}
		b, _ := New()
		tree := &portmodel.Tree{}
		if _, err := tree.Probe(t, m, b.PortDriver(), ""); !errors.Is(err, c.want) {
			t.Errorf("Probe of %s = %v, want %v", c.what, err, c.want)
		}
		if got := b.Devices(); len(got) != 0 {
			t.Errorf("services of %s = %q, want none", c.what, names(got))
		}
	}
}

// Extended lists that loop or point outside end; what stands before is found.
func TestExtendedLists(t *testing.T) {
	for _, c := range []struct {
		what string
		next uint16 // of AER, which stands first
	}{{"loops", 0x100}, {"points into the first 256 bytes", 0x40}, {"points at the last word", 0xffc}, {"is odd", 0x153}} {
		m := portmodel.New(portmodel.Spec{Type: pci.ExpRootPort, AER: true, VC: 1})
		m.Set(portmodel.AER+2, 0xffff, 1|c.next<<4)
		r := &rig{T: t, model: m, tree: &portmodel.Tree{}}
		r.bus, _ = New()
		r.bind("")
		equal(t, "services where the list "+c.what, names(r.bus.Devices()), []string{"pcie001", "pcie002"})
	}
}

// A VC capability at the very end of config space has a view that ends there.
func TestCapabilityAtTheEnd(t *testing.T) {
	m := portmodel.New(portmodel.Spec{Type: pci.ExpRootPort, AER: true})
	m.Set(portmodel.AER+2, 0xffff, 1|0xffc<<4)
	m.Set32(0xffc, 0xffffffff, pci.ExtCapVC|1<<16)
	r := &rig{T: t, model: m, tree: &portmodel.Tree{}}
	r.bus, _ = New()
	r.bind("")
	v := r.device(VC).Config()
	if got := v.Read32(0xffc); got != pci.ExtCapVC|1<<16 {
		t.Errorf("Read32(0xffc) = %#x, want the capability's header", got)
	}
	if got := v.Read32(0x1000); got != 0xffffffff {
		t.Errorf("Read32(0x1000) = %#x, want all-ones", got)
	}
}

// What firmware left enabled is disabled before anybody could get an interrupt of it.
func TestSilence(t *testing.T) {
	m := portmodel.New(all(pci.ExpRootPort))
	e := portmodel.Express
	m.Set(e+pci.ExpSltCtl, 0, 0xffff>>2)
	m.Set(e+pci.ExpRtCtl, 0, pci.RtCtlPME)
	m.Set(e+pci.ExpLnkCtl, 0, pci.LnkCtlLBMIE|pci.LnkCtlLABIE)
	m.Set(portmodel.DPC+pci.DPCCtl, 0, pci.DPCCtlFatal|pci.DPCCtlIRQ)
	m.Set32(portmodel.AER+pci.AERRootCmd, 0, pci.RootCmdAll)
	r := &rig{T: t, model: m, tree: &portmodel.Tree{}}
	r.bus, _ = New()
	r.bind("")
	for _, c := range []struct {
		what string
		reg  bus.Off
		bits uint16
	}{
		{"Slot Control", e + pci.ExpSltCtl, pci.SltCtlHP | pci.SltCtlCmd}, {"Root Control", e + pci.ExpRtCtl, pci.RtCtlPME},
		{"Link Control", e + pci.ExpLnkCtl, pci.LnkCtlLBMIE | pci.LnkCtlLABIE}, {"DPC Control", portmodel.DPC + pci.DPCCtl, pci.DPCCtlFatal | pci.DPCCtlIRQ},
		{"Root Error Command", portmodel.AER + pci.AERRootCmd, 7},
	} {
		if got := uint16(m.Peek(c.reg, 2)) & c.bits; got != 0 {
			t.Errorf("%s = %#x of what interrupts, want 0", c.what, got)
		}
	}
	if got := m.Peek(pci.CfgCommand, 2); got&7 != 7 {
		t.Errorf("Command = %#x, want decoding and bus mastering", got)
	}
}

// The port dies at each access of its probe: an error or a port, and nothing stays.
func TestProbeDies(t *testing.T) {
	bustest.NoLeaks(t)
	m := portmodel.New(all(pci.ExpRootPort))
	b, _ := New()
	if _, err := (&portmodel.Tree{}).Probe(t, m, b.PortDriver(), ""); err != nil {
		t.Fatal(err)
	}
	for k := 1; k <= m.Accesses(); k++ {
		m := portmodel.New(all(pci.ExpRootPort))
		m.FailAt(k + 1) // Function reads its ID
		b, _ := New()
		inst, err := (&portmodel.Tree{}).Probe(t, m, b.PortDriver(), "")
		if err == nil && m.Err() != nil {
			t.Errorf("Probe of a port that dies at access %d = a port, want an error", k)
		}
		if err != nil && inst != nil {
			if p, ok := inst.(*Port); ok && p != nil {
				t.Errorf("Probe of a port that dies at access %d = a port and %v", k, err)
			}
		}
		if err != nil && len(b.Devices()) != 0 {
			t.Errorf("Probe of a port that dies at access %d left %q", k, names(b.Devices()))
		}
	}
}
