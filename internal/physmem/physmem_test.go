package physmem_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/internal/physmem"
	"github.com/ring3dev/ring3/internal/physmem/physmemtest"
)

const who = "0000:00:05.0"

var pageSize = os.Getpagesize()

// wantErr checks that an error wraps want and says all of these.
func wantErr(t *testing.T, what string, err, want error, says ...string) {
	t.Helper()
	if err == nil || !errors.Is(err, want) {
		t.Errorf("%s = %v, want it to wrap %v", what, err, want)
		return
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%s = %v, want it to say %q", what, err, s)
		}
	}
}

// Random requests: every one keeps its conditions, in physical whoes, and nothing overlaps.
func TestMemory(t *testing.T) {
	for _, c := range []struct {
		name string
		ram  *physmemtest.RAM
	}{
		{"huge pages", &physmemtest.RAM{Huge: physmemtest.HugeAt(7, 128)}},
		{"small pages", &physmemtest.RAM{Small: []uint64{1 << 20, 1 << 24, 1 << 25, 1 << 26, 1 << 32, 1 << 33}}},
		{"both", &physmemtest.RAM{Huge: physmemtest.HugeAt(1000, 8), Small: []uint64{1 << 20, 1 << 24}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bustest.NoLeaks(t)
			c.ram.T = t
			huge := len(c.ram.Huge)
			m := physmem.New(who, c.ram)
			rnd := rand.New(rand.NewPCG(1, 2))
			var live []*bus.Memory
			served := 0
			for range 2000 {
				if len(live) > 20 || len(live) > 0 && rnd.IntN(3) == 0 {
					i := rnd.IntN(len(live))
					live[i].Free()
					live = slices.Delete(live, i, i+1)
					continue
				}
				q := bus.DMARequest{Size: 1 + rnd.IntN(1<<rnd.IntN(18)), Align: 1 << rnd.IntN(18)}
				if rnd.IntN(2) == 0 {
					q.Mask = 1<<(24+rnd.IntN(20)) - 1
				}
				if rnd.IntN(2) == 0 {
					q.Boundary = 1 << (18 + rnd.IntN(4))
				}
				mem, err := m.Alloc(q)
				if err != nil {
					wantErr(t, "alloc", err, err, who, "vm.nr_hugepages")
					continue
				}
				served++
				checkPlace(t, m, mem, q)
				for _, o := range live {
					if mem.IOVA < o.IOVA+bus.IOVA(cap(o.Bytes)) && o.IOVA < mem.IOVA+bus.IOVA(cap(mem.Bytes)) {
						t.Fatalf("%#x and %#x overlap", mem.IOVA, o.IOVA)
					}
				}
				live = append(live, mem)
			}
			if served < 300 {
				t.Errorf("only %d requests were served", served)
			}
			half := len(live) / 2
			for _, mem := range live[:half] {
				mem.Free()
			}
			m.Close()
			for _, mem := range live[half:] {
				mem.Bytes[0] = 1 // is there until it is freed
				mem.Free()
			}
			m.Close()
			c.ram.Check(t, huge)
			_, err := m.Alloc(bus.DMARequest{Size: 1})
			wantErr(t, "alloc after close", err, bus.ErrClosed)
		})
	}
}

// checkPlace checks that memory is zeroed, keeps its conditions, and is where it says.
func checkPlace(t *testing.T, m *physmem.Memory, mem *bus.Memory, q bus.DMARequest) {
	t.Helper()
	first, last := uint64(mem.IOVA), uint64(mem.IOVA)+uint64(q.Size)-1
	if len(mem.Bytes) != q.Size || cap(mem.Bytes)%pageSize != 0 || first%max(q.Align, uint64(pageSize)) != 0 ||
		q.Mask != 0 && last > q.Mask || q.Boundary != 0 && first/q.Boundary != last/q.Boundary {
		t.Fatalf("alloc(%+v) = %d bytes at %#x", q, len(mem.Bytes), mem.IOVA)
	}
	all := mem.Bytes[:cap(mem.Bytes)]
	for i := 0; i < len(all); i += 64 {
		if all[i] != 0 {
			t.Fatalf("alloc(%+v): byte %d is not zero", q, i)
		}
		all[i] = 0x55
	}
	for off := 0; off < len(all); off += pageSize {
		if got, want := m.PhysOf(all[off:]), first+uint64(off); got != want {
			t.Fatalf("page %d of alloc(%+v) is at %#x, want %#x", off/pageSize, q, got, want)
		}
	}
}

