package fault_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/pci"
)

// Registers of edu's DMA.
const (
	regSrc bus.Off = 0x80
	regDst bus.Off = 0x88
	regLen bus.Off = 0x90
	regCmd bus.Off = 0x98
)

// TestTear has edu copy 64 bytes out of its buffer. That takes time, so that the interrupt at its end is what to tear at.
func TestTear(t *testing.T) {
	clean := make([]byte, 64)
	for i := range clean {
		clean[i] = byte(i + 1)
	}
	for kind, want := range map[string]func(u []byte, i int) bool{
		"dma-torn:1": func(u []byte, i int) bool {
			return bytes.Equal(u[8:], clean[i+8:i+16]) != bytes.Equal(u[:8], clean[i:i+8])
		},
		"dma-torn:2": func(u []byte, i int) bool {
			return bytes.Equal(u[8:], clean[i+8:i+16]) != bytes.Equal(u[:8], clean[i:i+8])
		},
		"dma-lost": func(u []byte, i int) bool { return bytes.Equal(u, bytes.Repeat([]byte{0xee}, 16)) },
		"dma-length:3": func(u []byte, i int) bool {
			n := 0
			for k := range u {
				if u[k] != clean[i+k] {
					n++
				}
			}
			return n == 1 || n == 2
		},
	} {
		plan, err := fault.Parse("irq0#1:" + kind)
		if err != nil {
			t.Fatal(err)
		}
		got := interrupted(t, plan)
		for i := 0; i < 64; i += 16 {
			if !want(got[i:i+16], i) {
				t.Errorf("%s: bytes %d to %d are % x", kind, i, i+15, got[i:i+16])
			}
		}
	}
}

// interrupted is what is in memory that held 0xee once edu copied 1, 2, ... there, and said so.
func interrupted(t *testing.T, plan fault.Plan) []byte {
	t.Helper()
	_, in := openSim(t)
	d := fault.Wrap(in, plan)
	defer d.Close()
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	pci.SetCommand(d.Config(), pci.CmdMem|pci.CmdMaster, 0)
	mem, err := d.DMA().Alloc(bus.DMARequest{Size: 4096, Mask: 1<<28 - 1})
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Free()
	irqs, err := d.EnableIRQs(bus.MSI, 1)
	if err != nil {
		t.Fatal(err)
	}
	copyTo := func(src, dst uint64, cmd uint64) {
		r.Write64(regSrc, src)
		r.Write64(regDst, dst)
		r.Write64(regLen, 64)
		r.Write64(regCmd, cmd)
	}
	for i := range 64 {
		mem.Bytes[i] = byte(i + 1)
	}
	copyTo(uint64(mem.IOVA), 0x40000, 1)
	for r.Read64(regCmd)&1 != 0 {
	}
	for i := range 64 {
		mem.Bytes[i] = 0xee
	}
	copyTo(0x40000, uint64(mem.IOVA), 7)
	if _, err := irqs[0].Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if o := d.Outcomes()[0]; !o.Made {
		t.Fatal(o)
	}
	return slices.Clone(mem.Bytes[:64])
}

func TestConfigGone(t *testing.T) {
	d, r := wrap(t, "BAR0+0x0#1:cfg-gone")
	if v := d.Config().Read16(0); v != 0x1234 {
		t.Fatalf("vendor = %#x", v)
	}
	if v := r.Read32(regID); v != eduID {
		t.Errorf("ID = %#x, want the register to be there", v)
	}
	if v := d.Config().Read16(0); v != 0xffff {
		t.Errorf("vendor = %#x, want all-ones", v)
	}
	d.Config().Write16(pci.CfgCommand, 0)
	if v := d.Unwrap().Config().Read16(pci.CfgCommand); v&uint16(pci.CmdMem) == 0 {
		t.Errorf("command = %#x: the write arrived", v)
	}
}

func TestSelfReset(t *testing.T) {
	m, in := openSim(t)
	plan, err := fault.Parse("BAR0+0x4#2:reset")
	if err != nil {
		t.Fatal(err)
	}
	plan.Reset = func() error { return m.Reset(t.Context(), "edu0") }
	d := fault.Wrap(in, plan)
	defer d.Close()
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	r.Write32(regLive, 1)
	if a, b := r.Read32(regLive), r.Read32(regLive); a != ^uint32(1) || b == a {
		t.Errorf("LIVE = %#x, then %#x, want %#x and what it is after a reset", a, b, ^uint32(1))
	}
}

// TestRelease: the device inside is as good as new for the next driver.
func TestRelease(t *testing.T) {
	_, in := openSim(t)
	d := fault.Wrap(in, fault.Plan{})
	if _, err := d.DMA().Alloc(bus.DMARequest{Size: 4096, Mask: 1<<28 - 1}); err != nil {
		t.Fatal(err)
	}
	irqs, err := d.EnableIRQs(bus.MSI, 1)
	if err != nil {
		t.Fatal(err)
	}
	if held := d.Held(); len(held) != 2 {
		t.Errorf("Held = %q, want memory and vectors", held)
	}
	if err := d.Release(); err != nil {
		t.Errorf("Release = %v", err)
	}
	if _, err := irqs[0].Wait(t.Context()); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Wait = %v, want closed", err)
	}
	if held := d.Held(); len(held) != 0 {
		t.Errorf("after Release: %q", held)
	}
	if err := d.Err(); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Err = %v, want gone", err)
	}
	next := fault.Wrap(in, fault.Plan{})
	defer next.Close()
	r, err := next.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	if v := r.Read32(regID); v != eduID {
		t.Errorf("ID = %#x", v)
	}
	if _, err := next.EnableIRQs(bus.MSI, 1); err != nil {
		t.Error(err)
	}
}

// TestProcessKinds: they need leave.
func TestProcessKinds(t *testing.T) {
	for _, k := range fault.ProcessKinds() {
		d, r := wrap(t, "BAR0+0x0#1:"+k.String())
		if v := r.Read32(regID); v != eduID {
			t.Errorf("%s: ID = %#x", k, v)
		}
		if o := d.Outcomes()[0]; o.Made || !o.Reached {
			t.Errorf("%v: want it reached and not made", o)
		}
	}
}

// TestPanic: the one that can be looked at from inside.
func TestPanic(t *testing.T) {
	plan, err := fault.Parse("BAR0+0x0#1:panic+BAR0+0x4#1:violate")
	if err != nil {
		t.Fatal(err)
	}
	violated := false
	plan.Process, plan.Violate = true, func() { violated = true }
	_, in := openSim(t)
	d := fault.Wrap(in, plan)
	defer d.Close()
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	if r.Read32(regLive); !violated {
		t.Error("violate did nothing")
	}
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	r.Read32(regID)
}
