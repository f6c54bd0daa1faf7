package sim

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
)

// elsewhere is memory that is copied from and to.
type elsewhere struct {
	b    []byte
	dead bool
}

func (e *elsewhere) ReadAt(p []byte, off int64) (int, error) {
	if e.dead {
		return 0, io.ErrClosedPipe
	}
	return copy(p, e.b[off:]), nil
}

func (e *elsewhere) WriteAt(p []byte, off int64) (int, error) {
	if e.dead {
		return 0, io.ErrClosedPipe
	}
	return copy(e.b[off:], p), nil
}

// A device reaches memory of another process where that wants it, mapped or not.
func TestPlace(t *testing.T) {
	for _, mapped := range []bool{true, false} {
		m, d := eduOn(t, Stepped)
		pci.SetCommand(d.Config(), pci.CmdMaster, 0)
		mem := &elsewhere{b: make([]byte, 2*pageSize)}
		w := bus.Window{IOVA: 0x40000000, Size: 2 * pageSize, Mem: mem}
		if mapped {
			w.Bytes = mem.b
		}
		p, ok := d.DMA().(bus.Placer)
		if !ok {
			t.Fatal("the DMA is no Placer")
		}
		release, err := p.Place(w)
		if err != nil {
			t.Fatal(err)
		}
		if !d.writeMem(w.IOVA+10, []byte("hello")) || string(mem.b[10:15]) != "hello" {
			t.Errorf("mapped %v: memory is %q, want hello", mapped, mem.b[10:15])
		}
		got := make([]byte, 5)
		if !d.readMem(w.IOVA+10, got) || string(got) != "hello" {
			t.Errorf("mapped %v: read %q, want hello", mapped, got)
		}
		if !d.store64(w.IOVA+64, 7<<32) || !d.store32(w.IOVA+64, 9) || binary.LittleEndian.Uint64(mem.b[64:]) != 7<<32|9 {
			t.Errorf("mapped %v: stores left % x", mapped, mem.b[64:72])
		}
		if v, ok := d.load64(w.IOVA + 64); !ok || v != 7<<32|9 {
			t.Errorf("mapped %v: load64 = %#x", mapped, v)
		}
		b := d.mem(w.IOVA+pageSize, 4)
		copy(b, "wave")
		d.wrote(w.IOVA+pageSize, b)
		if string(mem.b[pageSize:][:4]) != "wave" {
			t.Errorf("mapped %v: what a chip wrote into mem is %q", mapped, mem.b[pageSize:][:4])
		}
		for _, bad := range []bus.Window{
			{IOVA: w.IOVA + pageSize, Size: pageSize, Mem: mem}, {IOVA: w.IOVA - pageSize, Size: 2 * pageSize, Mem: mem},
		} {
			if _, err := p.Place(bad); !errors.Is(err, bus.ErrBusy) {
				t.Errorf("Place over another = %v, want ErrBusy", err)
			}
		}
		for _, bad := range []bus.Window{{IOVA: 1 << 50, Mem: mem}, {IOVA: 1 << 50, Size: 8}, {IOVA: ^bus.IOVA(4095), Size: 8192, Mem: mem}, {Size: 8, Bytes: mem.b}} {
			if _, err := p.Place(bad); !errors.Is(err, bus.ErrNotSupported) {
				t.Errorf("Place(%+v) = %v, want ErrNotSupported", bad, err)
			}
		}
		if n, err := m.StrayDMA(); n != 0 {
			t.Errorf("mapped %v: %d times stray DMA: %v", mapped, n, err)
		}
		if mem.dead = true; !mapped {
			if d.readMem(w.IOVA, got) || !bytes.Equal(got, bytes.Repeat([]byte{0xff}, 5)) || d.mem(w.IOVA, 8) != nil || d.writeMem(w.IOVA, got) {
				t.Error("memory that does not answer can be used")
			}
		}
		release()
		release()
		if d.writeMem(w.IOVA, got) {
			t.Errorf("mapped %v: the device reaches memory that was taken away", mapped)
		}
	}
}

