package mmio_test

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/mmio"
)

const memSize = 64 << 10

// memory is a region of a file, which can be cut short.
func memory(t *testing.T) (*mmio.Region, *os.File) {
	t.Helper()
	fd, err := unix.MemfdCreate("bar", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "bar")
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(memSize); err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(fd, 0, memSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	r, err := mmio.NewRegion(bus.RegionInfo{Index: 2, Size: memSize}, b, unix.Munmap)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r, f
}

// onlyRegion is a region that copies by single accesses.
type onlyRegion struct{ bus.Region }

func TestCopies(t *testing.T) {
	r, _ := memory(t)
	for name, x := range map[string]bus.Region{"region": r, "guarded": mmio.Guard(r, nil), "single accesses": onlyRegion{r}} {
		t.Run(name, func(t *testing.T) { bustest.Memory(t, x) })
	}
	p := []byte{1, 2, 3}
	r.Suspend()
	bus.WriteBytes(r, 0, p)
	if bus.ReadBytes(r, 0, p); !bytes.Equal(p, []byte{0xff, 0xff, 0xff}) {
		t.Errorf("ReadBytes while suspended = % x, want all-ones", p)
	}
	r.Resume()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	bus.WriteBytes(r, 0, p)
	p[0] = 1
	if bus.ReadBytes(r, 0, p); p[0] != 0xff {
		t.Errorf("ReadBytes after Close = % x, want all-ones", p)
	}
}

// Memory that vanishes in the middle of a copy is no end of the process.
func TestCopiesOfWhatVanished(t *testing.T) {
	r, f := memory(t)
	faults := 0
	g := mmio.Guard(r, func() { faults++ })
	p := bytes.Repeat([]byte{7}, 8192)
	g.WriteBytes(0, p)
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	g.WriteBytes(0, p)
	if g.ReadBytes(0, p); !bytes.Equal(p, bytes.Repeat([]byte{0xff}, len(p))) {
		t.Error("a copy of which half is not there is not all-ones")
	}
	if faults != 2 {
		t.Errorf("%d faults of 2 copies", faults)
	}
	if g.Write32(0, 5); g.Read32(0) != 5 {
		t.Error("what is still there cannot be used")
	}
}

func TestHold(t *testing.T) {
	r, _ := memory(t)
	if b, release := bus.Hold(r); b != nil {
		t.Error("Hold of a region whose memory may vanish gives it")
	} else {
		release()
	}
}
