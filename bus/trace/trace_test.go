package trace_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/bus/trace"
)

// lines are the last n entries of a device, without what differs from run to run: the time.
func lines(d *trace.Device, n int) []string {
	var out []string
	for _, e := range trace.Snapshot([]*trace.Device{d}, n) {
		f := strings.Fields(e.String())
		out = append(out, strings.Join(f[3:], " "))
	}
	return out
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("recorded\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestAccesses(t *testing.T) {
	bustest.NoLeaks(t)
	d, _, r := open(t, trace.Options{})
	r.Write32(regCTRL, 5)
	r.Read32(regCTRL)
	r.Write8(regCTRL+1, 2)
	r.Write32(regCTRL, 0xbad)
	r.Write64(regWIDE, 1<<40)
	r.Read64(regWIDE)
	r.Write16(regMTA+12, 7)
	r.Read8(0x3000)
	pci.SetCommand(d.Config(), pci.CmdMem|pci.CmdMaster, 0)
	_ = d.Config().Read32(0x14)
	want(t, lines(d, 99),
		"open bar0 - 0x0 16384 bytes",
		"write bar0+0x0/4 CTRL 0x5 BITS(5)",
		"read bar0+0x0/4 CTRL 0x5 BITS(5)",
		"write bar0+0x1/1 CTRL 0x2",
		"write bar0+0x0/4 CTRL 0xbad",
		"write bar0+0x8/8 WIDE 0x10000000000",
		"read bar0+0x8/8 WIDE 0x10000000000",
		"write bar0+0x10c/2 MTA[3] 0x7",
		"read bar0+0x3000/1 - 0x0",
		"read cfg+0x4/2 COMMAND 0x0 0x0",
		"write cfg+0x4/2 COMMAND 0x6 MEM|MASTER",
		"read cfg+0x14/4 BAR[1] 0x0",
	)
}

func TestLifeAndFailures(t *testing.T) {
	bustest.NoLeaks(t)
	d, p, _ := open(t, trace.Options{})
	if _, err := d.Region(3); err == nil {
		t.Error("Region(3) = nil, want an error")
	}
	if err := d.Reset(t.Context()); err == nil {
		t.Error("Reset() = nil, want an error")
	}
	if _, err := d.DMA().Alloc(bus.DMARequest{}); err == nil {
		t.Error("Alloc of nothing = nil, want an error")
	}
	m, err := d.DMA().Map(make([]byte, 4096), bus.DMARequest{})
	if err != nil {
		t.Fatal(err)
	}
	m.Free()
	m.Free()
	qs, err := d.EnableIRQs(bus.MSIX, 2)
	if err != nil {
		t.Fatal(err)
	}
	qs[1].Signal()
	qs[1].Signal()
	if _, err := qs[1].Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	qs[1].Unmask()
	if err := d.DisableIRQs(); err != nil {
		t.Fatal(err)
	}
	want(t, lines(d, 9),
		"open bar3 - 0x3 failed: no region 3: not supported",
		"reset - - 0x0 failed: the model has no reset: not supported",
		"dma - alloc 0x0 failed: 0 bytes of DMA memory, want more: not supported",
		"dma - map 0x1000 4096 bytes",
		"dma - free 0x1000 4096 bytes",
		"irqs - enable 0x2 MSI-X",
		"irq - MSI-X[1] 0x2",
		"unmask - MSI-X[1] 0x0",
		"irqs - disable 0x0",
	)
	p.end(fmt.Errorf("pulled out: %w", bus.ErrGone))
}

func TestDied(t *testing.T) {
	bustest.NoLeaks(t)
	died := make(chan error, 2)
	d, p, r := open(t, trace.Options{Died: func(d *trace.Device, err error) { died <- err }})
	r.Write32(regCTRL, 1)
	p.end(fmt.Errorf("pulled out: %w", bus.ErrGone))
	if err := <-died; err == nil {
		t.Error("Died was told nil, want why")
	}
	if err := d.Close(); err != nil {
		t.Errorf("Close() = %v, want nil", err)
	}
	want(t, lines(d, 3), "write bar0+0x0/4 CTRL 0x1 BITS(1)", "died - - 0x0 pulled out: device gone", "close - - 0x0")
	if len(died) > 0 {
		t.Error("Died was called twice")
	}
}

// ringOf gives ring q of the device n descriptors whose addresses are their indices.
func ringOf(t *testing.T, d *trace.Device, r bus.Region, q bus.Off, n int) *bus.Memory {
	t.Helper()
	m, err := d.DMA().Alloc(bus.DMARequest{Size: n * 16})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		binary.LittleEndian.PutUint64(m.Bytes[16*i:], uint64(i))
	}
	r.Write32(regTDB+0x100*q, uint32(m.IOVA))
	r.Write32(regTDBH+0x100*q, uint32(m.IOVA>>32))
	r.Write32(regTDL+0x100*q, uint32(16*n))
	return m
}

