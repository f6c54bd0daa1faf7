// Package portmodel is a model of a PCI Express port for tests of the port bus driver and its services: its registers, with what of them
// can be written and what is cleared by ones, its interrupts, and a clock that runs fast. What a port does when a register is
// written is the test's: see [Port.OnWrite]. There is no topology here, and no device below unless a test says so: bus/sim has those.
package portmodel

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Where the capabilities stand.
const (
	PM      bus.Off = 0x40
	Express bus.Off = 0x50
	AER     bus.Off = 0x100
	DPC     bus.Off = 0x150
	VC      bus.Off = 0x200
)

// Spec says what a port has.
type Spec struct {
	Type  pci.ExpType
	Name  string // address; "": 1000:00:04.0
	Slot  bool   // a hot-plug slot
	AER   bool
	DPC   uint16 // Capability register; 0: none
	BW    bool   // notification of link bandwidth
	VC    int    // virtual channels, VC 0 included; 0: no such capability
	NoExp bool   // no PCI Express capability
	// Vectors is how many it has by mode; nil: one MSI-X vector.
	Vectors map[bus.IRQMode]int
	// Messages gives the message numbers of PME and hot-plug, AER, DPC where n vectors are enabled; nil: all 0.
	Messages func(n int) (exp, aer, dpc int)
}

// Port is the model; bus.Device, bus.TimeKeeper. Safe for concurrent use.
type Port struct {
	spec  Spec
	clock *Clock
	done  chan struct{}

	mu       sync.Mutex // guards what follows
	data     [4096]byte
	writable [4096]byte
	w1c      [4096]byte
	hook     func(off bus.Off, width int, v uint32)
	keeper   func(write bool) (lost bool, err error)
	irqs     []*bus.IRQ
	enabled  []int // arguments of EnableIRQs so far
	line     bool  // of INTx
	masked   bool
	err      error
	accesses int
	failAt   int
}

// New makes a port.
func New(s Spec) *Port {
	p := &Port{spec: s, clock: &Clock{start: time.Now()}, done: make(chan struct{})}
	if p.spec.Name == "" {
		p.spec.Name = "1000:00:04.0"
	}
	if s.Vectors == nil {
		p.spec.Vectors = map[bus.IRQMode]int{bus.MSIX: 1}
	}
	p.put32(pci.CfgVendor, 0x000c_1b36)
	p.put32(0x08, 0x060400<<8)
	p.data[pci.CfgHeader] = pci.HeaderBridge
	p.put16(pci.CfgStatus, uint16(pci.StatusCaps))
	p.open16(pci.CfgCommand, 0x547)
	p.open16(pci.CfgBridgeCtl, 0xff)
	if !s.NoExp {
		p.data[pci.CfgCapPtr] = byte(PM)
	}
	p.put16(PM, pci.CapPM|uint16(Express)<<8)
	p.open16(PM+pci.PMCtl, pci.PMCtlState|pci.PMCtlPMEEn)
	p.clear16(PM+pci.PMCtl, pci.PMCtlPMESta)
	p.express()
	p.extended()
	p.messages(1)
	return p
}

// express fills the PCI Express capability.
func (p *Port) express() {
	s := p.spec
	flags := uint16(2) | uint16(s.Type)<<4
	lnkcap := uint32(4) | 4<<4 | pci.LnkCapActive // 16 GT/s x4
	if s.Slot {
		flags |= pci.FlagSlot
		p.put32(Express+pci.ExpSltCap, 0x000a007b)
	}
	if s.BW {
		lnkcap |= pci.LnkCapNotify
	}
	p.put16(Express, pci.CapPCIe)
	p.put16(Express+pci.ExpFlags, flags)
	p.put32(Express+pci.ExpLnkCap, lnkcap)
	p.put32(Express+pci.ExpLnkCap2, 0b1111<<1)
	p.put16(Express+pci.ExpLnkSta, 4|4<<4|pci.LnkStaActive)
	p.put16(Express+pci.ExpLnkCtl2, 4)
	p.open16(Express+pci.ExpDevCtl, 0x7fff)
	p.open16(Express+pci.ExpLnkCtl, 0x0fdf) // Retrain Link reads 0
	p.open16(Express+pci.ExpSltCtl, 0x3fff)
	p.open16(Express+pci.ExpRtCtl, 0x1f)
	p.open16(Express+pci.ExpLnkCtl2, 0xffff)
	p.clear16(Express+pci.ExpDevSta, pci.DevStaErrors)
	p.clear16(Express+pci.ExpLnkSta, pci.LnkStaLBMS|pci.LnkStaLABS)
	p.clear16(Express+pci.ExpSltSta, pci.SltStaEvents)
	p.clear16(Express+pci.ExpRtSta+2, uint16(pci.RtStaPME>>16))
}

