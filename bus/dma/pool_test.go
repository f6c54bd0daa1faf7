package dma

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

// heap is a bus.DMA on Go memory.
type heap struct {
	req   bus.DMARequest
	freed int
	err   error
}

func (h *heap) Alloc(r bus.DMARequest) (*bus.Memory, error) {
	if h.err != nil {
		return nil, h.err
	}
	h.req = r
	return bus.NewMemory(make([]byte, r.Size), 0x100000, func() { h.freed++ }), nil
}

func (h *heap) Map([]byte, bus.DMARequest) (*bus.Memory, error) { return nil, bus.ErrNotSupported }

func TestPools(t *testing.T) {
	for _, c := range []struct {
		name    string
		make    func(bus.DMA, int, int, bus.Direction) (*Pool, error)
		n, size int
		stride  int // 0: an error
	}{
		{"NewPool", NewPool, 4, 2048, 2048},
		{"NewPool", NewPool, 1, 64, 64},
		{"NewPool", NewPool, 4, 2000, 0},
		{"NewPool", NewPool, 0, 2048, 0},
		{"NewPool", NewPool, -1, 2048, 0},
		{"NewPool", NewPool, 1 << 62, 4, 0},
		{"NewStaggered", NewStaggered, 4, 2048, 2112},
		{"NewStaggered", NewStaggered, 4, 2112, 2112},
		{"NewStaggered", NewStaggered, 4, 1, 64},
		{"NewStaggered", NewStaggered, 4, 0, 0},
		{"NewStaggered", NewStaggered, 1 << 62, 4, 0},
		{"NewStaggered", NewStaggered, 1, 1 << 62, 0},
	} {
		h := &heap{}
		p, err := c.make(h, c.n, c.size, bus.ToDevice)
		if c.stride == 0 {
			if err == nil || p != nil {
				t.Errorf("%s(%d, %d) = %v, %v, want an error", c.name, c.n, c.size, p, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s(%d, %d) = %v", c.name, c.n, c.size, err)
			continue
		}
		if h.req.Size != c.n*c.stride || h.req.Dir != bus.ToDevice {
			t.Errorf("%s(%d, %d) asked for %+v, want %d bytes to the device", c.name, c.n, c.size, h.req, c.n*c.stride)
		}
		for i := range c.n {
			b := p.Get()
			if want := bus.IOVA(0x100000 + i*c.stride); b.Addr != want || len(b.Mem) != c.size || cap(b.Mem) != c.size || len(b.Data) != 0 {
				t.Errorf("%s(%d, %d): buffer %d at %#x, %d of %d bytes, data %d, want at %#x, %d, 0", c.name, c.n, c.size, i, b.Addr, len(b.Mem), cap(b.Mem), len(b.Data), want, c.size)
			}
		}
		if b := p.Get(); b != nil {
			t.Errorf("Get of an empty pool = %v, want nil", b)
		}
		p.Close()
		p.Close()
		if h.freed != 1 {
			t.Errorf("memory freed %d times, want once", h.freed)
		}
	}
	if _, err := NewPool(&heap{err: bus.ErrNoIOMMU}, 1, 64, bus.ToDevice); !errors.Is(err, bus.ErrNoIOMMU) {
		t.Errorf("NewPool without memory = %v, want %v", err, bus.ErrNoIOMMU)
	}
}

func TestOwners(t *testing.T) {
	p, err := NewPool(&heap{}, 2, 64, bus.Bidirectional)
	if err != nil {
		t.Fatal(err)
	}
	a := p.Get()
	a.Retain(2)
	for want := range 3 {
		if got := p.Free(); got != 1 {
			t.Errorf("after %d of 3 frees: Free() = %d, want 1", want, got)
		}
		a.Free()
	}
	if p.Free() != 2 || p.Len() != 2 || p.BufSize() != 64 {
		t.Errorf("Free, Len, BufSize = %d, %d, %d, want 2, 2, 64", p.Free(), p.Len(), p.BufSize())
	}
	late := p.Get()
	if late == a {
		t.Errorf("Get = %v, the buffer freed last, want the other", late)
	}
	if got := p.Get(); got != a {
		t.Errorf("Get = %v, want the buffer freed last", got)
	}
	p.Close()
	late.Free()
	if b := p.Get(); b != nil {
		t.Errorf("Get of a closed pool = %v, want nil", b)
	}
}

// GetAll and FreeAll do what Get and Free do, one by one, whatever is among the buffers.
func TestBulk(t *testing.T) {
	var pools [2]*Pool // one that is used in bulk, and one that is not
	for i := range pools {
		p, err := NewPool(&heap{}, 8, 64, bus.Bidirectional)
		if err != nil {
			t.Fatal(err)
		}
		pools[i] = p
	}
	other, err := NewPool(&heap{}, 4, 64, bus.Bidirectional)
	if err != nil {
		t.Fatal(err)
	}
	index := func(p *Pool, b *Buf) int { return int(b.Addr-p.mem.IOVA) / 64 }
	r := rand.New(rand.NewPCG(1, 2))
	var held [2][]*Buf
	for range 2000 {
		n := r.IntN(10)
		bulk := make([]*Buf, n)
		bulk = bulk[:pools[0].GetAll(bulk)]
		for _, b := range bulk {
			b.Data = b.Mem[:0]
		}
		var single []*Buf
		for range n {
			if b := pools[1].Get(); b != nil {
				single = append(single, b)
			}
		}
		if len(bulk) != len(single) {
			t.Fatalf("GetAll took %d buffers, Get %d", len(bulk), len(single))
		}
		for i := range bulk {
			if index(pools[0], bulk[i]) != index(pools[1], single[i]) {
				t.Fatalf("GetAll gave buffer %d, Get %d", index(pools[0], bulk[i]), index(pools[1], single[i]))
			}
			if r.IntN(4) == 0 {
				bulk[i].Retain(1)
				single[i].Retain(1)
				bulk, single = append(bulk, bulk[i]), append(single, single[i])
			}
		}
		held[0], held[1] = append(held[0], bulk...), append(held[1], single...)
		k := r.IntN(len(held[0]) + 1)
		gone := slices.Clone(held[0][:k])
		for range r.IntN(3) { // what else a ring may hold
			gone = slices.Insert(gone, r.IntN(len(gone)+1), nil)
			if b := other.Get(); b != nil {
				gone = slices.Insert(gone, r.IntN(len(gone)+1), b)
			}
		}
		FreeAll(gone)
		for _, b := range held[1][:k] {
			b.Free()
		}
		held[0], held[1] = held[0][k:], held[1][k:]
		if pools[0].Free() != pools[1].Free() || other.Free() != 4 {
			t.Fatalf("free after FreeAll: %d and %d of others, after Free: %d and 4", pools[0].Free(), other.Free(), pools[1].Free())
		}
	}
	last := pools[0].Get()
	pools[0].Close()
	FreeAll([]*Buf{last, nil})
	if n := pools[0].GetAll(make([]*Buf, 3)); n != 0 {
		t.Errorf("GetAll of a closed pool = %d, want 0", n)
	}
}

func TestOrder(t *testing.T) {
	b := make([]byte, 32)
	Store32(b, 4, 0x04030201)
	Store64(b, 8, 0x0807060504030201)
	for i, want := range []byte{1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8} {
		if b[4+i] != want {
			t.Errorf("byte %d = %d, want %d", 4+i, b[4+i], want)
		}
	}
	if got := Load32(b, 4); got != 0x04030201 {
		t.Errorf("Load32 = %#x, want 0x04030201", got)
	}
	if got := Load64(b, 8); got != 0x0807060504030201 {
		t.Errorf("Load64 = %#x, want 0x0807060504030201", got)
	}
	for _, f := range []func(){
		func() { Load32(b, 32) }, func() { Load64(b, 28) }, func() { Store32(b, 30, 0) }, func() { Store64(b, -8, 0) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("an access outside the slice did not panic")
				}
			}()
			f()
		}()
	}
}
