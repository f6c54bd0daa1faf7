package sim

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// onePort is a root port with a card, or none, and what its registers are reached by.
type onePort struct {
	t   *testing.T
	m   *Machine
	d   *device
	c   bus.Config
	e   pci.Express
	aer bus.Off
}

func portWith(t *testing.T, card bool, props ...string) *onePort {
	t.Helper()
	c := Config{Clock: Stepped, Devices: []DeviceSpec{{Name: "rp0", Model: "root-port", Props: props}}}
	if card {
		c.Devices = append(c.Devices, DeviceSpec{Name: "eth0", Model: "e1000e", Bus: "rp0", Props: []string{"aer=on", "pme=on"}})
	}
	m := started(t, c)
	p := &onePort{t: t, m: m, d: m.devices[0]}
	p.c = p.d.Config()
	p.e, _ = pci.FindExpress(p.c)
	p.aer, _ = pci.FindExtCap(p.c, pci.ExtCapAER)
	return p
}

func (p *onePort) get(reg bus.Off) uint16    { return p.c.Read16(p.e.At + reg) }
func (p *onePort) set(reg bus.Off, v uint16) { p.c.Write16(p.e.At+reg, v) }

// want checks bits of a register of 16 bits.
func (p *onePort) want(what string, reg bus.Off, mask, want uint16) {
	p.t.Helper()
	if got := p.get(reg); got&mask != want {
		p.t.Errorf("%s: register %#x = %#04x, want %#x in %#x", what, reg, got, want, mask)
	}
}

func (p *onePort) do(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// card is the function below, which answers or not.
func (p *onePort) answers() bool { return p.m.Config(p.m.cardAddr()).Read16(0) != 0xffff }

func (m *Machine) cardAddr() pci.Addr { return pci.Addr{Domain: m.domain, Bus: 1} }

// Each source has its message, and sends one each time it has something to say.
func TestPortMessages(t *testing.T) {
	for _, c := range []struct {
		props   []string
		mode    bus.IRQMode
		n       int
		slot    int
		aer     int
		dpc     int
		portPin bool
	}{
		{nil, bus.MSIX, 1, 0, 0, 0, false},
		{[]string{"vectors=4"}, bus.MSIX, 4, 0, 1, 2, false},
		{[]string{"msi=4"}, bus.MSI, 4, 0, 1, 2, false},
		{[]string{"msi=4"}, bus.MSI, 1, 0, 0, 0, false},
		{[]string{"intx=on"}, bus.INTx, 1, 0, 0, 0, true},
	} {
		p := portWith(t, true, append(c.props, "dpc=on")...)
		dpc, _ := pci.FindExtCap(p.c, pci.ExtCapDPC)
		q := enabled(t, p.d, c.mode, c.n)
		check := func(what string, vector int) {
			t.Helper()
			for i := range q {
				want := uint64(0)
				if i == vector {
					want = 1
				}
				if got := fired(t, q[i]); got != want {
					t.Errorf("%v %v, %s: vector %d fired %d times, want %d", c.props, c.mode, what, i, got, want)
				}
				q[i].Unmask()
			}
		}
		if got := int(p.get(pci.ExpFlags) & pci.FlagMessage >> 9); got != c.slot {
			t.Errorf("%v: message of the slot = %d, want %d", c.props, got, c.slot)
		}
		if got := int(p.c.Read32(p.aer+pci.AERRootSta) >> pci.RootStaMsgAt); got != c.aer {
			t.Errorf("%v: message of errors = %d, want %d", c.props, got, c.aer)
		}
		if got := int(p.c.Read16(dpc+pci.DPCCap) & pci.DPCCapMessage); got != c.dpc {
			t.Errorf("%v: message of DPC = %d, want %d", c.props, got, c.dpc)
		}
		p.set(pci.ExpSltCtl, pci.SltCtlHP|pci.SltCtlButton|pci.LEDOn<<8)
		p.set(pci.ExpSltSta, pci.SltStaCmd)
		p.do(p.m.PressButton("rp0"))
		p.set(pci.ExpSltSta, pci.SltStaButton)
		if c.mode != bus.INTx {
			p.do(p.m.PressButton("rp0"))
			p.do(p.m.PressButton("rp0")) // is set already
			if got := fired(t, q[c.slot]); got != 2 {
				t.Errorf("%v: vector of the slot fired %d times, want 2", c.props, got)
			}
			p.set(pci.ExpSltSta, pci.SltStaButton)
		} else {
			check("button", 0)
		}
		p.c.Write32(p.aer+pci.AERRootCmd, pci.RootCmdAll)
		p.set(pci.ExpDevCtl, pci.DevCtlErrors)
		p.do(p.m.InjectError("rp0", pci.AERError{Correctable: 1}))
		p.c.Write32(p.aer+pci.AERRootSta, 0x7f)
		check("error", c.aer)
		p.c.Write16(dpc+pci.DPCCtl, pci.DPCCtlFatal|pci.DPCCtlIRQ)
		p.do(p.m.TriggerDPC("rp0", 0, [4]uint32{}))
		p.c.Write16(dpc+pci.DPCSta, pci.DPCStaIRQ)
		check("DPC", c.dpc)
	}
}

// Several errors at once, again, masked, and cleared one by one.
func TestErrorLog(t *testing.T) {
	p := portWith(t, false)
	r := func(reg bus.Off) uint32 { return p.c.Read32(p.aer + reg) }
	const poison, timeout, abort = 1 << 12, 1 << 14, 1 << 15
	p.c.Write32(p.aer+pci.AERUncMask, abort)
	p.set(pci.ExpDevCtl, pci.DevCtlErrors)
	inject := func(e pci.AERError) {
		t.Helper()
		p.do(p.m.InjectError("rp0", e))
	}
	inject(pci.AERError{Uncorrectable: timeout, Header: [4]uint32{1, 2, 3, 4}})
	inject(pci.AERError{Uncorrectable: poison | 1<<18, Correctable: 1, Header: [4]uint32{5, 6, 7, 8}})
	inject(pci.AERError{Uncorrectable: abort, Correctable: 1 << 6})
	if s, c := r(pci.AERUncSta), r(pci.AERCorSta); s != timeout|poison|abort|1<<18 || c != 1|1<<6 {
		t.Errorf("status %#x and %#x", s, c)
	}
	if f, h := r(pci.AERCap)&pci.AERFirst, r(pci.AERHeader); f != 14 || h != 1 {
		t.Errorf("first error %d, header %d, want 14, 1", f, h)
	}
	want := pci.RootStaCor | pci.RootStaMultiCor | pci.RootStaUnc | pci.RootStaMultiUnc | pci.RootStaNonFatal | pci.RootStaFatal
	if got := r(pci.AERRootSta); got != want {
		t.Errorf("Root Error Status = %#x, want %#x", got, want)
	}
	if src := r(pci.AERErrSrc); src != 0x00180018 {
		t.Errorf("source = %#x, want 0x00180018", src)
	}
	p.want("errors", pci.ExpDevSta, 0xf, pci.DevStaCor|pci.DevStaNonFatal|pci.DevStaFatal)
	p.c.Write32(p.aer+pci.AERUncSta, timeout)
	if s, f, h := r(pci.AERUncSta), r(pci.AERCap)&pci.AERFirst, r(pci.AERHeader); s != poison|abort|1<<18 || f != 0 || h != 0 {
		t.Errorf("after the first was cleared: status %#x, first %d, header %d", s, f, h)
	}
	// With several headers recorded the next one shows.
	p.c.Write32(p.aer+pci.AERUncSta, ^uint32(0))
	p.c.Write32(p.aer+pci.AERCap, aerMulti)
	inject(pci.AERError{Uncorrectable: timeout, Header: [4]uint32{1}})
	inject(pci.AERError{Uncorrectable: poison, Header: [4]uint32{2}})
	p.c.Write32(p.aer+pci.AERUncSta, timeout)
	if f, h := r(pci.AERCap)&pci.AERFirst, r(pci.AERHeader); f != 12 || h != 2 {
		t.Errorf("the second error: first %d, header %d, want 12, 2", f, h)
	}
	p.c.Write32(p.aer+pci.AERUncSta, poison)
	for range maxLog + 1 {
		inject(pci.AERError{Uncorrectable: timeout})
	}
	if r(pci.AERCorSta)&corOverflow == 0 {
		t.Error("the log ran over, and Header Log Overflow is not set")
	}
	if err := p.m.InjectError("rp0", pci.AERError{Correctable: 1 << 3}); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("an error that there is not: %v, want ErrNotSupported", err)
	}
}