// extended fills the extended capabilities.
func (p *Port) extended() {
	s := p.spec
	last := bus.Off(0)
	chain := func(at bus.Off, id uint16) {
		if last != 0 {
			p.put16(last+2, 1|uint16(at)<<4)
		} else if at != 0x100 {
			p.put32(0x100, uint32(at)<<20|1<<16)
		}
		p.put32(at, uint32(id)|1<<16)
		last = at
	}
	if s.AER {
		chain(AER, pci.ExtCapAER)
		for _, r := range []bus.Off{pci.AERUncMask, pci.AERUncSev, pci.AERCorMask, pci.AERRootCmd} {
			p.open32(AER+r, 0xffffffff)
		}
		for _, r := range []bus.Off{pci.AERUncSta, pci.AERCorSta} {
			p.clear32(AER+r, 0xffffffff)
		}
		p.clear32(AER+pci.AERRootSta, 0x7f)
	}
	if s.DPC != 0 {
		chain(DPC, pci.ExtCapDPC)
		p.put16(DPC+pci.DPCCap, s.DPC)
		p.open16(DPC+pci.DPCCtl, 0xff)
		p.clear16(DPC+pci.DPCSta, pci.DPCStaTriggered|pci.DPCStaIRQ)
		p.clear32(DPC+pci.DPCPIOSta, 0xffffffff)
	}
	if s.VC > 0 {
		chain(VC, pci.ExtCapVC)
		p.put32(VC+pci.VCCap1, uint32(s.VC-1))
		p.open16(VC+pci.VCCtl, 0xe)
		for n := range s.VC {
			at := VC + bus.Off(n)*pci.VCStride
			p.open32(at+pci.VCResCtl, 0x870e00ff)
			if n == 0 {
				p.put32(at+pci.VCResCtl, 0x800000ff)
				p.open32(at+pci.VCResCtl, 0x000e00fe)
			}
		}
	}
}

// messages sets the message numbers as they are with n vectors. mu is held, or nobody else is there.
func (p *Port) messages(n int) {
	exp, aer, dpc := 0, 0, 0
	if f := p.spec.Messages; f != nil {
		exp, aer, dpc = f(n)
	}
	p.set16(Express+pci.ExpFlags, pci.FlagMessage, uint16(exp)<<9)
	if p.spec.AER && (p.spec.Type == pci.ExpRootPort || p.spec.Type == pci.ExpCollector) {
		p.set16(AER+pci.AERRootSta+2, 0xf800, uint16(aer)<<11)
	}
	if p.spec.DPC != 0 {
		p.set16(DPC+pci.DPCCap, pci.DPCCapMessage, uint16(dpc))
	}
}

func (p *Port) set16(o bus.Off, mask, v uint16) {
	p.put16(o, binary.LittleEndian.Uint16(p.data[o:])&^mask|v&mask)
}
func (p *Port) put16(o bus.Off, v uint16)   { binary.LittleEndian.PutUint16(p.data[o:], v) }
func (p *Port) put32(o bus.Off, v uint32)   { binary.LittleEndian.PutUint32(p.data[o:], v) }
func (p *Port) open16(o bus.Off, v uint16)  { binary.LittleEndian.PutUint16(p.writable[o:], v) }
func (p *Port) open32(o bus.Off, v uint32)  { binary.LittleEndian.PutUint32(p.writable[o:], v) }
func (p *Port) clear16(o bus.Off, v uint16) { binary.LittleEndian.PutUint16(p.w1c[o:], v) }
func (p *Port) clear32(o bus.Off, v uint32) { binary.LittleEndian.PutUint32(p.w1c[o:], v) }

