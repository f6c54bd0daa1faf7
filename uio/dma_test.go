package uio

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/internal/ioctl"
)

// ram is a machine's physical memory, as a source: a model. Its huge pages are at these
// addresses, and are given in this order.
type ram struct {
	t     *testing.T
	huge  []uint64 // free huge pages, the next first
	small []uint64 // where the next blocks of small pages are: each is cut into runs of 1, 2, 4... pages
	taken int      // blocks and files that are not given back
	ended bool
}

func (r *ram) close() { r.ended = true }

func (r *ram) memory() *memory { return &memory{who: address, src: r} }

// check says what is left behind.
func (r *ram) check(t *testing.T, huge int) {
	t.Helper()
	if r.taken != 0 || len(r.huge) != huge {
		t.Errorf("%d blocks are still taken, and %d huge pages free, want 0 and %d", r.taken, len(r.huge), huge)
	}
}

func (r *ram) mmap(n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		r.t.Fatal(err)
	}
	r.taken++
	return b
}

func (r *ram) pages() (*block, error) {
	if len(r.small) == 0 {
		return nil, unix.EPERM
	}
	at := r.small[0]
	r.small = r.small[1:]
	b := r.mmap(hugeSize)
	k := &block{bytes: b, free: func() {
		r.taken--
		if err := unix.Munmap(b); err != nil {
			r.t.Error(err)
		}
	}}
	for n := 1; len(k.phys) < hugeSize/pageSize; n *= 2 {
		for range n {
			if len(k.phys) < hugeSize/pageSize {
				k.phys = append(k.phys, at)
			}
			at += uint64(pageSize)
		}
		at += uint64(pageSize) // a hole
	}
	return k, nil
}

func (r *ram) file() (hugeFile, error) {
	r.taken++
	return &ramFile{ram: r}, nil
}

type ramFile struct {
	*ram
	pages []uint64
}

func (f *ramFile) grow() (uint64, error) {
	if len(f.huge) == 0 {
		return 0, fmt.Errorf("taking a huge page: %w", unix.ENOSPC)
	}
	at := f.huge[0]
	f.huge = f.huge[1:]
	f.pages = append(f.pages, at)
	return at, nil
}

func (f *ramFile) mapPages(want []int) ([]byte, func(), error) {
	f.taken--
	var kept []uint64
	for i, at := range f.pages {
		if slices.Contains(want, i) {
			kept = append(kept, at)
		} else {
			f.huge = append(f.huge, at)
		}
	}
	b := f.mmap(len(want) * hugeSize)
	return b, func() {
		f.taken--
		f.huge = append(f.huge, kept...)
		if err := unix.Munmap(b); err != nil {
			f.t.Error(err)
		}
	}, nil
}

func (f *ramFile) close() {
	f.taken--
	f.huge = append(f.huge, f.pages...)
}

// hugeAt are n huge pages from the one with this number on, each second one before the others.
func hugeAt(first, n uint64) []uint64 {
	var out []uint64
	for odd := range uint64(2) {
		for i := odd; i < n; i += 2 {
			out = append(out, (first+i)*hugeSize)
		}
	}
	return out
}

// The suite's DMA, on a model of a function and of memory.
func TestConformanceDMA(t *testing.T) {
	bustest.All(t, func(t *testing.T) bustest.Subject {
		m := newMachine(t)
		r := &ram{t: t, huge: hugeAt(100, 64)}
		o := m.options()
		o.Files = m.files()
		o.DMAUnsafe = true
		o.kernel = &kernel{mmap: realKernel.mmap, source: func() (source, error) { return r, nil }}
		d := m.openWith(address, o)
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			r.check(t, 64)
			if !r.ended {
				t.Error("the source was not closed")
			}
		})
		return bustest.Plain(d)
	})
}

// Random requests: every one keeps its conditions, in physical addresses, and nothing overlaps.
func TestMemory(t *testing.T) {
	for _, c := range []struct {
		name string
		ram  *ram
	}{
		{"huge pages", &ram{huge: hugeAt(7, 128)}},
		{"small pages", &ram{small: []uint64{1 << 20, 1 << 24, 1 << 25, 1 << 26, 1 << 32, 1 << 33}}},
		{"both", &ram{huge: hugeAt(1000, 8), small: []uint64{1 << 20, 1 << 24}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bustest.NoLeaks(t)
			c.ram.t = t
			huge := len(c.ram.huge)
			m := c.ram.memory()
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
				mem, err := m.alloc(q)
				if err != nil {
					wantErr(t, "alloc", err, err, address, "vm.nr_hugepages")
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
			m.close()
			for _, mem := range live[half:] {
				mem.Bytes[0] = 1 // is there until it is freed
				mem.Free()
			}
			m.close()
			c.ram.check(t, huge)
			_, err := m.alloc(bus.DMARequest{Size: 1})
			wantErr(t, "alloc after close", err, bus.ErrClosed)
		})
	}
}

// checkPlace checks that memory is zeroed, keeps its conditions, and is where it says.
func checkPlace(t *testing.T, m *memory, mem *bus.Memory, q bus.DMARequest) {
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
		if got, want := physOf(m, all[off:]), first+uint64(off); got != want {
			t.Fatalf("page %d of alloc(%+v) is at %#x, want %#x", off/pageSize, q, got, want)
		}
	}
}

// physOf is the physical address of a page, by what the source said.
func physOf(m *memory, b []byte) uint64 {
	at := ioctl.Address(b)
	for _, r := range m.runs {
		if base := ioctl.Address(r.block.bytes); at >= base && at < base+uintptr(len(r.block.bytes)) {
			return r.block.phys[(at-base)/uintptr(pageSize)]
		}
	}
	return ^uint64(0)
}

