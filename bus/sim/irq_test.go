package sim

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// fired is how often a vector has fired since the last time.
func fired(t *testing.T, q *bus.IRQ) uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	q.Signal() // so that there is something to wait for
	n, err := q.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return n - 1
}

func enabled(t *testing.T, d *device, mode bus.IRQMode, n int) []*bus.IRQ {
	t.Helper()
	q, err := d.EnableIRQs(mode, n)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// under calls f as the machine calls a chip.
func under(d *device, f func()) {
	d.m.lock()
	defer d.m.unlock()
	f()
}

func TestMSIX(t *testing.T) {
	m := started(t, Config{Devices: []DeviceSpec{{Name: "n", Model: "null"}}, Clock: Stepped})
	d := m.devices[0]
	c := d.Config()
	pci.SetCommand(c, pci.CmdMaster, 0)
	q := enabled(t, d, bus.MSIX, 3)
	x, err := pci.OpenMSIX(c, d.Region)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, want ...uint64) {
		t.Helper()
		for i, w := range want {
			if got := fired(t, q[i]); got != w {
				t.Errorf("%s: vector %d fired %d times, want %d", what, i, got, w)
			}
		}
	}
	send := func(v ...int) {
		under(d, func() {
			for _, v := range v {
				d.msix(v)
			}
		})
	}
	send(0, 2, 2, 3, 4, 5, -1)
	check("enabled", 1, 0, 2)
	if !x.Pending(3) || !x.Pending(4) || x.Pending(0) {
		t.Errorf("pending bits 3, 4, 0 = %v, %v, %v, want true, true, false", x.Pending(3), x.Pending(4), x.Pending(0))
	}
	// A masked vector waits, and fires once.
	if err := x.Mask(1); err != nil {
		t.Fatal(err)
	}
	send(1, 1)
	check("masked", 0, 0, 0)
	if !x.Pending(1) {
		t.Error("vector 1 is not pending")
	}
	if err := x.Unmask(1); err != nil {
		t.Fatal(err)
	}
	check("unmasked", 0, 1, 0)
	if x.Pending(1) {
		t.Error("vector 1 is pending after it fired")
	}
	// The function mask holds back all.
	msix, _ := pci.FindCap(c, pci.CapMSIX)
	c.Write16(msix+msixCtl, msixOn|msixMask)
	send(0, 1)
	check("function masked", 0, 0, 0)
	c.Write16(msix+msixCtl, msixOn)
	check("function unmasked", 1, 1, 0)
	// Without bus mastering nothing is sent, nor while MSI-X is off.
	pci.SetCommand(c, 0, pci.CmdMaster)
	send(0)
	pci.SetCommand(c, pci.CmdMaster, 0)
	check("no bus master", 0, 0, 0)
	x.Disable()
	send(0)
	under(d, func() { d.msi(0) })
	check("off", 0, 0, 0)
	if n, err := m.StrayDMA(); n != 0 {
		t.Errorf("stray DMA: %v", err)
	}
	// A message that is sent elsewhere is DMA.
	x.Enable()
	if err := x.Set(0, 0x1000, 1); err != nil {
		t.Fatal(err)
	}
	send(0)
	if n, _ := m.StrayDMA(); n != 1 {
		t.Errorf("StrayDMA = %d after a message to nowhere, want 1", n)
	}
	// The table takes words of 32 and 64 bits, and keeps reserved bits clear.
	r, _ := d.Region(3)
	r.Write64(0x10, 0xfee00003)
	r.Write32(0x1c, 0xffffffff)
	if a, b := r.Read64(0x10), r.Read32(0x1c); a != 0xfee00000 || b != 1 {
		t.Errorf("table entry = %#x, control %#x, want 0xfee00000, 1", a, b)
	}
	r.Write8(0x1c, 0)
	if got := r.Read32(0x1c); got != 1 {
		t.Errorf("control after a write of a byte = %#x, want 1", got)
	}
	r.Write64(pbaAt, 0xff)
	if got := r.Read64(pbaAt); got&0xff == 0xff {
		t.Errorf("pending bits = %#x after a write, want them read-only", got)
	}
	if got := r.Read32(0x1000); got != 0xffffffff {
		t.Errorf("beside the table: %#x, want all-ones", got)
	}
	// A function reset masks all.
	if err := d.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.Read32(entryCtl); got != 1 {
		t.Errorf("vector control after reset = %#x, want masked", got)
	}
}

