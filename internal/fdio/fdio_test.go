package fdio

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

var (
	_ bus.Config = (*Config)(nil)
	_ bus.Region = (*Region)(nil)
)

// base is where spaces begin in tests' files: VFIO's are not at 0.
const base = 0x1000

// memory is a file of zeros, with size bytes behind base.
func memory(t testing.TB, size int) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("space", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "space")
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(base + int64(size)); err != nil {
		t.Fatal(err)
	}
	return f
}

func contents(t testing.TB, f *os.File, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, base); err != nil {
		t.Fatal(err)
	}
	return b
}

// accesses are all that a region has.
func accesses(r *Region) []struct {
	n     int
	read  func(bus.Off) uint64
	write func(bus.Off, uint64)
} {
	return []struct {
		n     int
		read  func(bus.Off) uint64
		write func(bus.Off, uint64)
	}{
		{1, func(o bus.Off) uint64 { return uint64(r.Read8(o)) }, func(o bus.Off, v uint64) { r.Write8(o, uint8(v)) }},
		{2, func(o bus.Off) uint64 { return uint64(r.Read16(o)) }, func(o bus.Off, v uint64) { r.Write16(o, uint16(v)) }},
		{4, func(o bus.Off) uint64 { return uint64(r.Read32(o)) }, func(o bus.Off, v uint64) { r.Write32(o, uint32(v)) }},
		{8, func(o bus.Off) uint64 { return r.Read64(o) }, func(o bus.Off, v uint64) { r.Write64(o, v) }},
	}
}

func ones(n int) uint64 { return ^uint64(0) >> (64 - 8*n) }

// Every width at every aligned place: little-endian, and no neighbour changes.
func TestWidths(t *testing.T) {
	f := memory(t, 24)
	r := NewRegion(bus.RegionInfo{Index: 2, Size: 24}, int(f.Fd()), base)
	if r.Info().Index != 2 {
		t.Errorf("Info = %+v, want what it was made of", r.Info())
	}
	const v = 0x8877665544332211
	for _, a := range accesses(r) {
		for at := 0; at < 24; at += a.n {
			var want [24]byte
			for i := range want {
				want[i] = 0xa5
			}
			if _, err := f.WriteAt(want[:], base); err != nil {
				t.Fatal(err)
			}
			a.write(bus.Off(at), v)
			var le [8]byte
			binary.LittleEndian.PutUint64(le[:], v)
			copy(want[at:at+a.n], le[:])
			if got := [24]byte(contents(t, f, 24)); got != want {
				t.Errorf("a write of %d bytes at %d left % x, want % x", a.n, at, got, want)
			}
			if got := a.read(bus.Off(at)); got != v&ones(a.n) {
				t.Errorf("a read of %d bytes at %d = %#x, want %#x", a.n, at, got, v&ones(a.n))
			}
		}
	}
}

// What is not aligned or not inside reaches nothing, though the file goes on.
func TestOutside(t *testing.T) {
	f := memory(t, 64)
	r := NewRegion(bus.RegionInfo{Size: 16}, int(f.Fd()), base)
	r.OnError(func(err error) { t.Errorf("the kernel was asked: %v", err) })
	for _, a := range accesses(r) {
		n := bus.Off(a.n)
		offs := []bus.Off{16, 24, 1 << 32, ^bus.Off(0), ^bus.Off(0) - n + 1, 1 << 63}
		if n > 1 {
			offs = append(offs, 1, 16-n+1, 15)
		}
		for _, off := range offs {
			a.write(off, 0x5555555555555555)
			if got := a.read(off); got != ones(a.n) {
				t.Errorf("a read of %d bytes at %#x = %#x, want all-ones", a.n, off, got)
			}
		}
	}
	for i, b := range contents(t, f, 64) {
		if b != 0 {
			t.Fatalf("byte %d = %#x, want nothing written", i, b)
		}
	}
	if tiny := NewRegion(bus.RegionInfo{Size: 2}, int(f.Fd()), base); tiny.Read32(0) != 0xffffffff || tiny.Read16(0) != 0 {
		t.Error("a region of 2 bytes has 4, or not 2")
	}
}

// I/O space has no 64 bits.
func TestIO(t *testing.T) {
	f := memory(t, 16)
	r := NewRegion(bus.RegionInfo{Size: 16, Kind: bus.RegionIO}, int(f.Fd()), base)
	r.Write64(0, 1)
	if got := r.Read64(0); got != ^uint64(0) || r.Read32(0) != 0 {
		t.Errorf("Read64 = %#x, Read32 = %#x, want all-ones and 0", got, r.Read32(0))
	}
	r.Write32(4, 7)
	if got := r.Read32(4); got != 7 {
		t.Errorf("Read32 = %d, want 7", got)
	}
}

// What the kernel refuses reads all-ones, and is told.
func TestRefused(t *testing.T) {
	f := memory(t, 64)
	var told []error
	c := NewConfig(int(f.Fd()), base, 256) // the kernel shows 64
	c.OnError(func(err error) { told = append(told, err) })
	if c.Size() != 256 {
		t.Errorf("Size = %d, want 256", c.Size())
	}
	c.Write32(60, 0x01020304)
	if got := c.Read32(60); got != 0x01020304 || told != nil {
		t.Errorf("Read32(60) = %#x, told %v, want what was written", got, told)
	}
	if got := c.Read32(64); got != 0xffffffff || len(told) != 1 || !errors.Is(told[0], io.ErrUnexpectedEOF) {
		t.Errorf("Read32(64) = %#x, told %v, want all-ones and ErrUnexpectedEOF", got, told)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	p := NewSpace(int(r.Fd()), 0, 64)
	if got := p.Read8(0); got != 0xff { // and nobody is told
		t.Errorf("Read8 of a pipe = %#x, want all-ones", got)
	}
	p.OnError(func(err error) {
		told = append(told, err)
		p.Close()
	})
	p.Write8(0, 1)
	if len(told) != 2 || !errors.Is(told[1], unix.ESPIPE) {
		t.Errorf("told %v of a write to a pipe, want ESPIPE", told)
	}
	if p.Read8(0); len(told) != 2 {
		t.Errorf("told %v after Close", told)
	}
}

// After Close no access reaches the descriptor, whose number may be another file's.
func TestCloseUnderAccess(t *testing.T) {
	f := memory(t, 64)
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := NewSpace(fd, base, 64)
	s.OnError(func(err error) { t.Errorf("the kernel refused: %v", err) })
	var wg sync.WaitGroup
	started := make(chan struct{}, 4)
	for i := range bus.Off(4) {
		wg.Go(func() {
			for n := uint32(0); ; n++ {
				s.Write32(4*i, n)
				v := s.Read32(4 * i)
				if n == 100 {
					started <- struct{}{}
				}
				if v == 0xffffffff {
					return
				}
				if v != n {
					t.Errorf("Read32 = %d, want %d", v, n)
					return
				}
			}
		})
	}
	for range 4 {
		<-started
	}
	s.Close()
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
	wg.Wait()
	s.Close()
}