// Requests larger than a huge page, and with conditions that few pages meet.
func TestHugePages(t *testing.T) {
	r := &ram{t: t, huge: slices.Concat(hugeAt(4000, 3), hugeAt(17, 16), []uint64{64 * hugeSize, 600 * hugeSize})}
	huge := len(r.huge)
	m := r.memory()
	for _, q := range []bus.DMARequest{
		{Size: 5 * hugeSize},
		{Size: 2*hugeSize + 1, Align: 4 * hugeSize},
		{Size: hugeSize, Mask: 1<<26 - 1},
		{Size: 4096, Align: 64 * hugeSize},
		{Size: 4096, Align: 64 * hugeSize, Mask: 1<<27 + 4095},
		{Size: 3 * hugeSize, Boundary: 4 * hugeSize},
	} {
		mem, err := m.alloc(q)
		if err != nil {
			t.Errorf("alloc(%+v) = %v", q, err)
			continue
		}
		checkPlace(t, m, mem, q)
		mem.Free()
	}
	for _, q := range []bus.DMARequest{
		{Size: 20 * hugeSize},
		{Size: 2000 * hugeSize},
		{Size: 1 << 50},
		{Size: 4096, Mask: 1<<25 - 1},
		{Size: 4096, Align: 1 << 40},
	} {
		mem, err := m.alloc(q)
		if mem != nil {
			t.Errorf("alloc(%+v) gave memory at %#x", q, mem.IOVA)
		}
		wantErr(t, "alloc", err, unix.ENOMEM, address)
	}
	// All that one request looked at and did not use was there for the next.
	var live []*bus.Memory
	for range huge {
		mem, err := m.alloc(bus.DMARequest{Size: hugeSize})
		if err != nil {
			t.Fatalf("%d of %d huge pages can be had: %v", len(live), huge, err)
		}
		live = append(live, mem)
	}
	for _, mem := range live {
		mem.Free()
	}
	if r.taken > 1 {
		t.Errorf("%d blocks are kept for later, want 1", r.taken)
	}
	m.close()
	r.check(t, huge)
}

// Without huge pages, and without small ones that stay where they are, the reason is told.
func TestNoMemory(t *testing.T) {
	r := &ram{t: t}
	_, err := r.memory().alloc(bus.DMARequest{Size: 4096})
	wantErr(t, "alloc", err, unix.EPERM, "vm.nr_hugepages")
	wantErr(t, "alloc", err, unix.ENOMEM)
	r.check(t, 0)
}

// DMA by physical addresses is refused where they mean nothing to the device.
func TestUnsafeRefused(t *testing.T) {
	m := newMachine(t)
	open := func(device string, src func() (source, error)) error {
		o := m.options()
		o.Files = m.files()
		if device == "uio1" {
			o.Files = &Files{Device: "uio1", UIO: m.file}
		}
		o.DMAUnsafe = true
		o.kernel = &kernel{mmap: realKernel.mmap, source: src}
		d, err := Open(t.Context(), device, o)
		if err == nil {
			_ = d.Close()
		}
		return err
	}
	fine := func() (source, error) { return &ram{t: t}, nil }
	if err := open(address, fine); err != nil {
		t.Errorf("Open without an IOMMU = %v", err)
	}
	wantErr(t, "Open without the right", open(address, func() (source, error) { return nil, unix.EPERM }), unix.EPERM, address, "dma=unsafe")
	platform(m)
	wantErr(t, "Open of a board's device", open("uio1", fine), bus.ErrNotSupported, "uio1", "PCI")

	m.link("../../../../kernel/iommu_groups/4", filepath.Join(m.fn(), "iommu_group"))
	kind := filepath.Join(m.sys, "kernel/iommu_groups/4/type")
	wantErr(t, "Open in a group of no type", open(address, fine), os.ErrNotExist, "group 4")
	for _, s := range []string{"DMA", "DMA-FQ", "blocked", "auto"} {
		m.write(kind, s+"\n")
		wantErr(t, "Open behind an IOMMU", open(address, fine), bus.ErrNotSupported, address, "group 4 is of type "+s, "vfio")
	}
	m.write(kind, "identity\n")
	if err := open(address, fine); err != nil {
		t.Errorf("Open in a group that does not translate = %v", err)
	}
}

// The kernel itself: what it says of memory is true for as long as the memory is there.
func TestPhysical(t *testing.T) {
	bustest.NoLeaks(t)
	src, err := newPhysical()
	if errors.Is(err, unix.EPERM) {
		t.Skipf("needs CAP_SYS_ADMIN; the VM's tests have it: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	m := &memory{who: address, src: src}
	defer m.close()
	var live []*bus.Memory
	for _, q := range []bus.DMARequest{{Size: 1}, {Size: 4096}, {Size: 8192, Boundary: 1 << 16}, {Size: 100, Mask: 1<<40 - 1}} {
		mem, err := m.alloc(q)
		if err != nil {
			t.Errorf("alloc(%+v) = %v", q, err)
			continue
		}
		live = append(live, mem)
		checkPlace(t, m, mem, q)
		for off := 0; off < cap(mem.Bytes); off += pageSize {
			got, err := src.(*physical).frames(mem.Bytes[off : off+1 : cap(mem.Bytes)][:pageSize])
			if err != nil || got[0] != uint64(mem.IOVA)+uint64(off) {
				t.Errorf("page %d of alloc(%+v) is at %#x, %v, want %#x", off/pageSize, q, got, err, uint64(mem.IOVA)+uint64(off))
			}
		}
	}
	for _, mem := range live {
		mem.Free()
	}
}
