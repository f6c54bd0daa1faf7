package e1000

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
)

// model is a controller as far as the driver needs one: registers, both rings, interrupt
// causes, on Go memory. Tests reach into it to make it lie or die.
type model struct {
	pcie bool

	mu   sync.Mutex
	reg  [regSpace / 4]uint32
	cfg  [256]byte
	mem  map[bus.IOVA]*bus.Memory
	next bus.IOVA
	irqs []*bus.IRQ
	mode bus.IRQMode
	wire [][]byte

	eeprom [eepromWords]uint16
	phy    [32]uint16

	blank    bool // reset loads no address
	idle     bool // it sends nothing, and says so of nothing
	accesses int  // counted down where positive; at 0 the link dies
	stuck    map[bus.Off]uint32
	onStatus func(word uint64) uint64 // what is written into a receive descriptor

	once sync.Once
	done chan struct{}
	err  error
}

func newModel(device uint16) *model {
	m := &model{pcie: device == device82574, mem: map[bus.IOVA]*bus.Memory{}, next: 0x100000, done: make(chan struct{}), stuck: map[bus.Off]uint32{}}
	binary.LittleEndian.PutUint16(m.cfg[0:], vendorIntel)
	binary.LittleEndian.PutUint16(m.cfg[2:], device)
	m.cfg[0x3d] = 1
	m.eeprom = [eepromWords]uint16{0x5452, 0x1200, 0x7856, eepromWords - 1: (eepromSum - 0x5452 - 0x1200 - 0x7856) & 0xffff}
	m.phy = [32]uint16{phyControl: phyAutoneg, phyAdvertise: phyPause | phyAsym | 0x1e1, phyPartner: 0x1e0}
	m.reset()
	return m
}

func (m *model) reset() {
	m.reg = [regSpace / 4]uint32{}
	m.reg[regSTATUS/4] = uint32(statusFD | statusLU | put(statusSpeed, 2))
	if m.pcie {
		m.reg[regEECD/4] = uint32(eecdAutoRD)
	}
	if !m.blank {
		m.reg[regRAL(0)/4], m.reg[regRAH(0)/4] = 0x12005452, rahAV|0x5634
	}
}

// die makes the link dead. Called with mu held.
func (m *model) die() {
	m.once.Do(func() {
		m.err = fmt.Errorf("model: %w", bus.ErrGone)
		close(m.done)
	})
}

func (m *model) step() bool {
	if m.accesses > 0 {
		if m.accesses--; m.accesses == 0 {
			m.die()
		}
	}
	return m.err == nil
}

func (m *model) Address() string             { return "1000:00:03.0" }
func (m *model) Backend() string             { return "model:e1000" }
func (m *model) Config() bus.Config          { return modelConfig{m} }
func (m *model) Regions() []bus.RegionInfo   { return []bus.RegionInfo{modelRegion{m}.Info()} }
func (m *model) DMA() bus.DMA                { return modelDMA{m} }
func (m *model) Done() <-chan struct{}       { return m.done }
func (m *model) Reset(context.Context) error { return bus.ErrNotSupported }
func (m *model) Close() error                { return nil }
func (m *model) Region(i int) (bus.Region, error) {
	if i != 0 {
		return nil, bus.ErrNotSupported
	}
	return modelRegion{m}, nil
}

func (m *model) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

func (m *model) IRQVectors(mode bus.IRQMode) int {
	switch {
	case mode == bus.INTx:
		return 1
	case mode == bus.MSIX && m.pcie:
		return 5
	}
	return 0
}

func (m *model) EnableIRQs(mode bus.IRQMode, n int) ([]*bus.IRQ, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mode, m.irqs = mode, nil
	for i := range n {
		q, err := bus.NewIRQ(mode, i, nil)
		if err != nil {
			return nil, err
		}
		m.irqs = append(m.irqs, q)
	}
	return m.irqs, nil
}

func (m *model) DisableIRQs() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, q := range m.irqs {
		_ = q.Close()
	}
	m.irqs = nil
	return nil
}

type modelDMA struct{ m *model }

func (d modelDMA) Map([]byte, bus.DMARequest) (*bus.Memory, error) { return nil, bus.ErrNotSupported }

