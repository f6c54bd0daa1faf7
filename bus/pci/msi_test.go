package pci

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

// regionModel is memory that counts accesses outside.
type regionModel struct {
	mem    []byte
	kind   bus.RegionKind
	misuse int
}

func newRegionModel(size int) *regionModel { return &regionModel{mem: make([]byte, size)} }

func (r *regionModel) Info() bus.RegionInfo {
	return bus.RegionInfo{Kind: r.kind, Size: uint64(len(r.mem))}
}

func (r *regionModel) at(o bus.Off, n int) []byte {
	if o%bus.Off(n) != 0 || o > bus.Off(len(r.mem)-n) {
		r.misuse++
		return make([]byte, n)
	}
	return r.mem[o:]
}
func (r *regionModel) Read8(o bus.Off) uint8       { return r.at(o, 1)[0] }
func (r *regionModel) Read16(o bus.Off) uint16     { return binary.LittleEndian.Uint16(r.at(o, 2)) }
func (r *regionModel) Read32(o bus.Off) uint32     { return binary.LittleEndian.Uint32(r.at(o, 4)) }
func (r *regionModel) Read64(o bus.Off) uint64     { return binary.LittleEndian.Uint64(r.at(o, 8)) }
func (r *regionModel) Write8(o bus.Off, v uint8)   { r.at(o, 1)[0] = v }
func (r *regionModel) Write16(o bus.Off, v uint16) { binary.LittleEndian.PutUint16(r.at(o, 2), v) }
func (r *regionModel) Write32(o bus.Off, v uint32) { binary.LittleEndian.PutUint32(r.at(o, 4), v) }
func (r *regionModel) Write64(o bus.Off, v uint64) { binary.LittleEndian.PutUint64(r.at(o, 8), v) }

// msiDevice has an MSI capability at 0x50 with that control word.
func msiDevice(ctrl uint16) *fn {
	f := device(1, 1).cap(0x50, CapMSI, 0, byte(ctrl), byte(ctrl>>8))
	f.writable[0x52] = 0x71 // enable and multiple message enable
	for i := 0x54; i < 0x64; i++ {
		f.writable[i] = 0xff
	}
	return f
}

func TestMSI(t *testing.T) {
	for _, tt := range []struct {
		ctrl    uint16
		vectors int
		dataAt  bus.Off
		is64    bool
	}{
		{0x0000, 1, 0x58, false},
		{0x0080, 1, 0x5c, true},
		{0x018a, 32, 0x5c, true},
		{0x0104, 4, 0x58, false},
	} {
		f := msiDevice(tt.ctrl)
		m, err := OpenMSI(f)
		if err != nil {
			t.Fatal(err)
		}
		if m.Vectors() != tt.vectors || m.Is64() != tt.is64 || m.CanMask() != (tt.ctrl&0x100 != 0) {
			t.Errorf("control %#x: %d vectors, 64-bit %t, mask %t", tt.ctrl, m.Vectors(), m.Is64(), m.CanMask())
		}
		log2 := int(tt.ctrl >> 1 & 7)
		if err := m.Set(0xfee01004, 0x4140, log2); err != nil {
			t.Fatal(err)
		}
		if a, d := f.Read32(0x54), f.Read16(tt.dataAt); a != 0xfee01004 || d != 0x4140 {
			t.Errorf("control %#x: address %#x, data %#x at %#x", tt.ctrl, a, d, tt.dataAt)
		}
		if got := int(f.Read16(0x52) >> 4 & 7); got != log2 {
			t.Errorf("control %#x: multiple message enable = %d, want %d", tt.ctrl, got, log2)
		}
		m.Enable()
		if f.Read16(0x52)&1 == 0 {
			t.Error("Enable did not")
		}
		m.Disable()
		if f.Read16(0x52)&1 != 0 {
			t.Error("Disable did not")
		}
		err = m.Set(1<<32|0xfee00000, 0, 0)
		if tt.is64 && (err != nil || f.Read32(0x58) != 1) || !tt.is64 && !errors.Is(err, bus.ErrNotSupported) {
			t.Errorf("control %#x: Set above 4 GiB = %v, upper address %#x", tt.ctrl, err, f.Read32(0x58))
		}
		for _, err := range []error{m.Set(0, 0, log2+1), m.Set(0, 0, -1), m.Set(2, 0, 0)} {
			if !errors.Is(err, bus.ErrNotSupported) {
				t.Errorf("control %#x: a wrong Set = %v, want ErrNotSupported", tt.ctrl, err)
			}
		}
		if log2 > 0 && m.Set(0, 1, log2) == nil {
			t.Error("Set with data that its vectors change = nil, want an error")
		}
		maskAt := tt.dataAt + 4
		if m.CanMask() {
			if err := errors.Join(m.Mask(0), m.Mask(tt.vectors-1), m.Unmask(0)); err != nil {
				t.Error(err)
			}
			if got := f.Read32(maskAt); got != 1<<(tt.vectors-1) {
				t.Errorf("mask = %#x, want the last vector's bit", got)
			}
		} else if !errors.Is(m.Mask(0), bus.ErrNotSupported) {
			t.Error("Mask without masking, want ErrNotSupported")
		}
		if !errors.Is(m.Mask(tt.vectors), bus.ErrNotSupported) || !errors.Is(m.Mask(-1), bus.ErrNotSupported) {
			t.Error("Mask of no vector, want ErrNotSupported")
		}
	}
	if _, err := OpenMSI(device(1, 1)); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("OpenMSI without = %v, want ErrNotSupported", err)
	}
	for _, f := range []*fn{msiDevice(0x000c), device(1, 1).cap(0xf8, CapMSI, 0, 0x80, 0)} {
		if _, err := OpenMSI(f); !errors.Is(err, bus.ErrProtocol) {
			t.Errorf("OpenMSI of nonsense = %v, want ErrProtocol", err)
		}
	}
}

