package vfiouser

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
)

// More vectors, of a device that fails to disable those that there are: an error, and the client's eventfds are not
// kept.
func TestMoreVectorsFail(t *testing.T) {
	bustest.NoLeaks(t)
	f := newFake(t, false)
	r, end := rawClient(t, mustServer(t, f))
	r.hello()
	assign := func(i uint32) int {
		errno, _ := r.ask(cmdSetIRQs, irqBody(irqSet{flags: setEventfd | setTrigger, index: irqMSIX, start: i, count: 1}), eventfd(t))
		return errno
	}
	if errno := assign(0); errno != 0 {
		t.Fatalf("vector 0: error %d", errno)
	}
	f.mu.Lock()
	f.disable = bus.ErrTimeout
	f.mu.Unlock()
	if errno := assign(70); errno != int(unix.ETIMEDOUT) {
		t.Errorf("vector 70: error %d, want ETIMEDOUT", errno)
	}
	f.mu.Lock()
	f.disable = nil
	f.mu.Unlock()
	if errno := assign(70); errno != 0 {
		t.Errorf("vector 70 at last: error %d", errno)
	}
	if err := end(); err != nil {
		t.Errorf("the session ended with %v", err)
	}
}

// Command is written by the client, and by whoever resumes the line: neither undoes what the other did.
func TestCommandBothWays(t *testing.T) {
	bustest.NoLeaks(t)
	f := newFake(t, false)
	r, _ := rawClient(t, mustServer(t, f))
	r.hello()
	resume := eventfd(t)
	defer unix.Close(resume)
	for _, c := range []struct {
		flags uint32
		fds   []int
	}{{setEventfd | setTrigger, []int{eventfd(t)}}, {setEventfd | setUnmask, []int{dup(t, resume)}}, {setNone | setMask, nil}} {
		if errno, _ := r.ask(cmdSetIRQs, irqBody(irqSet{flags: c.flags, count: 1}), c.fds...); errno != 0 {
			t.Fatalf("flags %#x: error %d", c.flags, errno)
		}
	}
	// Who resumes has read Command, and is about to write it.
	var reads atomic.Int32
	about := make(chan struct{})
	f.mu.Lock()
	f.reading = func(o bus.Off) {
		if o == pci.CfgCommand && reads.Add(1) == 2 {
			close(about)
			time.Sleep(100 * time.Millisecond)
		}
	}
	f.mu.Unlock()
	notify(resume, 1)
	<-about
	if errno, _ := r.ask(cmdRegionWrite, accessBody(uint64(pci.CfgCommand), 7, 2, 7, 0)); errno != 0 {
		t.Fatalf("writing Command: error %d", errno)
	}
	waitFor(t, "an unmask", func() bool { return slices.Contains(f.took(), "unmask") })
	if v := (fakeConfig{f}).Read16(pci.CfgCommand); v != 7 {
		t.Errorf("Command = %#x, want 7: bus master as written, the line enabled", v)
	}
}

// Interrupts are not enabled any more once a Close began, though the link lives until bus mastering is off: nobody
// would close them.
func TestEnableWhileClosing(t *testing.T) {
	bustest.NoLeaks(t)
	f := newFake(t, false)
	d := serve(t, f, fakeServer(t), Options{Timeout: 30 * time.Second})
	if _, err := d.EnableIRQs(bus.MSI, 1); err != nil {
		t.Fatal(err)
	}
	closing, enabled := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.mu.Lock()
	f.reading = func(o bus.Off) {
		if o == pci.CfgCommand {
			once.Do(func() {
				close(closing)
				select {
				case <-enabled:
				case <-time.After(10 * time.Second):
					t.Error("EnableIRQs while closing waits for the server")
				}
			})
		}
	}
	f.mu.Unlock()
	closed := make(chan error, 1)
	go func() { closed <- d.Close() }()
	<-closing
	if qs, err := d.EnableIRQs(bus.MSI, 1); !errors.Is(err, bus.ErrClosed) || qs != nil {
		t.Errorf("EnableIRQs while closing = %v, %v, want ErrClosed", qs, err)
	}
	close(enabled)
	if err := <-closed; err != nil {
		t.Errorf("Close = %v", err)
	}
	if _, err := d.EnableIRQs(bus.MSI, 1); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("EnableIRQs after Close = %v, want ErrClosed", err)
	}
}