func (d modelDMA) Alloc(r bus.DMARequest) (*bus.Memory, error) {
	m := d.m
	m.mu.Lock()
	defer m.mu.Unlock()
	at := m.next
	m.next += bus.IOVA(r.Size+8191) &^ 4095
	mem := bus.NewMemory(make([]byte, r.Size), at, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.mem, at)
	})
	m.mem[at] = mem
	return mem, nil
}

// at is the memory from an address on; nil if there is none.
func (m *model) at(a bus.IOVA, n int) []byte {
	for base, mem := range m.mem {
		if a >= base && int(a-base)+n <= len(mem.Bytes) {
			return mem.Bytes[a-base:][:n]
		}
	}
	return nil
}

type modelConfig struct{ m *model }

func (c modelConfig) Size() int               { return 256 }
func (c modelConfig) Read8(o bus.Off) uint8   { return c.m.cfg[o] }
func (c modelConfig) Read16(o bus.Off) uint16 { return binary.LittleEndian.Uint16(c.m.cfg[o:]) }
func (c modelConfig) Read32(o bus.Off) uint32 { return binary.LittleEndian.Uint32(c.m.cfg[o:]) }
func (c modelConfig) Write8(bus.Off, uint8)   {}
func (c modelConfig) Write16(o bus.Off, v uint16) {
	binary.LittleEndian.PutUint16(c.m.cfg[o:], v)
}
func (c modelConfig) Write32(bus.Off, uint32) {}

type modelRegion struct{ m *model }

func (r modelRegion) Info() bus.RegionInfo {
	return bus.RegionInfo{Kind: bus.RegionMem, Size: regSpace}
}
func (modelRegion) Read8(bus.Off) uint8     { return 0xff }
func (modelRegion) Read16(bus.Off) uint16   { return 0xffff }
func (modelRegion) Read64(bus.Off) uint64   { return ^uint64(0) }
func (modelRegion) Write8(bus.Off, uint8)   {}
func (modelRegion) Write16(bus.Off, uint16) {}
func (modelRegion) Write64(bus.Off, uint64) {}

func (r modelRegion) Read32(o bus.Off) uint32 {
	m := r.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.step() {
		return allOnes
	}
	if v, ok := m.stuck[o]; ok {
		return v
	}
	v := m.reg[o/4]
	switch {
	case o == regICR:
		if !m.pcie || m.reg[regIMS/4] == 0 {
			m.reg[o/4] = 0
		}
	case o >= regCRCERRS && o <= regTSCTFC:
		m.reg[o/4] = 0
	case o == regSTATUS && m.pcie && ctrl(m.reg[regCTRL/4])&ctrlGIOMDIS == 0:
		v |= uint32(statusGIOMaster)
	}
	return v
}

func (r modelRegion) Write32(o bus.Off, v uint32) {
	m := r.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.step() {
		return
	}
	switch o {
	case regCTRL:
		if ctrl(v)&ctrlRST != 0 {
			m.reset()
			return
		}
	case regICR:
		m.reg[o/4] &^= v
		return
	case regICS:
		m.raise(cause(v))
		return
	case regIMS:
		m.reg[o/4] |= v
		m.raise(0)
		return
	case regIMC:
		m.reg[regIMS/4] &^= v
		return
	case regEERD:
		l := eerd8254x
		if m.pcie {
			l = eerd82574
		}
		v = v&l.addr | l.done | put(l.data, uint32(m.eeprom[get(v, l.addr)%eepromWords]))
	case regMDIC:
		if reg := get(mdic(v), mdicReg); mdic(v)&mdicRead != 0 {
			v = uint32(mdic(v)&^mdicData | mdic(m.phy[reg]))
		} else {
			m.phy[reg] = uint16(v)
		}
		v |= uint32(mdicReady)
	case regTDT(0):
		m.reg[o/4] = v
		m.transmit()
		return
	}
	m.reg[o/4] = v
}

