package shm

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/mmio"
)

// shared is memory that is mapped twice, as two processes have it.
func shared(t testing.TB, size int) (a, b []byte) {
	t.Helper()
	fd, err := unix.MemfdCreate("shm", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		t.Fatal(err)
	}
	for _, to := range []*[]byte{&a, &b} {
		m, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Munmap(m) })
		*to = m
	}
	return a, b
}

// byRegion is memory that is reached through a region of a device, which is not held.
func byRegion(t testing.TB, b []byte) Memory {
	t.Helper()
	r, err := mmio.NewRegion(bus.RegionInfo{Index: 2, Size: uint64(len(b))}, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return OfRegion(r)
}

// memories are the ways to reach the second mapping.
var memories = []struct {
	name string
	of   func(testing.TB, []byte) Memory
}{
	{"mapped", func(_ testing.TB, b []byte) Memory { return Mapped(b) }},
	{"region", byRegion},
}

// pair is a ring with both its ends.
func pair(t testing.TB, g geometry, pm, cm Memory) (*Producer, *Consumer) {
	t.Helper()
	p, err := newProducer(pm, g)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newConsumer(cm, g)
	if err != nil {
		t.Fatal(err)
	}
	return p, c
}

func round(n int) int { return (n + pageSize - 1) &^ (pageSize - 1) }
