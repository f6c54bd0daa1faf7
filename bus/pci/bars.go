package pci

import (
	"math/bits"

	"github.com/ring3dev/ring3/bus"
)

// size finds the BARs of a function, n of them at most, and its ROM (PCI Local Bus 3.0,
// 6.2.5.1): all ones are written, what stays 0 is the size. Decoding is off meanwhile, and
// stays off.
func (f *Function) size(n int, rom bus.Off) {
	c := f.Config
	SetCommand(c, 0, CmdIO|CmdMem|CmdMaster)
	for i := 0; i < n; i++ {
		at := CfgBAR0 + bus.Off(4*i)
		lo := f.probeBAR(at)
		if lo == 0 {
			continue
		}
		if lo == 0xffffffff && c.Read16(CfgVendor) == 0xffff {
			f.fail("sizing BAR %d: %w", i, bus.ErrGone)
			return
		}
		r := bus.RegionInfo{Index: i}
		mask := uint64(lo & barMemMask)
		switch {
		case lo&barIO != 0:
			r.Kind = bus.RegionIO
			mask = uint64(lo & barIOMask)
			if mask>>16 == 0 {
				mask |= 0xffff0000 // the upper half may read 0
			}
			mask |= 0xffffffff << 32
		case lo&barType == bar64:
			if i++; i >= n {
				f.fail("sizing BAR %d: 64-bit, and there is no BAR %d for its upper half: %w", i-1, i, bus.ErrProtocol)
				continue
			}
			r.Is64 = true
			r.Prefetch = lo&barPrefetch != 0
			mask |= uint64(f.probeBAR(at+4)) << 32
		case lo&barType == bar32:
			r.Prefetch = lo&barPrefetch != 0
			mask |= 0xffffffff << 32
		default:
			f.fail("sizing BAR %d: reads %#08x, type %d is reserved: %w", i, lo, lo&barType>>1, bus.ErrProtocol)
			continue
		}
		r.Size = 1 << bits.TrailingZeros64(mask) // 0 for mask 0: 1<<64
		if r.Size == 0 || mask != -r.Size {
			f.fail("sizing BAR %d: size mask %#x, want ones and then zeros: %w", r.Index, mask, bus.ErrProtocol)
			continue
		}
		f.BARs = append(f.BARs, r)
	}
	f.roms = rom
	c.Write32(rom, romMask)
	mask := c.Read32(rom) & romMask
	c.Write32(rom, 0)
	if mask != 0 && mask == -(mask&-mask) {
		f.ROM = bus.RegionInfo{Index: 6, Size: uint64(mask & -mask)}
	}
}

// probeBAR writes all ones, reads back, and leaves 0.
func (f *Function) probeBAR(at bus.Off) uint32 {
	f.Config.Write32(at, 0xffffffff)
	v := f.Config.Read32(at)
	f.Config.Write32(at, 0)
	return v
}

// program writes where the BARs were placed, and enables decoding.
func (f *Function) program() {
	c := f.Config
	var on Command
	whole := CmdIO | CmdMem // kinds of which every BAR has a place
	for _, r := range f.BARs {
		kind := CmdMem
		if r.Kind == bus.RegionIO {
			kind = CmdIO
		}
		on |= kind
		if r.Addr == 0 {
			whole &^= kind
			continue
		}
		at := CfgBAR0 + bus.Off(4*r.Index)
		c.Write32(at, uint32(r.Addr))
		got := uint64(c.Read32(at))
		mask := uint64(barMemMask)
		if r.Kind == bus.RegionIO {
			mask = uint64(barIOMask)
		}
		if r.Is64 {
			c.Write32(at+4, uint32(r.Addr>>32))
			got |= uint64(c.Read32(at+4)) << 32
			mask |= 0xffffffff << 32
		}
		if got&mask != r.Addr {
			f.fail("placing BAR %d: reads %#x, want %#x: %w", r.Index, got&mask, r.Addr, bus.ErrProtocol)
			whole &^= kind
		}
	}
	if f.ROM.Addr != 0 {
		c.Write32(f.roms, uint32(f.ROM.Addr)) // without romEnable
	}
	if f.IsBridge() {
		// Whatever the bridge's own BARs are, what is behind it must be reached.
		f.openWindows(f.Windows)
		on |= CmdIO | CmdMem | CmdMaster
		whole = CmdIO | CmdMem | CmdMaster
	}
	SetCommand(c, on&whole, 0)
}