// A message passes what is enabled on its way, and nothing else.
func TestErrorGates(t *testing.T) {
	for _, c := range []struct {
		what   string
		e      pci.AERError
		dev    uint16 // Device Control of the card
		devCmd pci.Command
		bridge uint16
		port   uint16 // Device Control of the port
		want   uint32
	}{
		{"correctable", pci.AERError{Correctable: 1}, pci.DevCtlCor, 0, pci.BridgeSERR, 0, pci.RootStaCor},
		{"correctable, not enabled", pci.AERError{Correctable: 1}, pci.DevCtlFatal, pci.CmdSERR, pci.BridgeSERR, 0xf, 0},
		{"correctable, masked", pci.AERError{Correctable: 1 << 13}, pci.DevCtlCor, 0, pci.BridgeSERR, 0, 0},
		{"correctable, not forwarded", pci.AERError{Correctable: 1}, pci.DevCtlCor, 0, 0, 0xf, 0},
		{"non-fatal", pci.AERError{Uncorrectable: 1 << 14}, pci.DevCtlNonFatal, 0, pci.BridgeSERR, pci.DevCtlNonFatal, pci.RootStaUnc | pci.RootStaNonFatal},
		{"non-fatal by SERR", pci.AERError{Uncorrectable: 1 << 14}, 0, pci.CmdSERR, pci.BridgeSERR, pci.DevCtlNonFatal, pci.RootStaUnc | pci.RootStaNonFatal},
		{"non-fatal, the port's not enabled", pci.AERError{Uncorrectable: 1 << 14}, pci.DevCtlNonFatal, 0, pci.BridgeSERR, pci.DevCtlFatal, 0},
		{"fatal", pci.AERError{Uncorrectable: 1 << 18}, pci.DevCtlFatal, 0, pci.BridgeSERR, pci.DevCtlFatal, pci.RootStaUnc | pci.RootStaFatal | pci.RootStaFirstFat},
		{"unsupported, not enabled", pci.AERError{Uncorrectable: 1 << 20}, pci.DevCtlNonFatal, 0, pci.BridgeSERR, 0xf, 0},
		{"unsupported", pci.AERError{Uncorrectable: 1 << 20}, pci.DevCtlNonFatal | pci.DevCtlUnsup, 0, pci.BridgeSERR, 0xf, pci.RootStaUnc | pci.RootStaNonFatal},
	} {
		p := portWith(t, true)
		card := fnOf(t, p.m, "eth0").Config
		e, _ := pci.FindExpress(card)
		card.Write16(e.At+pci.ExpDevCtl, c.dev)
		pci.SetCommand(card, c.devCmd, 0)
		p.c.Write16(pci.CfgBridgeCtl, c.bridge)
		p.set(pci.ExpDevCtl, c.port)
		p.do(p.m.InjectError("eth0", c.e))
		if got := p.c.Read32(p.aer + pci.AERRootSta); got != c.want {
			t.Errorf("%s: Root Error Status = %#x, want %#x", c.what, got, c.want)
		}
		if got := card.Read16(e.At + pci.ExpDevSta); got&0xf == 0 {
			t.Errorf("%s: Device Status of the card = %#x, want an error", c.what, got)
		}
	}
}

