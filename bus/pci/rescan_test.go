package pci

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

// wide are windows with room for many ports.
var wide = Windows{IO: Range{0x2000, 0xe000}, Mem: Range{0xc0000000, 0x3ec00000}, Mem64: Range{1 << 32, 1 << 36}}

// frozen remembers what known functions have, to see that a rescan leaves them alone.
func frozen(top *Topology) map[*Function]string {
	m := map[*Function]string{}
	for _, f := range top.Functions {
		m[f] = fmt.Sprint(f.Addr, f.BARs, f.ROM, f.Secondary, f.Subordinate, f.Windows, f.Err) + string(f.Config.(*space).data[:])
	}
	return m
}

// rescan rescans, and checks that nothing known changed.
func rescan(t *testing.T, top *Topology, port *Function) []*Function {
	t.Helper()
	before := frozen(top)
	found, err := top.Rescan(port)
	if err != nil {
		t.Fatal(err)
	}
	now := frozen(top)
	for f, was := range before {
		if now[f] != was {
			t.Errorf("%s changed in a rescan: %.200s\nwant %.200s", f.Addr, now[f], was)
		}
	}
	checkPlaced(t, top, wide)
	buses := map[uint8]*Function{}
	for _, f := range top.Functions {
		if !f.IsBridge() {
			continue
		}
		if o := buses[f.Secondary]; o != nil {
			t.Errorf("%s and %s have bus %d both", o.Addr, f.Addr, f.Secondary)
		}
		buses[f.Secondary] = f
		if p := f.Parent; p != nil && (f.Secondary <= p.Secondary || f.Subordinate > p.Subordinate) {
			t.Errorf("%s has buses %d-%d, want them inside %d-%d", f.Addr, f.Secondary, f.Subordinate, p.Secondary, p.Subordinate)
		}
	}
	return found
}

func nic() *fn {
	return device(0x8086, 0x10d3).bar(0, 128<<10, 0).bar(2, 32, barIO).rom(CfgROM, 64<<10)
}

// downstream is a hot-plug port of a switch.
func downstream(behind modelBus) *fn {
	f := bridge(behind).rootPort(true)
	f.data[0x42] = 0x62
	return f
}

// swtch is a switch with ports.
func swtch(ports ...*fn) *fn {
	inner := modelBus{}
	for i, p := range ports {
		inner[uint8(i)<<3] = p
	}
	return bridge(inner)
}

// Plugged, removed, plugged again: behind a root port, behind a switch, on the root bus; beside what stands there.
func TestRescan(t *testing.T) {
	empty, full := downstream(modelBus{}), downstream(modelBus{0: nic()})
	lone := bridge(modelBus{}).rootPort(true)
	legacy := bridge(modelBus{0x08: nic()})
	root := modelBus{0x08: lone, 0x10: bridge(modelBus{0: swtch(empty, full)}).rootPort(true), 0x18: legacy, 0x20: nic()}
	top := enumerate(t, root, wide)
	at := func(f *fn) *Function {
		for _, g := range top.Functions {
			if g.Config == bus.Config(f.space) {
				return g
			}
		}
		t.Fatal("a bridge was not found")
		return nil
	}
	for _, tt := range []struct {
		name string
		into modelBus
		slot uint8
		from *fn // rescanned; nil: all
	}{
		{"root port", lone.behind, 0, lone},
		{"below a switch", empty.behind, 0, empty},
		{"below a switch, from above", empty.behind, 0, root[0x10]},
		{"beside another", legacy.behind, 0x10, legacy},
		{"second function", legacy.behind, 0x10, nil},
		{"root bus", root, 0x28, nil},
		{"everywhere", empty.behind, 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var first string
			for range 3 {
				tt.into[tt.slot] = nic()
				var port *Function
				if tt.from != nil {
					port = at(tt.from)
				}
				n := len(top.Functions)
				found := rescan(t, top, port)
				if len(found) != 1 || len(top.Functions) != n+1 || found[0].Err != nil || found[0].BARs[0].Addr == 0 || found[0].ROM.Addr == 0 {
					t.Fatalf("Rescan found %v (%s), want one with all its addresses", found, errs(found))
				}
				if got := fmt.Sprint(found[0].Addr, bars(found[0]), found[0].ROM); first == "" {
					first = got
				} else if got != first {
					t.Errorf("plugged again it has %s, want what was free: %s", got, first)
				}
				if again := rescan(t, top, port); len(again) != 0 {
					t.Errorf("Rescan without news = %v, want none", again)
				}
				delete(tt.into, tt.slot)
				top.Forget(found[0])
				if len(top.Functions) != n {
					t.Errorf("%d functions after Forget, want %d", len(top.Functions), n)
				}
			}
		})
	}
}

