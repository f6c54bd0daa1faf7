package pci

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/ring3dev/ring3/bus"
)

// Access reaches the config space of any function of one domain: a backend that owns a
// whole bus implements it (by ECAM or by ports 0xcf8 and 0xcfc). Where there is no
// function, reads give all-ones.
type Access interface {
	Config(a Addr) bus.Config
}

// Range is a range of bus addresses.
type Range struct{ Base, Size uint64 }

// contains says whether the n bytes at base lie inside.
func (r Range) contains(base, n uint64) bool {
	return base >= r.Base && base-r.Base <= r.Size && n <= r.Size-(base-r.Base)
}

// Windows are the addresses that a bus may give to what stands on it. A Size of 0 means
// that there are none of that kind. Mem lies below 4 GiB. Mem64 is for 64-bit
// prefetchable memory: above 4 GiB on the root bus, and behind a bridge whatever its
// prefetchable window forwards.
type Windows struct{ IO, Mem, Mem64 Range }

// Function is one function that Enumerate found.
type Function struct {
	Addr   Addr
	ID     FunctionID
	Header uint8      // HeaderDevice or HeaderBridge, or what the device says
	Config bus.Config // its config space
	Parent *Function  // the bridge it stands behind; nil on the root bus

	BARs []bus.RegionInfo // that exist, in index order; Addr 0 where there was no room
	ROM  bus.RegionInfo   // expansion ROM: Index 6, Size 0 if there is none; never enabled

	// Of a bridge: the bus behind it, the highest bus number behind it, and the
	// addresses it forwards.
	Secondary, Subordinate uint8
	Windows                Windows

	of          *Function // see WithConfig; nil: it is no other's view
	speed       uint32    // see BusSpeed
	MaxBusSpeed uint32    // as Link Capabilities had it when the port was found; 0: nobody looked

	// AER counts the errors that the function reported; nil where it has no Advanced Error Reporting.
	AER *AERStats

	// Err is what is wrong with this function, nil as a rule: it joins one error for each
	// thing that lies, or for which there was no room. The other functions are not
	// affected.
	Err error

	roms   bus.Off // offset of the ROM's BAR
	hot    bool    // a hot-plug port, with room for later
	io     bool    // of a bridge: forwards I/O
	pref   bool    // of a bridge: has a prefetchable window
	pref64 bool    // of a bridge: and it reaches above 4 GiB
}

// BusSpeed is the speed of the link behind a port when it was last seen to come up, as in Link Status; 0: nobody looked. Safe for
// concurrent use.
func (f *Function) BusSpeed() uint32 { return atomic.LoadUint32(&f.origin().speed) }

// SetBusSpeed is for who serves the port, and sees the link come up.
func (f *Function) SetBusSpeed(v uint32) { atomic.StoreUint32(&f.origin().speed, v) }

// WithConfig is the function as it is now, with another view of its config space. What is noted of one is noted of both: BusSpeed, AER.
func (f *Function) WithConfig(c bus.Config) *Function {
	return &Function{
		Addr: f.Addr, ID: f.ID, Header: f.Header, Config: c, Parent: f.Parent, BARs: f.BARs, ROM: f.ROM,
		Secondary: f.Secondary, Subordinate: f.Subordinate, Windows: f.Windows, MaxBusSpeed: f.MaxBusSpeed, AER: f.AER, Err: f.Err, of: f.origin(),
	}
}

func (f *Function) origin() *Function {
	if f.of != nil {
		return f.of
	}
	return f
}

// IsBridge says whether there is a bus behind the function.
func (f *Function) IsBridge() bool { return f.Header == HeaderBridge && f.Secondary != 0 }

func (f *Function) fail(format string, args ...any) {
	f.Err = errors.Join(f.Err, fmt.Errorf("%s: "+format, append([]any{f.Addr}, args...)...))
}

// Topology is what Enumerate found.
type Topology struct {
	Domain    uint32
	Functions []*Function // in the order of the scan: a bridge stands before what is behind it

	acc     Access  // nil: a snapshot
	windows Windows // of the root bus
	reserve Reserve
}

// Find is the function at that address, or nil.
func (t *Topology) Find(a Addr) *Function {
	for _, f := range t.Functions {
		if f.Addr == a {
			return f
		}
	}
	return nil
}

// Limits of a scan, so that one ends whatever the devices answer.
const (
	maxBus       = 255
	maxFunctions = 4096 // in one domain: a full bus 0 of bridges, and then some
)

// Reserve is what Enumerate keeps free behind each hot-plug port, for what is plugged in later. A field that is 0 is as in
// DefaultReserve. Sizes are rounded up to what a bridge can forward, and halved, down to nothing, where there is not so much
// for all ports.
type Reserve struct {
	IO, Mem, Pref uint64 // bytes of I/O, memory and prefetchable memory
	Buses         int    // bus numbers, the one of the bus behind the port included
}

// DefaultReserve is what a port keeps unless somebody says otherwise. 2 MiB is what the kernel keeps.
var DefaultReserve = Reserve{IO: ioGran, Mem: 2 << 20, Pref: 2 << 20, Buses: 8}

