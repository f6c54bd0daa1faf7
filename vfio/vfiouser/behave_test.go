package vfiouser

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/bus/trace"
)

func regionOf(t testing.TB, d bus.Device, i int) bus.Region {
	t.Helper()
	r, err := d.Region(i)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Each access reaches the device once, in its width, in order, whichever way it goes.
func TestAccesses(t *testing.T) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			bustest.NoLeaks(t)
			f := newFake(t, false)
			d := serve(t, f, fakeServer(t), Options{Without: w.without})
			if got := d.Regions(); !slices.Equal(got, fakeRegions) {
				t.Errorf("Regions = %+v, want %+v", got, fakeRegions)
			}
			f.took()
			r, io := regionOf(t, d, 0), regionOf(t, d, 4)
			r.Write8(1, 0x11)
			r.Write16(2, 0x2222)
			r.Write32(4, 0x44444444)
			r.Write64(8, 0x8888888888888888)
			io.Write32(8, 5)
			io.Write64(8, 6) // I/O space has none
			d.Config().Write8(pci.CfgIRQLine, 0x5a)
			if a, b, c, e := r.Read8(1), r.Read16(2), r.Read32(4), r.Read64(8); a != 0x11 || b != 0x2222 || c != 0x44444444 || e != 0x8888888888888888 {
				t.Errorf("reads = %#x, %#x, %#x, %#x, want what was written", a, b, c, e)
			}
			if v := d.Config().Read8(pci.CfgIRQLine); v != 0x5a {
				t.Errorf("the line register = %#x, want 0x5a", v)
			}
			f.wantLog(t, "accesses",
				"write8 0+0x1=0x11", "write16 0+0x2=0x2222", "write32 0+0x4=0x44444444", "write64 0+0x8=0x8888888888888888",
				"write32 4+0x8=0x5", "config8 0x3c=0x5a", "read8 0+0x1", "read16 0+0x2", "read32 0+0x4", "read64 0+0x8")
			// Many: none is merged or dropped, and the queue goes round.
			var want []string
			for i := range 3000 {
				r.Write32(bus.Off(4*(i%16)), uint32(i))
				want = append(want, fmt.Sprintf("write32 0+%#x=%#x", 4*(i%16), i))
			}
			r.Read32(0)
			f.wantLog(t, "3000 writes", append(want, "read32 0+0x0")...)
		})
	}
}

// A part that is shared is touched, not asked for; the rest of the region is reached by message, and
// the order between the two holds.
func TestMapped(t *testing.T) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			bustest.NoLeaks(t)
			f := newFake(t, true)
			d := serve(t, f, fakeServer(t), Options{Without: w.without})
			r, r0 := regionOf(t, d, 2), regionOf(t, d, 0)
			f.took()
			r.Write32(4096+8, 0x12345678)
			r.Write64(8192-8, 7)
			if v := r.Read32(4096 + 8); v != 0x12345678 || f.shared[4096+8] != 0x78 || f.shared[8192-8] != 7 {
				t.Errorf("mapped register = %#x, memory % x", v, f.shared[4096+8:][:4])
			}
			f.wantLog(t, "mapped accesses")
			r.Write32(4092, 1)
			r.Write32(8192, 2)
			if v := r.Read32(8192); v != 2 {
				t.Errorf("register beside the mapped part = %d, want 2", v)
			}
			f.wantLog(t, "accesses beside", "write32 2+0xffc=0x1", "write32 2+0x2000=0x2", "read32 2+0x2000")
			// A write by message is done before a mapped access that follows it.
			for i := range uint32(200) {
				r0.Write32(0, i)
				r.Read32(4096)
				if got := f.took(); len(got) != 1 || got[0] != fmt.Sprintf("write32 0+0x0=%#x", i) {
					t.Fatalf("at a mapped read the device had seen %q of write %d", got, i)
				}
			}
			if w.without&WriteQueue == 0 && d.queue == nil {
				t.Error("there is no write queue")
			}
		})
	}
	// What is mapped can be left out.
	f := newFake(t, true)
	r := regionOf(t, serve(t, f, fakeServer(t), Options{Without: Maps}), 2)
	f.took()
	r.Write32(4096, 3)
	r.Read32(4096)
	f.wantLog(t, "without maps", "write32 2+0x1000=0x3", "read32 2+0x1000")
}