// TestRestore: who only looks says what is lost and changes nothing, who writes brings it back, and what does not stay is an error.
func TestRestore(t *testing.T) {
	f, g, r := msiDevice(0x018a), msixDevice(5, 0x1000|3, 0x2000|3), newRegionModel(0x4000)
	m, err := OpenMSI(f)
	if err != nil {
		t.Fatal(err)
	}
	x, err := OpenMSIX(g, func(int) (bus.Region, error) { return r, nil })
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name        string
		restore     func(write bool) (bool, error)
		lose, stuck func()
		state       func() string
	}{
		{"MSI", func(write bool) (bool, error) { return m.Restore(0xfee01004, 0x4140, 2, write) },
			func() { f.set32(0x54, 0) }, func() { f.writable[0x52] = 0; f.set16(0x52, 0x0180) }, func() string { return fmt.Sprintf("% x", f.data[0x50:0x60]) }},
		{"MSI-X", func(write bool) (bool, error) {
			return x.Restore(2, 0xfee01004, func(i int) uint32 { return uint32(0x41 + i) }, write)
		}, func() { r.Write32(0x1018, 0) }, func() { g.writable[0x73] = 0; g.set16(0x72, 4) }, func() string { return fmt.Sprintf("% x % x", g.data[0x70:0x7c], r.mem[0x1000:0x1020]) }},
	} {
		if lost, err := c.restore(true); !lost || err != nil {
			t.Errorf("%s: Restore of what was never set = %t, %v, want that it was lost", c.name, lost, err)
		}
		for _, write := range []bool{false, true} {
			before := c.state()
			if lost, err := c.restore(write); lost || err != nil || c.state() != before {
				t.Errorf("%s: Restore(write: %t) where all is well = %t, %v, %s, want nothing done: %s", c.name, write, lost, err, c.state(), before)
			}
		}
		well := c.state()
		c.lose()
		before := c.state()
		if lost, err := c.restore(false); !lost || err != nil || c.state() != before {
			t.Errorf("%s: a look = %t, %v, %s, want that it is lost, and nothing written: %s", c.name, lost, err, c.state(), before)
		}
		if lost, err := c.restore(true); !lost || err != nil || c.state() != well {
			t.Errorf("%s: Restore = %t, %v, %s, want it as it was: %s", c.name, lost, err, c.state(), well)
		}
		c.stuck()
		if lost, err := c.restore(false); !lost || err != nil {
			t.Errorf("%s: a look at what is stuck = %t, %v, want that it is lost", c.name, lost, err)
		}
		if _, err := c.restore(true); !errors.Is(err, bus.ErrProtocol) {
			t.Errorf("%s: Restore of what is stuck = %v, want ErrProtocol", c.name, err)
		}
	}
}

// msixDevice has an MSI-X capability at 0x70.
func msixDevice(size uint16, table, pba uint32) *fn {
	f := device(1, 1).cap(0x70, CapMSIX, 0)
	f.set16(0x72, size-1)
	f.writable[0x73] = 0xc0
	f.set32(0x74, table)
	f.set32(0x78, pba)
	return f
}

