package vfio

import (
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/ioctl"
)

// Memory of 2 MiB and more lies so that the IOMMU and the processor can use huge pages for
// it, and may be used to the last byte.
func TestHugePages(t *testing.T) {
	f := newFake(t)
	fn := f.add(addr, 7, "vfio-pci")
	for _, p := range []Pages{PagesAuto, PagesSmall} {
		o := f.options()
		o.Pages = p
		d := f.mustOpen(t, addr, o)
		for _, size := range []int{4096, hugePage - 1, hugePage, hugePage + 1, 7<<20 + 5, 8 << 20} {
			m, err := d.DMA().Alloc(bus.DMARequest{Size: size})
			if err != nil {
				t.Fatal(err)
			}
			if size >= hugePage && p == PagesAuto && (m.IOVA%hugePage != 0 || ioctl.Address(m.Bytes)%hugePage != 0) {
				t.Errorf("%d bytes at %#x, IOVA %#x, want both aligned to 2 MiB", size, ioctl.Address(m.Bytes), m.IOVA)
			}
			if len(m.Bytes) != size || f.reach(fn, m.IOVA, size, permRead|permWrite) == nil || f.reach(fn, m.IOVA, size+4096, permRead) != nil {
				t.Errorf("%d bytes: the device reaches another size", size)
			}
			for at := 0; at < size; at += 4096 {
				m.Bytes[at] = 1
			}
			m.Bytes[size-1] = 1
			m.Free()
		}
		d.Close()
	}
}

// Small pieces lie in one huge page, are zeroed when they come again, and are unmapped with the space.
func TestArenas(t *testing.T) {
	var l arenas
	l.hold(true)
	type piece struct {
		mem  []byte
		free func()
		tag  byte
	}
	var live []piece
	rnd := rand.New(rand.NewPCG(7, 8))
	for i := range 3000 {
		if len(live) > 30 || len(live) > 0 && rnd.IntN(2) == 0 {
			k := rnd.IntN(len(live))
			p := live[k]
			if p.mem[0] != p.tag || p.mem[len(p.mem)-1] != p.tag {
				t.Fatalf("a piece has %d, %d, want %d: another has it too", p.mem[0], p.mem[len(p.mem)-1], p.tag)
			}
			p.free()
			live = slices.Delete(live, k, k+1)
			continue
		}
		mem, free, err := l.take(pageSize * (1 + rnd.Uint64N(100)))
		if err != nil {
			t.Fatal(err)
		}
		if uint64(ioctl.Address(mem))%pageSize != 0 || ioctl.Address(mem)/hugePage != ioctl.Address(mem[len(mem)-1:])/hugePage {
			t.Fatalf("a piece of %d bytes at %#x crosses huge pages", len(mem), ioctl.Address(mem))
		}
		if i := slices.IndexFunc(mem, func(b byte) bool { return b != 0 }); i >= 0 {
			t.Fatalf("byte %d of a piece is not zero", i)
		}
		p := piece{mem, free, byte(1 + i%255)}
		for j := range mem {
			mem[j] = p.tag
		}
		live = append(live, p)
	}
	if n := len(l.all); n > 10 {
		t.Errorf("%d huge pages for 30 pieces of 200 KiB", n)
	}
	last := live[0]
	for _, p := range live[1:] {
		p.free()
	}
	l.hold(false)
	if len(l.all) != 1 {
		t.Errorf("%d huge pages for one piece, want 1", len(l.all))
	}
	last.mem[0] = 1 // valid until it is freed
	last.free()
	if len(l.all) != 0 {
		t.Errorf("%d huge pages are left", len(l.all))
	}
}

