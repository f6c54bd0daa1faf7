package sim

import (
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// all is a function with everything.
var all = header{
	id:   pci.FunctionID{Vendor: 0x1234, Device: 0x5678, SubVendor: 0x9abc, SubDevice: 0xdef0, Class: 0x020001, Revision: 7},
	pcie: true, flr: true, intx: true, msi: 4, msix: 70, msixBAR: 4,
	regions: []bus.RegionInfo{
		{Index: 0, Size: 1 << 20}, {Index: 1, Kind: bus.RegionIO, Size: 32},
		{Index: 2, Size: 1 << 33, Is64: true, Prefetch: true}, {Index: 4, Size: 16 << 10},
	},
}

// memConfig is a space without a machine around it.
type memConfig struct{ s *space }

func (c memConfig) Size() int { return len(c.s.b) }
func (c memConfig) get(o bus.Off, w int) uint32 {
	if !c.s.inside(o, w) {
		return ^uint32(0)
	}
	return c.s.read(o, w)
}
func (c memConfig) put(o bus.Off, w int, v uint32) {
	if c.s.inside(o, w) {
		c.s.write(o, w, v)
	}
}
func (c memConfig) Read8(o bus.Off) uint8       { return uint8(c.get(o, 1)) }
func (c memConfig) Read16(o bus.Off) uint16     { return uint16(c.get(o, 2)) }
func (c memConfig) Read32(o bus.Off) uint32     { return c.get(o, 4) }
func (c memConfig) Write8(o bus.Off, v uint8)   { c.put(o, 1, uint32(v)) }
func (c memConfig) Write16(o bus.Off, v uint16) { c.put(o, 2, uint32(v)) }
func (c memConfig) Write32(o bus.Off, v uint32) { c.put(o, 4, v) }

func TestSpace(t *testing.T) {
	c := memConfig{newSpace(&all)}
	if got := pci.ReadID(c); got != all.id {
		t.Errorf("ReadID = %+v, want %+v", got, all.id)
	}
	if c.Size() != 4096 || c.Read32(0x100) != 0 {
		t.Errorf("size %d, extended capability %#x, want 4096, 0", c.Size(), c.Read32(0x100))
	}
	for _, id := range []uint8{pci.CapPM, pci.CapMSI, pci.CapPCIe, pci.CapMSIX} {
		if _, ok := pci.FindCap(c, id); !ok {
			t.Errorf("no capability %#x", id)
		}
	}
	if m, err := pci.OpenMSI(c); err != nil || m.Vectors() != 4 || !m.Is64() || m.CanMask() {
		t.Errorf("OpenMSI = %+v, %v, want 4 vectors, 64-bit, no masks", m, err)
	}
	// Sizing: what all-ones leaves.
	for _, w := range []struct {
		off  bus.Off
		want uint32
	}{{0x10, 0xfff00000}, {0x14, 0xffffffe1}, {0x18, 0x0000000c}, {0x1c, 0xfffffffe}, {0x20, 0xffffc000}, {0x24, 0}, {0x30, 0}} {
		c.Write32(w.off, 0xffffffff)
		if got := c.Read32(w.off); got != w.want {
			t.Errorf("BAR at %#x after all-ones = %#08x, want %#08x", w.off, got, w.want)
		}
	}
}

// What is read-only stays: every bit of config space is written, alone and with all others.
func TestSpaceReadOnly(t *testing.T) {
	fixed := newSpace(&all)
	for _, v := range []byte{0xff, 0x00, 0xa5} {
		s := newSpace(&all)
		for off := range bus.Off(len(s.b)) {
			s.write(off, 1, uint32(v))
		}
		for i := range s.b {
			if (s.b[i]^fixed.first[i])&^s.rw[i] != 0 {
				t.Errorf("byte %#x = %#02x after a write of %#02x, want %#02x in %#02x", i, s.b[i], v, fixed.first[i], ^s.rw[i])
			}
		}
		s.reset()
		for i := range s.b {
			if s.b[i] != fixed.first[i] {
				t.Errorf("byte %#x = %#02x after reset, want %#02x", i, s.b[i], fixed.first[i])
			}
		}
	}
}

func TestSpaceBits(t *testing.T) {
	s := newSpace(&all)
	// Command.
	s.write(pci.CfgCommand, 2, 0xffff)
	want := pci.CmdIO | pci.CmdMem | pci.CmdMaster | pci.CmdSERR | pci.CmdINTxDisable
	if got := s.command(); got != want {
		t.Errorf("Command after all-ones = %s, want %s", got, want)
	}
	// MSI: as many vectors as there are.
	for v, want := range map[uint32]uint16{0x71: 0x21, 0x10: 0x10, 0x31: 0x21} {
		s.write(bus.Off(s.msi+msiCtl), 2, v)
		if got := s.get16(s.msi+msiCtl) & 0x71; got != want {
			t.Errorf("MSI control after %#x = %#x, want %#x", v, got, want)
		}
	}
	// Status: errors are cleared by writing ones.
	s.b[7] = 0xf9
	s.write(6, 2, 0x2000)
	if s.b[7] != 0xd9 {
		t.Errorf("Status, high = %#x after clearing bit 13 of 0xf9, want 0xd9", s.b[7])
	}
	// Power states: those that there are not are not taken.
	for v, want := range map[uint32]byte{1: 0, 2: 0, 3: 3} {
		s.write(bus.Off(s.pm+pmCtl), 2, 0)
		s.write(bus.Off(s.pm+pmCtl), 2, v)
		if got := s.b[s.pm+pmCtl] & pmState; got != want {
			t.Errorf("power state after writing %d = %d, want %d", v, got, want)
		}
	}
	// A function without FLR ignores the bit, which always reads 0.
	for _, flr := range []bool{false, true} {
		h := all
		h.flr = flr
		s := newSpace(&h)
		if got := s.write(bus.Off(s.exp+expDevCtl), 2, expInitFLR); got != flr {
			t.Errorf("FLR asked for = %v, want %v", got, flr)
		}
		if got := s.get16(s.exp + expDevCtl); got&expInitFLR != 0 {
			t.Errorf("Device Control = %#x, want FLR to read 0", got)
		}
	}
	// Conventional: no capability but what the header asks for.
	if s := newSpace(&header{}); len(s.b) != 256 || s.b[6] != 0 || s.b[pci.CfgIRQPin] != 0 {
		t.Errorf("an empty header: %d bytes, Status %#x, pin %d, want 256, 0, 0", len(s.b), s.b[6], s.b[pci.CfgIRQPin])
	}
}

// Regions answer where decoding is on, the BAR is where it was placed, and the function awake.
func TestDecode(t *testing.T) {
	m := started(t, Config{Devices: []DeviceSpec{{Name: "n", Model: "null"}}, Clock: Stepped})
	d := m.devices[0]
	c := d.Config()
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	up := r.Read32(nullSTATUS)
	check := func(what string, want uint32) {
		t.Helper()
		if got := r.Read32(nullSTATUS); got != want {
			t.Errorf("%s: STATUS = %#x, want %#x", what, got, want)
		}
	}
	pci.SetCommand(c, 0, pci.CmdMem)
	check("decoding off", ^uint32(0))
	r.Write32(nullRAL, 7)
	pci.SetCommand(c, pci.CmdMem, 0)
	check("decoding on", up)
	if got := r.Read32(nullRAL); got == 7 {
		t.Error("a write arrived though decoding was off")
	}
	bar := c.Read32(pci.CfgBAR0)
	c.Write32(pci.CfgBAR0, bar+0x100000)
	check("BAR moved", ^uint32(0))
	c.Write32(pci.CfgBAR0, bar)
	pm, _ := pci.FindCap(c, pci.CapPM)
	c.Write16(pm+pmCtl, 3)
	check("in D3", ^uint32(0))
	c.Write16(pm+pmCtl, 0)
	check("in D0", up)
	if got := r.Read16(0); got != 0xffff {
		t.Errorf("Read16 of a chip with 32-bit registers = %#x, want all-ones", got)
	}
	// Function reset: config space as at power-on, by a driver's hand.
	exp, _ := pci.FindCap(c, pci.CapPCIe)
	c.Write16(exp+expDevCtl, expInitFLR)
	if got := c.Read32(pci.CfgBAR0); got != 0 {
		t.Errorf("BAR 0 after FLR = %#x, want 0", got)
	}
	check("after FLR", ^uint32(0))
}