func TestMSIX(t *testing.T) {
	r := newRegionModel(0x4000)
	region := func(i int) (bus.Region, error) {
		if i != 3 {
			t.Errorf("region %d asked for, want 3", i)
		}
		return r, nil
	}
	f := msixDevice(5, 0x1000|3, 0x2000|3)
	m, err := OpenMSIX(f, region)
	if err != nil || m.Vectors() != 5 {
		t.Fatalf("OpenMSIX = %v, want 5 vectors", err)
	}
	r.Write32(0x104c, 0xabcd0001) // vector control has bits that are not ours
	if err := errors.Join(m.Set(4, 0x1234fee00000, 0xcafe), m.Unmask(4)); err != nil {
		t.Fatal(err)
	}
	if r.Read32(0x1040) != 0xfee00000 || r.Read32(0x1044) != 0x1234 || r.Read32(0x1048) != 0xcafe || r.Read32(0x104c) != 0xabcd0000 {
		t.Errorf("entry 4 = % x", r.mem[0x1040:0x1050])
	}
	if err := m.Mask(4); err != nil || r.Read32(0x104c) != 0xabcd0001 {
		t.Errorf("vector control after Mask = %#x, %v", r.Read32(0x104c), err)
	}
	m.Enable()
	if got := f.Read16(0x72); got != 0x8004 {
		t.Errorf("control after Enable = %#x, want 0x8004", got)
	}
	m.Disable()
	if got := f.Read16(0x72); got != 0x0004 {
		t.Errorf("control after Disable = %#x, want 0x0004", got)
	}
	r.Write32(0x2000, 1<<3)
	if !m.Pending(3) || m.Pending(2) || m.Pending(99) || m.Pending(-1) {
		t.Error("Pending, want it for vector 3 alone")
	}
	for _, i := range []int{-1, 5, 1 << 30} {
		for _, err := range []error{m.Set(i, 0, 0), m.Mask(i), m.Unmask(i)} {
			if !errors.Is(err, bus.ErrNotSupported) {
				t.Errorf("vector %d of 5 = %v, want ErrNotSupported", i, err)
			}
		}
	}
	if !errors.Is(m.Set(0, 2, 0), bus.ErrNotSupported) {
		t.Error("Set of an address that is not aligned, want ErrNotSupported")
	}
	if i, off, size := m.Table(); i != 0 || off != 0x1000 || size != 80 {
		t.Errorf("Table = %d, %#x, %d, want 0, 0x1000, 80", i, off, size)
	}
	if r.misuse != 0 {
		t.Errorf("%d accesses outside", r.misuse)
	}
}

func TestMSIXChecks(t *testing.T) {
	r := newRegionModel(0x4000)
	io := newRegionModel(0x4000)
	io.kind = bus.RegionIO
	for name, tt := range map[string]struct {
		f    *fn
		r    *regionModel
		err  error
		want error
	}{
		"none":          {device(1, 1), r, nil, bus.ErrNotSupported},
		"table outside": {msixDevice(5, 0x3fb8|3, 0), r, nil, bus.ErrProtocol},
		"table far out": {msixDevice(2048, 0xfffffff8|3, 0), r, nil, bus.ErrProtocol},
		"pba outside":   {msixDevice(5, 3, 0x4000|3), r, nil, bus.ErrProtocol},
		"bar 6":         {msixDevice(5, 6, 0), r, nil, bus.ErrProtocol},
		"in I/O space":  {msixDevice(5, 3, 0x2003), io, nil, bus.ErrProtocol},
		"no region":     {msixDevice(5, 3, 0x2003), r, bus.ErrGone, bus.ErrGone},
		"cut off":       {device(1, 1).cap(0xf8, CapMSIX, 0), r, nil, bus.ErrProtocol},
	} {
		m, err := OpenMSIX(tt.f, func(int) (bus.Region, error) { return tt.r, tt.err })
		if m != nil || !errors.Is(err, tt.want) {
			t.Errorf("%s: OpenMSIX = %v, %v, want %v", name, m, err, tt.want)
		}
	}
	// The last entry may end where the region ends.
	if _, err := OpenMSIX(msixDevice(4, 0x3fc0|3, 3), func(int) (bus.Region, error) { return r, nil }); err != nil {
		t.Errorf("OpenMSIX with the table at the end = %v", err)
	}
}
