package bustest_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/sim"
)

// both opens a model in QEMU and here.
func both(t *testing.T, name string) (q, s bus.Device) {
	t.Helper()
	bustest.NeedQEMU(t)
	bustest.NoLeaks(t)
	qm, err := qemu.Start(t.Context(), qemu.Config{Devices: []qemu.DeviceSpec{{Name: "d", Model: name}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { qm.Close() })
	sm, err := sim.Start(t.Context(), sim.Config{Devices: []sim.DeviceSpec{{Name: "d", Model: name}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sm.Close() })
	if q, err = qm.Device("d"); err != nil {
		t.Fatal(err)
	}
	if s, err = sm.Device("d"); err != nil {
		t.Fatal(err)
	}
	return q, s
}

// A driver finds the same function on both.
func TestSameConfig(t *testing.T) {
	for _, name := range []string{"edu", "pci-testdev"} {
		t.Run(name, func(t *testing.T) {
			q, s := both(t, name)
			a, b := q.Config(), s.Config()
			if a.Size() != b.Size() || q.Address() != s.Address() {
				t.Errorf("size %d, %d, address %s, %s, want the same", a.Size(), b.Size(), q.Address(), s.Address())
			}
			for off := bus.Off(0); off < 256; off += 4 {
				if off >= pci.CfgBAR0 && off < pci.CfgBAR0+24 {
					continue // where they were placed depends on what else there is
				}
				if x, y := a.Read32(off), b.Read32(off); x != y {
					t.Errorf("config space at %#x: QEMU %#08x, sim %#08x", off, x, y)
				}
			}
			for _, m := range []bus.IRQMode{bus.INTx, bus.MSI, bus.MSIX} {
				if x, y := q.IRQVectors(m), s.IRQVectors(m); x != y {
					t.Errorf("IRQVectors(%s): QEMU %d, sim %d", m, x, y)
				}
			}
			for i, r := range q.Regions() {
				r.Addr = s.Regions()[i].Addr
				if got := s.Regions()[i]; got != r {
					t.Errorf("region %d: QEMU %+v, sim %+v", i, r, got)
				}
			}
			// Which bits can be written, in the header and in MSI: beside capabilities QEMU has
			// memory.
			for off := bus.Off(0); off < 0x4c; off += 4 {
				if off >= 0x40 && q.IRQVectors(bus.MSI) == 0 {
					continue
				}
				for _, v := range []uint32{0xffffffff, 0} {
					old := a.Read32(off)
					a.Write32(off, v)
					b.Write32(off, v)
					if x, y := a.Read32(off), b.Read32(off); x != y {
						t.Errorf("config space at %#x after %#x: QEMU %#08x, sim %#08x", off, v, x, y)
					}
					a.Write32(off, old)
					b.Write32(off, old)
				}
			}
		})
	}
}

// edu answers the same on both, whatever is written.
func TestSameEdu(t *testing.T) {
	q, s := both(t, "edu")
	qr, err := q.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	sr, err := s.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	const (
		regFact, regStatus, regCount, regCmd = 0x08, 0x20, 0x90, 0x98
		computing, run                       = 1, 1
	)
	settle := func(r bus.Region, reg bus.Off, bit uint32) {
		for until := time.Now().Add(5 * time.Second); r.Read32(reg)&bit != 0; {
			if time.Now().After(until) {
				t.Fatalf("register %#x still at work after 5 s: %#x (%v)", reg, r.Read32(reg), q.Err())
			}
			time.Sleep(time.Millisecond)
		}
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	regs := []bus.Off{0, 4, 8, 0x0c, 0x20, 0x24, 0x60, 0x64, 0x80, 0x84, 0x88, 0x90, 0x9c, 0xa0, 0xffffc}
	for i := range 400 {
		off, v := regs[rnd.IntN(len(regs))], rnd.Uint64()
		switch off {
		case regFact:
			v %= 40
		case regStatus, 0x60, 0x64:
			v = 1 << (v % 32)
		}
		for _, r := range []bus.Region{qr, sr} {
			if off%8 == 0 && i%3 == 0 && off != regFact {
				r.Write64(off, v)
			} else {
				r.Write32(off, uint32(v))
			}
			settle(r, regStatus, computing)
		}
		for _, at := range regs {
			if x, y := qr.Read32(at), sr.Read32(at); x != y {
				t.Fatalf("after writing %#x to %#x: register %#x reads %#x in QEMU, %#x in sim", v, off, at, x, y)
			}
			if at < 0x80 || at%8 != 0 {
				continue
			}
			if x, y := qr.Read64(at), sr.Read64(at); x != y {
				t.Fatalf("after writing %#x to %#x: register %#x reads %#x in QEMU, %#x in sim", v, off, at, x, y)
			}
		}
	}
	// A transfer holds its registers, and raises its interrupt.
	for _, d := range []bus.Device{q, s} {
		r, err := d.Region(0)
		if err != nil {
			t.Fatal(err)
		}
		mem, err := d.DMA().Alloc(bus.DMARequest{Size: 64, Mask: 1<<28 - 1})
		if err != nil {
			t.Fatal(err)
		}
		defer mem.Free()
		pci.SetCommand(d.Config(), pci.CmdMaster, 0)
		r.Write32(0x64, 0xffffffff)
		r.Write64(0x80, uint64(mem.IOVA))
		r.Write64(0x88, 0x40000)
		r.Write64(regCount, 8)
		r.Write32(regCmd, 2) // without run: nothing
		if got := r.Read32(regCmd); got != 0 {
			t.Errorf("the command reads %#x, want nothing", got)
		}
		r.Write32(regCmd, 5)
		r.Write32(regCount, 7)
		if got := r.Read32(regCount); got != 8 {
			t.Errorf("the count reads %d while a transfer runs, want it kept", got)
		}
		settle(r, regCmd, run)
		if irq, cmd := r.Read32(0x24), r.Read32(regCmd); irq != 0x100 || cmd != 4 {
			t.Errorf("interrupt status after a transfer = %#x, command %#x, want 0x100, 4", irq, cmd)
		}
	}
}

// pci-testdev counts the same on both.
func TestSameTestdev(t *testing.T) {
	q, s := both(t, "pci-testdev")
	rnd := rand.New(rand.NewPCG(5, 6))
	for i := range 300 {
		var got [2]uint64
		region, test, off, v := rnd.IntN(2), rnd.IntN(4), bus.Off(rnd.IntN(8)), uint8(0xfa)
		base := bus.Off(2048)
		if region == 1 {
			base = 128
		}
		if rnd.IntN(4) == 0 {
			v = uint8(rnd.Uint32())
		}
		for k, d := range []bus.Device{q, s} {
			r, err := d.Region(region)
			if err != nil {
				t.Fatal(err)
			}
			if i%5 == 0 {
				r.Write8(0, uint8(test))
			}
			r.Write8(base+off, v)
			r.Write32(base+off&^3, 0xfafafafa)
			for at := bus.Off(0); at < 40; at += 4 {
				got[k] = got[k]*31 + uint64(r.Read32(at))
			}
			got[k] = got[k]*31 + uint64(r.Read16(2)) + uint64(r.Read8(8))
		}
		if got[0] != got[1] {
			t.Fatalf("step %d, test %d of region %d: the header differs", i, test, region)
		}
	}
}
