package qemu

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
)

// shared is memory as another process would have it, and its window.
func shared(t *testing.T, size int) (*os.File, []byte) {
	t.Helper()
	fd, err := unix.MemfdCreate("client", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "client")
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return f, b
}

func placed(t *testing.T, d bus.Device, at bus.IOVA, f *os.File, b []byte, off, size int, dir bus.Direction) func() {
	t.Helper()
	w := bus.Window{IOVA: at, Size: uint64(size), Dir: dir, File: f, Off: int64(off), Bytes: b[off : off+size]}
	release, err := d.DMA().(bus.Placer).Place(w)
	if err != nil {
		t.Fatal(err)
	}
	return release
}

// plugged is how many DIMMs QEMU says that it has.
func plugged(t *testing.T, m *Machine) int {
	t.Helper()
	r, err := m.Execute("query-memory-devices", nil)
	if err != nil {
		t.Fatal(err)
	}
	var all []any
	if err := json.Unmarshal(r, &all); err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// A device behind the IOMMU reaches another process's memory where that wants it, part by part, and no
// more once it was taken away.
func TestPlace(t *testing.T) {
	bustest.NoLeaks(t)
	m, a, b := twoEdus(t)
	f, mem := shared(t, 1<<20)
	one, other := shared(t, 4096)
	const at = 0x5000000
	first := placed(t, a, at, f, mem, 0, 8192, bus.Bidirectional)
	second := placed(t, a, at+8192, f, mem, 1<<20-4096, 4096, bus.Bidirectional)
	// The other device has the same address, elsewhere.
	third := placed(t, b, at, one, other, 0, 4096, bus.Bidirectional)
	if n := plugged(t, m); n != 2 {
		t.Errorf("%d DIMMs, want 2: one for each file", n)
	}
	copy(mem[100:], "from a client")
	eduDMA(t, a, at+100, 13, false)
	eduDMA(t, a, at+8192+50, 13, true)
	if got := mem[1<<20-4096+50:][:13]; string(got) != "from a client" {
		t.Errorf("the device moved %q, want what the client wrote", got)
	}
	copy(other, "another")
	eduDMA(t, b, at, 7, false)
	eduDMA(t, b, at+64, 7, true)
	if string(other[64:71]) != "another" || !bytes.Equal(mem[64:71], make([]byte, 7)) {
		t.Errorf("the other device moved %q, and here stands %q", other[64:71], mem[64:71])
	}
	for _, w := range []bus.Window{
		{IOVA: at + 4096, Size: 4096, File: one, Bytes: other},
		{IOVA: bus.IOVA(m.bell.addr &^ 4095), Size: 4096, File: one, Bytes: other},
	} {
		if _, err := a.DMA().(bus.Placer).Place(w); !errors.Is(err, bus.ErrBusy) {
			t.Errorf("Place at %#x = %v, want ErrBusy", w.IOVA, err)
		}
	}
	for _, w := range []bus.Window{
		{IOVA: 0x9000000, Size: 4096}, {IOVA: 0x9000000, Size: 4096, File: one}, {IOVA: 0x9000000, Size: 8192, File: one, Bytes: other},
		{IOVA: 0x9000001, Size: 4096, File: one, Bytes: other}, {IOVA: 1 << 39, Size: 4096, File: one, Bytes: other}, {IOVA: 0x9000000, File: one, Bytes: other},
		{IOVA: 0x9000000, Size: 4096, File: one, Bytes: other, Off: 4096}, {IOVA: 0x9000000, Size: 4096, File: one, Bytes: other, Off: -4096},
	} {
		if _, err := a.DMA().(bus.Placer).Place(w); !errors.Is(err, bus.ErrNotSupported) {
			t.Errorf("Place(%+v) = %v, want ErrNotSupported", w, err)
		}
	}
	second()
	second()
	third()
	if n := plugged(t, m); n != 1 {
		t.Errorf("%d DIMMs while one file is used, want 1", n)
	}
	first()
	if n := plugged(t, m); n != 0 {
		t.Errorf("%d DIMMs after all was taken away, want 0", n)
	}
	eduDMA(t, a, at, 8, true)
	wantFault(t, a, "write to 0x5000000", "was freed")
	if _, err := a.DMA().(bus.Placer).Place(bus.Window{IOVA: at, Size: 4096, File: one, Bytes: other}); !errors.Is(err, bus.ErrDMAFault) {
		t.Errorf("Place on a device that was cut off = %v, want ErrDMAFault", err)
	}
	if string(mem[100:113]) != "from a client" {
		t.Error("memory that was taken away was written to")
	}
}

// What is for reading only is not written.
func TestPlaceDirection(t *testing.T) {
	_, a, _ := twoEdus(t)
	f, mem := shared(t, 4096)
	defer placed(t, a, 0x100000, f, mem, 0, 4096, bus.ToDevice)()
	eduDMA(t, a, 0x100000, 8, true) // the first use: QEMU forgets to tell of a later one
	wantFault(t, a, "for reading only")
}

// Without an IOMMU there is no place to put it.
func TestPlaceWithout(t *testing.T) {
	d := device1(t, "edu")
	f, mem := shared(t, 4096)
	_, err := d.DMA().(bus.Placer).Place(bus.Window{IOVA: 0x100000, Size: 4096, File: f, Bytes: mem})
	if !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Place without an IOMMU = %v, want ErrNotSupported", err)
	}
}

// Files come and go without end, more at once than a machine has slots, and one that is not there
// cannot be mapped.
func TestPlaceMany(t *testing.T) {
	m, a, _ := twoEdus(t)
	var all []func()
	for i := range 260 {
		f, mem := shared(t, 4096)
		release, err := a.DMA().(bus.Placer).Place(bus.Window{IOVA: bus.IOVA(0x100000 + i*4096), Size: 4096, File: f, Bytes: mem})
		if err != nil {
			if i < 200 {
				t.Fatalf("file %d: %v", i, err)
			}
			break
		}
		all = append(all, release)
	}
	if len(all) > 256 {
		t.Errorf("%d files at once, and QEMU has 256 slots", len(all))
	}
	for _, release := range all {
		release()
	}
	if n := plugged(t, m); n != 0 {
		t.Errorf("%d DIMMs are left", n)
	}
	f, mem := shared(t, 4096)
	placed(t, a, 0x100000, f, mem, 0, 4096, bus.Bidirectional)()
}