// An error that reaches a port that contains it goes no further, and nothing below answers until it is released.
func TestDPC(t *testing.T) {
	p := portWith(t, true, "dpc=on")
	dpc, _ := pci.FindExtCap(p.c, pci.ExtCapDPC)
	p.c.Write16(dpc+pci.DPCCtl, pci.DPCCtlNonFatal|pci.DPCCtlIRQ)
	p.c.Write16(pci.CfgBridgeCtl, pci.BridgeSERR)
	p.set(pci.ExpDevCtl, pci.DevCtlErrors)
	d, err := p.m.Device("eth0")
	p.do(err)
	restore := bus.SaveState(d)
	card := d.Config()
	e, _ := pci.FindExpress(card)
	aer, _ := pci.FindExtCap(card, pci.ExtCapAER)
	card.Write16(e.At+pci.ExpDevCtl, pci.DevCtlErrors)
	r, err := d.Region(0)
	p.do(err)
	p.do(p.m.InjectError("eth0", pci.AERError{Uncorrectable: 1 << 14}))
	if v, src := p.c.Read16(dpc+pci.DPCSta), p.c.Read16(dpc+pci.DPCSource); v&^pci.DPCStaPIOFirst != pci.DPCStaTriggered|pci.DPCStaIRQ|dpcNonFatal<<1 || src != 0x0100 {
		t.Errorf("DPC Status %#x, source %#x", v, src)
	}
	p.want("contained", pci.ExpLnkSta, pci.LnkStaActive, 0)
	p.want("contained", pci.ExpSltSta, pci.SltStaLink, pci.SltStaLink)
	if v := p.c.Read32(p.aer + pci.AERRootSta); v != 0 {
		t.Errorf("Root Error Status = %#x, want no message", v)
	}
	if card.Read32(0) != ^uint32(0) || r.Read32(8) != ^uint32(0) {
		t.Error("the card answers")
	}
	p.set(pci.ExpSltSta, pci.SltStaLink)
	p.c.Write16(dpc+pci.DPCSta, pci.DPCStaTriggered)
	p.want("released", pci.ExpLnkSta, pci.LnkStaActive, pci.LnkStaActive)
	p.want("released", pci.ExpSltSta, pci.SltStaLink, pci.SltStaLink)
	if v := card.Read32(aer + pci.AERUncSta); v != 1<<14 {
		t.Errorf("the card's log after its reset = %#x, want %#x", v, 1<<14)
	}
	if r.Read32(8) != ^uint32(0) {
		t.Error("the card answers in its region, which nobody placed after the reset")
	}
	p.do(restore())
	if r.Read32(8) == ^uint32(0) {
		t.Error("the card does not answer after its state was restored")
	}
	p.c.Write16(dpc+pci.DPCCtl, pci.DPCCtlFatal|pci.DPCCtlTrigger)
	if v := p.c.Read16(dpc + pci.DPCSta); v&0x7f != pci.DPCStaTriggered|dpcMore<<1|dpcBySoftware<<5|pci.DPCStaIRQ {
		t.Errorf("DPC Status after software's trigger = %#x", v)
	}
	p.c.Write16(dpc+pci.DPCSta, pci.DPCStaTriggered|pci.DPCStaIRQ)
	p.c.Write32(dpc+pci.DPCPIOMask, 0)
	p.do(p.m.TriggerDPC("rp0", 1<<2, [4]uint32{9}))
	if v, h := p.c.Read16(dpc+pci.DPCSta), p.c.Read32(dpc+pci.DPCPIOHeader); v != 2<<8|pci.DPCStaTriggered|dpcMore<<1 || h != 9 {
		t.Errorf("after an error of programmed I/O: DPC Status %#x, header %d", v, h)
	}
	p.c.Write32(dpc+pci.DPCPIOSta, 1<<2)
	if v := p.c.Read16(dpc + pci.DPCSta); v>>8 != dpcNoPIO {
		t.Errorf("RP PIO First Error Pointer = %#x after the error was cleared, want %#x", v>>8, dpcNoPIO)
	}
}