func TestDirections(t *testing.T) {
	f := newFake(t)
	fn := f.add(addr, 7, "vfio-pci")
	d := f.mustOpen(t, addr, f.options())
	for dir, want := range map[bus.Direction]perm{bus.Bidirectional: permRead | permWrite, bus.ToDevice: permRead, bus.FromDevice: permWrite} {
		m, err := d.DMA().Alloc(bus.DMARequest{Size: 4096, Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []perm{permRead, permWrite} {
			if got := f.reach(fn, m.IOVA, 1, p) != nil; got != (p&want != 0) {
				t.Errorf("direction %d: the device may do %d: %v", dir, p, got)
			}
		}
		m.Free()
	}
}

func TestMapOwn(t *testing.T) {
	f := newFake(t)
	fn := f.add(addr, 7, "vfio-pci")
	d := f.mustOpen(t, addr, f.options())
	// Go's heap: whole pages are aligned to one.
	b := make([]byte, 64<<10)
	m, err := d.DMA().Map(b, bus.DMARequest{Dir: bus.ToDevice})
	if err != nil {
		t.Fatal(err)
	}
	b[5] = 7
	if got := f.reach(fn, m.IOVA, len(b), permRead); got == nil || got[5] != 7 || len(m.Bytes) != len(b) {
		t.Error("the device does not find what the caller wrote")
	}
	m.Free()
	if f.reach(fn, m.IOVA, 1, permRead) != nil {
		t.Error("the device reaches memory after Free")
	}
	b[5] = 8 // the caller's as before
	m, err = d.DMA().Map(b[:100], bus.DMARequest{Size: 50, Align: 1 << 16, Mask: 1<<32 - 1})
	if err != nil || m.IOVA%(1<<16) != 0 || len(m.Bytes) != 50 {
		t.Errorf("Map of a part = %v, want 50 bytes at an aligned address", err)
	}
	m.Free()
	// What cannot be written, the device may read.
	ro, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(ro) }()
	m, err = d.DMA().Map(ro, bus.DMARequest{Dir: bus.ToDevice})
	if err != nil || f.reach(fn, m.IOVA, 4096, permWrite) != nil || f.reach(fn, m.IOVA, 4096, permRead) == nil {
		t.Errorf("Map of memory that cannot be written = %v, want it mapped for reading", err)
	}
	m.Free()
	for what, c := range map[string]struct {
		b []byte
		q bus.DMARequest
	}{
		"nothing":                 {nil, bus.DMARequest{}},
		"off a page":              {b[1:5000], bus.DMARequest{}},
		"more than there is":      {b[:4096], bus.DMARequest{Size: 8192}},
		"another's after it":      {b[:100:100], bus.DMARequest{}},
		"against the boundary":    {b, bus.DMARequest{Boundary: 4096}},
		"below what there can be": {b, bus.DMARequest{Mask: 4095}},
	} {
		if m, err := d.DMA().Map(c.b, c.q); err == nil {
			t.Errorf("Map of %s = %#x, want an error", what, m.IOVA)
		}
	}
}

// Memory of other processes comes at addresses of their choice (bus.Placer).
func TestPlace(t *testing.T) {
	f := newFake(t)
	fn := f.add(addr, 7, "vfio-pci")
	d := f.mustOpen(t, addr, f.options())
	p, ok := d.DMA().(bus.Placer)
	if !ok {
		t.Fatal("DMA is no bus.Placer")
	}
	all, err := unix.Mmap(-1, 0, 8*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(all) }()
	window := func(at bus.IOVA, pages uint64, dir bus.Direction) bus.Window {
		return bus.Window{IOVA: at, Size: pages * 4096, Dir: dir, Bytes: all[: pages*4096 : pages*4096]}
	}
	first, err := p.Place(window(1<<33, 2, bus.ToDevice))
	if err != nil {
		t.Fatal(err)
	}
	all[5] = 7
	if got := f.reach(fn, 1<<33, 8192, permRead); got == nil || got[5] != 7 || f.reach(fn, 1<<33, 1, permWrite) != nil {
		t.Error("the device does not find the memory, or may write to what it is to read")
	}
	// The next page is another window's.
	second, err := p.Place(window(1<<33+8192, 1, bus.Bidirectional))
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string]bus.Window{
		"where something is":         window(1<<33+4096, 1, bus.Bidirectional),
		"of interrupt messages":      window(0xfee00000, 1, bus.Bidirectional),
		"that the IOMMU has not":     window(1<<50, 1, bus.Bidirectional),
		"off a page":                 window(1<<34+8, 1, bus.Bidirectional),
		"beyond all there are":       window(^bus.IOVA(4095), 2, bus.Bidirectional),
		"without memory":             {IOVA: 1 << 34, Size: 4096},
		"with less memory":           {IOVA: 1 << 34, Size: 8192, Bytes: all[:4096]},
		"of nothing":                 {IOVA: 1 << 34, Bytes: all[:0]},
		"with half a page of memory": {IOVA: 1 << 34, Size: 2048, Bytes: all[:2048]},
	}
	for what, w := range bad {
		if _, err := p.Place(w); !errors.Is(err, bus.ErrBusy) && !errors.Is(err, bus.ErrNotSupported) {
			t.Errorf("Place at addresses %s = %v, want ErrBusy or ErrNotSupported", what, err)
		}
	}
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 4096})
	if err != nil || m.IOVA >= 1<<33 && m.IOVA < 1<<33+3*4096 {
		t.Errorf("Alloc = %v at %#x, want other addresses", err, m.IOVA)
	}
	first()
	first()
	if f.reach(fn, 1<<33, 1, permRead) != nil || f.reach(fn, 1<<33+8192, 1, permRead) == nil {
		t.Error("the device reaches what was released, or not what was not")
	}
	if first, err = p.Place(window(1<<33, 2, bus.Bidirectional)); err != nil {
		t.Errorf("Place where something was = %v", err)
	}
	d.Close()
	first() // the device took it along
	second()
	if _, err := p.Place(window(1<<34, 1, bus.Bidirectional)); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Place for a closed device = %v, want ErrClosed", err)
	}
}