// raise sets causes and fires what is armed. Called with mu held.
func (m *model) raise(c cause) {
	m.reg[regICR/4] |= uint32(c)
	if len(m.irqs) == 0 {
		return
	}
	if m.mode != bus.MSIX {
		if m.reg[regICR/4]&m.reg[regIMS/4] != 0 {
			m.irqs[0].Signal()
		}
		return
	}
	if cause(m.reg[regICR/4])&causesOther != 0 {
		m.reg[regICR/4] |= uint32(causeOTHER)
	}
	for _, x := range []struct {
		c cause
		f ivar
	}{{causeRXQ0, ivarRXQ0}, {causeTXQ0, ivarTXQ0}, {causeOTHER, ivarOTHER}} {
		entry := get(ivar(m.reg[regIVAR/4]), x.f)
		if m.reg[regICR/4]&m.reg[regIMS/4]&uint32(x.c) == 0 || entry&ivarValid == 0 {
			continue
		}
		m.irqs[entry&^ivarValid].Signal()
		auto := m.reg[regEIAC/4] & uint32(x.c)
		m.reg[regICR/4] &^= auto
		m.reg[regIMS/4] &^= auto
	}
}

func (m *model) ring(lo, hi, length bus.Off) []byte {
	a := bus.IOVA(m.reg[lo/4]) | bus.IOVA(m.reg[hi/4])<<32
	return m.at(a, int(m.reg[length/4]))
}

// transmit sends what is in the ring. Called with mu held.
func (m *model) transmit() {
	ring := m.ring(regTDBAL(0), regTDBAH(0), regTDLEN(0))
	if ring == nil || m.idle || tctl(m.reg[regTCTL/4])&tctlEN == 0 {
		return
	}
	for m.reg[regTDH(0)/4] != m.reg[regTDT(0)/4] {
		d := ring[m.reg[regTDH(0)/4]*descSize:][:descSize]
		cmd := txCmd(binary.LittleEndian.Uint64(d[8:]))
		n := int(cmd & txLen)
		if b := m.at(bus.IOVA(binary.LittleEndian.Uint64(d)), n); b != nil {
			f := append([]byte(nil), b...)
			for len(f) < 60 {
				f = append(f, 0)
			}
			m.wire = append(m.wire, f)
			m.reg[regGPTC/4]++
		}
		if cmd&txRS != 0 {
			dma.Store32(d, 12, uint32(txDD>>32))
		}
		m.reg[regTDH(0)/4] = (m.reg[regTDH(0)/4] + 1) % uint32(len(ring)/descSize)
	}
	m.raise(causeTXDW | causeTXQ0)
}

// receive puts a frame into the receive ring; false if there is no room.
func (m *model) receive(f []byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	ring := m.ring(regRDBAL(0), regRDBAH(0), regRDLEN(0))
	if m.err != nil || ring == nil || rctl(m.reg[regRCTL/4])&rctlEN == 0 || m.reg[regRDH(0)/4] == m.reg[regRDT(0)/4] {
		m.reg[regMPC/4]++
		return false
	}
	d := ring[m.reg[regRDH(0)/4]*descSize:][:descSize]
	if b := m.at(bus.IOVA(binary.LittleEndian.Uint64(d)), len(f)); b != nil {
		copy(b, f)
	}
	word := uint64(rxDD|rxEOP) | uint64(len(f))
	if m.onStatus != nil {
		word = m.onStatus(word)
	}
	dma.Store64(d, 8, word)
	m.reg[regRDH(0)/4] = (m.reg[regRDH(0)/4] + 1) % uint32(len(ring)/descSize)
	m.reg[regGPRC/4]++
	m.reg[regGORCL/4] += uint32(len(f) + fcsLen)
	m.raise(causeRXT0 | causeRXQ0)
	return true
}

// probeModel brings a model into service.
func probeModel(tb testing.TB, m *model, options map[string]string) *nic {
	tb.Helper()
	inst, err := Driver.Probe(context.Background(), m, pci.Env{Name: "eth0", Log: slog.New(slog.DiscardHandler), Options: options})
	if err != nil {
		tb.Fatalf("Probe = %v, want an instance", err)
	}
	tb.Cleanup(func() {
		if err := inst.Close(); err != nil {
			tb.Errorf("Close = %v, want nil", err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.mem) != 0 && m.err == nil {
			tb.Errorf("%d pieces of DMA memory left", len(m.mem))
		}
	})
	return inst.(*nic)
}
