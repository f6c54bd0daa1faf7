package sim

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// start gives a device 4 KiB and lets it do DMA.
func start(t testing.TB, d *device) *bus.Memory {
	t.Helper()
	mem, err := d.DMA().Alloc(bus.DMARequest{Size: 4096, Mask: eduMask})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mem.Free)
	pci.SetCommand(d.Config(), pci.CmdMaster, 0)
	return mem
}

// TestAlloc checks every property of the allocator over random requests, and what the device
// finds at each address.
func TestAlloc(t *testing.T) {
	m, d := eduOn(t, Stepped)
	pci.SetCommand(d.Config(), pci.CmdMaster, 0)
	rnd := rand.New(rand.NewPCG(1, 2))
	live := map[*bus.Memory]bool{}
	for range 3000 {
		if len(live) > 40 || rnd.IntN(3) == 0 {
			for x := range live {
				at := x.IOVA
				x.Free()
				delete(live, x)
				if d.memory.find(at, 1) != nil {
					t.Fatalf("the device finds memory at %#x, which was freed", at)
				}
				break
			}
			continue
		}
		q := bus.DMARequest{Size: 1 + rnd.IntN(30_000), Align: 1 << rnd.IntN(17), Mask: 1<<(21+rnd.IntN(7)) - 1}
		if rnd.IntN(2) == 0 {
			q.Boundary = 1 << (15 + rnd.IntN(4))
		}
		x, err := d.DMA().Alloc(q)
		if err != nil {
			if !errors.Is(err, unix.ENOMEM) {
				t.Fatalf("Alloc(%+v) = %v", q, err)
			}
			continue
		}
		a, last := uint64(x.IOVA), uint64(x.IOVA)+uint64(q.Size)-1
		if len(x.Bytes) != q.Size || a%q.Align != 0 || a%pageSize != 0 || last > q.Mask || a < lowIOVA || q.Boundary != 0 && a/q.Boundary != last/q.Boundary {
			t.Fatalf("Alloc(%+v) = %#x, %d bytes", q, a, len(x.Bytes))
		}
		if p := reflect.ValueOf(x.Bytes).Pointer(); p%pageSize != 0 {
			t.Fatalf("Alloc(%+v): memory at %#x does not begin on a page", q, p)
		}
		for y := range live {
			if a < uint64(y.IOVA)+uint64(len(y.Bytes))+pageSize && uint64(y.IOVA) < last+1+pageSize {
				t.Fatalf("memory at %#x of %d bytes has no page between itself and that at %#x of %d", a, q.Size, y.IOVA, len(y.Bytes))
			}
		}
		live[x] = true
		for y := range live {
			end := y.IOVA + bus.IOVA(len(y.Bytes))
			x := d.memory.find(y.IOVA, len(y.Bytes))
			if x == nil || &x.slice(y.IOVA, len(y.Bytes))[0] != &y.Bytes[0] {
				t.Fatalf("the device does not find the memory at %#x", y.IOVA)
			}
			for _, beside := range []struct {
				at bus.IOVA
				n  int
			}{{end, 1}, {end - 1, 2}, {y.IOVA - 1, 2}, {y.IOVA, -1}} {
				if d.memory.find(beside.at, beside.n) != nil {
					t.Fatalf("the device finds %d bytes at %#x, beside the memory at %#x", beside.n, beside.at, y.IOVA)
				}
			}
		}
	}
	for x := range live {
		x.Free()
	}
	if f := m.iovas.Free(); len(f) != 1 || m.dmaBytes != 0 || len(d.memory.all) != 0 {
		t.Errorf("free addresses %v, %d bytes in use after all were freed, want one span, 0", f, m.dmaBytes)
	}
	if _, err := d.DMA().Alloc(bus.DMARequest{Size: maxDMA + 1}); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("Alloc of too much = %v, want ENOMEM", err)
	}
}