func errs(fs []*Function) string {
	var s []string
	for _, f := range fs {
		if f.Err != nil {
			s = append(s, f.Err.Error())
		}
	}
	return strings.Join(s, "; ")
}

// A whole switch is plugged in, with a device behind each port, then one of these is exchanged, then the switch.
func TestRescanThreeLevels(t *testing.T) {
	lone := bridge(modelBus{}).rootPort(true)
	top, err := EnumerateReserving(modelBus{0x08: lone, 0x10: nic()}, 0x1000, wide, Reserve{Mem: 16 << 20, IO: 16 << 10, Buses: 16})
	if err != nil {
		t.Fatal(err)
	}
	p := top.Functions[0]
	if p.Windows.Mem.Size != 16<<20 || p.Windows.Mem.Base%(16<<20) != 0 || p.Windows.IO.Size != 16<<10 || p.Subordinate != 16 {
		t.Fatalf("the port has %+v and buses %d-%d, want 16 MiB aligned, 16 KiB, 1-16", p.Windows, p.Secondary, p.Subordinate)
	}
	for range 3 {
		a, b := downstream(modelBus{0: nic()}), downstream(modelBus{})
		lone.behind[0] = swtch(a, b)
		found := rescan(t, top, nil)
		if len(found) != 4 || errs(found) != "" {
			t.Fatalf("Rescan found %d (%s), want a switch, two ports and a device", len(found), errs(found))
		}
		for _, f := range found {
			if f.hot && (f.Windows.Mem.Size == 0 || f.Windows.IO.Size == 0) {
				t.Errorf("%s keeps no room: %+v", f.Addr, f.Windows)
			}
		}
		b.behind[0] = nic()
		if found := rescan(t, top, p); len(found) != 1 || errs(found) != "" {
			t.Errorf("below a new port Rescan found %v (%s), want one", found, errs(found))
		}
		sw := top.Find(Addr{0x1000, p.Secondary, 0, 0})
		if n := len(top.Behind(sw)); n != 4 {
			t.Errorf("Behind(switch) = %d functions, want 4", n)
		}
		top.Forget(top.Find(Addr{0x1000, found[1].Secondary, 0, 0}))
		a.behind[0] = device(1, 1).bar(0, 64<<10, 0)
		if found := rescan(t, top, sw); len(found) != 1 || errs(found) != "" {
			t.Errorf("exchanged: Rescan found %v (%s), want one", found, errs(found))
		}
		delete(lone.behind, 0)
		top.Forget(sw)
		if n := len(top.Functions); n != 2 {
			t.Errorf("%d functions without the switch, want 2", n)
		}
	}
}

