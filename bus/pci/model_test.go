package pci

import (
	"encoding/binary"

	"github.com/ring3dev/ring3/bus"
)

// space is a model of a config space: bytes, and which bits of them can be written. It
// counts accesses that a Config forbids.
type space struct {
	data, writable [4096]byte
	size           int
	misuse         int
	dead           bool
}

func newSpace(size int) *space { return &space{size: size} }

func (s *space) Size() int { return s.size }

func (s *space) read(o bus.Off, n int) uint32 {
	if s.dead || int(o)+n > s.size || int(o)%n != 0 {
		if !s.dead {
			s.misuse++
		}
		return 0xffffffff
	}
	var b [4]byte
	copy(b[:n], s.data[o:])
	return binary.LittleEndian.Uint32(b[:])
}

func (s *space) write(o bus.Off, n int, v uint32) {
	if s.dead || int(o)+n > s.size || int(o)%n != 0 {
		if !s.dead {
			s.misuse++
		}
		return
	}
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], v)
	for i := range n {
		at := int(o) + i
		s.data[at] = s.data[at]&^s.writable[at] | b[i]&s.writable[at]
	}
}

func (s *space) Read8(o bus.Off) uint8       { return uint8(s.read(o, 1)) }
func (s *space) Read16(o bus.Off) uint16     { return uint16(s.read(o, 2)) }
func (s *space) Read32(o bus.Off) uint32     { return s.read(o, 4) }
func (s *space) Write8(o bus.Off, v uint8)   { s.write(o, 1, uint32(v)) }
func (s *space) Write16(o bus.Off, v uint16) { s.write(o, 2, uint32(v)) }
func (s *space) Write32(o bus.Off, v uint32) { s.write(o, 4, v) }

func (s *space) set16(o bus.Off, v uint16) { binary.LittleEndian.PutUint16(s.data[o:], v) }
func (s *space) set32(o bus.Off, v uint32) { binary.LittleEndian.PutUint32(s.data[o:], v) }
func (s *space) open32(o bus.Off, v uint32) {
	binary.LittleEndian.PutUint32(s.writable[o:], v)
}

// fn is a model of a function; a bridge has a bus behind it.
type fn struct {
	*space
	behind modelBus
}

// modelBus is what stands on a bus, by devfn.
type modelBus map[uint8]*fn

// device makes a function with an ID and a writable Command.
func device(vendor, dev uint16) *fn {
	f := &fn{space: newSpace(4096)}
	f.set16(CfgVendor, vendor)
	f.set16(CfgDevice, dev)
	f.open32(CfgCommand, 0x547)
	return f
}

// bar adds a BAR: low are its type bits. It needs two where they say 64-bit.
func (f *fn) bar(i int, size uint64, low uint32) *fn {
	at := CfgBAR0 + bus.Off(4*i)
	f.set32(at, low)
	f.open32(at, uint32(-size))
	if low&barIO == 0 && low&barType == bar64 {
		f.open32(at+4, uint32(-size>>32))
	}
	return f
}

func (f *fn) rom(at bus.Off, size uint32) *fn {
	f.open32(at, -size|romEnable)
	return f
}

// cap adds capabilities in a list.
func (f *fn) cap(at bus.Off, id, next uint8, body ...byte) *fn {
	f.data[at], f.data[at+1] = id, next
	copy(f.data[at+2:], body)
	if f.data[CfgCapPtr] == 0 {
		f.data[CfgCapPtr] = uint8(at)
		f.set16(CfgStatus, uint16(StatusCaps))
	}
	return f
}

// bridge makes a PCI-to-PCI bridge with I/O, memory and 64-bit prefetchable windows.
func bridge(behind modelBus) *fn {
	f := device(0x1b36, 0x000c)
	f.behind = behind
	f.data[CfgHeader] = HeaderBridge
	f.open32(cfgPrimary, 0x00ffffff)
	f.open32(cfgIOBase, 0xf0f0)
	f.set16(cfgIOBase, 0x0101)
	f.open32(cfgIOBaseHi, 0xffffffff)
	f.open32(cfgMemBase, 0xfff0fff0)
	f.open32(cfgPrefBase, 0xfff0fff0)
	f.set32(cfgPrefBase, 0x00010001)
	f.open32(cfgPrefBaseHi, 0xffffffff)
	f.open32(cfgPrefLimitHi, 0xffffffff)
	return f
}

// rootPort makes a bridge a PCI Express root port, hot-plug capable if hot.
func (f *fn) rootPort(hot bool) *fn {
	f.cap(0x40, CapPCIe, 0, 0x42, 0x01)
	if hot {
		f.set32(0x40+ExpSltCap, SltCapHotPlug)
	}
	return f
}

func (b modelBus) Config(a Addr) bus.Config {
	if f := b.route(0, a); f != nil {
		return f.space
	}
	return &space{size: 4096, dead: true}
}

// route finds a function as hardware does: a bridge passes on what its numbers cover.
func (b modelBus) route(self uint8, a Addr) *fn {
	if a.Bus == self {
		return b[a.Devfn()]
	}
	for _, f := range b {
		sec, sub := f.data[cfgSecondary], f.data[cfgSubordinate]
		if f.data[CfgHeader]&^headerMulti == HeaderBridge && sec > self && sec <= a.Bus && a.Bus <= sub {
			return f.behind.route(sec, a)
		}
	}
	return nil
}