// Where the MSI-X table is, nothing is mapped: it is the client's own.
func TestMappedTable(t *testing.T) {
	bustest.NoLeaks(t)
	f := newFake(t, true)
	binary.LittleEndian.PutUint32(f.cfg[0x64:], 0x1000|2)
	d := serve(t, f, fakeServer(t), Options{})
	for _, r := range d.regions {
		if len(r.parts) != 0 {
			t.Errorf("%d parts of region %d are mapped, want none", len(r.parts), r.info.Index)
		}
	}
	r := regionOf(t, d, 2)
	f.took()
	r.Write32(0x1000, 0xfee00000)
	if v := r.Read32(0x1000); v != 0xfee00000 {
		t.Errorf("the table = %#x, want what was written", v)
	}
	f.wantLog(t, "the table")
	if f.shared[0x1003] != 0 {
		t.Error("the client wrote the device's table")
	}
	table := vtable{region: 2, base: 0x2800, mu: &lockedBytes{b: make([]byte, 0x900)}} // 0x2000 to 0x4000
	part := func(at bus.Off, n uint64) bus.Part { return bus.Part{Off: at, Size: n} }
	for _, c := range []struct{ parts, want []bus.Part }{
		{[]bus.Part{part(0, 0x1000)}, []bus.Part{part(0, 0x1000)}},
		{[]bus.Part{part(0, 0x8000)}, []bus.Part{part(0, 0x2000), part(0x4000, 0x4000)}},
		{[]bus.Part{part(0x1000, 0x2000), part(0x3000, 0x1000)}, []bus.Part{part(0x1000, 0x1000)}},
		{[]bus.Part{part(0x3000, 0x2000), part(0x6000, 0x1000)}, []bus.Part{part(0x4000, 0x1000), part(0x6000, 0x1000)}},
		{[]bus.Part{part(0x2000, 0x2000)}, nil},
	} {
		if got := table.without(2, c.parts); !slices.Equal(got, c.want) {
			t.Errorf("without(%v) = %v, want %v", c.parts, got, c.want)
		}
		if got := table.without(1, c.parts); !slices.Equal(got, c.parts) {
			t.Errorf("without(%v) of another region = %v", c.parts, got)
		}
	}
}

// So many windows are mapped, of one client's and of all; those above are reached through their files.
func TestMostMapped(t *testing.T) {
	bustest.NoLeaks(t)
	f := newFake(t, false)
	x := newSession(mustServer(t, f), nil)
	defer x.dma.close()
	window := func(addr uint64, want bool) {
		t.Helper()
		m := &message{fds: []int{memory(t, 4096, true)}}
		if err := x.dma.add(&reader{b: dmaMapBody(dmaMap{flags: 3, addr: addr, size: 4096})}, m); err != nil {
			t.Fatal(err)
		}
		w := f.windows[len(f.windows)-1]
		if got := w.Bytes != nil; got != want {
			t.Errorf("the window at %#x is mapped: %v, want %v", addr, got, want)
		}
		if _, err := w.Mem.WriteAt([]byte{1}, 4095); err != nil {
			t.Errorf("the window at %#x: %v", addr, err)
		}
	}
	before := allMapped.Load()
	x.dma.mapped = maxMapped - 1
	window(0, true)
	window(0x1000, false)
	if _, err := x.dma.remove(&reader{b: body(func(w *writer) { w.dmaUnmap(dmaUnmap{argsz: dmaUnmapSize, size: 4096}) })}); err != nil {
		t.Fatal(err)
	}
	window(0x2000, true)
	x.dma.mapped = 1
	had := allMapped.Swap(maxAllMapped)
	window(0x3000, false)
	allMapped.Store(had)
	x.dma.close()
	if n := allMapped.Load(); n != before || x.dma.mapped != 0 {
		t.Errorf("%d windows are mapped, %d of the client's, want %d and 0", n, x.dma.mapped, before)
	}
}

// What a client says of how far the server is with the queue does not keep the server awake.
func TestQueueHeadLies(t *testing.T) {
	bustest.NoLeaks(t)
	f := newFake(t, false)
	d := serve(t, f, fakeServer(t), Options{})
	r := regionOf(t, d, 0)
	asleep := func() bool { return dma.Load32(d.queue.mem, queueSleep) == 1 }
	waitFor(t, "sleep", asleep)
	dma.Store64(d.queue.mem, queueHead, 12345)
	d.queue.kick.ring(d.l.dead.Load)
	still := 0 // it may wake up late, once, for what rang
	waitFor(t, "50 ms of sleep", func() bool {
		if still++; !asleep() {
			still = 0
		}
		return still >= 50
	})
	f.took()
	r.Write32(0, 1)
	waitFor(t, "a write", func() bool { return slices.Contains(f.took(), "write32 0+0x0=0x1") })
}

// A command that could not be sent waits for no answer.
func TestAskNobody(t *testing.T) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(p[1])
	s, err := newSock(p[0], time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	x := newSession(mustServer(t, newFake(t, false)), s)
	if _, err := (&remote{x, 0, 4096}).ReadAt(make([]byte, 8), 0); !errors.Is(err, bus.ErrGone) {
		t.Errorf("ReadAt = %v, want ErrGone", err)
	}
	if n := len(x.asks.waiting); n != 0 {
		t.Errorf("%d commands wait for an answer, want none", n)
	}
}