// What does not fit says so, and what does is used.
func TestRescanNoRoom(t *testing.T) {
	for _, tt := range []struct {
		name string
		dev  *fn
		ok   []int // BARs that are placed
		want string
	}{
		{"fits", device(1, 1).bar(0, 2<<20, 0).bar(2, 2<<20, bar64|barPrefetch), []int{0, 2}, ""},
		{"larger than the window", device(1, 1).bar(0, 4<<20, 0).bar(1, 4096, 0), []int{1}, "placing BAR 0: no room for 0x400000 bytes"},
		{"prefetchable goes to memory", device(1, 1).bar(0, 2<<20, bar64|barPrefetch).bar(2, 1<<20, barPrefetch), []int{0, 2}, ""},
		{"I/O", device(1, 1).bar(0, 8<<10, barIO).bar(1, 4096, 0), []int{1}, "placing BAR 0: no room for 0x2000 bytes of io space"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			port := bridge(modelBus{}).rootPort(true)
			other := nic()
			top := enumerate(t, modelBus{0x08: port, 0x10: other}, wide)
			port.behind[0] = tt.dev
			found := rescan(t, top, top.Functions[0])
			if len(found) != 1 {
				t.Fatalf("Rescan found %d, want 1", len(found))
			}
			var ok []int
			for _, b := range found[0].BARs {
				if b.Addr != 0 {
					ok = append(ok, b.Index)
				}
			}
			if fmt.Sprint(ok) != fmt.Sprint(tt.ok) {
				t.Errorf("BARs %v are placed, want %v", ok, tt.ok)
			}
			if err := found[0].Err; tt.want == "" && err != nil || tt.want != "" && (!errors.Is(err, bus.ErrBusy) || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Err = %v, want %q", err, tt.want)
			}
		})
	}
}

// Room that is left in pieces is used piece by piece.
func TestRescanFragments(t *testing.T) {
	legacy := bridge(modelBus{})
	for i := range uint8(16) {
		legacy.behind[i<<3] = device(1, uint16(i+1)).bar(0, 64<<10, 0)
	}
	top := enumerate(t, modelBus{0x08: legacy}, wide)
	p := top.Functions[0]
	if p.Windows.Mem.Size != 1<<20 {
		t.Fatalf("window of %#x bytes, want it full", p.Windows.Mem.Size)
	}
	gone := 0
	for _, f := range top.Behind(p) {
		if f.BARs[0].Addr>>16&1 != 0 {
			delete(legacy.behind, f.Addr.Devfn())
			top.Forget(f)
			gone++
		}
	}
	for i := range uint8(gone) {
		legacy.behind[(16+i)<<3] = device(2, 1).bar(0, 64<<10, 0)
	}
	if found := rescan(t, top, p); gone != 8 || len(found) != gone || errs(found) != "" {
		t.Errorf("%d gone, Rescan found %d (%s), want as many", gone, len(found), errs(found))
	}
	// One piece is larger than each hole.
	for _, f := range top.Behind(p) {
		if f.BARs[0].Addr>>16&1 != 0 {
			delete(legacy.behind, f.Addr.Devfn())
			top.Forget(f)
		}
	}
	legacy.behind[31<<3] = device(3, 1).bar(0, 128<<10, 0).bar(1, 32<<10, 0)
	found := rescan(t, top, nil)
	if len(found) != 1 || found[0].BARs[0].Addr != 0 || found[0].BARs[1].Addr == 0 || !errors.Is(found[0].Err, bus.ErrBusy) {
		t.Errorf("Rescan = %s, %s, want the small BAR placed and the large one not", bars(found[0]), errs(found))
	}
}

// A switch that needs more bus numbers than the port keeps.
func TestRescanNoBuses(t *testing.T) {
	port := bridge(modelBus{}).rootPort(true)
	behind := bridge(modelBus{})
	top := enumerate(t, modelBus{0x08: port, 0x10: behind}, wide)
	var ports []*fn
	for range 10 {
		ports = append(ports, downstream(modelBus{0: device(1, 1).bar(0, 4096, 0)}))
	}
	port.behind[0] = swtch(ports...)
	found := rescan(t, top, nil)
	good, bad := 0, 0
	for _, f := range found {
		switch {
		case f.Header == HeaderBridge && errors.Is(f.Err, bus.ErrBusy):
			bad++
		case f.Header == HeaderBridge && f.IsBridge():
			good++
		}
	}
	// 8 numbers: the port's own bus, the switch's, and one for each of 6 ports.
	if good != 7 || bad != 4 {
		t.Errorf("%d bridges numbered and %d not, want 7 and 4", good, bad)
	}
	// On the root bus what nobody has is left.
	behind.behind[0x08] = bridge(modelBus{0: nic()})
	if found := rescan(t, top, nil); len(found) != 1 || !errors.Is(found[0].Err, bus.ErrBusy) {
		t.Errorf("a bridge behind one that keeps no numbers: %s, want ErrBusy", errs(found))
	}
}