// filled takes the default where nothing is said, and whole windows.
func (r Reserve) filled() Reserve {
	d := DefaultReserve
	size := func(v, instead, gran uint64) uint64 {
		if v == 0 {
			return instead
		}
		if v > 1<<62 {
			return 1 << 62 // more than anybody has; halving begins there
		}
		v, _ = alignUp(v, gran)
		return v
	}
	r.IO, r.Mem, r.Pref = size(r.IO, d.IO, ioGran), size(r.Mem, d.Mem, memGran), size(r.Pref, d.Pref, memGran)
	if r.Buses <= 0 {
		r.Buses = d.Buses
	}
	return r
}

// Enumerate finds all functions of a domain, from bus 0 on, as firmware does at boot:
//
//   - Bridges get bus numbers depth first; a hot-plug port keeps some for later.
//   - BARs are sized with decoding off, and placed naturally aligned, the largest
//     first. What does not fit is left at 0, with an error in Function.Err, starting
//     with the largest: a device that lies about its size harms only itself.
//   - Bridges get I/O, memory and prefetchable windows; a hot-plug port gets some room.
//   - Memory and I/O decoding are enabled where all BARs of the kind are placed. Bus
//     mastering is off, except on bridges, where it only lets others' DMA through:
//     it is a driver's act.
//   - Expansion ROMs are placed, where there is room, and stay disabled.
//
// Errors are recorded in each function; Enumerate itself fails only where the windows make
// no sense, or where bus 0 is empty. It is not safe for use with anything else that
// changes the same config spaces.
func Enumerate(acc Access, domain uint32, w Windows) (*Topology, error) {
	return EnumerateReserving(acc, domain, w, Reserve{})
}

// EnumerateReserving is Enumerate, with what hot-plug ports keep for later.
func EnumerateReserving(acc Access, domain uint32, w Windows, keep Reserve) (*Topology, error) {
	for _, r := range []struct {
		what string
		Range
		max uint64
	}{{"I/O", w.IO, 1 << 16}, {"memory", w.Mem, 1 << 32}, {"64-bit memory", w.Mem64, 1 << 63}} {
		if r.Size != 0 && (r.Base == 0 || r.Base >= r.max || r.Size > r.max-r.Base) {
			return nil, fmt.Errorf("enumerating domain %04x: %s window at %#x of %#x bytes: want one above 0 and below %#x", domain, r.what, r.Base, r.Size, r.max)
		}
	}
	t := &Topology{Domain: domain, acc: acc, windows: w, reserve: keep.filled()}
	t.scan(0, nil)
	if len(t.Functions) == 0 {
		return nil, fmt.Errorf("enumerating domain %04x: no function on bus 0: %w", domain, bus.ErrGone)
	}
	t.place(nil, t.Functions)
	for _, f := range t.Functions {
		f.program()
	}
	return t, nil
}

// scan finds what stands on one bus and, depth first, behind it. What is known already is looked behind, and else left
// alone.
func (t *Topology) scan(b uint8, parent *Function) {
	devs := uint8(32)
	if parent != nil && pciePort(parent.Config) {
		devs = 1 // a link has one device (PCI Express Base 3.0, 7.3.1)
	}
	for dev := range devs {
		multi := true
		for fn := uint8(0); fn < 8 && multi; fn++ {
			a := Addr{Domain: t.Domain, Bus: b, Dev: dev, Fn: fn}
			f := t.Find(a)
			known := f != nil
			if !known {
				f = t.probe(a, parent)
			}
			if f == nil {
				multi = fn != 0 // without function 0 there are none
				continue
			}
			if fn == 0 {
				multi = f.Config.Read8(CfgHeader)&headerMulti != 0
			}
			switch {
			case known && f.Parent == parent && f.IsBridge():
				t.scan(f.Secondary, f)
			case !known && f.Header == HeaderBridge:
				t.number(f)
			}
		}
	}
}

// probe reads the header of one function; nil if there is none.
func (t *Topology) probe(a Addr, parent *Function) *Function {
	if len(t.Functions) >= maxFunctions {
		return nil
	}
	c := t.acc.Config(a)
	// Some broken boards answer with these for an empty slot; the kernel knows them too.
	switch v := c.Read32(CfgVendor); v {
	case 0xffffffff, 0x00000000, 0x0000ffff, 0xffff0000:
		return nil
	}
	f := &Function{Addr: a, ID: ReadID(c), Config: c, Parent: parent, Header: c.Read8(CfgHeader) &^ headerMulti}
	t.Functions = append(t.Functions, f)
	if _, ok := FindExtCap(c, ExtCapAER); ok {
		f.AER = &AERStats{}
	}
	switch f.Header {
	case HeaderDevice:
		f.size(6, CfgROM)
	case HeaderBridge:
		f.ID.SubVendor, f.ID.SubDevice = bridgeSubsystem(c)
		f.size(2, cfgBridgeROM)
	default:
		f.ID.SubVendor, f.ID.SubDevice = 0, 0
		f.fail("reading the header: type %d, want 0 or 1: %w", f.Header, bus.ErrProtocol)
	}
	return f
}

