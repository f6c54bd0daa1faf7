package iova

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

const page = 4096

// A pool as a machine has it: holes, and addresses on both sides of 4 GiB.
var some = Spans{{1 << 20, 0xb0000000}, {1 << 32, 1 << 39}}

// TestPool checks every property of the addresses over random requests.
func TestPool(t *testing.T) {
	p := NewPool(page, some)
	rnd := rand.New(rand.NewPCG(5, 6))
	var live []Span
	var last Span
	for range 5000 {
		if len(live) > 50 || len(live) > 0 && rnd.IntN(3) == 0 {
			i := rnd.IntN(len(live))
			last = live[i]
			p.Put(last)
			live = slices.Delete(live, i, i+1)
			continue
		}
		q := bus.DMARequest{Size: 1 + rnd.IntN(300_000), Align: 1 << rnd.IntN(22)}
		if rnd.IntN(2) == 0 {
			q.Mask = 1<<(27+rnd.IntN(20)) - 1
		}
		if rnd.IntN(2) == 0 {
			q.Boundary = 1 << (19 + rnd.IntN(4))
		}
		not := (1<<20 + rnd.Uint64N(1<<20)) &^ (page - 1)
		v, ok := p.Take(q, 0, not)
		if !ok {
			t.Fatalf("Take(%+v) found nothing", q)
		}
		end := v.Base + uint64(q.Size) - 1
		if v.Base%max(q.Align, page) != 0 || q.Mask != 0 && end > q.Mask || q.Boundary != 0 && v.Base/q.Boundary != end/q.Boundary ||
			v.Base == not || v.Size() != Whole(q.Size, page)+page {
			t.Fatalf("Take(%+v) = %#x to %#x", q, v.Base, v.End)
		}
		if !within(some, v) || q.Mask == 0 && v.Base < Split {
			t.Fatalf("Take(%+v) = %#x to %#x, want it above 4 GiB, inside", q, v.Base, v.End)
		}
		if q.Mask == 0 && v.Base < last.End && last.Base < v.End {
			t.Fatalf("Take(%+v) = %#x, which was given back a moment before", q, v.Base)
		}
		for _, o := range live {
			if v.Base < o.End && o.Base < v.End {
				t.Fatalf("%#x to %#x overlaps %#x to %#x", v.Base, v.End, o.Base, o.End)
			}
		}
		live = append(live, v)
	}
	if v, ok := p.Take(bus.DMARequest{Size: 4096, Mask: 0xfff}, 0, None); ok {
		t.Errorf("Take below 4096 = %#x, want nothing", v.Base)
	}
	for _, v := range live {
		p.Put(v)
	}
	if !slices.Equal(p.Free(), some) {
		t.Errorf("free after all was given back = %x, want %x", p.Free(), some)
	}
}

// Addresses that somebody else chose are taken as they are, or not at all.
func TestTakeAt(t *testing.T) {
	p := NewPool(page, some)
	v := Span{some[0].Base, some[0].Base + 3*page}
	if !p.TakeAt(v) || p.TakeAt(v) || p.TakeAt(Span{v.End - page, v.End + page}) || !p.TakeAt(Span{v.End, v.End + page}) {
		t.Error("TakeAt takes what is taken, or not what is next to it")
	}
	for _, bad := range []Span{{v.Base - page, v.Base}, {v.Base, v.Base}, {None - page, None}, {some[0].End - page, some[0].End + page}, {v.End + 3*page, v.End + page}} {
		if p.TakeAt(bad) {
			t.Errorf("TakeAt(%#x to %#x) takes what is not there", bad.Base, bad.End)
		}
	}
	p.Put(v)
	p.Put(Span{v.End, v.End + page})
	if !slices.Equal(p.Free(), some) {
		t.Errorf("free after all was given back = %x, want %x", p.Free(), some)
	}
}

func within(f Spans, v Span) bool {
	return slices.ContainsFunc(f, func(s Span) bool { return v.Base >= s.Base && v.End <= s.End })
}

// What is aligned better serves large pages; where that does not fit, anything does.
func TestBetter(t *testing.T) {
	const large = 2 << 20
	p := NewPool(page, Spans{{1<<20 + page, 9 << 20}})
	v, ok := p.Take(bus.DMARequest{Size: large}, large, None)
	if !ok || v.Base%large != 0 {
		t.Fatalf("Take with room = %#x, %v, want it aligned to 2 MiB", v.Base, ok)
	}
	if v, ok := p.Take(bus.DMARequest{Size: 4 << 20}, large, None); !ok || v.Base < 4<<20 {
		t.Errorf("Take of 4 MiB = %#x, %v, want the rest", v.Base, ok)
	}
	// The one address that is to be avoided.
	p = NewPool(page, Spans{{1 << 20, 1 << 30}})
	if v, ok := p.Take(bus.DMARequest{Size: 1}, 0, 1<<20); !ok || v.Base == 1<<20 {
		t.Errorf("Take but for 1 MiB = %#x, %v, want another address", v.Base, ok)
	}
}