func TestPublish(t *testing.T) {
	bustest.NoLeaks(t)
	d, _, r := open(t, trace.Options{})
	r.Write32(regTDT, 1) // of a ring that nobody set up
	m := ringOf(t, d, r, 0, 8)
	ringOf(t, d, r, 1, 8)
	n := int(d.Recorded())
	r.Write32(regTDT, 0)       // nothing yet
	r.Write8(regTDT+1, 0)      // a part of it is no doorbell
	r.Write32(regTDT+0x100, 1) // the other ring
	r.Write32(regTDT, 6)       // more than a record holds
	r.Write32(regTDT, 1)       // round the end
	r.Write32(regTDT, 8)       // outside: what it published is unknown, and where the next begins
	r.Write32(regTDT, 3)
	r.Write32(regTDT, 4)
	d.SetEnabled(false)
	r.Write32(regTDT, 6)
	d.SetEnabled(true)
	r.Write32(regTDT, 7) // what was published meanwhile is unknown
	r.Write32(regTDT, 0)
	m.Free()
	r.Write32(regTDT, 1) // into memory that is gone
	r.Write32(regTDT, 2)
	want(t, lines(d, int(d.Recorded())-n),
		"doorbell bar0+0x3818/4 TDT[0] 0x0",
		"write bar0+0x3819/1 TDT[0] 0x0",
		"doorbell bar0+0x3918/4 TDT[1] 0x1",
		"publish bar0+0x3918/16 TDT[1] 0x0 0..0 (1) {addr=0}",
		"doorbell bar0+0x3818/4 TDT[0] 0x6",
		"publish bar0+0x3818/16 TDT[0] 0x0 0..5 (6) {addr=0} {addr=1} {addr=2} {addr=3} ...",
		"doorbell bar0+0x3818/4 TDT[0] 0x1",
		"publish bar0+0x3818/16 TDT[0] 0x6 6..0 (3) {addr=6} {addr=7} {addr=0}",
		"doorbell bar0+0x3818/4 TDT[0] 0x8",
		"doorbell bar0+0x3818/4 TDT[0] 0x3",
		"doorbell bar0+0x3818/4 TDT[0] 0x4",
		"publish bar0+0x3818/16 TDT[0] 0x3 3..3 (1) {addr=3}",
		"doorbell bar0+0x3818/4 TDT[0] 0x7",
		"doorbell bar0+0x3818/4 TDT[0] 0x0",
		"publish bar0+0x3818/16 TDT[0] 0x7 7..7 (1) {addr=7}",
		"dma - free 0x1000000000 128 bytes",
		"doorbell bar0+0x3818/4 TDT[0] 0x1",
		"doorbell bar0+0x3818/4 TDT[0] 0x2",
	)
}