// doorbells is a driver's table with two rings.
var doorbells = []bus.Register{
	{Region: 0, Off: 0x100, Name: "TDT", Count: 2, Stride: 0x80, Ring: &bus.RingInfo{Size: 16}},
	{Region: 0, Off: 0x200, Name: "WIDE", Width: 8, Ring: &bus.RingInfo{Size: 16}},
	{Region: 0, Off: 0x300, Name: "PLAIN"},
	{Region: 5, Off: 0, Name: "NOWHERE", Ring: &bus.RingInfo{Size: 16}},
}

// Doorbells that go through shared memory keep their order with all else.
func TestDoorbells(t *testing.T) {
	for _, without := range []Ways{WriteQueue, WriteQueue | TwinSocket} {
		bustest.NoLeaks(t)
		f := newFake(t, false)
		o := fakeServer(t)
		o.Registers = doorbells
		d := serve(t, f, o, Options{Without: without})
		if n := len(d.regions[0].bells); n != 3 {
			t.Fatalf("%d doorbells, want 3", n)
		}
		r := regionOf(t, d, 0)
		f.took()
		for i := range uint32(100) {
			r.Write32(0x300, i) // a message
			r.Write32(0x100, i) // a doorbell
			r.Write64(0x200, uint64(i)<<32)
			r.Write8(0x100, 1) // of another width: a message
			r.Read32(0x180)
			f.wantLog(t, "doorbells", fmt.Sprintf("write32 0+0x300=%#x", i), fmt.Sprintf("write32 0+0x100=%#x", i),
				fmt.Sprintf("write64 0+0x200=%#x", uint64(i)<<32), "write8 0+0x100=0x1", "read32 0+0x180")
		}
		// And without a message after it.
		r.Write32(0x180, 5)
		waitFor(t, "a doorbell", func() bool { return slices.Contains(f.took(), "write32 0+0x180=0x5") })
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		_ = d.end()
	}
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("%s did not come within 10 s", what)
		}
	}
}

// A queued write is made also where no message follows it, whether the server sleeps or not.
func TestQueueWakes(t *testing.T) {
	f := newFake(t, false)
	d := serve(t, f, fakeServer(t), Options{})
	r := regionOf(t, d, 0)
	f.took()
	for i := range uint32(50) {
		r.Write32(0, i)
		waitFor(t, "a write", func() bool { return len(f.took()) == 1 })
		time.Sleep(time.Duration(i%3) * 20 * time.Microsecond)
	}
}

// More vectors than a message has descriptors; each fires its own eventfd.
func TestManyVectors(t *testing.T) {
	bustest.NoLeaks(t)
	f := newFake(t, false)
	d := serve(t, f, fakeServer(t), Options{})
	if a, b, c := d.IRQVectors(bus.INTx), d.IRQVectors(bus.MSI), d.IRQVectors(bus.MSIX); a != 1 || b != 4 || c != 100 {
		t.Fatalf("IRQVectors = %d, %d, %d, want 1, 4, 100", a, b, c)
	}
	f.took()
	qs, err := d.EnableIRQs(bus.MSIX, 100)
	if err != nil {
		t.Fatal(err)
	}
	f.wantLog(t, "100 vectors", "enable MSI-X 100")
	for _, i := range []int{99, 0, 16, 15, 50} {
		f.fire(i)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if n, err := qs[i].Wait(ctx); n != 1 || err != nil {
			t.Errorf("vector %d: Wait = %d, %v", i, n, err)
		}
		cancel()
	}
	// Fewer MSI vectors than there are: the device is told how many.
	if _, err := d.EnableIRQs(bus.MSI, 2); err != nil {
		t.Fatal(err)
	}
	f.wantLog(t, "2 vectors", "disable", "enable MSI 2")
	if err := d.DisableIRQs(); err != nil {
		t.Fatal(err)
	}
	f.wantLog(t, "disabling", "disable")
}

// A wrapper that observes interrupts sees them though another process takes them.
func TestTraced(t *testing.T) {
	m, dev := model(t, "edu", sim.RealTime)
	tr := trace.Wrap(dev, trace.Options{Name: "edu0"})
	d := serve(t, tr, simServer(t, m), Options{})
	s := bustest.Edu(t, d.Device)
	q, err := d.EnableIRQs(bus.MSI, 1)
	if err != nil {
		t.Fatal(err)
	}
	s.Raise()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := q[0].Wait(ctx); err != nil {
		t.Fatal(err)
	}
	s.Lower()
	d.Config().Read32(0)
	text := ""
	for _, e := range trace.Snapshot([]*trace.Device{tr}, 100) {
		text += e.String() + "\n"
	}
	if !strings.Contains(text, " irq ") {
		t.Errorf("the trace has no interrupt:\n%s", text)
	}
}

