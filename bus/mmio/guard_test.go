package mmio

import (
	"errors"
	"os"
	"runtime/debug"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

var _ bus.Region = (*Guarded)(nil)

// vanishing is a region of a file that can be cut short: what is beyond faults with SIGBUS, as
// an unplugged BAR does.
func vanishing(t testing.TB, fault func()) (g *Guarded, vanish func()) {
	t.Helper()
	fd, err := unix.MemfdCreate("bar", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "bar")
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewRegion(bus.RegionInfo{Index: 1, Size: 4096}, b, unix.Munmap)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	g = Guard(r, fault)
	return g, func() {
		if err := f.Truncate(0); err != nil {
			t.Fatal(err)
		}
	}
}

// touch does every access there is, and says what was read.
func touch(g *Guarded) (uint8, uint16, uint32, uint64) {
	g.Write8(8, 1)
	g.Write16(8, 1)
	g.Write32(8, 1)
	g.Write64(8, 1)
	return g.Read8(8), g.Read16(8), g.Read32(8), g.Read64(8)
}

func TestGuarded(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector accesses are its own runtime's, and a fault there ends the process")
	}
	faults := 0
	g, vanish := vanishing(t, func() { faults++ })
	if g.Info() != (bus.RegionInfo{Index: 1, Size: 4096}) {
		t.Errorf("Info = %+v, want the region's", g.Info())
	}
	if a, b, c, d := touch(g); a != 1 || b != 1 || c != 1 || d != 1 {
		t.Errorf("reads = %#x, %#x, %#x, %#x, want 1 as written", a, b, c, d)
	}
	if g.Write64(4088, 7); g.Read64(4088) != 7 || g.Read32(4096) != 0xffffffff {
		t.Error("the last 8 bytes cannot be written, or there is something behind them")
	}
	if faults != 0 {
		t.Errorf("%d faults of memory that is there", faults)
	}
	vanish()
	if a, b, c, d := touch(g); a != 0xff || b != 0xffff || c != 0xffffffff || d != ^uint64(0) {
		t.Errorf("reads of what vanished = %#x, %#x, %#x, %#x, want all-ones", a, b, c, d)
	}
	if faults != 8 {
		t.Errorf("%d faults of 8 accesses", faults)
	}
	if debug.SetPanicOnFault(false) {
		t.Error("the goroutine's faults are panics, though nobody asked for it")
	}
	if err := errors.Join(g.Close(), g.Close()); err != nil {
		t.Errorf("Close = %v", err)
	}
	if touch(g); faults != 8 {
		t.Error("an access after Close faults")
	}
}

// Many goroutines hit the hole, and the first closes the region.
func TestGuardedConcurrent(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector accesses are its own runtime's, and a fault there ends the process")
	}
	var g *Guarded
	g, vanish := vanishing(t, func() { _ = g.Close() })
	var wg sync.WaitGroup
	started := make(chan struct{}, 4)
	for range 4 {
		wg.Go(func() {
			var once sync.Once
			for g.Read32(16) != 0xffffffff {
				once.Do(func() { started <- struct{}{} })
			}
		})
	}
	for range 4 {
		<-started
	}
	vanish()
	wg.Wait()
}

// A panic that is not the region's fault passes.
func TestGuardedPassesPanics(t *testing.T) {
	g, _ := vanishing(t, func() { t.Error("told of a fault") })
	defer func() {
		if v := recover(); v != "mine" {
			t.Errorf("recovered %v, want the panic", v)
		}
	}()
	func() {
		defer g.caught(debug.SetPanicOnFault(true))
		panic("mine")
	}()
}

func BenchmarkGuardedWrite32(b *testing.B) {
	g, _ := vanishing(b, nil)
	for b.Loop() {
		g.Write32(8, 1)
	}
}