// Memory that is placed by a server is a ring's like any other.
func TestPlace(t *testing.T) {
	bustest.NoLeaks(t)
	d, _, _ := open(t, trace.Options{})
	if _, err := d.DMA().(bus.Placer).Place(bus.Window{IOVA: 4096, Size: 4096}); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Place on a device that cannot = %v, want ErrNotSupported", err)
	}
	p := trace.Wrap(placing{d.Unwrap()}, trace.Options{Name: "p", Registers: plainRegisters})
	defer func() { _ = p.Close() }()
	r, err := p.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	release, err := p.DMA().(bus.Placer).Place(bus.Window{IOVA: 4096, Size: 4096, Bytes: make([]byte, 4096)})
	if err != nil {
		t.Fatal(err)
	}
	r.Write32(regTDB, 4096)
	r.Write32(regTDBH, 0)
	r.Write32(regTDL, 128)
	n := int(p.Recorded())
	r.Write32(regTDT, 1)
	release()
	r.Write32(regTDT, 2)
	want(t, lines(p, int(p.Recorded())-n),
		"doorbell bar0+0x3818/4 TDT[0] 0x1",
		"publish bar0+0x3818/16 TDT[0] 0x0 0..0 (1) {addr=0}",
		"dma - free 0x1000 4096 bytes",
		"doorbell bar0+0x3818/4 TDT[0] 0x2",
	)
}

// placing is a device whose DMA is a bus.Placer.
type placing struct{ bus.Device }

func (p placing) DMA() bus.DMA { return placer{p.Device.DMA()} }

type placer struct{ bus.DMA }

func (placer) Place(bus.Window) (func(), error) { return func() {}, nil }

func TestReadersAndLoss(t *testing.T) {
	bustest.NoLeaks(t)
	d, _, r := open(t, trace.Options{Records: 16})
	early, late := d.NewReader(0), d.NewReader(99)
	for i := range uint32(20) {
		r.Write32(regCTRL, i)
	}
	buf := make([]trace.Record, 10)
	// The region's opening was record 0; 21 records, 16 of which are left.
	if n, lost, end := late.Read(buf); n != 10 || lost != 5 || end || buf[0].Value != 4 || buf[0].Seq != 5 {
		t.Errorf("late.Read() = %d, %d, %v beginning with %d (record %d), want 10, 5, false, 4 (record 5)", n, lost, end, buf[0].Value, buf[0].Seq)
	}
	if n, lost, _ := early.Read(buf[:1]); n != 1 || lost != 4 || buf[0].Value != 4 {
		t.Errorf("early.Read() = %d, %d with %d, want 1, 4, 4", n, lost, buf[0].Value)
	}
	if n, lost, _ := late.Read(buf); n != 6 || lost != 0 || buf[5].Value != 19 {
		t.Errorf("late.Read() = %d, %d ending with %d, want 6, 0, 19", n, lost, buf[5].Value)
	}
	if n, lost, end := late.Read(buf); n != 0 || lost != 0 || end {
		t.Errorf("late.Read() = %d, %d, %v, want 0, 0, false", n, lost, end)
	}
	if got := len(d.Last(99)); got != 16 {
		t.Errorf("len(Last(99)) = %d, want 16", got)
	}
	d.Close()
	if n, lost, end := late.Read(buf); n != 1 || lost != 0 || !end || buf[0].Kind != trace.Close {
		t.Errorf("late.Read() = %d, %d, %v with %v, want 1, 0, true, close", n, lost, end, buf[0].Kind)
	}
}

