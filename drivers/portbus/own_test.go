package portbus

import (
	"errors"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus/internal/portmodel"
)

// However a service comes by its own port, it reads its config space and writes nothing of it, and gets nothing else of the device.
func TestOwn(t *testing.T) {
	r := newRig(t, all(pci.ExpRootPort))
	original := r.port.env.Function
	r.tree.Add(&pci.Member{Function: original, Device: r.model, Driver: DriverName, Restore: func() error { return errors.New("restored") }})
	h := r.device(AER).Port().Hierarchy()
	members := map[string]*pci.Member{"Member": r.port.Member(), "Find": h.Find(r.port.Addr()), "Below": h.Below(r.port.Addr())[0]}
	spaces := map[string]bus.Config{"Function": r.port.Function().Config}
	for name, m := range members {
		spaces[name], spaces[name+".Function"] = m.Device.Config(), m.Function.Config
	}
	for name, c := range spaces {
		for off := bus.Off(0); off < 4096; off++ {
			before := r.model.Accesses()
			c.Write8(off, 0x55)
			c.Write16(off, 0x5555)
			c.Write32(off, 0x55555555)
			if got := r.model.Accesses(); got != before {
				t.Fatalf("%s: a write of %#x reaches the device", name, off)
			}
		}
		if v, n := c.Read32(pci.CfgVendor), c.Size(); v != 0x000c1b36 || n != 4096 || c.Read16(pci.CfgDevice) != 0x000c || c.Read8(pci.CfgVendor) != 0x36 {
			t.Errorf("%s: reads %#x, size %d", name, v, n)
		}
	}
	if got := h.Find(pci.Addr{}); got != nil {
		t.Errorf("Find of nothing = %v", got)
	}
	for name, m := range members {
		r.ownDevice(name, m)
	}
	if len(r.model.Enabled()) != 1 {
		t.Error("interrupts were enabled")
	}
	// What is noted of the one is noted of the other.
	r.port.Function().SetBusSpeed(3)
	if got := original.BusSpeed(); got != 3 || original.AER != r.port.Function().AER {
		t.Errorf("BusSpeed = %d, want 3", got)
	}
	if _, ok := h.(pci.Waker); !ok {
		t.Error("the owner wakes devices up, and is no pci.Waker any more")
	}
}

// ownDevice checks what else than config space a device of the port's own gives: nothing.
func (r *rig) ownDevice(name string, m *pci.Member) {
	d := m.Device
	_, irqs := d.EnableIRQs(bus.MSIX, 1)
	_, region := d.Region(0)
	_, alloc := d.DMA().Alloc(bus.DMARequest{Size: 1})
	_, mapped := d.DMA().Map(nil, bus.DMARequest{})
	for what, err := range map[string]error{
		"EnableIRQs": irqs, "DisableIRQs": d.DisableIRQs(), "Region": region, "Reset": d.Reset(r.Context()), "Close": d.Close(), "Alloc": alloc, "Map": mapped,
	} {
		if !errors.Is(err, bus.ErrNotSupported) {
			r.Errorf("%s: %s = %v, want ErrNotSupported", name, what, err)
		}
	}
	before := r.model.Accesses()
	if err := errors.Join(bus.SaveState(d)(), m.Restore()); err != nil || r.model.Accesses() != before {
		r.Errorf("%s: bringing it back = %v, %d accesses, want none", name, err, r.model.Accesses()-before)
	}
	if _, ok := d.(interface{ Unwrap() bus.Device }); ok {
		r.Errorf("%s: the device can be unwrapped", name)
	}
	if d.Address() != r.model.Address() || d.Backend() != "model:port" || d.Err() != nil || d.IRQVectors(bus.MSIX) != 1 || d.Regions() != nil || bus.ClockOf(d) != r.model.Clock() {
		r.Errorf("%s: it is another device", name)
	}
}

// Without an owner, or one that wakes nobody.
func TestOwnAlone(t *testing.T) {
	r := newRig(t, all(pci.ExpRootPort))
	r.port.env.Bus = struct{ pci.Hierarchy }{r.tree}
	if _, ok := r.port.Hierarchy().(pci.Waker); ok {
		t.Error("the owner is a pci.Waker")
	}
	r.port.env.Bus = nil
	if got := r.port.Hierarchy(); got != nil {
		t.Errorf("Hierarchy = %v, want nil", got)
	}
	if m := r.port.Member(); m.Function.Addr != r.port.Addr() || m.Driver != DriverName {
		t.Errorf("Member = %+v", m)
	}
	r.port.env.Bus = r.tree
}

