package trace_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/trace"
)

// plain is the simplest device: registers that keep what is written, memory of the Go heap,
// and interrupts that the test fires. Nothing in it takes time, so it also shows what a trace
// costs.
type plain struct {
	regs []byte
	done chan struct{}

	mu   sync.Mutex
	iova bus.IOVA
	irqs []*bus.IRQ
	err  error
}

func newPlain() *plain {
	return &plain{regs: make([]byte, 0x4000), done: make(chan struct{}), iova: 0x10_0000_0000}
}

func (p *plain) Address() string            { return "1000:00:01.0" }
func (p *plain) Backend() string            { return "test:plain" }
func (p *plain) Config() bus.Config         { return p }
func (p *plain) Regions() []bus.RegionInfo  { return []bus.RegionInfo{p.Info()} }
func (p *plain) Info() bus.RegionInfo       { return bus.RegionInfo{Size: uint64(len(p.regs))} }
func (p *plain) Size() int                  { return 256 }
func (p *plain) DMA() bus.DMA               { return p }
func (p *plain) IRQVectors(bus.IRQMode) int { return 4 }
func (p *plain) Done() <-chan struct{}      { return p.done }
func (p *plain) Reset(context.Context) error {
	return fmt.Errorf("%s: the model has no reset: %w", p.Address(), bus.ErrNotSupported)
}

func (p *plain) Region(i int) (bus.Region, error) {
	if i != 0 {
		return nil, fmt.Errorf("%s: no region %d: %w", p.Address(), i, bus.ErrNotSupported)
	}
	return p, nil
}

func (p *plain) Read8(o bus.Off) uint8       { return p.regs[o] }
func (p *plain) Read16(o bus.Off) uint16     { return binary.LittleEndian.Uint16(p.regs[o:]) }
func (p *plain) Read32(o bus.Off) uint32     { return binary.LittleEndian.Uint32(p.regs[o:]) }
func (p *plain) Read64(o bus.Off) uint64     { return binary.LittleEndian.Uint64(p.regs[o:]) }
func (p *plain) Write8(o bus.Off, v uint8)   { p.regs[o] = v }
func (p *plain) Write16(o bus.Off, v uint16) { binary.LittleEndian.PutUint16(p.regs[o:], v) }
func (p *plain) Write32(o bus.Off, v uint32) { binary.LittleEndian.PutUint32(p.regs[o:], v) }
func (p *plain) Write64(o bus.Off, v uint64) { binary.LittleEndian.PutUint64(p.regs[o:], v) }

func (p *plain) Alloc(r bus.DMARequest) (*bus.Memory, error) {
	if r.Size <= 0 {
		return nil, fmt.Errorf("%s: %d bytes of DMA memory, want more: %w", p.Address(), r.Size, bus.ErrNotSupported)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m := bus.NewMemory(make([]byte, r.Size), p.iova, func() {})
	p.iova += bus.IOVA(r.Size+4095) &^ 4095
	return m, nil
}

func (p *plain) Map(b []byte, _ bus.DMARequest) (*bus.Memory, error) {
	return bus.NewMemory(b, 0x1000, func() {}), nil
}

func (p *plain) EnableIRQs(mode bus.IRQMode, n int) ([]*bus.IRQ, error) {
	if err := p.DisableIRQs(); err != nil {
		return nil, err
	}
	for i := range n {
		q, err := bus.NewIRQ(mode, i, nil)
		if err != nil {
			return nil, err
		}
		p.irqs = append(p.irqs, q)
	}
	return p.irqs, nil
}

func (p *plain) DisableIRQs() error {
	for _, q := range p.irqs {
		q.Close()
	}
	p.irqs = nil
	return nil
}

func (p *plain) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// end makes the link die, or closes the device.
func (p *plain) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = fmt.Errorf("%s: %w", p.Address(), err)
		close(p.done)
	}
}

func (p *plain) Close() error {
	p.end(bus.ErrClosed)
	return p.DisableIRQs()
}

// Registers of plain, with two rings of 16-byte descriptors.
const (
	regCTRL bus.Off = 0x0000
	regWIDE bus.Off = 0x0008
	regMTA  bus.Off = 0x0100
	regTDB  bus.Off = 0x3800 // of ring i at 0x100*i more, as those below
	regTDBH bus.Off = 0x3804
	regTDL  bus.Off = 0x3808
	regTDT  bus.Off = 0x3818
)

var plainRegisters = []bus.Register{
	{Off: regCTRL, Name: "CTRL", Bits: func(v uint64) string {
		if v == 0xbad {
			panic("a renderer that is wrong")
		}
		return fmt.Sprintf("BITS(%d)", v)
	}},
	{Off: regWIDE, Name: "WIDE", Width: 8},
	{Off: regMTA, Name: "MTA", Count: 8},
	{Off: regTDB, Name: "TDB", Count: 2, Stride: 0x100},
	{Off: regTDT, Name: "TDT", Count: 2, Stride: 0x100, Ring: &bus.RingInfo{Low: regTDB, High: regTDBH, Len: regTDL, Size: 16,
		Desc: func(d []byte) string { return fmt.Sprintf("addr=%d", binary.LittleEndian.Uint64(d)) }}},
}

// open wraps a plain device, and closes it with the test.
func open(t testing.TB, o trace.Options) (*trace.Device, *plain, bus.Region) {
	t.Helper()
	p := newPlain()
	if o.Name == "" {
		o.Name = "dev0"
	}
	if o.Registers == nil {
		o.Registers = plainRegisters
	}
	d := trace.Wrap(p, o)
	t.Cleanup(func() { d.Close() })
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	return d, p, r
}