// Bridges that show themselves behind themselves, functions that vanish or become others.
func TestRescanLiars(t *testing.T) {
	port := bridge(modelBus{}).rootPort(true)
	good := bridge(modelBus{}).rootPort(true)
	top := enumerate(t, modelBus{0x08: port, 0x10: good}, wide)
	loop := bridge(nil)
	loop.behind = modelBus{0: loop}
	port.behind[0] = loop
	good.behind[0] = nic()
	found, err := top.Rescan(nil)
	if err != nil || len(found) < 2 || len(found) > 16 {
		t.Fatalf("Rescan of a loop found %d, %v, want it to end", len(found), err)
	}
	last := found[len(found)-1]
	if last.Parent.Config != bus.Config(good.space) || last.Err != nil || last.BARs[0].Addr == 0 {
		t.Errorf("what stands beside a loop suffered: %v", last.Err)
	}
	top.Forget(top.Find(Addr{0x1000, top.Functions[0].Secondary, 0, 0}))
	delete(port.behind, 0)
	// Another device answers where one is known: that is for whoever removed it to tell.
	x := device(1, 1)
	x.data[CfgHeader] = headerMulti
	good.behind[0] = x
	if found := rescan(t, top, nil); len(found) != 0 {
		t.Errorf("a function that became another was found as %v, want none", found)
	}
	// A known one that is dead, and a bridge that is one no longer.
	port.dead = true
	if found := rescan(t, top, nil); len(found) != 0 {
		t.Errorf("behind a dead port Rescan found %v", found)
	}
}

func TestRescanErrors(t *testing.T) {
	top := enumerate(t, modelBus{0x08: bridge(modelBus{}).rootPort(true), 0x10: device(1, 1)}, wide)
	p, d := top.Functions[0], top.Functions[1]
	if _, err := top.Rescan(d); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Rescan of a device = %v, want ErrNotSupported", err)
	}
	if _, err := top.Snapshot().Rescan(nil); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Rescan of a snapshot = %v, want ErrNotSupported", err)
	}
	top.Forget(p)
	top.Forget(p)
	if _, err := top.Rescan(p); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Rescan of a port that was removed = %v, want ErrGone", err)
	}
}

// Room for later is halved where there is not so much, before anything real is given up.
func TestReserve(t *testing.T) {
	w := wide
	w.Mem = Range{0xc0000000, 16 << 20}
	m := modelBus{0x20: nic()}
	for i := range uint8(3) {
		m[i<<3] = bridge(modelBus{}).rootPort(true)
	}
	for _, tt := range []struct{ ask, want uint64 }{{0, 2 << 20}, {1, 1 << 20}, {3<<20 + 1, 4 << 20}, {1 << 30, 4 << 20}, {^uint64(0), 4 << 20}} {
		top, err := EnumerateReserving(m, 0x1000, w, Reserve{Mem: tt.ask})
		if err != nil {
			t.Fatal(err)
		}
		checkPlaced(t, top, w)
		if got := top.Functions[0].Windows.Mem.Size; got != tt.want {
			t.Errorf("a port keeps %#x bytes where %#x are wanted, want %#x", got, tt.ask, tt.want)
		}
		if top.Functions[3].Err != nil {
			t.Error(top.Functions[3].Err)
		}
	}
}
