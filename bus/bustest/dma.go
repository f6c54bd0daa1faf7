package bustest

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

// needDMA skips where the backend has none for this device.
func needDMA(t *testing.T, s Subject) bus.DMA {
	t.Helper()
	d := s.Device.DMA()
	m, err := d.Alloc(bus.DMARequest{Size: 1})
	if errors.Is(err, bus.ErrNoIOMMU) || errors.Is(err, bus.ErrNotSupported) {
		t.Skipf("no DMA here: %v", err)
	}
	if err != nil {
		t.Fatalf("Alloc of 1 byte = %v", err)
	}
	m.Free()
	return d
}

func dmaRequests(t *testing.T, s Subject) {
	if d := s.Device; isPlatform(d) {
		// It masters no bus, or nobody here can say what it reaches: either there is memory or there is none.
		m, err := d.DMA().Alloc(bus.DMARequest{Size: 1})
		if m == nil {
			wantErr(t, "Alloc", err, bus.ErrNotSupported, bus.ErrNoIOMMU)
		}
		m.Free()
		m, err = d.DMA().Map(make([]byte, 1), bus.DMARequest{})
		if m == nil {
			wantErr(t, "Map", err, bus.ErrNotSupported, bus.ErrNoIOMMU)
		}
		m.Free()
	}
	d := needDMA(t, s)
	var live []*bus.Memory
	for _, r := range []bus.DMARequest{
		{Size: 1},
		{Size: 4096},
		{Size: 4097},
		{Size: 100, Align: 8},
		{Size: 4096, Align: 1 << 16},
		{Size: 64 << 10, Boundary: 64 << 10},
		{Size: 5000, Boundary: 8192},
		{Size: 4096, Align: 16, Boundary: 4096},
		{Size: 8192, Mask: 1<<28 - 1, Dir: bus.ToDevice},
		{Size: 8192, Mask: 1<<32 - 1, Dir: bus.FromDevice},
		{Size: 1 << 20},
	} {
		m, err := d.Alloc(r)
		if err != nil {
			t.Errorf("Alloc(%+v) = %v", r, err)
			continue
		}
		live = append(live, m)
		checkMemory(t, m, r)
	}
	for i, m := range live {
		for _, o := range live[:i] {
			if m.IOVA < o.IOVA+bus.IOVA(len(o.Bytes)) && o.IOVA < m.IOVA+bus.IOVA(len(m.Bytes)) {
				t.Errorf("memory at %#x of %d bytes overlaps that at %#x of %d", m.IOVA, len(m.Bytes), o.IOVA, len(o.Bytes))
			}
		}
	}
	for _, r := range []bus.DMARequest{
		{},
		{Size: -1},
		{Size: 4096, Align: 3},
		{Size: 4096, Align: 4097},
		{Size: 4096, Boundary: 5000},
		{Size: 8193, Boundary: 8192},
		{Size: 1 << 62},
		{Size: 8192, Mask: 4095},
	} {
		if m, err := d.Alloc(r); err == nil || m != nil {
			t.Errorf("Alloc(%+v) = %v, %v, want an error", r, m, err)
			m.Free()
		}
	}
	for _, m := range live {
		m.Free()
		m.Free() // does nothing
		if m.Bytes != nil {
			t.Error("Bytes after Free, want nil")
		}
	}
}

func checkMemory(t *testing.T, m *bus.Memory, r bus.DMARequest) {
	t.Helper()
	if len(m.Bytes) < r.Size {
		t.Errorf("Alloc(%+v): %d bytes", r, len(m.Bytes))
		return
	}
	if align := max(r.Align, 1); uint64(m.IOVA)%align != 0 || r.Align == 0 && m.IOVA%4096 != 0 {
		t.Errorf("Alloc(%+v): IOVA %#x is not aligned", r, m.IOVA)
	}
	first, last := uint64(m.IOVA), uint64(m.IOVA)+uint64(r.Size)-1
	if b := r.Boundary; b != 0 && first/b != last/b {
		t.Errorf("Alloc(%+v): %#x to %#x crosses the boundary", r, first, last)
	}
	if r.Mask != 0 && last > r.Mask {
		t.Errorf("Alloc(%+v): %#x lies above the mask", r, last)
	}
	if i := bytes.IndexFunc(m.Bytes, func(r rune) bool { return r != 0 }); i >= 0 {
		t.Errorf("Alloc(%+v): byte %d is not zero", r, i)
	}
	for i := range m.Bytes {
		m.Bytes[i] = 0xa5 // all of it can be written
	}
}