// Two functions four slots apart share a line; each is told, and masked by itself.
func TestSharedLine(t *testing.T) {
	var c Config
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		c.Devices = append(c.Devices, DeviceSpec{Name: n, Model: "edu"})
	}
	m := started(t, c)
	a, b, e := m.devices[0], m.devices[1], m.devices[4]
	qa, qb, qe := enabled(t, a, bus.INTx, 1)[0], enabled(t, b, bus.INTx, 1)[0], enabled(t, e, bus.INTx, 1)[0]
	if qa.HWIRQ() != qe.HWIRQ() || qa.HWIRQ() == qb.HWIRQ() {
		t.Errorf("lines %d, %d, %d, want the first and the last alike", qa.HWIRQ(), qb.HWIRQ(), qe.HWIRQ())
	}
	check := func(what string, wa, wb, we uint64) {
		t.Helper()
		if ga, gb, ge := fired(t, qa), fired(t, qb), fired(t, qe); ga != wa || gb != wb || ge != we {
			t.Errorf("%s: fired %d, %d, %d, want %d, %d, %d", what, ga, gb, ge, wa, wb, we)
		}
	}
	ra, _ := a.Region(0)
	re, _ := e.Region(0)
	ra.Write32(eduRaise, 1)
	check("a raised", 1, 0, 1)
	re.Write32(eduRaise, 1)
	check("both raised, masked", 0, 0, 0)
	ra.Write32(eduAck, 1)
	qa.Unmask()
	check("a lowered", 1, 0, 0) // e holds the line
	re.Write32(eduAck, 1)
	qa.Unmask()
	qe.Unmask()
	check("both lowered", 0, 0, 0)
	// Held back by Interrupt Disable, and seen in Status all the same.
	pci.SetCommand(a.Config(), pci.CmdINTxDisable, 0)
	ra.Write32(eduRaise, 1)
	check("disabled", 0, 0, 0)
	if !pci.INTxPending(a.Config()) || pci.INTxPending(e.Config()) {
		t.Error("Interrupt Status: want it in a only")
	}
	pci.SetCommand(a.Config(), 0, pci.CmdINTxDisable)
	check("enabled", 1, 0, 1)
	// The line falls when the function goes.
	if err := m.Unplug("a"); err != nil {
		t.Fatal(err)
	}
	qe.Unmask()
	check("pulled out", 0, 0, 0)
}

// MSI tells vectors apart as far as the driver gave it some.
func TestMSIVectors(t *testing.T) {
	m := started(t, Config{Devices: []DeviceSpec{{Name: "e", Model: "edu"}}})
	d := m.devices[0]
	h := d.hdr
	h.msi = 4
	d.space = newSpace(&h)
	pci.SetCommand(d.Config(), pci.CmdMaster, 0)
	other := enabled(t, d, bus.MSI, 1)[0]
	under(d, func() { d.msi(3) })
	if got := fired(t, other); got != 1 {
		t.Errorf("the only vector fired %d times for vector 3, want once", got)
	}
	q := enabled(t, d, bus.MSI, 3)
	under(d, func() {
		for v, n := range []int{1, 2, 3, 4} {
			for range n {
				d.msi(v)
			}
		}
	})
	for v, want := range []uint64{1, 2, 3 + 4} {
		if got := fired(t, q[v]); v < 2 && got != want || v == 2 && got < 3 {
			t.Errorf("vector %d fired %d times, want %d", v, got, want)
		}
	}
	if err := d.DisableIRQs(); err != nil {
		t.Fatal(err)
	}
	for i, q := range m.bell {
		if q != nil {
			t.Errorf("message %d is still taken", i)
		}
	}
}

// What was closed says so, whatever comes first.
func TestEnds(t *testing.T) {
	m, d := eduOn(t, RealTime)
	if err := m.Unplug("nobody"); err == nil {
		t.Error("Unplug of nobody succeeded")
	}
	if err := m.Unplug("edu0"); err != nil {
		t.Fatal(err)
	}
	<-d.Done()
	if err := d.Err(); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Err = %v, want ErrGone", err)
	}
	if err := m.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	<-m.Done()
	if err := m.Err(); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Err of the machine = %v, want ErrClosed", err)
	}
	if err := d.Err(); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Err = %v after Close, want ErrGone still", err)
	}
	m.Advance(time.Second)
}
