package portbus

import (
	"fmt"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Control registers that services share, and whose bits are whose. A service changes its own with Device.Modify.
var owned = []struct {
	service Service
	reg     bus.Off // in the Express capability
	bits    uint16
}{
	{AER, pci.ExpDevCtl, pci.DevCtlErrors},
	{AER, pci.ExpRtCtl, pci.RtCtlSysErr},
	{PME, pci.ExpRtCtl, pci.RtCtlPME},
	{HP, pci.ExpSltCtl, 0xffff},
	{HP, pci.ExpLnkCtl, pci.LnkCtlDisable},
	{BW, pci.ExpLnkCtl, pci.LnkCtlLBMIE | pci.LnkCtlLABIE | pci.LnkCtlRetrain},
	{BW, pci.ExpLnkCtl2, 0xf}, // Target Link Speed
}

// span is a range of config space.
type span struct {
	from, to bus.Off
	write    bool
}

// view is a service's own view of its port's config space; bus.Config.
type view struct {
	cfg   bus.Config
	spans []span
}

// secondaryBus is the number of the bus behind the port, which is the address of its slot.
var secondaryBus = span{pci.CfgSecondary, pci.CfgSecondary + 1, false}

// newView says what of config space a service reads, and what of that it writes as it likes. Status registers are written to
// clear bits, which needs no lock: ones are written where a bit is to be cleared, and nothing else is.
func newView(p *Port, s Service) *view {
	exp := func(from, to bus.Off, write bool) span { return span{p.exp.At + from, p.exp.At + to, write} }
	v := &view{cfg: p.cfg, spans: []span{{0, pci.CfgHeader + 1, false}, exp(0, pci.ExpDevCap, false)}}
	switch s {
	case PME:
		v.spans = append(v.spans, exp(pci.ExpRtCtl, pci.ExpRtSta, false), exp(pci.ExpRtSta, pci.ExpRtSta+4, true))
	case AER:
		v.spans = append(v.spans, exp(pci.ExpDevCap, pci.ExpDevSta, false), exp(pci.ExpDevSta, pci.ExpDevSta+2, true),
			exp(pci.ExpRtCtl, pci.ExpRtCap, false), extended(p, p.caps.aer, aerSize(p.exp)))
	case HP:
		v.spans = append(v.spans, secondaryBus, exp(pci.ExpLnkCap, pci.ExpSltSta, false), exp(pci.ExpSltSta, pci.ExpSltSta+2, true), exp(pci.ExpLnkSta, pci.ExpLnkSta+2, false))
		if p.exp.Version >= 2 {
			v.spans = append(v.spans, exp(pci.ExpSltCap2, pci.ExpSltCap2+4, false))
		}
	case DPC:
		v.spans = append(v.spans, exp(pci.ExpLnkCap, pci.ExpSltCtl, false), extended(p, p.caps.dpc, dpcSize))
	case BW:
		v.spans = append(v.spans, exp(pci.ExpLnkCap, pci.ExpLnkSta, false), exp(pci.ExpLnkSta, pci.ExpLnkSta+2, true))
		if p.exp.Version >= 2 {
			v.spans = append(v.spans, exp(pci.ExpLnkCap2, pci.ExpLnkSta2+2, false))
		}
	case VC: // its tables may stand anywhere behind it
		v.spans = append(v.spans, extended(p, p.caps.vc, bus.Off(p.cfg.Size())))
	}
	return v
}

// Sizes of the extended capabilities.
const (
	dpcSize  = 0x44 // with the RP PIO registers and logs
	dpcLeast = pci.DPCSource + 2
)

func aerSize(e pci.Express) bus.Off {
	if e.HasRoot() {
		return pci.AERErrSrc + 4
	}
	return pci.AERHeader + 16
}

// next is where the next extended capability begins, or where config space ends. A capability ends there at the latest: a service must not reach what
// stands behind its own.
func next(c bus.Config, at bus.Off) bus.Off {
	end := bus.Off(c.Size())
	for _, other := range pci.ExtCaps(c) {
		if other > at {
			end = min(end, other)
		}
	}
	return end
}

// extended is an extended capability of that size, as far as there is room for it.
func extended(p *Port, at, size bus.Off) span {
	return span{at, min(at+size, next(p.cfg, at)), true}
}

func (v *view) may(off bus.Off, width bus.Off, write bool) bool {
	for _, s := range v.spans {
		if off >= s.from && off+width <= s.to {
			return s.write || !write
		}
	}
	return false
}

func (v *view) Size() int { return v.cfg.Size() }

func (v *view) Read8(o bus.Off) uint8 {
	if !v.may(o, 1, false) {
		return 0xff
	}
	return v.cfg.Read8(o)
}

func (v *view) Read16(o bus.Off) uint16 {
	if !v.may(o, 2, false) {
		return 0xffff
	}
	return v.cfg.Read16(o)
}

func (v *view) Read32(o bus.Off) uint32 {
	if !v.may(o, 4, false) {
		return 0xffffffff
	}
	return v.cfg.Read32(o)
}

func (v *view) Write8(o bus.Off, x uint8) {
	if v.may(o, 1, true) {
		v.cfg.Write8(o, x)
	}
}

func (v *view) Write16(o bus.Off, x uint16) {
	if v.may(o, 2, true) {
		v.cfg.Write16(o, x)
	}
}

func (v *view) Write32(o bus.Off, x uint32) {
	if v.may(o, 4, true) {
		v.cfg.Write32(o, x)
	}
}

// Modify clears and then sets bits of a control register that services share, given by its offset in the Express capability
// (pci.ExpSltCtl), in one locked read-modify-write, and returns what was there before. It writes even where nothing changes if always is
// set, since to some registers a write is a command. Bits that are not the service's give an error, and change nothing; so does a
// port that does not answer (bus.ErrGone).
func (d *Device) Modify(reg bus.Off, clear, set uint16, always bool) (old uint16, err error) {
	mine := uint16(0)
	for _, o := range owned {
		if o.service == d.service && o.reg == reg {
			mine |= o.bits
		}
	}
	if (clear|set)&^mine != 0 {
		return 0, fmt.Errorf("%s: changing bits %#x of register %#x, of which it has %#x: %w", d.name, clear|set, uint(reg), mine, bus.ErrNotSupported)
	}
	p := d.port
	p.regs.Lock()
	defer p.regs.Unlock()
	at := p.exp.At + reg
	old = p.cfg.Read16(at)
	if old == 0xffff {
		if err := p.dev.Err(); err != nil {
			return old, err
		}
		return old, fmt.Errorf("%s: register %#x reads all-ones: %w", d.name, uint(reg), bus.ErrGone)
	}
	if v := old&^clear | set; v != old || always {
		p.cfg.Write16(at, v)
	}
	return old, nil
}