// A pool that was limited gives out what is left, and takes back what it gave.
func TestLimit(t *testing.T) {
	p := NewPool(page, some)
	v, _ := p.Take(bus.DMARequest{Size: page}, 0, None)
	left := Spans{{2 << 20, 3 << 20}, {1 << 32, 1 << 36}}
	p.Limit(left)
	for range 100 {
		v, ok := p.Take(bus.DMARequest{Size: 1 << 30}, 0, None)
		if !ok {
			break
		}
		if !within(left, v) {
			t.Fatalf("Take after Limit = %#x to %#x, want it in %x", v.Base, v.End, left)
		}
		defer p.Put(v)
	}
	p.Put(v)
	if v, ok := p.Take(bus.DMARequest{Size: page, Mask: 1<<32 - 1}, 0, None); !ok || v.Base < 2<<20 {
		t.Errorf("Take below 4 GiB after Limit = %#x, %v, want it at 2 MiB", v.Base, ok)
	}
}

// Near the end of all addresses nothing wraps.
func TestFitEdges(t *testing.T) {
	top := ^uint64(0)
	for _, c := range []struct {
		s                           Span
		size, align, boundary, mask uint64
		at                          uint64
		ok                          bool
	}{
		{Span{top - 8191, top}, 4096, 4096, 0, 0, top - 8191, true},
		{Span{top - 4095, top}, 4096, 4096, 0, 0, 0, false},
		{Span{top - 100, top}, 1, 4096, 0, 0, 0, false},
		{Span{0, 1 << 20}, 1 << 62, 4096, 0, 0, 0, false},
		{Span{1, 1 << 20}, 4096, 4096, 4096, 0, 4096, true},
		{Span{4096 * 3, 1 << 20}, 8192, 4096, 8192, 0, 4096 * 4, true},
		{Span{4096, 1 << 20}, 4096, 4096, 0, 8190, 0, false},
	} {
		if at, ok := Fit(c.s, c.size, c.align, c.boundary, c.mask); ok != c.ok || ok && at != c.at {
			t.Errorf("Fit(%x, %d, %d, %d, %#x) = %#x, %v, want %#x, %v", c.s, c.size, c.align, c.boundary, c.mask, at, ok, c.at, c.ok)
		}
	}
}

func TestSpans(t *testing.T) {
	f := Spans{{0, 100}}
	f.Cut(0, Span{40, 60})
	if want := (Spans{{0, 40}, {60, 100}}); !slices.Equal(f, want) {
		t.Errorf("Cut = %v, want %v", f, want)
	}
	f.Put(Span{40, 50})
	f.Put(Span{50, 60})
	if want := (Spans{{0, 100}}); !slices.Equal(f, want) {
		t.Errorf("Put = %v, want %v", f, want)
	}
	for _, c := range []struct {
		s    Span
		want Spans
	}{
		{Span{0, 10}, Spans{{10, 100}}},
		{Span{90, 200}, Spans{{0, 90}}},
		{Span{10, 20}, Spans{{0, 10}, {20, 100}}},
		{Span{0, 100}, nil},
		{Span{100, 200}, Spans{{0, 100}}},
	} {
		if got := f.Without(c.s); !slices.Equal(got, c.want) {
			t.Errorf("Without(%v) = %v, want %v", c.s, got, c.want)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, q := range []bus.DMARequest{{}, {Size: -1}, {Size: 1, Align: 3}, {Size: 1, Boundary: 5}, {Size: 8192, Boundary: 4096}} {
		if err := Check("x: allocating", q); !errors.Is(err, bus.ErrNotSupported) {
			t.Errorf("Check(%+v) = %v, want ErrNotSupported", q, err)
		}
	}
	if err := Check("x: allocating", bus.DMARequest{Size: 1, Align: 8, Boundary: 16}); err != nil {
		t.Errorf("Check = %v, want nil", err)
	}
	if err := NoRoom("x: allocating", bus.DMARequest{Size: 1}, "1 MiB"); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("NoRoom = %v, want ENOMEM", err)
	}
}
