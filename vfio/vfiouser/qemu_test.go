package vfiouser

import (
	"testing"

	"golang.org/x/sys/unix"
)

// What QEMU asks, as it asks it.

// It begins without room for capabilities, and refuses a region that says it has some and not where.
func TestRegionWithoutRoom(t *testing.T) {
	srv, err := NewServer(newFake(t, true), fakeServer(t))
	if err != nil {
		t.Fatal(err)
	}
	r, _ := rawClient(t, srv)
	r.hello()
	ask := func(room uint32) (regionInfo, int) {
		t.Helper()
		errno, b := r.ask(cmdRegionInfo, body(func(w *writer) { w.regionInfo(regionInfo{argsz: room, index: 2}) }))
		if errno != 0 {
			t.Fatalf("region info: error %d", errno)
		}
		x := reader{b: b}
		return x.regionInfo(), len(r.in.fds)
	}
	i, fds := ask(regionInfoSize)
	if i.argsz <= regionInfoSize || i.flags&regionCaps != 0 || i.caps != 0 || fds != 0 {
		t.Errorf("without room: %+v with %d descriptors, want a larger argsz, and no capabilities", i, fds)
	}
	if i, fds = ask(i.argsz); i.flags&regionCaps == 0 || i.caps != regionInfoSize || fds != 1 {
		t.Errorf("with room: %+v with %d descriptors, want capabilities after it", i, fds)
	}
}

// Memory of huge pages cannot be written to through its file. It is reached by messages.
func TestHugeMemory(t *testing.T) {
	fd, err := unix.MemfdCreate("huge", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_HUGETLB|unix.MFD_HUGE_2MB)
	if err != nil {
		t.Skipf("this kernel has no huge pages: %v", err)
	}
	if err := unix.Ftruncate(fd, 4<<20); err != nil {
		t.Fatal(err)
	}
	f := newFake(t, false)
	srv, err := NewServer(f, fakeServer(t))
	if err != nil {
		t.Fatal(err)
	}
	r, _ := rawClient(t, srv)
	r.hello()
	if errno, _ := r.ask(cmdDMAMap, dmaMapBody(dmaMap{flags: 3, addr: 0x200000, size: 4 << 20}), fd); errno != 0 {
		t.Fatalf("DMA_MAP: error %d", errno)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.windows) != 1 || f.windows[0].File != nil || f.windows[0].Bytes != nil {
		t.Fatalf("windows %+v, want one without a file", f.windows)
	}
	if _, ok := f.windows[0].Mem.(*remote); !ok {
		t.Errorf("the window's memory is %T, want messages", f.windows[0].Mem)
	}
}