// PMEs queue in the root port.
func TestPME(t *testing.T) {
	m := started(t, Config{Clock: Stepped, Devices: []DeviceSpec{
		{Name: "rp0", Model: "root-port", Props: []string{"pme=on"}}, {Name: "up0", Model: "upstream", Bus: "rp0", Props: []string{"pme=on"}},
		{Name: "dn0", Model: "downstream", Bus: "up0"}, {Name: "eth0", Model: "e1000e", Bus: "dn0", Props: []string{"pme=on"}},
	}})
	rp := m.devices[0]
	q := enabled(t, rp, bus.MSIX, 1)
	c := rp.Config()
	e, _ := pci.FindExpress(c)
	c.Write16(e.At+pci.ExpRtCtl, pci.RtCtlPME)
	if err := m.SignalPME("eth0"); err != nil {
		t.Fatal(err)
	}
	if v := c.Read32(e.At + pci.ExpRtSta); v != 0 {
		t.Errorf("Root Status = %#x though PME is not enabled", v)
	}
	for _, n := range []string{"up0", "eth0"} {
		f := fnOf(t, m, n)
		pm, _ := pci.FindCap(f.Config, pci.CapPM)
		f.Config.Write16(pm+pci.PMCtl, pci.PMCtlPMEEn)
		for range 2 {
			if err := m.SignalPME(n); err != nil {
				t.Fatal(err)
			}
		}
		if v := f.Config.Read16(pm + pci.PMCtl); v&pci.PMCtlPMESta == 0 {
			t.Errorf("%s: PM control = %#x, want PME_Status", n, v)
		}
	}
	up, eth := uint32(rp0Of(t, m, "up0")), uint32(rp0Of(t, m, "eth0"))
	// The second of up0 waits too: the first is being shown.
	for i, want := range []uint32{up | pci.RtStaPME | pci.RtStaMore, up | pci.RtStaPME | pci.RtStaMore, eth | pci.RtStaPME, eth} {
		if v := c.Read32(e.At + pci.ExpRtSta); v != want {
			t.Errorf("Root Status, step %d = %#x, want %#x", i, v, want)
		}
		if n := fired(t, q[0]); n != uint64(min(1, 3-i)) {
			t.Errorf("step %d: fired %d times", i, n)
		}
		c.Write32(e.At+pci.ExpRtSta, pci.RtStaPME)
	}
	if err := m.SignalPME("dn0"); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("SignalPME of a port without = %v, want ErrNotSupported", err)
	}
}

func rp0Of(t *testing.T, m *Machine, name string) uint16 {
	a := fnOf(t, m, name).Addr
	return uint16(a.Bus)<<8 | uint16(a.Devfn())
}

func TestVirtualChannels(t *testing.T) {
	p := portWith(t, false, "vc=2")
	vc, ok := pci.FindExtCap(p.c, pci.ExtCapVC)
	if !ok {
		t.Fatal("no Virtual Channel capability")
	}
	if v := p.c.Read32(vc + pci.VCCap1); v&7 != 2 {
		t.Errorf("extended channels = %d, want 2", v&7)
	}
	if v := p.c.Read32(vc + pci.VCResCtl); v != 0x800000ff {
		t.Errorf("VC 0 = %#x, want it on with all traffic classes", v)
	}
	tables := vc + bus.Off(p.c.Read32(vc+pci.VCCap2)>>24*16)
	p.c.Write32(tables, 0x01010101)
	if v := p.c.Read16(vc + pci.VCSta); v != 1 {
		t.Errorf("Port VC Status after a write of the table = %#x, want 1", v)
	}
	p.c.Write16(vc+pci.VCCtl, 1<<1|vcLoad)
	if v, c := p.c.Read16(vc+pci.VCSta), p.c.Read16(vc+pci.VCCtl); v != 0 || c != 1<<1 {
		t.Errorf("Port VC Status after loading = %#x, Control %#x, want 0, 2", v, c)
	}
	one := vc + pci.VCStride
	p.c.Write32(one+pci.VCResCtl, vcResOn|1<<24|0xf0)
	if v := p.c.Read16(one + pci.VCResSta); v != vcPending {
		t.Errorf("VC 1 without a link: Status %#x, want negotiation pending", v)
	}
	p.do(p.m.Plug(t.Context(), DeviceSpec{Name: "eth0", Model: "e1000e", Bus: "rp0"}))
	p.set(pci.ExpSltCtl, 0)
	if v := p.c.Read16(one + pci.VCResSta); v != 0 {
		t.Errorf("VC 1 with a link: Status %#x, want 0", v)
	}
	table := vc + bus.Off(p.c.Read32(one+pci.VCResCap)>>24*16)
	p.c.Write8(table+3, 1)
	if v := p.c.Read16(one + pci.VCResSta); v != 1 {
		t.Errorf("VC 1 after a write of its table: Status %#x, want 1", v)
	}
	p.c.Write32(one+pci.VCResCtl, vcResOn|1<<24|0xf0|vcResLoad)
	if v := p.c.Read16(one + pci.VCResSta); v != 0 {
		t.Errorf("VC 1 after loading: Status %#x, want 0", v)
	}
}