// Requests larger than a huge page, and with conditions that few pages meet.
func TestHugePages(t *testing.T) {
	r := &physmemtest.RAM{T: t, Huge: slices.Concat(physmemtest.HugeAt(4000, 3), physmemtest.HugeAt(17, 16), []uint64{64 * physmem.HugeSize, 600 * physmem.HugeSize})}
	huge := len(r.Huge)
	m := physmem.New(who, r)
	for _, q := range []bus.DMARequest{
		{Size: 5 * physmem.HugeSize},
		{Size: 2*physmem.HugeSize + 1, Align: 4 * physmem.HugeSize},
		{Size: physmem.HugeSize, Mask: 1<<26 - 1},
		{Size: 4096, Align: 64 * physmem.HugeSize},
		{Size: 4096, Align: 64 * physmem.HugeSize, Mask: 1<<27 + 4095},
		{Size: 3 * physmem.HugeSize, Boundary: 4 * physmem.HugeSize},
	} {
		mem, err := m.Alloc(q)
		if err != nil {
			t.Errorf("alloc(%+v) = %v", q, err)
			continue
		}
		checkPlace(t, m, mem, q)
		mem.Free()
	}
	for _, q := range []bus.DMARequest{
		{Size: 20 * physmem.HugeSize},
		{Size: 2000 * physmem.HugeSize},
		{Size: 1 << 50},
		{Size: 4096, Mask: 1<<25 - 1},
		{Size: 4096, Align: 1 << 40},
	} {
		mem, err := m.Alloc(q)
		if mem != nil {
			t.Errorf("alloc(%+v) gave memory at %#x", q, mem.IOVA)
		}
		wantErr(t, "alloc", err, unix.ENOMEM, who)
	}
	// All that one request looked at and did not use was there for the next.
	var live []*bus.Memory
	for range huge {
		mem, err := m.Alloc(bus.DMARequest{Size: physmem.HugeSize})
		if err != nil {
			t.Fatalf("%d of %d huge pages can be had: %v", len(live), huge, err)
		}
		live = append(live, mem)
	}
	for _, mem := range live {
		mem.Free()
	}
	if r.Taken > 1 {
		t.Errorf("%d blocks are kept for later, want 1", r.Taken)
	}
	m.Close()
	r.Check(t, huge)
}

// Without huge pages, and without small ones that stay where they are, the reason is told.
func TestNoMemory(t *testing.T) {
	r := &physmemtest.RAM{T: t}
	_, err := physmem.New(who, r).Alloc(bus.DMARequest{Size: 4096})
	wantErr(t, "alloc", err, unix.EPERM, "vm.nr_hugepages")
	wantErr(t, "alloc", err, unix.ENOMEM)
	r.Check(t, 0)
}

// The kernel itself: what it says of memory is true for as long as the memory is there.
func TestPhysical(t *testing.T) {
	bustest.NoLeaks(t)
	src, err := physmem.Open()
	if errors.Is(err, unix.EPERM) {
		t.Skipf("needs CAP_SYS_ADMIN; the VM's tests have it: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	m := physmem.New(who, src)
	defer m.Close()
	var live []*bus.Memory
	for _, q := range []bus.DMARequest{{Size: 1}, {Size: 4096}, {Size: 8192, Boundary: 1 << 16}, {Size: 100, Mask: 1<<40 - 1}} {
		mem, err := m.Alloc(q)
		if err != nil {
			t.Errorf("alloc(%+v) = %v", q, err)
			continue
		}
		live = append(live, mem)
		checkPlace(t, m, mem, q)
		for off := 0; off < cap(mem.Bytes); off += pageSize {
			got, err := physmem.Frames(src, mem.Bytes[off : off+1 : cap(mem.Bytes)][:pageSize])
			if err != nil || got[0] != uint64(mem.IOVA)+uint64(off) {
				t.Errorf("page %d of alloc(%+v) is at %#x, %v, want %#x", off/pageSize, q, got, err, uint64(mem.IOVA)+uint64(off))
			}
		}
	}
	for _, mem := range live {
		mem.Free()
	}
}