// What services change of their own port by name.
func TestStatus(t *testing.T) {
	r := newRig(t, all(pci.ExpRootPort))
	m := r.port.Member()
	unc, cor, dev := portmodel.AER+pci.AERUncSta, portmodel.AER+pci.AERCorSta, portmodel.Express+pci.ExpDevSta
	set := func() {
		r.model.Set32(unc, 0, ^uint32(0))
		r.model.Set32(cor, 0, ^uint32(0))
		r.model.Set(dev, 0, pci.DevStaErrors)
		r.model.Set32(portmodel.AER+pci.AERUncSev, ^uint32(0), 0x10)
	}
	for _, c := range []struct {
		what     string
		f        func()
		unc, cor uint32
		dev      uint16
	}{
		{"ClearErrors(correctable)", func() { ClearErrors(m, pci.AERCorrectable, ^uint32(0)) }, ^uint32(0), 0, pci.DevStaErrors},
		{"ClearErrors(correctable, one)", func() { ClearErrors(m, pci.AERCorrectable, 1) }, ^uint32(0), 0xfffffffe, pci.DevStaErrors},
		{"ClearErrors(fatal)", func() { ClearErrors(m, pci.AERFatal, ^uint32(0)) }, 0, ^uint32(0), pci.DevStaErrors},
		{"ClearStatus", func() { ClearStatus(m) }, 0x10, ^uint32(0), 0},
		{"ClearDevice", func() { ClearDevice(m) }, ^uint32(0), ^uint32(0), 0},
		{"clearAER", func() { clearAER(m) }, 0, 0, pci.DevStaErrors},
	} {
		set()
		if !HasError(m, pci.AERCorrectable) || !HasError(m, pci.AERFatal) {
			t.Errorf("HasError with each bit set = false")
		}
		c.f()
		if u, k, d := r.model.Peek(unc, 4), r.model.Peek(cor, 4), uint16(r.model.Peek(dev, 2)); u != c.unc || k != c.cor || d != c.dev {
			t.Errorf("%s: uncorrectable %#x, correctable %#x, device %#x, want %#x, %#x, %#x", c.what, u, k, d, c.unc, c.cor, c.dev)
		}
	}
	if r.port.Gone() {
		t.Error("Gone = true of a port that answers")
	}
	// It does not answer: nothing is written.
	set()
	r.model.Set32(pci.CfgVendor, 0, ^uint32(0))
	clearAER(m)
	if got := r.model.Peek(unc, 4); got != ^uint32(0) || HasError(m, pci.AERFatal) || !r.port.Gone() {
		t.Errorf("one that is gone: status %#x, HasError %t, Gone %t, want all-ones, false, true", got, HasError(m, pci.AERFatal), r.port.Gone())
	}
}

func TestPowerControl(t *testing.T) {
	r := newRig(t, all(pci.ExpRootPort))
	m, reg := r.port.Member(), portmodel.PM+pci.PMCtl
	for _, c := range []struct {
		was   uint16
		asked bool
		after uint16
	}{{0, false, 0}, {pci.PMCtlPMEEn, false, pci.PMCtlPMEEn}, {pci.PMCtlPMEEn | pci.PMCtlPMESta, true, 0}, {pci.PMCtlPMESta, false, 0}} {
		r.model.Set(reg, 0xffff, c.was)
		if got, after := TakePME(m), uint16(r.model.Peek(reg, 2)); got != c.asked || after != c.after {
			t.Errorf("TakePME of %#x = %t, leaves %#x, want %t, %#x", c.was, got, after, c.asked, c.after)
		}
	}
	r.model.Set(reg, 0xffff, 3)
	if a, b := PowerUp(m), PowerUp(m); !a || b || r.model.Peek(reg, 2) != 0 {
		t.Errorf("PowerUp = %t, then %t, leaves %#x, want true, false, 0", a, b, r.model.Peek(reg, 2))
	}
	if err := ResetFunction(t.Context(), m); !errors.Is(err, bus.ErrNotSupported) || err.Error() != bus.ErrNotSupported.Error() {
		t.Errorf("ResetFunction = %v, want the device's own word", err)
	}
	r.model.Die()
	if _, ok := PowerControl(m); ok {
		t.Error("PowerControl of a dead port is ok")
	}
}
