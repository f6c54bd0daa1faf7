package aerinject

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

const aerAt bus.Off = 0x148 // where the models have Advanced Error Reporting

const message = 2 // a root port's message number

// model is a function with Advanced Error Reporting: status registers that are cleared by writing ones, masks that can be
// written, the rest read-only. What a model does not have (the embedded nil) no test asks for.
type model struct {
	bus.Device
	addr pci.Addr

	mu   sync.Mutex
	regs [4096]byte
	err  error
	irqs []*bus.IRQ
}

func newModel(a pci.Addr, root bool) *model {
	m := &model{addr: a}
	m.set(0x100, 0x0001_0003|uint32(aerAt)<<20)
	m.set(aerAt, 0x0002_0001)
	m.set(aerAt+pci.AERUncSev, 0x0046_2030)
	if root {
		m.set(pci.CfgCommand, uint32(pci.StatusCaps)<<16)
		m.set(pci.CfgCapPtr, 0x40)
		m.set(0x40, pci.CapPCIe|(2|uint32(pci.ExpRootPort)<<4)<<16)
		m.set(aerAt+pci.AERRootSta, message<<pci.RootStaMsgAt)
		m.set(aerAt+pci.AERRootCmd, pci.RootCmdAll)
	}
	return m
}

func (m *model) Address() string    { return m.addr.String() }
func (m *model) Config() bus.Config { return m }
func (m *model) Size() int          { return len(m.regs) }
func (m *model) DisableIRQs() error { return nil }
func (m *model) SaveState() func() error {
	return func() error { return fmt.Errorf("restoring %s", m.addr) }
}
func (m *model) set(o bus.Off, v uint32)     { binary.LittleEndian.PutUint32(m.regs[o:], v) }
func (m *model) get(o bus.Off) uint32        { return binary.LittleEndian.Uint32(m.regs[o:]) }
func (m *model) Read8(o bus.Off) uint8       { return uint8(m.read(o, 1)) }
func (m *model) Read16(o bus.Off) uint16     { return uint16(m.read(o, 2)) }
func (m *model) Read32(o bus.Off) uint32     { return m.read(o, 4) }
func (m *model) Write8(o bus.Off, v uint8)   { m.write(o, 1, uint32(v)) }
func (m *model) Write16(o bus.Off, v uint16) { m.write(o, 2, uint32(v)) }
func (m *model) Write32(o bus.Off, v uint32) { m.write(o, 4, v) }

func (m *model) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

func (m *model) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = fmt.Errorf("%s: %w", m.addr, bus.ErrGone)
}

func (m *model) read(o bus.Off, n bus.Off) uint32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil || o%n != 0 || o+n > 4096 {
		return 0xffffffff
	}
	return m.get(o&^3) >> (8 * (o & 3)) & (1<<(8*n) - 1)
}

func (m *model) write(o bus.Off, n bus.Off, v uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil || o%n != 0 || o+n > 4096 {
		return
	}
	mask := uint32(1<<(8*n)-1) << (8 * (o & 3))
	v = v << (8 * (o & 3)) & mask
	switch at := o &^ 3; at - aerAt {
	case pci.AERUncSta, pci.AERCorSta:
		m.set(at, m.get(at)&^v)
	case pci.AERRootSta:
		m.set(at, m.get(at)&^(v&0x7f))
	case pci.AERUncMask, pci.AERCorMask, pci.AERUncSev, pci.AERRootCmd:
		m.set(at, m.get(at)&^mask|v)
	}
}

func (m *model) EnableIRQs(mode bus.IRQMode, n int) ([]*bus.IRQ, error) {
	m.irqs = nil
	for i := range n {
		q, err := bus.NewIRQ(mode, i, nil)
		if err != nil {
			return nil, err
		}
		m.irqs = append(m.irqs, q)
	}
	return m.irqs, nil
}

func (m *model) Close() error {
	for _, q := range m.irqs {
		q.Close()
	}
	return nil
}

// rig is a root port and a function below it.
type rig struct {
	t         testing.TB
	in        *Injector
	log       bytes.Buffer
	root, fn  *Device
	hw, below *model
}

var (
	rootAddr = pci.Addr{Domain: 0x1000, Dev: 4}
	fnAddr   = pci.Addr{Domain: 0x1000, Bus: 1, Dev: 2, Fn: 1}
)

const requester = 1<<8 | 2<<3 | 1 // of fnAddr

func newRig(t testing.TB) *rig {
	g := &rig{t: t, hw: newModel(rootAddr, true), below: newModel(fnAddr, false)}
	g.root, g.fn = Wrap(g.hw), Wrap(g.below)
	g.in = NewInjector(Options{
		Label: func(a pci.Addr) string { return "drv " + a.String() },
		Log: slog.New(slog.NewTextHandler(&g.log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}})),
	})
	g.in.Add(rootAddr, g.root, rootAddr)
	g.in.Add(fnAddr, g.fn, rootAddr)
	t.Cleanup(func() {
		if err := g.root.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func (g *rig) enable(mode bus.IRQMode, n int) []*bus.IRQ {
	g.t.Helper()
	qs, err := g.root.EnableIRQs(mode, n)
	if err != nil {
		g.t.Fatal(err)
	}
	return qs
}

func (g *rig) inject(a pci.Addr, e pci.AERError) {
	g.t.Helper()
	if err := g.in.Inject(Record{Domain: a.Domain, Bus: a.Bus, Dev: a.Dev, Fn: a.Fn, Error: e}); err != nil {
		g.t.Errorf("Inject(%s, %x) = %v", a, e, err)
	}
}

// want compares registers of the capability.
func (g *rig) want(d *Device, what string, regs map[bus.Off]uint32) {
	g.t.Helper()
	for o, want := range regs {
		if got := d.Config().Read32(aerAt + o); got != want {
			g.t.Errorf("%s: register %#x of %s = %#x, want %#x", what, uint64(o), d.Address(), got, want)
		}
	}
}

// logged are the messages so far.
func (g *rig) logged() string {
	s := g.log.String()
	g.log.Reset()
	return strings.ReplaceAll(s, "\n", ";")
}