func TestBandwidth(t *testing.T) {
	p := portWith(t, true, "bw=on")
	q := enabled(t, p.d, bus.MSIX, 1)
	p.set(pci.ExpLnkCtl, pci.LnkCtlLBMIE|pci.LnkCtlLABIE)
	p.want("at first", pci.ExpLnkSta, pci.LnkStaSpeed|pci.LnkStaWidth, 4|1<<4)
	p.set(pci.ExpLnkCtl2, 2)
	p.set(pci.ExpLnkCtl, pci.LnkCtlLBMIE|pci.LnkCtlLABIE|pci.LnkCtlRetrain)
	p.want("retrained", pci.ExpLnkSta, pci.LnkStaSpeed|pci.LnkStaLBMS, 2|pci.LnkStaLBMS)
	p.do(p.m.SetLinkSpeed("rp0", 1, 1, true))
	p.want("slower", pci.ExpLnkSta, pci.LnkStaSpeed|pci.LnkStaLABS, 1|pci.LnkStaLABS)
	if n := fired(t, q[0]); n != 1 {
		t.Errorf("fired %d times, want once: the first was not cleared", n)
	}
	p.set(pci.ExpLnkSta, pci.LnkStaLBMS|pci.LnkStaLABS)
	p.want("cleared", pci.ExpLnkSta, pci.LnkStaLBMS|pci.LnkStaLABS, 0)
	p.do(p.m.SetLinkSpeed("rp0", 2, 1, false))
	if n := fired(t, q[0]); n != 1 {
		t.Errorf("fired %d times, want once", n)
	}
	for _, bad := range [][2]uint8{{0, 1}, {5, 1}, {1, 0}, {1, 2}} {
		if err := p.m.SetLinkSpeed("rp0", bad[0], bad[1], false); !errors.Is(err, bus.ErrNotSupported) {
			t.Errorf("SetLinkSpeed(%d, %d) = %v, want ErrNotSupported", bad[0], bad[1], err)
		}
	}
}

// What goes wrong with a slot, and what takes time.
func TestSlotFaults(t *testing.T) {
	p := portWith(t, true, "mrl=on", "cmd=5ms")
	up := func(what string, want bool) {
		t.Helper()
		if p.answers() != want {
			t.Errorf("%s: the card answers %v, want %v", what, !want, want)
		}
	}
	p.set(pci.ExpSltCtl, pci.LEDOn<<8)
	p.want("at once", pci.ExpSltSta, pci.SltStaCmd, 0)
	p.m.Advance(5 * time.Millisecond)
	p.want("after 5 ms", pci.ExpSltSta, pci.SltStaCmd, pci.SltStaCmd)
	up("at first", true)
	p.do(p.m.OpenLatch("rp0", true))
	p.want("latch", pci.ExpSltSta, pci.SltStaMRL|pci.SltStaOpen|pci.SltStaLink, pci.SltStaMRL|pci.SltStaOpen|pci.SltStaLink)
	up("latch open", false)
	p.do(p.m.OpenLatch("rp0", false))
	up("latch closed", true)
	p.do(p.m.PowerFault("rp0"))
	p.want("fault", pci.ExpSltSta, pci.SltStaFault, pci.SltStaFault)
	up("fault", false)
	p.set(pci.ExpSltCtl, pci.LEDOn<<8)
	up("still without power", false)
	p.set(pci.ExpSltCtl, pci.LEDOn<<8|pci.SltCtlPowerOff)
	p.set(pci.ExpSltCtl, pci.LEDOn<<8)
	up("off and on", true)
	p.do(p.m.SetPortLink("rp0", false))
	up("link down", false)
	p.want("link down", pci.ExpLnkSta, pci.LnkStaActive, 0)
	p.do(p.m.SetPortLink("rp0", true))
	up("link up", true)
	p.set(pci.ExpLnkCtl, pci.LnkCtlDisable)
	up("link disabled", false)
	p.set(pci.ExpLnkCtl, 0)
	up("link enabled", true)
	p.set(pci.ExpSltSta, pci.SltStaEvents)
	p.c.Write16(pci.CfgBridgeCtl, pci.BridgeReset)
	up("in reset", false)
	p.c.Write16(pci.CfgBridgeCtl, 0)
	up("after reset", true)
	p.want("after reset", pci.ExpSltSta, pci.SltStaLink, 0)
	d, _ := p.m.Device("eth0")
	if err := p.m.Unplug("eth0"); err != nil || !errors.Is(d.Err(), bus.ErrGone) {
		t.Errorf("Unplug = %v, the device's Err %v", err, d.Err())
	}
	p.want("pulled out", pci.ExpSltSta, pci.SltStaPresence|pci.SltStaPresent|pci.SltStaLink, pci.SltStaPresence|pci.SltStaLink)
	if p.m.Forget(p.m.Topology().Functions[1]); len(p.m.Topology().Functions) != 1 {
		t.Errorf("%d functions, want 1", len(p.m.Topology().Functions))
	}
	d.Close()
	for _, c := range []struct {
		props []string
		err   error
	}{
		{[]string{"button=off"}, nil}, {[]string{"power=off"}, nil}, {nil, nil},
	} {
		q := portWith(t, false, c.props...)
		if len(c.props) == 0 {
			c.err = q.m.OpenLatch("rp0", true)
		} else if c.props[0] == "button=off" {
			c.err = q.m.PressButton("rp0")
		} else {
			c.err = q.m.PowerFault("rp0")
		}
		if !errors.Is(c.err, bus.ErrNotSupported) {
			t.Errorf("%v: what is not there = %v, want ErrNotSupported", c.props, c.err)
		}
	}
}

