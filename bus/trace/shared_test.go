package trace_test

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/mmio"
	"github.com/ring3dev/ring3/bus/trace"
)

// shared is memory as another process has it.
func shared(t testing.TB) mmio.Shared {
	t.Helper()
	b, err := unix.Mmap(-1, 0, 8*trace.SharedWords, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	m, err := mmio.NewShared(b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestShared: what a device did last is in shared memory at each moment, and reads as it does in the process that wrote it.
func TestShared(t *testing.T) {
	m := shared(t)
	d, _, r := open(t, trace.Options{Shared: m})
	o := trace.Options{Name: d.Name(), Registers: plainRegisters}
	check := func() {
		t.Helper()
		// As many as there is room for.
		want := d.Last(256)
		var own []trace.Entry
		for i := range want {
			own = d.Entries(own, &want[i])
		}
		got := o.Entries(d.Address(), trace.Recover(m, 256))
		for _, es := range [][]trace.Entry{own, got} { // two looks at two clocks
			for i := range es {
				es[i].Time = 0
			}
		}
		if !slices.EqualFunc(got, own, func(a, b trace.Entry) bool { return a.String() == b.String() }) {
			t.Fatalf("shared memory has\n%v\nwant\n%v", got, own)
		}
	}
	check()
	r.Write32(regCTRL, 5)
	check()
	r.Read32(regCTRL)
	_ = d.Reset(t.Context()) // which fails, with a text
	check()
	mem, err := d.DMA().Alloc(bus.DMARequest{Size: 4096})
	if err != nil {
		t.Fatal(err)
	}
	ring(t, r, mem)
	check()
	q, err := d.EnableIRQs(bus.MSIX, 2)
	if err != nil {
		t.Fatal(err)
	}
	q[1].Signal()
	if _, err := q[1].Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	check()
	for i := range 1000 {
		r.Write32(regCTRL, uint32(i))
	}
	check()
	if got := trace.Recover(m, 3); len(got) != 3 || got[2].Value != 999 {
		t.Errorf("Recover(3) = %+v, want the last three", got)
	}
	// The writer was killed in the middle of a record.
	at := 1 + int(trace.Recover(m, 1)[0].Seq%256)*16
	m.Store(at, 0)
	if got := trace.Recover(m, 1); len(got) != 1 || got[0].Value != 998 {
		t.Errorf("Recover after a record that was being written = %+v, want the one before", got)
	}
	// The next process's device begins anew.
	d2, _, _ := open(t, trace.Options{Shared: m})
	if got, want := len(trace.Recover(m, 256)), len(d2.Last(256)); got != want {
		t.Errorf("after another device began there are %d records, want its %d", got, want)
	}
}

// FuzzRecover reads shared memory that anybody may have written.
func FuzzRecover(f *testing.F) {
	m := shared(f)
	d, _, r := open(f, trace.Options{Shared: m})
	r.Write32(regCTRL, 5)
	r.Read32(regCTRL)
	mem, err := d.DMA().Alloc(bus.DMARequest{Size: 4096})
	if err != nil {
		f.Fatal(err)
	}
	ring(f, r, mem)
	seed := make([]byte, 8*(1+16*16))
	for i := range len(seed) / 8 {
		binary.LittleEndian.PutUint64(seed[8*i:], m.Load(i))
	}
	f.Add(seed)
	x := shared(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		for i := range x.Len() {
			v := uint64(0)
			if 8*i+8 <= len(b) {
				v = binary.LittleEndian.Uint64(b[8*i:])
			}
			x.Store(i, v)
		}
		o := trace.Options{Name: "eth0", Registers: plainRegisters}
		for _, e := range o.Entries("1000:00:01.0", trace.Recover(x, 256)) {
			if s := e.String(); s == "" || e.Time < 0 {
				t.Errorf("%+v is %q", e, s)
			}
		}
	})
}

func BenchmarkShared(b *testing.B) {
	for name, o := range map[string]trace.Options{"own": {}, "shared": {Shared: shared(b)}} {
		_, _, r := open(b, o)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r.Write32(regCTRL, 1)
			}
		})
	}
}

// ring sets a ring of 8 descriptors up, and gives the device three of them, then two over its end.
func ring(t testing.TB, r bus.Region, mem *bus.Memory) {
	t.Helper()
	for i := range 8 {
		binary.LittleEndian.PutUint64(mem.Bytes[16*i:], uint64(100+i))
	}
	r.Write32(regTDB, uint32(mem.IOVA))
	r.Write32(regTDBH, uint32(mem.IOVA>>32))
	r.Write32(regTDL, 8*16)
	r.Write32(regTDT, 0)
	r.Write32(regTDT, 3)
	r.Write32(regTDT, 7)
	r.Write32(regTDT, 1)
}