// Peek reads a register as hardware sees it: no access.
func (p *Port) Peek(o bus.Off, width int) uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.peek(o, width)
}

func (p *Port) peek(o bus.Off, width int) uint32 {
	var b [4]byte
	copy(b[:width], p.data[o:])
	return binary.LittleEndian.Uint32(b[:])
}

// Set changes bits of a 16-bit register as hardware does.
func (p *Port) Set(o bus.Off, clear, set uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set16(o, clear|set, set)
}

// Set32 changes bits of a 32-bit register as hardware does.
func (p *Port) Set32(o bus.Off, clear, set uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.put32(o, p.peek(o, 4)&^clear|set)
}

// Open makes bits of a 32-bit register writable.
func (p *Port) Open(o bus.Off, bits uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open32(o, bits)
}

// OnWrite sets what the port does once a register was written. It may call everything but Config's methods.
func (p *Port) OnWrite(f func(off bus.Off, width int, v uint32)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hook = f
}

// FailAt makes the port die at the nth access from now on.
func (p *Port) FailAt(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failAt = p.accesses + n
}

// Accesses is how many there were.
func (p *Port) Accesses() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accesses
}

// Die ends the port's link.
func (p *Port) Die() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.die()
}

func (p *Port) die() {
	if p.err == nil {
		p.err = fmt.Errorf("%s: %w", p.spec.Name, bus.ErrGone)
		close(p.done)
	}
}

// access counts one. mu is held; false: the port is dead.
func (p *Port) access(o bus.Off, width int) bool {
	p.accesses++
	if p.failAt != 0 && p.accesses >= p.failAt {
		p.die()
	}
	return p.err == nil && int(o)+width <= len(p.data) && int(o)%width == 0
}

func (p *Port) read(o bus.Off, width int) uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.access(o, width) {
		return 0xffffffff
	}
	return p.peek(o, width)
}

func (p *Port) write(o bus.Off, width int, v uint32) {
	p.mu.Lock()
	if !p.access(o, width) {
		p.mu.Unlock()
		return
	}
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], v)
	for i := range width {
		at := int(o) + i
		d := p.data[at]&^p.writable[at] | b[i]&p.writable[at]
		p.data[at] = d &^ (b[i] & p.w1c[at])
	}
	hook := p.hook
	p.mu.Unlock()
	if hook != nil {
		hook(o, width, v)
	}
}

type config struct{ p *Port }

func (c config) Size() int                   { return len(c.p.data) }
func (c config) Read8(o bus.Off) uint8       { return uint8(c.p.read(o, 1)) }
func (c config) Read16(o bus.Off) uint16     { return uint16(c.p.read(o, 2)) }
func (c config) Read32(o bus.Off) uint32     { return c.p.read(o, 4) }
func (c config) Write8(o bus.Off, v uint8)   { c.p.write(o, 1, uint32(v)) }
func (c config) Write16(o bus.Off, v uint16) { c.p.write(o, 2, uint32(v)) }
func (c config) Write32(o bus.Off, v uint32) { c.p.write(o, 4, v) }

// What follows is bus.Device.

func (p *Port) Address() string             { return p.spec.Name }
func (p *Port) Backend() string             { return "model:port" }
func (p *Port) Config() bus.Config          { return config{p} }
func (p *Port) Regions() []bus.RegionInfo   { return nil }
func (p *Port) DMA() bus.DMA                { return nil }
func (p *Port) Clock() bus.Clock            { return p.clock }
func (p *Port) Done() <-chan struct{}       { return p.done }
func (p *Port) Reset(context.Context) error { return bus.ErrNotSupported }
func (p *Port) Region(int) (bus.Region, error) {
	return nil, bus.ErrNotSupported
}

func (p *Port) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func (p *Port) Close() error { return p.DisableIRQs() }

// Clock is a time that runs a thousand times as fast as the wall clock.
type Clock struct{ start time.Time }

const speed = 1000

func (c *Clock) Now() time.Duration { return time.Since(c.start) * speed }

func (c *Clock) AfterFunc(d time.Duration, f func()) func() bool {
	return time.AfterFunc(d/speed, f).Stop
}