// A card that was taken out of service is found again as another device; one that was disconnected is dead.
func TestForgetRescan(t *testing.T) {
	m := tree(t)
	eth, _ := m.Device("eth0")
	m.Disconnect(fnOf(t, m, "up0"))
	if !errors.Is(eth.Err(), bus.ErrGone) {
		t.Errorf("Err = %v, want ErrGone", eth.Err())
	}
	if d, _ := m.Device("rp0"); d.Err() != nil {
		t.Errorf("the port above = %v", d.Err())
	}
	m.Forget(fnOf(t, m, "up0"))
	if n := len(m.Topology().Functions); n != 3 {
		t.Errorf("%d functions, want 3", n)
	}
	if _, err := m.Device("eth0"); err == nil {
		t.Error("a device that was forgotten is there")
	}
	fns, err := m.Rescan(fnOf(t, m, "rp0"))
	if err != nil || len(fns) != 4 {
		t.Fatalf("Rescan = %v, %v", fns, err)
	}
	again, err := m.Device("eth0")
	if err != nil || again == eth || again.Err() != nil {
		t.Fatalf("eth0 = %v, %v", again, err)
	}
	r, err := again.Region(0)
	if err != nil || r.Read32(8) == ^uint32(0) {
		t.Errorf("its registers: %v", err)
	}
	eth.Close()
}

// BenchmarkInjectError is an error that a card detects, told to the root port, read and cleared there.
func BenchmarkInjectError(b *testing.B) {
	m := started(b, Config{Clock: Stepped, Devices: []DeviceSpec{
		{Name: "rp0", Model: "root-port"}, {Name: "eth0", Model: "e1000e", Bus: "rp0", Props: []string{"aer=on"}},
	}})
	rp, _ := m.Function("rp0")
	eth, _ := m.Function("eth0")
	aer, _ := pci.FindExtCap(rp.Config, pci.ExtCapAER)
	own, _ := pci.FindExtCap(eth.Config, pci.ExtCapAER)
	e, _ := pci.FindExpress(eth.Config)
	rp.Config.Write16(pci.CfgBridgeCtl, pci.BridgeSERR)
	rp.Config.Write32(aer+pci.AERRootCmd, pci.RootCmdAll)
	eth.Config.Write16(e.At+pci.ExpDevCtl, pci.DevCtlErrors)
	b.ReportAllocs()
	for b.Loop() {
		if err := m.InjectError("eth0", pci.AERError{Correctable: 1}); err != nil {
			b.Fatal(err)
		}
		rp.Config.Write32(aer+pci.AERRootSta, rp.Config.Read32(aer+pci.AERRootSta))
		eth.Config.Write32(own+pci.AERCorSta, eth.Config.Read32(own+pci.AERCorSta))
	}
}

// Everything that may be done at once is: run with -race.
func TestPortsConcurrent(t *testing.T) {
	m := started(t, Config{Clock: Eager, Devices: []DeviceSpec{
		{Name: "rp0", Model: "root-port", Props: []string{"cmd=1us", "dpc=on"}}, {Name: "rp1", Model: "root-port"}, {Name: "edu0", Model: "edu", Bus: "rp1"},
	}})
	edu, err := m.Device("edu0")
	if err != nil {
		t.Fatal(err)
	}
	r, err := edu.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	rp0, rp1 := fnOf(t, m, "rp0"), fnOf(t, m, "rp1")
	e, _ := pci.FindExpress(rp0.Config)
	const rounds = 100
	var wg sync.WaitGroup
	wg.Go(func() {
		for range rounds {
			_ = m.Plug(t.Context(), DeviceSpec{Name: "eth0", Model: "e1000e", Bus: "rp0", Props: []string{"aer=on"}})
			powerOn(rp0, e)
			fns, err := m.Rescan(rp0)
			if err != nil {
				t.Error(err)
			}
			for _, f := range fns {
				if _, d, ok := m.Named(f); ok {
					_, _ = d.EnableIRQs(bus.MSIX, 2)
					_ = d.Regions()
					m.Disconnect(rp0)
					_ = d.Close()
				}
				m.Forget(f)
			}
			powerOff(rp0, e)
		}
	})
	wg.Go(func() {
		for range 20 * rounds {
			_ = m.InjectError("eth0", pci.AERError{Uncorrectable: 1 << 14})
			_ = m.InjectError("rp0", pci.AERError{Correctable: 1})
			_ = m.PressButton("rp0")
			_ = m.SignalPME("eth0")
		}
	})
	wg.Go(func() {
		for range 20 * rounds {
			for _, f := range m.Topology().Functions {
				_ = f.Config.Read32(0)
				_, _, _ = m.Named(f)
			}
			if v := r.Read32(eduID); v != eduVersion {
				t.Errorf("the other device's ID = %#x", v)
				return
			}
		}
	})
	wg.Go(func() {
		for range rounds {
			if _, err := m.Rescan(rp1); err != nil {
				t.Error(err)
			}
			_, _ = edu.EnableIRQs(bus.INTx, 1)
			_ = edu.Reset(t.Context())
		}
	})
	wg.Wait()
}

