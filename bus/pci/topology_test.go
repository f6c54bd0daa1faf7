package pci

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

var testWindows = Windows{
	IO:    Range{0xc000, 0x3000},
	Mem:   Range{0xc0000000, 0x3ec00000},
	Mem64: Range{1 << 32, 1 << 36},
}

func enumerate(t *testing.T, m modelBus, w Windows) *Topology {
	t.Helper()
	top, err := Enumerate(m, 0x1000, w)
	if err != nil {
		t.Fatal(err)
	}
	checkPlaced(t, top, w)
	return top
}

// checkPlaced holds a topology to the rules that no garbage may break: aligned, inside
// the windows of every bridge above, no two overlap.
func checkPlaced(t *testing.T, top *Topology, w Windows) {
	t.Helper()
	type used struct {
		who  string
		r    Range
		kind bus.RegionKind
	}
	var all []used
	for _, f := range top.Functions {
		up := w
		if f.Parent != nil {
			up = f.Parent.Windows
		}
		check := func(who string, r Range, kind bus.RegionKind, prefetch bool, align uint64) {
			if r.Base%align != 0 {
				t.Errorf("%s at %#x, want a multiple of %#x", who, r.Base, align)
			}
			in := kind == bus.RegionIO && up.IO.contains(r.Base, r.Size) ||
				kind == bus.RegionMem && up.Mem.contains(r.Base, r.Size) ||
				kind == bus.RegionMem && (prefetch || f.Parent == nil) && up.Mem64.contains(r.Base, r.Size)
			if !in {
				t.Errorf("%s at %#x+%#x lies outside %+v", who, r.Base, r.Size, up)
			}
		}
		for _, b := range append(append([]bus.RegionInfo(nil), f.BARs...), f.ROM) {
			if b.Addr == 0 || b.Size == 0 {
				continue
			}
			who := fmt.Sprintf("%s BAR %d", f.Addr, b.Index)
			check(who, Range{b.Addr, b.Size}, b.Kind, b.Prefetch, b.Size)
			if !b.Is64 && b.Addr+b.Size > 1<<32 {
				t.Errorf("%s at %#x, want it below 4 GiB", who, b.Addr)
			}
			for _, o := range all {
				if o.kind == b.Kind && b.Addr < o.r.Base+o.r.Size && o.r.Base < b.Addr+b.Size {
					t.Errorf("%s at %#x overlaps %s at %#x", who, b.Addr, o.who, o.r.Base)
				}
			}
			all = append(all, used{who, Range{b.Addr, b.Size}, b.Kind})
		}
		for i, r := range []Range{f.Windows.IO, f.Windows.Mem, f.Windows.Mem64} {
			if r.Size != 0 {
				check(fmt.Sprintf("%s window %d", f.Addr, i), r, []bus.RegionKind{bus.RegionIO, 0, 0}[i], i == 2, []uint64{ioGran, memGran, memGran}[i])
			}
		}
	}
}

func bars(f *Function) string {
	var s []string
	for _, b := range f.BARs {
		s = append(s, fmt.Sprintf("%d %s %#x @%#x", b.Index, b.Kind, b.Size, b.Addr))
	}
	return strings.Join(s, ", ")
}

