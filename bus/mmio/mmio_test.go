package mmio

import (
	"encoding/binary"
	"errors"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

var _ bus.Region = (*Region)(nil)

// page is a mapping, as a BAR's is; it ends at a page that faults when touched.
func page(t testing.TB) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	if err := unix.Mprotect(b[4096:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	return b[:4096:4096]
}

func region(t testing.TB) (*Region, []byte) {
	t.Helper()
	b := page(t)
	r, err := NewRegion(bus.RegionInfo{Index: 2, Size: 4096}, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r, b
}

// Every width, at every aligned place of three words: the value is little-endian, and no
// neighbour changes.
func TestWidths(t *testing.T) {
	r, b := region(t)
	const v = 0x8877665544332211
	for _, w := range []struct {
		n     int
		write func(bus.Off)
		read  func(bus.Off) uint64
	}{
		{1, func(o bus.Off) { r.Write8(o, v&0xff) }, func(o bus.Off) uint64 { return uint64(r.Read8(o)) }},
		{2, func(o bus.Off) { r.Write16(o, v&0xffff) }, func(o bus.Off) uint64 { return uint64(r.Read16(o)) }},
		{4, func(o bus.Off) { r.Write32(o, v&0xffffffff) }, func(o bus.Off) uint64 { return uint64(r.Read32(o)) }},
		{8, func(o bus.Off) { r.Write64(o, v) }, func(o bus.Off) uint64 { return r.Read64(o) }},
	} {
		for at := 0; at < 24; at += w.n {
			for i := range b[:32] {
				b[i] = 0xa5
			}
			w.write(bus.Off(at))
			var want [32]byte
			for i := range want {
				want[i] = 0xa5
			}
			var le [8]byte
			binary.LittleEndian.PutUint64(le[:], v)
			copy(want[at:at+w.n], le[:])
			if [32]byte(b[:32]) != want {
				t.Errorf("Write%d(%#x) left % x, want % x", 8*w.n, at, b[:32], want)
			}
			wantV := uint64(v)
			if w.n < 8 {
				wantV &= 1<<(8*w.n) - 1
			}
			if got := w.read(bus.Off(at)); got != wantV {
				t.Errorf("Read%d(%#x) = %#x, want %#x", 8*w.n, at, got, wantV)
			}
		}
	}
}

func TestOutside(t *testing.T) {
	r, b := region(t)
	check := func(what string) {
		t.Helper()
		for _, off := range []bus.Off{4096, 4097, 8192, 1 << 32, ^bus.Off(0), ^bus.Off(0) - 7, 4089} {
			if off%8 != 0 || off >= 4096 {
				r.Write64(off, 0)
				if got := r.Read64(off); got != ^uint64(0) {
					t.Errorf("%s: Read64(%#x) = %#x, want all-ones", what, off, got)
				}
			}
			if off >= 4096 {
				r.Write8(off, 0)
				if got := r.Read8(off); got != 0xff {
					t.Errorf("%s: Read8(%#x) = %#x, want all-ones", what, off, got)
				}
			}
		}
		for _, off := range []bus.Off{1, 2, 3, 4095, 4094, 4093} {
			r.Write32(off, 0x12345678)
			if got := r.Read32(off); got != 0xffffffff {
				t.Errorf("%s: Read32(%#x) = %#x, want all-ones", what, off, got)
			}
			if off%2 != 0 {
				r.Write16(off, 0x1234)
				if got := r.Read16(off); got != 0xffff {
					t.Errorf("%s: Read16(%#x) = %#x, want all-ones", what, off, got)
				}
			}
		}
	}
	check("open")
	for i, x := range b {
		if x != 0 {
			t.Fatalf("byte %#x = %#x, want nothing written", i, x)
		}
	}
	r.Write64(4088, 1) // the last one is inside
	if b[4088] != 1 || r.Read8(4095) != 0 {
		t.Errorf("the last 8 bytes = % x, want 01 and zeros", b[4088:])
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	check("closed")
	if got := r.Read32(0); got != 0xffffffff {
		t.Errorf("Read32(0) after Close = %#x, want all-ones", got)
	}
	if err := r.Close(); err != nil {
		t.Errorf("second Close = %v, want nil", err)
	}
}

func TestSuspend(t *testing.T) {
	r, b := region(t)
	for range 2 {
		r.Write32(8, 5)
		r.Suspend()
		r.Suspend()
		r.Write32(8, 6)
		if got := r.Read32(8); got != 0xffffffff || b[8] != 5 {
			t.Errorf("Read32 while suspended = %#x with %d in memory, want all-ones, and 5 as before", got, b[8])
		}
		r.Resume()
		r.Resume()
		if got := r.Read32(8); got != 5 {
			t.Errorf("Read32 after Resume = %#x, want 5", got)
		}
	}
	unmapped := 0
	c, err := NewRegion(bus.RegionInfo{Size: 4096}, b, func([]byte) error { unmapped++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	c.Suspend()
	if err := c.Close(); err != nil || unmapped != 1 {
		t.Errorf("Close while suspended = %v, unmapped %d times, want nil, once", err, unmapped)
	}
	c.Resume()
	if got := c.Read32(8); got != 0xffffffff {
		t.Errorf("Read32 after Close and Resume = %#x, want all-ones", got)
	}
}

func TestNewRegionChecks(t *testing.T) {
	b := page(t)
	for _, m := range [][]byte{nil, b[:4092], b[4:], b[:4095]} {
		if _, err := NewRegion(bus.RegionInfo{Size: 4096}, m, nil); !errors.Is(err, bus.ErrProtocol) {
			t.Errorf("NewRegion of %d bytes for 4096 = %v, want ErrProtocol", len(m), err)
		}
	}
	if _, err := NewRegion(bus.RegionInfo{Size: 8}, b[4:12], nil); !errors.Is(err, bus.ErrProtocol) {
		t.Errorf("NewRegion of an odd place = %v, want ErrProtocol", err)
	}
}

// Accesses may race with each other and with Close: none reaches an unmapped page.
func TestCloseUnderAccess(t *testing.T) {
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewRegion(bus.RegionInfo{Size: 4096}, b, unix.Munmap)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	started := make(chan struct{}, 4)
	for i := range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				r.Write16(bus.Off(8*i), uint16(n))
				v := r.Read16(bus.Off(8 * i))
				if n == 100 {
					started <- struct{}{}
				}
				if v == 0xffff {
					return
				}
				if v != uint16(n) {
					t.Errorf("Read16 = %d, want %d", v, n)
					return
				}
				if n = n % 1000; n > 998 {
					n = 200
				}
			}
		})
	}
	for range 4 {
		<-started
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func TestBarriers(t *testing.T) {
	WriteBarrier()
	ReadBarrier()
	Barrier()
}

func BenchmarkWrite32(b *testing.B) {
	r, _ := region(b)
	for b.Loop() {
		r.Write32(8, 1)
	}
}

func BenchmarkStore32Raw(b *testing.B) {
	var x uint32
	for b.Loop() {
		store32(&x, 1)
	}
}

// What is copied by aligned accesses is what a copy would be, at every place and of every length.
func TestAligned(t *testing.T) {
	r, b := region(t)
	var want [40]byte
	for i := range want {
		want[i] = byte(i + 1)
	}
	for at := range 9 {
		for n := range len(want) - 8 {
			clear(b[:64])
			r.writeAligned(bus.Off(at), want[:n])
			if string(b[at:at+n]) != string(want[:n]) || b[at+n] != 0 || at > 0 && b[at-1] != 0 {
				t.Fatalf("%d bytes written at %d left % x", n, at, b[:64])
			}
			got := make([]byte, n)
			if r.readAligned(bus.Off(at), got); string(got) != string(want[:n]) {
				t.Fatalf("%d bytes read at %d = % x", n, at, got)
			}
		}
	}
}