// A card that comes back is wired as the one before was.
func TestPlugWired(t *testing.T) {
	m := started(t, Config{Clock: Stepped, Wires: [][2]string{{"eth0", "eth1"}}, Devices: []DeviceSpec{
		{Name: "rp0", Model: "root-port"}, {Name: "eth0", Model: "e1000e", Bus: "rp0"}, {Name: "eth1", Model: "e1000e"},
	}})
	far := m.find("eth1")
	for range 2 {
		if far.cut || far.far != m.find("eth0") || far.far.far != far {
			t.Fatalf("eth1: cut %v, wired to %v", far.cut, far.far)
		}
		old := m.find("eth0")
		if err := m.Unplug("eth0"); err != nil || !far.cut {
			t.Fatalf("Unplug = %v, the far end's cable is pulled: %v", err, far.cut)
		}
		old.Close()
		if err := m.Plug(t.Context(), DeviceSpec{Name: "eth0", Model: "e1000e", Bus: "rp0"}); err != nil {
			t.Fatal(err)
		}
	}
}

// What cannot be plugged in is said in words.
func TestPlugWrong(t *testing.T) {
	m := tree(t)
	for _, c := range []struct {
		spec DeviceSpec
		err  error
		want string
	}{
		{DeviceSpec{Name: "x", Model: "edu", Bus: "nowhere"}, nil, "sim: plugging x: no device is named nowhere"},
		{DeviceSpec{Name: "x", Model: "edu", Bus: "edu0"}, bus.ErrNotSupported, "1000:00:05.0 edu0: plugging x: model edu has no slot"},
		{DeviceSpec{Name: "x", Model: "edu", Bus: "up0"}, bus.ErrNotSupported, "1000:01:00.0 up0: plugging x: model upstream has no slot"},
		{DeviceSpec{Name: "x", Model: "edu"}, bus.ErrNotSupported, "sim: plugging x: nothing can be plugged in on the root bus"},
		{DeviceSpec{Name: "x", Model: "edu", Bus: "dn0"}, bus.ErrBusy, "1000:02:00.0 dn0: plugging x: eth0 is in the slot"},
		{DeviceSpec{Name: "eth0", Model: "edu", Bus: "rp1"}, bus.ErrBusy, "sim: plugging eth0: there is a device of that name"},
		{DeviceSpec{Name: "x", Model: "root-port", Bus: "rp1"}, nil, "sim: x: model root-port stands on the root bus only"},
		{DeviceSpec{Name: "x", Model: "downstream", Bus: "rp1"}, nil, "sim: x: model downstream cannot stand under rp1 (root-port)"},
		{DeviceSpec{Name: "x", Model: "tpm-tis", Bus: "rp1"}, nil, "sim: x: model tpm-tis is a platform device"},
		{DeviceSpec{Name: "x", Model: "edu", Bus: "rp1", Props: []string{"aer=on"}}, nil, `sim: x: model edu has no property "aer"`},
		{DeviceSpec{Name: "x", Model: "e1000e", Bus: "rp1", Props: []string{"aer=yes"}}, nil, "sim: x: model e1000e: property aer=yes: want on or off"},
	} {
		err := m.Plug(t.Context(), c.spec)
		if err == nil || !strings.HasPrefix(err.Error(), c.want) || c.err != nil && !errors.Is(err, c.err) {
			t.Errorf("Plug(%+v) = %v, want %s, %v", c.spec, err, c.want, c.err)
		}
	}
	for _, c := range []struct {
		specs []DeviceSpec
		want  string
	}{
		{[]DeviceSpec{{Name: "u", Model: "upstream"}}, "sim: u: model upstream is part of a switch"},
		{[]DeviceSpec{{Name: "e", Model: "edu", Bus: "p"}, {Name: "p", Model: "root-port"}}, "sim: e stands under p, which is not a port named before it"},
		{[]DeviceSpec{{Name: "p", Model: "root-port"}, {Name: "e", Model: "edu", Bus: "p"}, {Name: "f", Model: "edu", Bus: "p"}}, "sim: f stands under p, where there is room for 1"},
		{[]DeviceSpec{{Name: "p", Model: "root-port", Props: []string{"msi=3"}}}, "sim: p: model root-port: property msi=3: want a power of two"},
		{[]DeviceSpec{{Name: "p", Model: "root-port", Props: []string{"vc=8"}}}, "sim: p: model root-port: property vc=8: want 0 to 7"},
		{[]DeviceSpec{{Name: "p", Model: "root-port", Props: []string{"cmd=soon"}}}, "sim: p: model root-port: property cmd=soon: want a duration"},
	} {
		m, err := Start(t.Context(), Config{Devices: c.specs, Clock: Stepped})
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("Start(%+v) = %v, want %s", c.specs, err, c.want)
		}
		if m != nil {
			m.Close()
		}
	}
}