// The server served on: a device two processes away is the same device.
func TestTwoHops(t *testing.T) {
	bustest.All(t, func(t *testing.T) bustest.Subject {
		m, dev := model(t, "edu", sim.Eager)
		near := serve(t, dev, simServer(t, m), Options{Address: "near"})
		far := serve(t, near.Device, ServerOptions{Log: bustest.Log(t)}, Options{Address: "far"})
		s := bustest.Edu(t, far.Device)
		s.Kill = func() { _ = m.Unplug("d") }
		return s
	})
}

// Memory that cannot be passed is read and written by messages: from the device's timer, and from
// within a register write; with a socket of their own and without one.
func TestRemoteMemory(t *testing.T) {
	for _, without := range []Ways{0, TwinSocket, TwinSocket | WriteQueue} {
		m, dev := model(t, "edu", sim.Eager)
		d := serve(t, dev, simServer(t, m), Options{Without: without})
		s := bustest.Edu(t, d.Device)
		mem, err := d.DMA().Map(make([]byte, 8192), bus.DMARequest{Mask: 1<<28 - 1})
		if err != nil {
			t.Fatal(err)
		}
		copy(mem.Bytes[100:], "a message in memory")
		if err := s.Move(t.Context(), mem.IOVA+5000, mem.IOVA+100, 19); err != nil {
			t.Fatal(err)
		}
		if got := string(mem.Bytes[5000:5019]); got != "a message in memory" {
			t.Errorf("the device moved %q", got)
		}
		mem.Free()
		if err := d.Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// From within a doorbell: the server asks while it handles a message.
func TestRemoteRing(t *testing.T) {
	const tdbal, tdlen, tdt, tarc, tctl = 0x3800, 0x3808, 0x3818, 0x3840, 0x400
	for _, without := range []Ways{0, TwinSocket, TwinSocket | WriteQueue, WriteQueue} {
		m, dev := model(t, "e1000e", sim.RealTime)
		d := serve(t, dev, simServer(t, m), Options{Without: without})
		mem, err := d.DMA().Map(make([]byte, 8192), bus.DMARequest{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			copy(mem.Bytes[16*i:], []byte{0, 16, 0, 0, 0, 0, 0, 0, 60, 0, 0, 0x0b})
			for k := range 8 {
				mem.Bytes[16*i+k] = byte(uint64(mem.IOVA+4096) >> (8 * k))
			}
		}
		pci.SetCommand(d.Config(), pci.CmdMaster, 0)
		r := regionOf(t, d, 0)
		r.Write32(tdbal, uint32(mem.IOVA))
		r.Write32(tdbal+4, uint32(mem.IOVA>>32))
		r.Write32(tdlen, 128)
		r.Write32(tarc, r.Read32(tarc)|1<<10)
		r.Write32(tctl, 2)
		r.Write32(tdt, 4)
		r.Read32(tdt)
		for i := range 4 {
			if v := dma.Load32(mem.Bytes, 16*i+12); v&1 == 0 {
				t.Errorf("without %d: descriptor %d is not done: %#x", without, i, v)
			}
		}
		r.Write32(tctl, 0)
		r.Read32(tctl)
		mem.Free()
	}
}

// Without a way to reset, registers stay; else the next client finds a fresh device, whatever the one
// before it left.
func TestClientsLeave(t *testing.T) {
	bustest.NoLeaks(t)
	f := newFake(t, false)
	srv, err := NewServer(f, fakeServer(t))
	if err != nil {
		t.Fatal(err)
	}
	f.wantLog(t, "NewServer", "reset")
	a := attach(t, srv, Options{})
	if _, err := a.EnableIRQs(bus.MSI, 2); err != nil {
		t.Fatal(err)
	}
	mem, err := a.DMA().Alloc(bus.DMARequest{Size: 8192, Dir: bus.ToDevice})
	if err != nil {
		t.Fatal(err)
	}
	pci.SetCommand(a.Config(), pci.CmdMaster, pci.CmdMem)
	a.Config().Read32(0)
	f.took()
	a.l.s.shutdown() // as when the process is killed
	if err := a.end(); err != nil && !errors.Is(err, bus.ErrClosed) {
		t.Errorf("the session ended with %v", err)
	}
	got := f.took()
	want := []string{"disable", "config16 0x4=0x1", "reset", "config16 0x4=0x3", fmt.Sprintf("release %#x", uint64(mem.IOVA))}
	if !slices.Equal(got, want) {
		t.Errorf("after a client that died the device saw\n  %q\nwant\n  %q", got, want)
	}
	waitFor(t, "the client's notice", func() bool { return a.Err() != nil })
	if err := a.Err(); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Err = %v, want ErrGone", err)
	}
	mem.Bytes[0] = 1 // it stays the client's
	mem.Free()
	_ = a.Close()
	b := attach(t, srv, Options{})
	if v := b.Config().Read32(0); v != 0x11e81234 {
		t.Errorf("the next client reads %#x", v)
	}
}

// One client at a time.
func TestSecondClient(t *testing.T) {
	bustest.NoLeaks(t)
	f := newFake(t, false)
	d := serve(t, f, fakeServer(t), Options{})
	for range 3 {
		c, s := pair(t)
		done := make(chan error, 1)
		go func() { done <- d.server.ServeConn(context.Background(), s) }()
		second, err := Open(t.Context(), c, Options{})
		if !errors.Is(err, bus.ErrBusy) || !strings.Contains(err.Error(), "served to another client") {
			t.Errorf("the second client: %v, %v, want ErrBusy", second, err)
		}
		if err := <-done; !errors.Is(err, bus.ErrBusy) {
			t.Errorf("ServeConn of a second client = %v, want ErrBusy", err)
		}
	}
	if err := d.Err(); err != nil {
		t.Errorf("the first client's device: %v", err)
	}
}

// The reason of a device's death comes through.
func TestLastWords(t *testing.T) {
	for _, c := range []struct{ err, want error }{
		{fmt.Errorf("write to 0x5000: nothing is mapped there: %w", bus.ErrDMAFault), bus.ErrDMAFault},
		{fmt.Errorf("pulled out: %w", bus.ErrGone), bus.ErrGone},
		{fmt.Errorf("no answer: %w", bus.ErrTimeout), bus.ErrTimeout},
		{fmt.Errorf("nonsense: %w", bus.ErrProtocol), bus.ErrProtocol},
		{bus.ErrClosed, bus.ErrGone},
	} {
		f := newFake(t, false)
		d := serve(t, f, fakeServer(t), Options{})
		_ = f.die(c.err)
		<-d.Done()
		if err := d.Err(); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.err.Error()) {
			t.Errorf("Err = %v, want the server's %v", err, c.err)
		}
		if err := d.end(); err == nil || errors.Is(err, bus.ErrProtocol) && c.want != bus.ErrProtocol {
			t.Errorf("the session ended with %v", err)
		}
	}
}

// A reset is asked for, and told where there is none.
func TestReset(t *testing.T) {
	f := newFake(t, false)
	d := serve(t, f, fakeServer(t), Options{})
	f.took()
	if err := d.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.wantLog(t, "Reset", "reset")
	g := newFake(t, false)
	g.reset = bus.ErrNotSupported
	e := serve(t, g, fakeServer(t), Options{})
	if err := e.Reset(t.Context()); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Reset where there is none = %v, want ErrNotSupported", err)
	}
}