// Freed memory is handed out again, zeroed, and nothing runs out.
func dmaReuse(t *testing.T, s Subject) {
	d := needDMA(t, s)
	for i := range 200 {
		m, err := d.Alloc(bus.DMARequest{Size: 1 << 20})
		if err != nil {
			t.Fatalf("Alloc of 1 MiB, time %d, with all before freed = %v", i, err)
		}
		for at := 0; at < len(m.Bytes); at += 512 {
			if m.Bytes[at] != 0 {
				t.Fatalf("time %d: byte %d = %#x, want zeroed memory", i, at, m.Bytes[at])
			}
		}
		m.Bytes[0], m.Bytes[512*(i%100)], m.Bytes[1<<20-512] = 1, 2, 3
		m.Free()
	}
}

func dmaConcurrent(t *testing.T, s Subject) {
	d := needDMA(t, s)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 50 {
				m, err := d.Alloc(bus.DMARequest{Size: 4096 * (1 + i%3)})
				if err != nil {
					t.Errorf("Alloc beside others = %v", err)
					return
				}
				for at := range m.Bytes {
					m.Bytes[at] = byte(g)
				}
				for at := range m.Bytes {
					if m.Bytes[at] != byte(g) {
						t.Errorf("memory of one goroutine was written by another")
						break
					}
				}
				m.Free()
			}
		})
	}
	wg.Wait()
}

// The device finds memory where IOVA says, and nothing else of it.
func dmaMove(t *testing.T, s Subject) {
	d := needMove(t, s)
	n := min(s.MaxMove, 4000)
	src, dst := moveMemory(t, s, d, 8192, 0), moveMemory(t, s, d, 8192, 0)
	defer src.Free()
	defer dst.Free()
	move(t, s, dst, 200, src, 100, n)
}

// A buffer may cross the boundaries that its request does not name: of pages, and of 64 KiB.
func dmaCross(t *testing.T, s Subject) {
	d := needMove(t, s)
	const size = 128 << 10
	n := min(s.MaxMove, 300)
	src, dst := moveMemory(t, s, d, size, size/2), moveMemory(t, s, d, size, size/2)
	defer src.Free()
	defer dst.Free()
	for _, at := range []struct{ dst, src int }{{4096 - 7, 8192 - 100}, {size/2 - 1, size/2 - n + 1}, {size - n, size - n}} {
		move(t, s, dst, at.dst, src, at.src, n)
	}
}

// A device that reaches few addresses gets memory there until there is none left, and can use what
// lies highest.
func dmaMask(t *testing.T, s Subject) {
	d := needMove(t, s)
	if s.MoveMask == 0 {
		t.Skip("the subject reaches all memory")
	}
	const parts = 8 // few pieces fit: they must lie far apart
	r := bus.DMARequest{Size: 4096, Align: (s.MoveMask + 1) / parts, Mask: s.MoveMask}
	var live []*bus.Memory
	defer func() {
		for _, m := range live {
			m.Free()
		}
	}()
	for {
		m, err := d.Alloc(r)
		if err != nil {
			break
		}
		live = append(live, m)
		checkMemory(t, m, r)
		if len(live) > parts {
			t.Fatalf("%d times Alloc(%+v), which leaves room for %d", len(live), r, parts)
		}
	}
	if len(live) == 0 {
		t.Fatalf("Alloc(%+v) fails the first time", r)
	}
	src := moveMemory(t, s, d, 4096, 0)
	defer src.Free()
	move(t, s, live[len(live)-1], 4096-100, src, 0, 100)
}

// needMove skips where the device cannot do DMA by itself.
func needMove(t *testing.T, s Subject) bus.DMA {
	t.Helper()
	if s.Move == nil {
		t.Skip("the subject cannot do DMA by itself")
	}
	return needDMA(t, s)
}

func moveMemory(t *testing.T, s Subject, d bus.DMA, size int, align uint64) *bus.Memory {
	t.Helper()
	m, err := d.Alloc(bus.DMARequest{Size: size, Align: align, Mask: s.MoveMask})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// move has the device copy n bytes, and looks at what it wrote and at what is beside it.
func move(t *testing.T, s Subject, dst *bus.Memory, to int, src *bus.Memory, from, n int) {
	t.Helper()
	for i := range n {
		src.Bytes[from+i] = byte(i*13 + i>>8)
	}
	for i := range dst.Bytes {
		dst.Bytes[i] = 0xee
	}
	if err := s.Move(t.Context(), dst.IOVA+bus.IOVA(to), src.IOVA+bus.IOVA(from), n); err != nil {
		t.Fatalf("moving %d bytes = %v", n, err)
	}
	if !bytes.Equal(dst.Bytes[to:to+n], src.Bytes[from:from+n]) {
		t.Errorf("what the device wrote at %d differs from what it was to read at %d", to, from)
	}
	for _, i := range []int{0, to - 1, to + n, len(dst.Bytes) - 1} {
		if (i < to || i >= to+n) && i < len(dst.Bytes) && dst.Bytes[i] != 0xee {
			t.Errorf("byte %d beside the target = %#x, want it untouched", i, dst.Bytes[i])
		}
	}
}