// Several goroutines of a driver and several readers at once: each reader gets each record
// once or is told that it lost it, in order.
func TestConcurrent(t *testing.T) {
	bustest.NoLeaks(t)
	d, _, r := open(t, trace.Options{Records: 256})
	ringOf(t, d, r, 0, 8)
	const writers, each = 4, 5000
	var read, write sync.WaitGroup
	for i := range 3 {
		read.Go(func() {
			var next, lost uint64
			begun := false
			err := trace.Follow(context.Background(), []*trace.Device{d}, 1<<20, func(es []trace.Entry) error {
				for _, e := range es {
					if !begun {
						begun, next = true, e.Seq
					} else if e.Kind == trace.Lost {
						next += e.Value
					}
					if e.Kind == trace.Lost {
						lost += e.Value
						continue
					}
					if e.Kind == trace.Publish {
						continue // has its doorbell's number
					}
					if e.Seq != next {
						return fmt.Errorf("record %d comes after %d were read and %d lost", e.Seq, next-lost, lost)
					}
					next++
				}
				return nil
			})
			if err != nil || next != d.Recorded() {
				t.Errorf("reader %d: %v, read or lost %d records, want %d", i, err, next, d.Recorded())
			}
		})
	}
	for i := range writers {
		write.Go(func() {
			for k := range each {
				if i == 0 {
					r.Write32(regTDT, uint32(k)%8)
				} else {
					d.Config().Read32(0x10)
				}
			}
		})
	}
	write.Wait()
	d.Close()
	read.Wait()
}

func TestFollowOrder(t *testing.T) {
	bustest.NoLeaks(t)
	a, _, ra := open(t, trace.Options{Name: "a"})
	b, _, rb := open(t, trace.Options{Name: "b"})
	for i := range uint32(5) {
		ra.Write32(regCTRL, i+1)
		rb.Write32(regCTRL, i+1)
	}
	// A context that has ended still gives what there is.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var got []string
	err := trace.Follow(ctx, []*trace.Device{a, b}, 5, func(es []trace.Entry) error {
		for _, e := range es {
			got = append(got, fmt.Sprint(e.Device, e.Value))
		}
		return nil
	})
	if w := strings.Fields("a1 b1 a2 b2 a3 b3 a4 b4 a5 b5"); err != nil || !slices.Equal(got, w) {
		t.Errorf("Follow() = %v, gave %v, want %v", err, got, w)
	}
}

// A traced device keeps every promise of the bus.
func TestConformance(t *testing.T) {
	bustest.NeedQEMU(t)
	bustest.All(t, func(t *testing.T) bustest.Subject {
		m, err := qemu.Start(t.Context(), qemu.Config{Devices: []qemu.DeviceSpec{{Name: "edu0", Model: "edu"}}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		d, err := m.Device("edu0")
		if err != nil {
			t.Fatal(err)
		}
		s := bustest.Edu(t, trace.Wrap(d, trace.Options{Name: "edu0"}))
		s.Kill = func() { _, _ = m.Execute("quit", nil) }
		return s
	})
}

// The same on models in this process, whose memory the race detector sees.
func TestConformanceSim(t *testing.T) {
	bustest.All(t, func(t *testing.T) bustest.Subject {
		m, err := sim.Start(t.Context(), sim.Config{Devices: []sim.DeviceSpec{{Name: "edu0", Model: "edu"}}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		d, err := m.Device("edu0")
		if err != nil {
			t.Fatal(err)
		}
		s := bustest.Edu(t, trace.Wrap(d, trace.Options{Name: "edu0"}))
		s.Kill = func() {
			if err := m.Unplug("edu0"); err != nil {
				t.Error(err)
			}
		}
		return s
	})
}

// keeper is a device that has state to keep.
type keeper struct {
	bus.Device
	restored int
}

func (k *keeper) SaveState() (restore func() error) {
	return func() error { k.restored++; return nil }
}

// State is kept through the wrapper, which records that a reset came between.
func TestSaveState(t *testing.T) {
	p := newPlain()
	k := &keeper{Device: p}
	d := trace.Wrap(k, trace.Options{Name: "dev0"})
	defer d.Close()
	if err := bus.SaveState(d)(); err != nil || k.restored != 1 {
		t.Errorf("restore = %v, and the device was restored %d times, want once", err, k.restored)
	}
	want(t, lines(d, 1), "reset - - 0x0")
	p.end(bus.ErrGone)
}