// What a client writes to registers of the bus's is its own affair.
func TestVirtualConfig(t *testing.T) {
	f := newFake(t, false)
	d := serve(t, f, fakeServer(t), Options{})
	c := d.Config()
	f.took()
	for _, x := range []struct {
		at   bus.Off
		size uint32
	}{{0x10, 0xfffff000}, {0x14, 0}, {0x18, 0xffffc00c}, {0x1c, 0xffffffff}, {0x20, 0xffffffc1}, {0x24, 0}, {0x30, 0}} {
		was := c.Read32(x.at)
		c.Write32(x.at, ^uint32(0))
		if got := c.Read32(x.at); got != x.size {
			t.Errorf("BAR at %#x sizes as %#x, want %#x", x.at, got, x.size)
		}
		c.Write32(x.at, was)
		if got := c.Read32(x.at); got != was {
			t.Errorf("BAR at %#x = %#x, want %#x as before", x.at, got, was)
		}
	}
	m, err := pci.OpenMSI(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Set(0xfee00000, 0x40, 1); err != nil {
		t.Fatal(err)
	}
	m.Enable()
	_ = m.Mask(0)
	x, err := pci.OpenMSIX(c, d.Region)
	if err != nil {
		t.Fatal(err)
	}
	x.Enable()
	if err := errors.Join(x.Set(99, 0xfee01000, 7), x.Unmask(99)); err != nil {
		t.Fatal(err)
	}
	r := regionOf(t, d, 0)
	if a, v, ctl := r.Read32(0x400+99*16), r.Read32(0x400+99*16+8), r.Read32(0x400+99*16+12); a != 0xfee01000 || v != 7 || ctl != 0 {
		t.Errorf("entry 99 of the MSI-X table = %#x, %#x, %#x", a, v, ctl)
	}
	if v := r.Read32(0x400 + 12); v != 1 {
		t.Errorf("vector 0 is masked: %d, want 1 as after a reset", v)
	}
	if v := c.Read16(0x42); v&1 == 0 || v>>4&7 != 1 {
		t.Errorf("MSI control = %#x, want it enabled, 2 vectors", v)
	}
	if v := c.Read16(0x62); v>>15 != 1 {
		t.Errorf("MSI-X control = %#x, want it enabled", v)
	}
	f.wantLog(t, "registers of the bus")
	// Interrupt Disable is the client's own bit, and the device's while a line is enabled.
	pci.SetCommand(c, pci.CmdINTxDisable|pci.CmdMaster, 0)
	if v := pci.Command(c.Read16(pci.CfgCommand)); v&pci.CmdINTxDisable == 0 {
		t.Errorf("Command = %s, want INTxDisable as written", v)
	}
	f.wantLog(t, "Command", "config16 0x4=0x7")
	if _, err := d.EnableIRQs(bus.INTx, 1); err != nil {
		t.Fatal(err)
	}
	f.wantLog(t, "a line that is disabled", "enable INTx 1", "config16 0x4=0x407")
	pci.SetCommand(c, 0, pci.CmdINTxDisable)
	c.Read16(pci.CfgCommand)
	f.wantLog(t, "a line that is enabled again", "config16 0x4=0x407", "config16 0x4=0x7")
	// Function-level reset is the bus's.
	c.Write16(0x78, 1<<15|0x10)
	c.Read16(0x78)
	f.wantLog(t, "function-level reset", "reset", "config16 0x78=0x10")
	c.Write32(0x78, 1<<15|0x20)
	c.Read16(0x78)
	f.wantLog(t, "function-level reset", "reset", "config32 0x78=0x20")
	c.Write8(0x79, 1<<7)
	c.Read16(0x78)
	f.wantLog(t, "function-level reset", "reset", "config8 0x79=0x0")
}

// Memory: directions are told, freed memory is zero when it comes back, and a device that takes none is
// an error.
func TestMemory(t *testing.T) {
	f := newFake(t, false)
	d := serve(t, f, fakeServer(t), Options{})
	f.took()
	for _, c := range []struct {
		dir  bus.Direction
		want string
	}{{bus.Bidirectional, "dir=0"}, {bus.ToDevice, "dir=1"}, {bus.FromDevice, "dir=2"}} {
		m, err := d.DMA().Alloc(bus.DMARequest{Size: 5000, Dir: c.dir})
		if err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		w := f.windows[0]
		f.mu.Unlock()
		m.Bytes[0], m.Bytes[4999] = 1, 2
		if len(m.Bytes) != 5000 || w.IOVA != m.IOVA || w.Size != 8192 || w.Bytes[0] != 1 || w.Bytes[4999] != 2 {
			t.Errorf("the device has %#x bytes at %#x, want those at %#x", w.Size, w.IOVA, m.IOVA)
		}
		m.Free()
		f.wantLog(t, "memory", fmt.Sprintf("place %#x 0x2000 %s mapped=true", uint64(w.IOVA), c.want), fmt.Sprintf("release %#x", uint64(w.IOVA)))
	}
	big, err := d.DMA().Alloc(bus.DMARequest{Size: 100 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(big.Bytes[100<<20-4096:], make([]byte, 4096)) {
		t.Error("fresh memory is not zero")
	}
	big.Free()
	refuse := func(err error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.refuse = err
	}
	refuse(fmt.Errorf("there is something: %w", bus.ErrBusy))
	if m, err := d.DMA().Alloc(bus.DMARequest{Size: 1}); m != nil || !errors.Is(err, bus.ErrBusy) {
		t.Errorf("Alloc where the device takes none = %v, %v, want ErrBusy", m, err)
	}
	refuse(bus.ErrNotSupported)
	if m, err := d.DMA().Alloc(bus.DMARequest{Size: 1}); m != nil || !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Alloc where the device takes none = %v, %v, want ErrNotSupported", m, err)
	}
	if d.Err() != nil {
		t.Errorf("Err = %v, want nil: a refusal is no death", d.Err())
	}
	if m, err := d.DMA().Map(make([]byte, 8192)[1:], bus.DMARequest{}); m != nil || !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Map of no whole pages = %v, %v, want ErrNotSupported", m, err)
	}
	// A device that does not reach what is only the client's own takes it all the same: nobody goes there.
	if m, err := d.DMA().Map(make([]byte, 4096), bus.DMARequest{}); err != nil {
		t.Errorf("Map = %v", err)
	} else {
		m.Free()
	}
}