// The kernel's refusals are told with their causes.
func TestRefusedMemory(t *testing.T) {
	f := newFake(t)
	f.add(addr, 7, "vfio-pci")
	d := f.mustOpen(t, addr, f.options())
	f.avail = 1
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.DMA().Alloc(bus.DMARequest{Size: 1}); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "dma_entry_limit") {
		t.Errorf("Alloc beyond the number of mappings = %v, want ENOSPC and why", err)
	}
	m.Free()
	f.avail, f.memlock = 100, 8<<20
	if _, err := d.DMA().Alloc(bus.DMARequest{Size: 9 << 20}); !errors.Is(err, unix.ENOMEM) || strings.Contains(err.Error(), "\n") {
		t.Errorf("Alloc beyond what may be locked = %v, want ENOMEM", err)
	}
	if len(d.space.live) != 0 || len(d.space.pool.Free()) != 2 {
		t.Errorf("%d pieces, %d free ranges after refusals, want none, 2", len(d.space.live), len(d.space.pool.Free()))
	}
}

// The limit is named with what is wanted, for those whom it concerns: not for root.
func TestWhyNotMapped(t *testing.T) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
		t.Fatal(err)
	}
	err := whyNotMapped(unix.ENOMEM, 1<<50, false)
	told := strings.Contains(err.Error(), "LimitMEMLOCK=")
	if want := !mayLock() && l.Cur != unix.RLIM_INFINITY; told != want || !errors.Is(err, unix.ENOMEM) {
		t.Errorf("whyNotMapped = %v, want the remedy: %v", err, want)
	}
	if err := whyNotMapped(unix.EINVAL, 1, false); err != unix.EINVAL {
		t.Errorf("whyNotMapped of another error = %v, want it as it is", err)
	}
	if kB("VmLck")%1024 != 0 || status("Pid") == "" || status("nothing") != "" {
		t.Error("this process's status is not read")
	}
	if os.Getuid() == 0 && !mayLock() && status("CapEff") == "000001ffffffffff" {
		t.Error("root may not lock")
	}
}

// A hole in the addresses is left out, whatever the mask.
func TestReserved(t *testing.T) {
	f := newFake(t)
	f.add(addr, 7, "vfio-pci")
	d := f.mustOpen(t, addr, f.options())
	var live []*bus.Memory
	for {
		m, err := d.DMA().Alloc(bus.DMARequest{Size: 4096, Align: 1 << 27, Mask: 1<<32 - 1})
		if err != nil {
			break
		}
		live = append(live, m)
	}
	if len(live) != 31 {
		t.Errorf("%d pieces at multiples of 128 MiB below 4 GiB, want 31: without the one at 0", len(live))
	}
	for _, m := range live {
		m.Free()
	}
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 8 << 20, Align: 1 << 20, Mask: 0xffffffff})
	if err != nil || m.IOVA < 0xfef00000 && m.IOVA+8<<20 > 0xfee00000 {
		t.Errorf("Alloc = %#x, %v, want it off 0xfee00000", m.IOVA, err)
	}
	m.Free()
	// A device that joins takes addresses away.
	f.ranges = f.ranges[:1]
	f.add("0000:04:00.0", 9, "vfio-pci")
	o := f.options()
	o.Space = NewSpace()
	e := f.mustOpen(t, "0000:04:00.0", o)
	if m, err := e.DMA().Alloc(bus.DMARequest{Size: 1}); err != nil || m.IOVA >= 0xfee00000 {
		t.Errorf("Alloc = %v, %v, want it below 4 GiB, where there is all", m, err)
	} else {
		m.Free()
	}
	if err := o.Space.Close(); err != nil {
		t.Error(err)
	}
}