func TestEnumerateFlat(t *testing.T) {
	nic := device(0x8086, 0x10d3).bar(0, 128<<10, 0).bar(1, 128<<10, 0).bar(2, 32, barIO).bar(3, 16<<10, 0).rom(CfgROM, 256<<10)
	big := device(0x1234, 0x1111).bar(0, 16<<20, bar64|barPrefetch).bar(2, 4096, 0)
	nic.set16(CfgCommand, uint16(CmdMaster))
	top := enumerate(t, modelBus{0x20: nic, 0x00: device(0x8086, 0x29c0), 0x28: big}, testWindows)
	if len(top.Functions) != 3 {
		t.Fatalf("Enumerate found %d functions, want 3", len(top.Functions))
	}
	f := top.Find(Addr{0x1000, 0, 4, 0})
	if got, want := bars(f), "0 mem 0x20000 @0xc0040000, 1 mem 0x20000 @0xc0060000, 2 io 0x20 @0xc000, 3 mem 0x4000 @0xc0080000"; got != want {
		t.Errorf("BARs of the NIC = %s, want %s", got, want)
	}
	if got := nic.Read32(CfgBAR0); got != 0xc0040000 {
		t.Errorf("BAR 0 = %#x, want 0xc0040000", got)
	}
	if f.ROM.Size != 256<<10 || f.ROM.Addr != 0xc0000000 || nic.Read32(CfgROM) != 0xc0000000 {
		t.Errorf("ROM = %+v, register %#x, want 256 KiB at 0xc0000000, disabled", f.ROM, nic.Read32(CfgROM))
	}
	if got, want := Command(nic.Read16(CfgCommand)), CmdIO|CmdMem; got != want {
		t.Errorf("Command = %s, want %s", got, want)
	}
	g := top.Find(Addr{0x1000, 0, 5, 0})
	if got, want := bars(g), "0 mem 0x1000000 @0x100000000, 2 mem 0x1000 @0xc0084000"; got != want {
		t.Errorf("BARs of the display = %s, want %s", got, want)
	}
	if got, want := Command(big.Read16(CfgCommand)), CmdMem; got != want {
		t.Errorf("Command = %s, want %s: it has no I/O BAR", got, want)
	}
	if big.Read32(CfgBAR0+4) != 1 {
		t.Errorf("upper half of BAR 0 = %#x, want 1", big.Read32(CfgBAR0+4))
	}
}

func TestEnumerateBridges(t *testing.T) {
	end := device(0x8086, 0x10d3).bar(0, 128<<10, 0).bar(2, 32, barIO).bar(4, 1<<20, bar64|barPrefetch)
	inner := bridge(modelBus{0x00: end, 0x08: device(1, 1)}).rootPort(false)
	inner.data[0x42] = 0x62 // a downstream port
	m := modelBus{
		0x08: bridge(modelBus{0x00: bridge(modelBus{0x00: inner})}).rootPort(false),
		0x10: bridge(modelBus{}).rootPort(true),
		0x18: bridge(modelBus{0x00: device(2, 2), 0x18: device(3, 3)}),
	}
	top := enumerate(t, m, testWindows)
	var got []string
	for _, f := range top.Functions {
		got = append(got, fmt.Sprintf("%s %d-%d", f.Addr, f.Secondary, f.Subordinate))
		if f.Err != nil {
			t.Error(f.Err)
		}
	}
	// Device 1 below the downstream port is not looked for: a link has one device.
	want := "1000:00:01.0 1-3 1000:01:00.0 2-3 1000:02:00.0 3-3 1000:03:00.0 0-0 1000:00:02.0 4-11 1000:00:03.0 12-12 1000:0c:00.0 0-0 1000:0c:03.0 0-0"
	if strings.Join(got, " ") != want {
		t.Errorf("topology = %s\nwant %s", strings.Join(got, " "), want)
	}
	p := top.Functions[0]
	if p.Windows.IO.Size != ioGran || p.Windows.Mem.Size != memGran || p.Windows.Mem64.Size != memGran || p.Windows.Mem64.Base < 1<<32 {
		t.Errorf("windows = %+v, want the least, and the prefetchable one above 4 GiB", p.Windows)
	}
	c := p.Config
	if got, want := c.Read32(cfgMemBase), uint32(p.Windows.Mem.Base>>16|p.Windows.Mem.Base); got != want {
		t.Errorf("memory window register = %#08x, want %#08x", got, want)
	}
	if c.Read32(cfgPrefBaseHi) != 1 || c.Read32(cfgPrefLimitHi) != 1 {
		t.Errorf("prefetchable window above 4 GiB: upper halves %#x, %#x, want 1, 1", c.Read32(cfgPrefBaseHi), c.Read32(cfgPrefLimitHi))
	}
	if got := Command(c.Read16(CfgCommand)); got != CmdIO|CmdMem|CmdMaster {
		t.Errorf("Command of a bridge = %s, want IO|Mem|Master", got)
	}
	hot := top.Find(Addr{0x1000, 0, 2, 0})
	if hot.Windows.Mem.Size != DefaultReserve.Mem || hot.Windows.IO.Size != DefaultReserve.IO {
		t.Errorf("windows of an empty hot-plug port = %+v, want room", hot.Windows)
	}
	closed := top.Find(Addr{0x1000, 0, 3, 0}).Config
	if b, l := closed.Read16(cfgMemBase), closed.Read16(cfgMemBase+2); b <= l {
		t.Errorf("memory window of a bridge without need = %#x to %#x, want it closed", b, l)
	}
}