// bridgeSubsystem reads the capability that names a bridge's subsystem (PCI-to-PCI Bridge
// 1.2, 3.2.5.13): where a device has it stand the prefetchable limit's upper bits.
func bridgeSubsystem(c bus.Config) (vendor, device uint16) {
	at, ok := FindCap(c, CapSSVID)
	if !ok || at+8 > 0x100 {
		return 0, 0
	}
	return c.Read16(at + 4), c.Read16(at + 6)
}

// number gives a bridge its bus numbers and scans what is behind it.
func (t *Topology) number(f *Function) {
	c := f.Config
	setBuses := func(sec, sub uint8) {
		// The upper byte is the secondary latency timer: 0 in PCI Express.
		c.Write32(cfgPrimary, uint32(f.Addr.Bus)|uint32(sec)<<8|uint32(sub)<<16)
	}
	sec, limit := t.freeBuses(f.Parent)
	if sec > limit {
		setBuses(0, 0)
		f.fail("numbering the bus behind the bridge: none left below %d: %w", limit+1, bus.ErrBusy)
		return
	}
	f.hot = hotPlugPort(c)
	if e, ok := FindExpress(c); ok && e.HasLink() {
		f.MaxBusSpeed = c.Read32(e.At+ExpLnkCap) & uint32(LnkStaSpeed)
	}
	setBuses(uint8(sec), uint8(limit))
	if got := c.Read32(cfgPrimary) & 0xffffff; got != uint32(f.Addr.Bus)|uint32(sec)<<8|uint32(limit)<<16 {
		setBuses(0, 0)
		f.fail("numbering the bus behind the bridge: bus numbers read %#06x, want secondary %#02x, subordinate %#02x: %w", got, sec, limit, bus.ErrProtocol)
		return
	}
	f.Secondary, f.Subordinate = uint8(sec), uint8(limit)
	f.bridgeWindows()
	t.scan(f.Secondary, f)
	top := sec
	for _, g := range t.Functions {
		if g.Parent == f && g.IsBridge() {
			top = max(top, int(g.Subordinate))
		}
	}
	// Room for later, as long as three quarters of the numbers are not in use.
	first := 1
	if f.Parent != nil {
		first = int(f.Parent.Secondary) + 1
	}
	if keep := sec + t.reserve.Buses - 1; f.hot && keep <= limit-(limit-first+1)/4 {
		top = max(top, keep)
	}
	f.Subordinate = uint8(top)
	setBuses(f.Secondary, f.Subordinate)
}

// bridgeWindows finds out which windows a bridge has, and closes all.
func (f *Function) bridgeWindows() {
	c := f.Config
	c.Write16(cfgIOBase, 0xf0f0)
	f.io = c.Read16(cfgIOBase)&0xf0f0 != 0
	c.Write32(cfgPrefBase, 0xfff0fff0)
	v := c.Read32(cfgPrefBase)
	f.pref = v&0xfff0fff0 != 0
	f.pref64 = f.pref && v&0xf == 1
	f.openWindows(Windows{})
}

// openWindows writes a bridge's windows; those of Size 0 are closed, which is a base above
// the limit.
func (f *Function) openWindows(w Windows) {
	c := f.Config
	f.Windows = w
	if f.io {
		base, limit := uint32(0xf000), uint32(0x0fff)
		if w.IO.Size != 0 {
			base, limit = uint32(w.IO.Base), uint32(w.IO.Base+w.IO.Size-1)
		}
		c.Write16(cfgIOBase, uint16(base>>8&0xf0|limit&0xf000))
		c.Write32(cfgIOBaseHi, base>>16|limit&0xffff0000)
	}
	mem := func(r Range) (base, limit uint64) {
		if r.Size == 0 {
			return 0xfff00000, 0x000fffff
		}
		return r.Base, r.Base + r.Size - 1
	}
	base, limit := mem(w.Mem)
	c.Write32(cfgMemBase, uint32(base>>16&0xfff0|limit&0xfff00000))
	if f.pref {
		base, limit = mem(w.Mem64)
		c.Write32(cfgPrefBase, uint32(base>>16&0xfff0|limit&0xfff00000))
		if f.pref64 {
			c.Write32(cfgPrefBaseHi, uint32(base>>32))
			c.Write32(cfgPrefLimitHi, uint32(limit>>32))
		}
	}
}

// pciePort says whether one link, so one device, is behind a bridge.
func pciePort(c bus.Config) bool {
	e, ok := FindExpress(c)
	return ok && e.HasLink()
}

// hotPlugPort says whether devices may be plugged in behind a bridge later.
func hotPlugPort(c bus.Config) bool {
	e, ok := FindExpress(c)
	return ok && e.Slot && e.HasLink() && c.Read32(e.At+ExpSltCap)&SltCapHotPlug != 0
}