func TestMap(t *testing.T) {
	_, d := eduOn(t, Stepped)
	pci.SetCommand(d.Config(), pci.CmdMaster, 0)
	own := make([]byte, 2*pageSize)
	x, err := d.DMA().Map(own, bus.DMARequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !d.writeMem(x.IOVA+pageSize, []byte("hello")) || string(own[pageSize:][:5]) != "hello" {
		t.Errorf("what the device wrote is %q, want hello", own[pageSize:][:5])
	}
	x.Free()
	if d.memory.find(x.IOVA, 1) != nil {
		t.Error("the device reaches memory that is mapped no more")
	}
	for _, c := range []struct {
		b []byte
		r bus.DMARequest
	}{{nil, bus.DMARequest{}}, {own[8:], bus.DMARequest{}}, {own, bus.DMARequest{Size: len(own) + 1}}, {own, bus.DMARequest{Size: -1}}, {own, bus.DMARequest{Align: 3}}} {
		if x, err := d.DMA().Map(c.b, c.r); !errors.Is(err, bus.ErrNotSupported) {
			t.Errorf("Map of %d bytes, %+v = %v, %v, want ErrNotSupported", len(c.b), c.r, x, err)
		}
	}
}

// DMA that nobody allowed writes nothing, reads ones, and is told of.
func TestStray(t *testing.T) {
	var text bytes.Buffer
	m := started(t, Config{
		Devices: []DeviceSpec{{Name: "a", Model: "edu"}, {Name: "b", Model: "edu"}}, Clock: Stepped,
		Log: slog.New(slog.NewTextHandler(&text, nil)),
	})
	a, b := m.devices[0], m.devices[1]
	mine, yours := start(t, a), start(t, b)
	p := make([]byte, 8)
	fine := func(want uint64) {
		t.Helper()
		if n, err := m.StrayDMA(); n != want || (err != nil) != (want != 0) {
			t.Errorf("StrayDMA = %d, %v, want %d", n, err, want)
		}
	}
	if !a.writeMem(mine.IOVA+4088, p) || !a.readMem(mine.IOVA, p) || !a.store64(mine.IOVA+8, 1) || !a.store32(mine.IOVA+4092, 2) {
		t.Error("the device does not reach its memory")
	}
	if v, ok := a.load64(mine.IOVA + 8); !ok || v != 1 {
		t.Errorf("load64 = %d, %v, want 1", v, ok)
	}
	fine(0)
	yours.Bytes[0] = 5
	for i, at := range []bus.IOVA{yours.IOVA, mine.IOVA + 4089, mine.IOVA - 1, 0, ^bus.IOVA(0)} {
		if a.writeMem(at, p) || a.mem(at, 8) != nil {
			t.Errorf("the device writes at %#x", at)
		}
		if a.readMem(at, p) || !bytes.Equal(p, bytes.Repeat([]byte{0xff}, 8)) {
			t.Errorf("the device reads % x at %#x, want ones", p, at)
		}
		fine(uint64(3 * (i + 1)))
	}
	if yours.Bytes[0] != 5 {
		t.Error("one device wrote to another's memory")
	}
	pci.SetCommand(b.Config(), 0, pci.CmdMaster)
	if b.store32(yours.IOVA, 9) || b.store64(yours.IOVA, 9) || yours.Bytes[0] != 5 {
		t.Error("a device wrote though it is no bus master")
	}
	if n := strings.Count(text.String(), "stray DMA"); n != 2 || !strings.Contains(text.String(), "bus mastering is off") {
		t.Errorf("logged %d lines, want one for each device:\n%s", n, text.String())
	}
	if _, err := m.StrayDMA(); !strings.Contains(err.Error(), "1000:00:03.0 a: stray DMA: write of 8 bytes at 0x102000") {
		t.Errorf("the first stray DMA is %q", err)
	}
}

// Memory that was asked for one way is not used the other way.
func TestDirections(t *testing.T) {
	for _, c := range []struct {
		dir         bus.Direction
		read, write bool
	}{{bus.Bidirectional, true, true}, {bus.ToDevice, true, false}, {bus.FromDevice, false, true}} {
		m, d := eduOn(t, Stepped)
		pci.SetCommand(d.Config(), pci.CmdMaster, 0)
		x, err := d.DMA().Alloc(bus.DMARequest{Size: 64, Dir: c.dir})
		if err != nil {
			t.Fatal(err)
		}
		defer x.Free()
		p := make([]byte, 8)
		_, loads := d.load64(x.IOVA)
		if r := d.readMem(x.IOVA, p); r != c.read || loads != r || d.mem(x.IOVA, 8) != nil != r {
			t.Errorf("direction %d: read %v, load %v, want %v", c.dir, r, loads, c.read)
		}
		if w := d.writeMem(x.IOVA, p); w != c.write || d.store32(x.IOVA, 1) != w || d.store64(x.IOVA, 1) != w {
			t.Errorf("direction %d: write %v, want %v", c.dir, w, c.write)
		}
		if n, err := m.StrayDMA(); (n == 0) != (c.read && c.write) {
			t.Errorf("direction %d: StrayDMA = %d, %v", c.dir, n, err)
		}
	}
}

// Close tells of memory that nobody freed.
func TestCloseTells(t *testing.T) {
	m, err := Start(t.Context(), Config{Devices: []DeviceSpec{{Name: "a", Model: "edu"}}})
	if err != nil {
		t.Fatal(err)
	}
	x, err := m.devices[0].DMA().Alloc(bus.DMARequest{Size: 1})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.Close(); err == nil || !strings.Contains(err.Error(), "1 pieces of DMA memory") {
			t.Errorf("Close = %v, want it to tell of memory", err)
		}
	}
	x.Bytes[0] = 1
	x.Free()
}

// Finding memory is the data path.
func BenchmarkFind(b *testing.B) {
	_, d := eduOn(b, Stepped)
	var all []*bus.Memory
	for range 32 {
		x, err := d.DMA().Alloc(bus.DMARequest{Size: 4096})
		if err != nil {
			b.Fatal(err)
		}
		defer x.Free()
		all = append(all, x)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if x := d.memory.find(all[i%2].IOVA, 64); x == nil {
			b.Fatal("not found")
		}
	}
}