// Memory that is allocated is never where some was placed.
func TestPlaceBesideAlloc(t *testing.T) {
	_, d := eduOn(t, Stepped)
	mem := &elsewhere{b: make([]byte, pageSize)}
	first, err := d.DMA().Alloc(bus.DMARequest{Size: 1})
	if err != nil {
		t.Fatal(err)
	}
	next := first.IOVA + 2*pageSize
	first.Free()
	release, err := d.DMA().(bus.Placer).Place(bus.Window{IOVA: next, Size: pageSize, Mem: mem})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	for range 4 {
		x, err := d.DMA().Alloc(bus.DMARequest{Size: 1})
		if err != nil {
			continue // that is allowed
		}
		defer x.Free()
		if x.IOVA == next {
			t.Errorf("memory was allocated at %#x, where some was placed", next)
		}
	}
}

// What a network controller sends may be elsewhere: rings, reports, frames.
func TestPlaceRings(t *testing.T) {
	bustest.NoLeaks(t)
	for _, name := range []string{"e1000e", "null"} {
		m, err := Start(t.Context(), Config{Devices: []DeviceSpec{{Name: "eth0", Model: name}}, Clock: Stepped})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		d := m.devices[0]
		pci.SetCommand(d.Config(), pci.CmdMaster, 0)
		r, err := d.Region(0)
		if err != nil {
			t.Fatal(err)
		}
		mem := &elsewhere{b: make([]byte, 2*pageSize)}
		const base = 0x10000
		release, err := d.DMA().(bus.Placer).Place(bus.Window{IOVA: base, Size: 2 * pageSize, Mem: mem})
		if err != nil {
			t.Fatal(err)
		}
		const eop, ifcs, rs = 1 << 24, 1 << 25, 1 << 27
		for i := range 4 {
			binary.LittleEndian.PutUint64(mem.b[16*i:], base+pageSize)
			binary.LittleEndian.PutUint64(mem.b[16*i+8:], 60|eop|ifcs|rs)
		}
		r.Write32(e1TXQ+e1QBAL, base)
		r.Write32(e1TXQ+e1QLEN, 8*16)
		r.Write32(e1TARC, r.Read32(e1TARC)|e1TarcEnable)
		r.Write32(e1TCTL, e1TCTLen)
		r.Write32(e1TXQ+e1QT, 4)
		for i := range 5 {
			if done := mem.b[16*i+12]&1 != 0; done != (i < 4) {
				t.Errorf("%s: descriptor %d is done: %v", name, i, done)
			}
		}
		release()
		if n, err := m.StrayDMA(); n != 0 {
			t.Errorf("%s: %d times stray DMA: %v", name, n, err)
		}
	}
}

// A device without function reset is as after power-on, and stays where it was placed.
func TestMachineReset(t *testing.T) {
	m, d := eduOn(t, Stepped)
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	r.Write32(eduLive, 5)
	pci.SetCommand(d.Config(), pci.CmdMaster, 0)
	before := d.Config().Read32(pci.CfgBAR0)
	if err := d.Reset(t.Context()); !errors.Is(err, bus.ErrNotSupported) {
		t.Fatalf("Reset of edu = %v, want ErrNotSupported", err)
	}
	if err := m.Reset(context.Background(), "edu0"); err != nil {
		t.Fatal(err)
	}
	if v := r.Read32(eduLive); v != 0 {
		t.Errorf("the liveness register = %#x, want 0", v)
	}
	if v := d.Config().Read32(pci.CfgBAR0); v != before {
		t.Errorf("BAR 0 = %#x, want %#x", v, before)
	}
	if err := m.Reset(context.Background(), "b"); err == nil {
		t.Error("a device that is not there was reset")
	}
}