// What SaveState kept is there again after a reset of the bus: where BARs are, who may do what, where interrupts go.
func TestSaveState(t *testing.T) {
	m := started(t, Config{Clock: Stepped, Devices: []DeviceSpec{
		{Name: "rp0", Model: "root-port"}, {Name: "edu0", Model: "edu", Bus: "rp0"}, {Name: "rp1", Model: "root-port", Props: []string{"pme=on"}},
		{Name: "n", Model: "null", Bus: "rp1"},
	}})
	d := m.find("edu0")
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	q := enabled(t, d, bus.MSI, 1)
	pci.SetCommand(d.Config(), pci.CmdMaster, 0)
	up := fnOf(t, m, "rp0").Config
	restore := bus.SaveState(d)
	up.Write16(pci.CfgBridgeCtl, pci.BridgeReset)
	if err := restore(); !errors.Is(err, bus.ErrGone) {
		t.Errorf("restoring what is held in reset = %v, want ErrGone", err)
	}
	up.Write16(pci.CfgBridgeCtl, 0)
	if v := r.Read32(eduID); v != ^uint32(0) {
		t.Errorf("ID after the reset = %#x, want all-ones", v)
	}
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	r.Write32(eduRaise, 1)
	if n := fired(t, q[0]); n != 1 {
		t.Errorf("MSI fired %d times, want 1", n)
	}
	x := m.find("n")
	qx := enabled(t, x, bus.MSIX, 2)
	pci.SetCommand(x.Config(), pci.CmdMaster, 0)
	restore = bus.SaveState(x)
	up = fnOf(t, m, "rp1").Config
	up.Write16(pci.CfgBridgeCtl, pci.BridgeReset)
	up.Write16(pci.CfgBridgeCtl, 0)
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	under(x, func() { x.msix(1) })
	if n := fired(t, qx[1]); n != 1 {
		t.Errorf("MSI-X fired %d times, want 1", n)
	}
	// A port that sleeps lets nothing through but config accesses.
	rx, err := x.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	pm, _ := pci.FindCap(up, pci.CapPM)
	up.Write16(pm+pci.PMCtl, 3)
	under(x, func() { x.msix(1) })
	if v, n := rx.Read32(nullSTATUS), fired(t, qx[1]); v != ^uint32(0) || n != 0 || x.Config().Read32(0) == ^uint32(0) {
		t.Errorf("below a port that sleeps: STATUS %#x, %d messages, ID %#x", v, n, x.Config().Read32(0))
	}
	up.Write16(pm+pci.PMCtl, 0)
	if v := rx.Read32(nullSTATUS); v == ^uint32(0) {
		t.Errorf("below a port that woke: STATUS %#x", v)
	}
}

// Properties that change what a slot tells.
func TestSlotProperties(t *testing.T) {
	p := portWith(t, true, "no-command-completed=on", "auto_eject=off", "reset_link=on", "interlock=on")
	off := pci.SltCtlPowerOff | pci.SltCtlPowerLED
	p.set(pci.ExpSltCtl, off)
	p.want("off", pci.ExpSltSta, pci.SltStaCmd|pci.SltStaPresent|pci.SltStaPresence, pci.SltStaPresent)
	if p.answers() {
		t.Error("a card without power answers")
	}
	p.set(pci.ExpSltCtl, off|pci.SltCtlLock)
	p.want("locked", pci.ExpSltSta, pci.SltStaLocked, pci.SltStaLocked)
	p.want("locked", pci.ExpSltCtl, pci.SltCtlLock, 0)
	p.set(pci.ExpSltCtl, pci.LEDOn<<8)
	if !p.answers() {
		t.Error("the card stayed, and has power, and does not answer")
	}
	p.set(pci.ExpSltSta, pci.SltStaEvents)
	p.c.Write16(pci.CfgBridgeCtl, pci.BridgeReset)
	p.want("in reset", pci.ExpSltSta, pci.SltStaLink, pci.SltStaLink)
	p.set(pci.ExpSltSta, pci.SltStaEvents)
	p.c.Write16(pci.CfgBridgeCtl, 0)
	p.want("after reset", pci.ExpSltSta, pci.SltStaLink, pci.SltStaLink)
	p.set(pci.ExpSltCtl, off)
	p.do(p.m.Eject("eth0")) // the slot is off: it leaves at once
	p.want("ejected", pci.ExpSltSta, pci.SltStaPresent|pci.SltStaPresence, pci.SltStaPresence)
	// Without a power controller a card comes up as it is plugged in.
	p = portWith(t, false, "power=off", "button=off")
	p.do(p.m.Plug(t.Context(), DeviceSpec{Name: "eth0", Model: "e1000e", Bus: "rp0"}))
	p.want("plugged", pci.ExpSltSta, pci.SltStaEvents, pci.SltStaPresence|pci.SltStaLink)
	if !p.answers() {
		t.Error("a card in a slot that has always power does not answer")
	}
	if err := p.m.Eject("eth0"); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Eject without a button = %v, want ErrNotSupported", err)
	}
}