func TestEnumerateMultiFunction(t *testing.T) {
	multi := device(1, 1)
	multi.data[CfgHeader] = headerMulti
	m := modelBus{0x20: multi, 0x22: device(1, 2), 0x27: device(1, 3), 0x28: device(2, 1), 0x29: device(2, 2), 0x31: device(3, 2)}
	var got []string
	for _, f := range enumerate(t, m, testWindows).Functions {
		got = append(got, f.Addr.String()[8:])
	}
	if s := strings.Join(got, " "); s != "04.0 04.2 04.7 05.0" {
		t.Errorf("functions = %s, want 04.0 04.2 04.7 05.0: others hide behind a function 0 that says it is alone, or is not there", s)
	}
}

func TestEnumerateGarbage(t *testing.T) {
	good := func() *fn { return device(0x8086, 0x10d3).bar(0, 128<<10, 0) }
	holes := device(1, 1)
	holes.open32(CfgBAR0, 0xff0f0000)
	hugeFn := device(1, 1).bar(0, 1<<62, bar64|barPrefetch).bar(2, 4096, 0)
	last64 := device(1, 1).bar(1, 4096, 0)
	last64.set32(CfgBAR0+20, bar64)
	reserved := device(1, 1).bar(0, 4096, 0b11<<1)
	stuck := device(1, 1)
	stuck.set32(CfgBAR0, 0xfffff000) // sizes like 4 KiB, cannot be written
	loop := bridge(nil)
	loop.behind = modelBus{0: loop}
	numbers := bridge(modelBus{0: good()})
	numbers.open32(cfgPrimary, 0)
	header := device(1, 1)
	header.data[CfgHeader] = 0x55
	for _, tt := range []struct {
		name string
		bad  *fn
		want string
		is   error
	}{
		{"holes", holes, "size mask", bus.ErrProtocol},
		{"huge", hugeFn, "no room for 0x4000000000000000 bytes", bus.ErrBusy},
		{"last64", last64, "there is no BAR 6", bus.ErrProtocol},
		{"reserved", reserved, "type 3 is reserved", bus.ErrProtocol},
		{"stuck", stuck, "placing BAR 0: reads 0xfffff000", bus.ErrProtocol},
		{"loop", loop, "none left below 256", bus.ErrBusy},
		{"numbers", numbers, "bus numbers read 0x000000", bus.ErrProtocol},
		{"header", header, "type 85", bus.ErrProtocol},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := good()
			top := enumerate(t, modelBus{0x08: tt.bad, 0x10: g}, testWindows)
			f := top.Functions[0]
			if tt.name == "loop" {
				// The bridge answers on every bus, with one set of registers.
				for _, f = range top.Functions {
					if f.Err != nil {
						break
					}
				}
			}
			if f.Err == nil || !errors.Is(f.Err, tt.is) || !strings.Contains(f.Err.Error(), tt.want) {
				t.Errorf("Err = %v, want %q and %v", f.Err, tt.want, tt.is)
			}
			last := top.Find(Addr{0x1000, 0, 2, 0})
			if last == nil || last.Err != nil || last.BARs[0].Addr == 0 {
				t.Errorf("the good function beside it suffered: %+v", last)
			}
		})
	}
	if got := Command(hugeFn.Read16(CfgCommand)); got&CmdMem != 0 {
		t.Errorf("Command = %s, want no Mem: one BAR has no place", got)
	}
}

