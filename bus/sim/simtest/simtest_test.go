package simtest_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/bus/sim/simtest"
	"github.com/ring3dev/ring3/drivers/edu"
)

func TestOpen(t *testing.T) {
	bustest.NoLeaks(t)
	dev := simtest.Open(t, "edu")
	d := simtest.Bind(t, dev, edu.Driver, nil).(*edu.Device)
	if got, err := d.Factorial(t.Context(), 10); got != 3628800 || err != nil {
		t.Errorf("Factorial(10) = %d, %v, want 3628800", got, err)
	}
	// Ten transfers of 0.1 s each, in no time.
	for i := range 10 {
		p := []byte(fmt.Sprint("hello ", i))
		if err := d.Copy(t.Context(), p, i, bus.ToDevice); err != nil {
			t.Fatal(err)
		}
		back := make([]byte, len(p))
		if err := d.Copy(t.Context(), back, i, bus.FromDevice); err != nil || string(back) != string(p) {
			t.Errorf("read %q back, %v, want %q", back, err, p)
		}
	}
}

func TestPair(t *testing.T) {
	bustest.NoLeaks(t)
	a, b := simtest.Pair(t, "e1000e")
	if a.Address() == b.Address() || a.Backend() != "sim:e1000e" || b.Backend() != "sim:e1000e" {
		t.Errorf("Pair = %s (%s) and %s (%s), want two e1000e", a.Address(), a.Backend(), b.Address(), b.Backend())
	}
}

// fake is a test that keeps what it is told, for what must fail one.
type fake struct {
	testing.TB
	cleanups []func()
	errors   []string
}

func (f *fake) Helper()          {}
func (f *fake) Log(...any)       {}
func (f *fake) Cleanup(c func()) { f.cleanups = append(f.cleanups, c) }
func (f *fake) Errorf(format string, a ...any) {
	f.errors = append(f.errors, fmt.Sprintf(format, a...))
}

// Stray DMA and memory that is not freed fail the test.
func TestCaught(t *testing.T) {
	f := &fake{TB: t}
	m := simtest.Machine(f, sim.Config{Devices: []sim.DeviceSpec{{Name: "d", Model: "edu"}}, Clock: sim.Stepped})
	dev := simtest.Device(f, m, "d")
	mem, err := dev.DMA().Alloc(bus.DMARequest{Size: 16})
	if err != nil {
		t.Fatal(err)
	}
	r, err := dev.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	pci.SetCommand(dev.Config(), pci.CmdMaster, 0)
	r.Write32(0x80, 0x40000)
	r.Write32(0x88, uint32(mem.IOVA))
	r.Write32(0x90, 17) // a byte too many
	r.Write32(0x98, 3)
	m.Advance(1e9)
	for i := len(f.cleanups) - 1; i >= 0; i-- {
		f.cleanups[i]()
	}
	got := strings.Join(f.errors, "\n")
	if !strings.Contains(got, "1 pieces of DMA memory") || !strings.Contains(got, "stray DMA: write of 17 bytes") {
		t.Errorf("the test was told %q, want it to hear of memory and of stray DMA", got)
	}
}
