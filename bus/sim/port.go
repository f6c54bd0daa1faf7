package sim

import (
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// The ports, with the identities and capabilities that QEMU 7.2's have. Registers behave as PCI Express Base 5.0 says.

var (
	rootPortModel = model{
		name: "root-port", aliases: []string{"pcie-root-port"}, about: "a PCI Express root port with a hot-plug slot and Advanced Error Reporting",
		port: true, props: maps.Clone(portProps), make: func(s slot, o options) (chip, header, error) { return newPort(s, o, &rootPortKind) },
	}
	ioh3420Model = model{
		name: "ioh3420", about: "a root port with two MSI vectors: errors on 1, the slot on 0",
		port: true, props: maps.Clone(portProps), make: func(s slot, o options) (chip, header, error) { return newPort(s, o, &ioh3420Kind) },
	}
	upstreamModel = model{
		name: "upstream", aliases: []string{"x3130-upstream"}, about: "the upstream port of a PCI Express switch",
		port: true, props: portPropsOf("vectors", "msi", "intx", "vc", "pme"),
		make: func(s slot, o options) (chip, header, error) { return newPort(s, o, &upstreamKind) },
	}
	downstreamModel = model{
		name: "downstream", aliases: []string{"xio3130-downstream"}, about: "a downstream port of a PCI Express switch, with a hot-plug slot",
		port: true, props: maps.Clone(portProps), make: func(s slot, o options) (chip, header, error) { return newPort(s, o, &downstreamKind) },
	}
)

// portProps are what ports can be given.
var portProps = map[string]string{
	"vectors":              "that many MSI-X vectors, 1 to 32: the slot's and PME's message is 0, that of errors 1, of DPC 2, as far as there are",
	"msi":                  "that many MSI vectors instead, 1 to 32, a power of two",
	"intx":                 "on: neither, only INTx (default off)",
	"slot":                 "physical slot number (default: of the device in the machine, from 1)",
	"chassis":              "taken and ignored, as QEMU's machines have it",
	"dpc":                  "on: Downstream Port Containment, on a root port with its extensions (default off)",
	"vc":                   "that many extended virtual channels, 0 to 7: the Virtual Channel capability (default: none)",
	"pme":                  "on: PME can be enabled, and devices below can signal it (default off)",
	"bw":                   "on: link bandwidth notification, at speeds of up to 16 GT/s (default off)",
	"button":               "off: the slot has no attention button (default on)",
	"power":                "off: no power controller (default on)",
	"attn":                 "off: no attention indicator (default on)",
	"led":                  "off: no power indicator (default on)",
	"mrl":                  "on: a sensor for the latch (default off)",
	"surprise":             "off: a card may not be pulled out unannounced (default on)",
	"hotplug":              "off: no hot-plug (default on)",
	"interlock":            "off: no electromechanical interlock (default on)",
	"no-command-completed": "on: commands complete silently (default off)",
	"cmd":                  "how long a command to the slot takes to complete (default 0s)",
	"auto_eject":           "off: a card stays when its slot is off (default on, as QEMU's)",
	"reset_link":           "on: a reset of the secondary bus shows as the link going down and up, which software masks (default off, as QEMU's)",
}

func portPropsOf(names ...string) map[string]string {
	m := map[string]string{}
	for _, n := range names {
		m[n] = portProps[n]
	}
	return m
}

// portKind is what differs between the models of ports.
type portKind struct {
	kind     pci.ExpType
	id       pci.FunctionID
	pin      bool
	msix     bool // by default MSI-X, else MSI
	msi      int  // its vectors
	express  int  // where capabilities stand
	irq      int
	ssvid    int
	aerV     uint32
	acs      bool
	devCap   uint32
	lnkCap   uint32
	interMsi bool // MSI as an ioh3420 has it: 32 bits, with masks
}

var (
	rootPortKind = portKind{
		kind: pci.ExpRootPort, id: pci.FunctionID{Vendor: 0x1b36, Device: 0x000c, SubVendor: 0x1b36, Class: classBridge},
		pin: true, msix: true, express: 0x54, irq: 0x48, ssvid: 0x40, aerV: 2, acs: true, devCap: 0x8000, lnkCap: 0x00300604,
	}
	ioh3420Kind = portKind{
		kind: pci.ExpRootPort, id: pci.FunctionID{Vendor: vendorIntel, Device: 0x3420, SubVendor: vendorIntel, Class: classBridge, Revision: 2},
		pin: true, msi: 2, interMsi: true, express: 0x90, irq: 0x60, ssvid: 0x40, aerV: 2, devCap: 0x8000, lnkCap: 0x0411,
	}
	upstreamKind = portKind{
		kind: pci.ExpUpstream, id: pci.FunctionID{Vendor: vendorTI, Device: 0x8232, Class: classBridge, Revision: 2},
		msi: 1, express: 0x90, irq: 0x70, ssvid: 0x80, aerV: 2, devCap: 0x10008000, lnkCap: 0x0411,
	}
	downstreamKind = portKind{
		kind: pci.ExpDownstream, id: pci.FunctionID{Vendor: vendorTI, Device: 0x8233, Class: classBridge, Revision: 1},
		msi: 1, express: 0x90, irq: 0x70, ssvid: 0x80, aerV: 2, devCap: 0x10008000, lnkCap: 0x00100411,
	}
)

const (
	classBridge = 0x060400
	vendorTI    = 0x104c
)

// portOptions is what properties say.
type portOptions struct {
	vectors, msi int // one of them, or none: INTx
	slot         uint32
	vc           int // -1: no capability
	dpc, pme, bw bool
	sltCap       uint32
	cmd          time.Duration
	autoEject    bool
	resetLink    bool
}

// onProp reads an on-off property.
func onProp(props map[string]string, name string, def bool) (bool, error) {
	switch v, ok := props[name]; {
	case !ok:
		return def, nil
	case v == "on" || v == "off":
		return v == "on", nil
	default:
		return false, fmt.Errorf("property %s=%s: want on or off", name, v)
	}
}

// intProp reads a property that is a number.
func intProp(props map[string]string, name string, def, low, high int) (int, error) {
	v, ok := props[name]
	if !ok {
		return def, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("property %s=%s: want %d to %d", name, v, low, high)
	}
	return n, nil
}

func portOptionsOf(props map[string]string, index int, k *portKind) (o portOptions, err error) {
	num := func(to *int, name string, def, low, high int) {
		if err == nil {
			*to, err = intProp(props, name, def, low, high)
		}
	}
	on := func(to *bool, name string, def bool) {
		if err == nil {
			*to, err = onProp(props, name, def)
		}
	}
	var slot int
	var intx bool
	num(&o.vectors, "vectors", 0, 1, 32)
	num(&o.msi, "msi", 0, 1, 32)
	on(&intx, "intx", false)
	num(&slot, "slot", index+1, 0, 0x1fff)
	num(&o.vc, "vc", -1, 0, 7)
	on(&o.dpc, "dpc", false)
	on(&o.pme, "pme", false)
	on(&o.bw, "bw", false)
	on(&o.autoEject, "auto_eject", true)
	on(&o.resetLink, "reset_link", false)
	o.slot = uint32(slot)
	for _, f := range []struct {
		name string
		def  bool
		bit  uint32
	}{
		{"button", true, pci.SltCapButton}, {"power", true, pci.SltCapPower}, {"attn", true, pci.SltCapAttnLED}, {"led", true, pci.SltCapPowerLED},
		{"mrl", false, pci.SltCapMRL}, {"surprise", true, pci.SltCapSurprise}, {"hotplug", true, pci.SltCapHotPlug},
		{"interlock", true, pci.SltCapLock}, {"no-command-completed", false, pci.SltCapNoCmd},
	} {
		var x bool
		if on(&x, f.name, f.def); x {
			o.sltCap |= f.bit
		}
	}
	if v, ok := props["cmd"]; ok && err == nil {
		if o.cmd, err = time.ParseDuration(v); err != nil || o.cmd < 0 || o.cmd > time.Hour {
			err = fmt.Errorf("property cmd=%s: want a duration from 0s to 1h0m0s, for example 5ms", v)
		}
	}
	if err != nil {
		return o, err
	}
	return o, o.interrupts(intx, k)
}

// interrupts settles on a kind of interrupt.
func (o *portOptions) interrupts(intx bool, k *portKind) error {
	switch {
	case o.msi&(o.msi-1) != 0:
		return fmt.Errorf("property msi=%d: want a power of two", o.msi)
	case o.msi != 0 && o.vectors != 0:
		return fmt.Errorf("property msi=%d: there is vectors=%d already", o.msi, o.vectors)
	case intx && (o.msi != 0 || o.vectors != 0):
		return fmt.Errorf("property intx=on: there are vectors=%d, msi=%d already", o.vectors, o.msi)
	case intx || o.msi != 0 || o.vectors != 0:
	case k.msix:
		o.vectors = 1
	default:
		o.msi = k.msi
	}
	return nil
}

// Sources of a port's interrupts.
const (
	srcSlot = iota
	srcPME
	srcBandwidth
	srcAER
	srcDPC
	sources
)

// port is the chip of a port: registers in config space, and the slot and link below. Guarded by Machine.mu.
type port struct {
	d    *device // nil until it has one
	kind *portKind
	opt  portOptions
	want [sources]int // message numbers

	dpc, vc, pm int // offsets of capabilities that only ports have; 0: none
	vcSize      int // bytes of the Virtual Channel capability

	up      bool // the link below is: what is behind can be reached
	open    bool // the latch
	faulted bool // power is lost until software switches it off
	flapped bool // somebody holds the link down
	speed   uint16
	width   uint16
	command *timer
	pmes    []uint16 // that wait for the one in Root Status to be cleared
	level   [sources]bool
}

func newPort(s slot, o options, k *portKind) (chip, header, error) {
	opt, err := portOptionsOf(o.props, o.index, k)
	if err != nil {
		return nil, header{}, err
	}
	d, _ := s.(*device)
	p := &port{d: d, kind: k, opt: opt}
	n := max(opt.vectors, opt.msi, 1)
	p.want = [sources]int{srcAER: min(1, n-1), srcDPC: min(2, n-1)}
	h := header{id: k.id, pcie: true, intx: k.pin || opt.vectors+opt.msi == 0, msi: opt.msi, msix: opt.vectors, pba: 0x800, aer: true}
	if opt.vectors > 0 {
		h.regions = []bus.RegionInfo{{Index: 0, Size: 4096}}
		h.widths = map[int]int{}
	}
	h.layout = func(h *header) *space { return p.layout(h) }
	return p, h, nil
}

// hasSlot says whether cards stand below, over a link: not below an upstream port, which is inside a switch.
func (p *port) hasSlot() bool { return p.kind.kind != pci.ExpUpstream }

// read and write: the only region holds the MSI-X table, which is the machine's.
func (p *port) read(int, bus.Off, int) uint64   { return 0 }
func (p *port) write(int, bus.Off, int, uint64) {}

// reset is what conventional reset does: Base 5.0, 6.6.1. Config space was reset before.
func (p *port) reset() {
	p.command.stop()
	p.pmes, p.level, p.faulted = p.pmes[:0], [sources]bool{}, false
	s := p.d.space
	p.numbers()
	if p.hasSlot() {
		ctl := uint16(0)
		have := p.present()
		if p.opt.sltCap&pci.SltCapAttnLED != 0 {
			ctl |= pci.LEDOff << 6
		}
		if p.opt.sltCap&pci.SltCapPowerLED != 0 {
			ctl |= pci.LEDOff << 8
			if have {
				ctl = ctl&^pci.SltCtlPowerLED | pci.LEDOn<<8
			}
		}
		if p.opt.sltCap&pci.SltCapPower != 0 && !have {
			ctl |= pci.SltCtlPowerOff
		}
		s.put16(s.exp+int(pci.ExpSltCtl), ctl)
		p.put(pci.ExpSltSta, pci.SltStaPresent, have)
		p.put(pci.ExpSltSta, pci.SltStaOpen, p.open)
	}
	p.up = p.passes()
	p.train()
	p.put(pci.ExpLnkSta, pci.LnkStaActive, p.up && p.reportsActive())
	p.d.refresh()
	p.interrupts()
}

// put sets or clears bits of a register of the PCI Express capability; get reads one.
func (p *port) put(reg bus.Off, bits uint16, on bool) {
	s, at := p.d.space, p.d.space.exp+int(reg)
	v := s.get16(at) &^ bits
	if on {
		v |= bits
	}
	s.put16(at, v)
}

func (p *port) get(reg bus.Off) uint16 { return p.d.space.get16(p.d.space.exp + int(reg)) }

// numbers writes the message numbers, which depend on how many messages MSI was given (7.5.3.2, 7.8.4.10).
func (p *port) numbers() {
	s := p.d.space
	n := max(p.opt.vectors, 1)
	if s.msi != 0 {
		ctl := s.get16(s.msi + msiCtl)
		n = 1 << min(ctl>>4&7, ctl>>1&7)
	}
	at := s.exp + int(pci.ExpFlags)
	s.put16(at, s.get16(at)&^pci.FlagMessage|uint16(min(p.want[srcSlot], n-1))<<9)
	if p.kind.kind == pci.ExpRootPort {
		at = s.aer + int(pci.AERRootSta)
		s.put32(at, s.get32(at)&^pci.RootStaMessage|uint32(min(p.want[srcAER], n-1))<<pci.RootStaMsgAt)
	}
	if p.dpc != 0 {
		at = p.dpc + int(pci.DPCCap)
		s.put16(at, s.get16(at)&^pci.DPCCapMessage|uint16(min(p.want[srcDPC], n-1)))
	}
}

// interrupts looks at what is enabled and has happened. A message is sent each time that becomes true (6.7.3.4, 6.2.4.1.2);
// a line is high as long as it is.
func (p *port) interrupts() {
	d, s := p.d, p.d.space
	var now [sources]bool
	if p.hasSlot() {
		ctl, sta := p.get(pci.ExpSltCtl), p.get(pci.ExpSltSta)
		now[srcSlot] = ctl&pci.SltCtlHP != 0 && (ctl&sta&0x1f != 0 || ctl&pci.SltCtlLink != 0 && sta&pci.SltStaLink != 0)
		lnk, sta := p.get(pci.ExpLnkCtl), p.get(pci.ExpLnkSta)
		now[srcBandwidth] = lnk&pci.LnkCtlLBMIE != 0 && sta&pci.LnkStaLBMS != 0 || lnk&pci.LnkCtlLABIE != 0 && sta&pci.LnkStaLABS != 0
	}
	if p.kind.kind == pci.ExpRootPort {
		now[srcPME] = p.get(pci.ExpRtCtl)&pci.RtCtlPME != 0 && s.get32(s.exp+int(pci.ExpRtSta))&pci.RtStaPME != 0
		cmd, sta := s.get32(s.aer+int(pci.AERRootCmd)), s.get32(s.aer+int(pci.AERRootSta))
		now[srcAER] = cmd&1 != 0 && sta&pci.RootStaCor != 0 || cmd&2 != 0 && sta&pci.RootStaNonFatal != 0 || cmd&4 != 0 && sta&pci.RootStaFatal != 0
	}
	if p.dpc != 0 {
		now[srcDPC] = s.get16(p.dpc+int(pci.DPCCtl))&pci.DPCCtlIRQ != 0 && s.get16(p.dpc+int(pci.DPCSta))&pci.DPCStaIRQ != 0
	}
	was := p.level
	p.level = now
	for i, x := range now {
		if x && !was[i] {
			p.message(i)
		}
	}
	d.line(now != [sources]bool{} && d.mode() == bus.INTx)
}

// message sends that of a source, by the number that software reads.
func (p *port) message(src int) {
	s := p.d.space
	n := int(p.get(pci.ExpFlags) & pci.FlagMessage >> 9)
	switch src {
	case srcAER:
		n = int(s.get32(s.aer+int(pci.AERRootSta)) >> pci.RootStaMsgAt)
	case srcDPC:
		n = int(s.get16(p.dpc+int(pci.DPCCap)) & pci.DPCCapMessage)
	}
	switch p.d.mode() {
	case bus.MSIX:
		p.d.msix(n)
	case bus.MSI:
		p.d.msi(n)
	}
}