func TestEnumerateNoRoom(t *testing.T) {
	w := Windows{IO: Range{0x1000, 0x1000}, Mem: Range{0xc0000000, 4 << 20}}
	m := modelBus{}
	for i := range uint8(6) {
		m[i<<3] = bridge(modelBus{0: device(1, 1).bar(0, 64<<10, 0).bar(1, 64, barIO)}).rootPort(true)
	}
	top := enumerate(t, m, w)
	mem, io := 0, 0
	for _, f := range top.Functions {
		for _, b := range f.BARs {
			if b.Addr != 0 && b.Kind == bus.RegionMem {
				mem++
			}
			if b.Addr != 0 && b.Kind == bus.RegionIO {
				io++
			}
		}
	}
	if mem != 4 || io != 1 {
		t.Errorf("%d memory and %d I/O BARs placed, want 4 and 1: one for each megabyte and each 4 KiB", mem, io)
	}
}

func TestEnumerateTooManyBuses(t *testing.T) {
	m := modelBus{}
	deep := m
	for range 300 {
		b := bridge(modelBus{})
		deep[0] = b
		deep = b.behind
	}
	top := enumerate(t, m, testWindows)
	last := top.Functions[len(top.Functions)-1]
	if len(top.Functions) != 256 || !errors.Is(last.Err, bus.ErrBusy) {
		t.Errorf("%d functions, the last with %v, want 256 and ErrBusy", len(top.Functions), last.Err)
	}
}

func TestEnumerateWindows(t *testing.T) {
	m := modelBus{0: device(1, 1)}
	for _, w := range []Windows{
		{IO: Range{0xf000, 0x2000}},
		{Mem: Range{0, 4096}},
		{Mem: Range{0xfff00000, 1 << 32}},
		{Mem64: Range{1 << 63, 1}},
		{Mem64: Range{1 << 62, ^uint64(0)}},
	} {
		if _, err := Enumerate(m, 0, w); err == nil {
			t.Errorf("Enumerate with %+v = nil, want an error", w)
		}
	}
	if _, err := Enumerate(modelBus{}, 0, testWindows); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Enumerate of nothing = %v, want ErrGone", err)
	}
}

// A 64-bit window that is too small sends prefetchable memory below 4 GiB.
func TestEnumerateFallsBackBelow4G(t *testing.T) {
	w := testWindows
	w.Mem64 = Range{1 << 32, 1 << 20}
	top := enumerate(t, modelBus{0: device(1, 1).bar(0, 16<<20, bar64|barPrefetch)}, w)
	if f := top.Functions[0]; f.Err != nil || f.BARs[0].Addr != 0xc0000000 {
		t.Errorf("BAR 0 at %#x, %v, want it at 0xc0000000", f.BARs[0].Addr, f.Err)
	}
}

func FuzzEnumerate(f *testing.F) {
	f.Add([]byte{0x86, 0x80, 0xd3, 0x10}, []byte{0, 0, 0, 0}, uint16(3))
	f.Fuzz(func(t *testing.T, data, writable []byte, shape uint16) {
		m := modelBus{}
		at := m
		for i := range 4 {
			x := &fn{space: newSpace(4096), behind: modelBus{}}
			rot := int(shape>>(4*i)) % 16
			copy(x.data[:], data[min(rot, len(data)):])
			copy(x.writable[:], writable[min(rot, len(writable)):])
			at[uint8(shape>>i)&0x1f] = x
			if shape>>(8+i)&1 != 0 {
				at = x.behind
			}
		}
		top, err := Enumerate(m, 0, testWindows)
		if (top == nil) == (err == nil) {
			t.Fatalf("Enumerate = %v, %v, want one of the two", top, err)
		}
		if err != nil {
			return
		}
		checkPlaced(t, top, testWindows)
		// Half of what stands on the root bus goes, something else comes.
		for _, g := range top.Behind(nil) {
			if g.Parent == nil && g.Addr.Dev&1 != 0 {
				top.Forget(g)
			}
		}
		m[0xf0] = bridge(modelBus{0: nic()}).rootPort(true)
		rescan(t, top, nil)
		for _, g := range top.Functions {
			if s := g.Config.(*space); s.misuse != 0 {
				t.Errorf("%s: %d accesses out of bounds or unaligned", g.Addr, s.misuse)
			}
		}
	})
}
