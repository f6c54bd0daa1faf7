package pciehp

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/qemu/qemutest"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/drivers/edu"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/aer"
	"github.com/ring3dev/ring3/drivers/portbus/bwctrl"
	"github.com/ring3dev/ring3/drivers/portbus/dpc"
	"github.com/ring3dev/ring3/drivers/portbus/pme"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
	"github.com/ring3dev/ring3/netdev"
)

// lookedAt is a rig with a port that is looked at often, and its device, which has these faults.
func lookedAt(t *testing.T, faults string) (r *porttest.Rig, dev bus.Device) {
	t.Helper()
	bustest.NoLeaks(t)
	b, err := portbus.New(Driver(Options{}))
	if err != nil {
		t.Fatal(err)
	}
	b.SetLook(20 * time.Millisecond)
	var plan fault.Plan
	if faults != "" {
		if plan, err = fault.Parse(faults); err != nil {
			t.Fatal(err)
		}
	}
	r = rig(t, porttest.Options{Bus: b, Drivers: []*pci.Driver{e1000.Driver}, Wrap: func(name string, d bus.Device) bus.Device {
		if name != "rp0" {
			return d
		}
		dev = fault.Wrap(d, plan)
		return dev
	}}, port("rp0"))
	is(t, r, slotOf(t, r, "rp0"), off)
	return r, dev
}

// TestLookLost: cards come and go though no interrupt ever comes, and none is counted for a look.
func TestLookLost(t *testing.T) {
	r, _ := lookedAt(t, "irq0#1:irq-dead")
	s := slotOf(t, r, "rp0")
	for range 2 {
		cycleOnce(t, r, s)
	}
	r.AwaitLine(t, "what it did not interrupt for is taken in: Slot Status=")
	n := uint64(0)
	for _, h := range r.Port("rp0").IRQHandlers() {
		for _, c := range h.Counts() {
			n += c
		}
	}
	if n != 0 {
		t.Errorf("%d interrupts are counted, want 0", n)
	}
}

// TestLookReset: a port that was reset by itself, with its card, is set up again, and the card with it. One that only forgot for what it interrupts is, too.
func TestLookReset(t *testing.T) {
	r, dev := lookedAt(t, "")
	s := slotOf(t, r, "rp0")
	if err := r.Sim().Reset(t.Context(), "rp0"); err != nil {
		t.Fatal(err)
	}
	r.AwaitLine(t, "it is not as it was set up, and is set up again: interrupt messages go nowhere")
	if err := r.Sim().Plug(t.Context(), sim.DeviceSpec{Name: "c0", Model: "e1000e", Bus: "rp0"}); err != nil {
		t.Fatal(err)
	}
	is(t, r, s, on)
	r.AwaitNames(t, "rp0 pcieport", "c0 "+e1000.Driver.Name)
	r.ForgetRecords()
	if err := r.Sim().Reset(t.Context(), "rp0"); err != nil {
		t.Fatal(err)
	}
	r.AwaitLine(t, "device recovery successful")
	r.Use("c0", func(i pci.Instance) {
		if err := i.(netdev.Device).Err(); err != nil {
			t.Errorf("the card: %v, want nil", err)
		}
	})
	is(t, r, s, on)
	c := dev.Config()
	r.ForgetRecords()
	c.Write16(s.exp+pci.ExpSltCtl, c.Read16(s.exp+pci.ExpSltCtl)&^notification)
	r.AwaitLine(t, "it is not as it was set up, and is set up again: Slot Control=")
	r.Await(t, "it interrupting again", func() bool { return c.Read16(s.exp+pci.ExpSltCtl)&s.listens == s.listens })
	r.ForgetRecords()
	c.Write16(pci.CfgCommand, 0)
	r.AwaitLine(t, "it is not as it was set up, and is set up again: Command=0x0, want 0x6")
	if err := s.Switch(t.Context(), false); err != nil {
		t.Errorf("Switch(off) = %v, want nil", err)
	}
	is(t, r, s, off)
	r.AwaitNames(t, "rp0 pcieport")
}

// TestLookGone: a port without config space is given up, and says so once. One that cannot be set up is left as it is.
func TestLookGone(t *testing.T) {
	r, _ := lookedAt(t, "cfg+0x18#2:cfg-gone") // the first is not a look's
	p := r.Port("rp0")
	r.Await(t, "the port being given up", func() bool { return p.Err() != nil })
	if err := p.Err(); !errors.Is(err, bus.ErrGone) || !strings.Contains(err.Error(), "in service: config space reads all-ones") {
		t.Errorf("Err() = %v, want that it is gone, and why", err)
	}
	r.AwaitLine(t, "config space reads all-ones")
	r, _ = lookedAt(t, "cfg+0x4#2:stuck:1") // Memory Space Enable reads 0 from the first look on
	r.AwaitLine(t, "it cannot be set up, and is left as it is: Command=")
	if err := r.Port("rp0").Err(); err != nil {
		t.Errorf("Err() = %v, want nil", err)
	}
}

// TestLookAsleep: who is suspended, or reset by somebody who says so, is not looked at; a port on which nothing is wrong is not written to.
func TestLookAsleep(t *testing.T) {
	r, dev := lookedAt(t, "")
	p, s, c := r.Port("rp0"), slotOf(t, r, "rp0"), dev.Config()
	suspend(t, r)
	before := c.Read16(s.exp + pci.ExpSltCtl)
	c.Write16(pci.CfgCommand, 0)
	time.Sleep(100 * time.Millisecond) // it is five looks; that fewer came would prove nothing, and fail nothing
	if v := c.Read16(pci.CfgCommand); v != 0 || c.Read16(s.exp+pci.ExpSltCtl) != before {
		t.Errorf("suspended its Command became %#x", v)
	}
	c.Write16(pci.CfgCommand, uint16(pci.CmdMaster|pci.CmdMem|pci.CmdIO))
	p.ErrorDetected(true)
	resume(t, r)
	c.Write16(pci.CfgCommand, 0)
	time.Sleep(100 * time.Millisecond)
	if v := c.Read16(pci.CfgCommand); v != 0 {
		t.Errorf("while it is reset its Command became %#x", v)
	}
	p.ErrorResume()
	r.Await(t, "the port being set up again", func() bool { return pci.Command(c.Read16(pci.CfgCommand))&pci.CmdMaster != 0 })
}

// TestLookQEMU: the table of a port's messages, on QEMU's model, is written anew once it is not as it was, and so is what else the port forgot.
func TestLookQEMU(t *testing.T) {
	bustest.NoLeaks(t)
	m := qemutest.Machine(t, qemu.Config{Devices: []qemu.DeviceSpec{
		{Name: "rp0", Model: "pcie-root-port"}, {Name: "rp1", Model: "ioh3420"}, {Name: "rp2", Model: "pcie-root-port"},
		{Name: "sw0", Model: "x3130-upstream", Bus: "rp2"}, {Name: "dn0", Model: "xio3130-downstream", Bus: "sw0"}}})
	b, err := portbus.New(&pme.Driver, &aer.Driver, Driver(Options{}), &dpc.Driver, &bwctrl.Driver)
	if err != nil {
		t.Fatal(err)
	}
	b.SetLook(100 * time.Millisecond)
	var dev bus.Device
	r := porttest.Over(t, m, porttest.Options{Bus: b, Drivers: []*pci.Driver{edu.Driver}, Wrap: func(name string, d bus.Device) bus.Device {
		if name == "rp0" {
			dev = d
		}
		return d
	}})
	s := slotOf(t, r, "rp0")
	is(t, r, s, off)
	time.Sleep(500 * time.Millisecond) // a few looks at ports on which nothing is wrong: those that do not come prove nothing, and fail nothing
	for _, l := range r.Lines() {
		if strings.Contains(l.Text, "set up") || strings.Contains(l.Text, "did not interrupt") {
			t.Errorf("a port on which nothing is wrong: %s", l.Text)
		}
	}
	x, err := pci.OpenMSIX(dev.Config(), dev.Region)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Set(0, 0, 0); err != nil {
		t.Fatal(err)
	}
	dev.Config().Write16(s.exp+pci.ExpSltCtl, pci.SltCtlPowerOff)
	r.AwaitLine(t, "set up again: interrupt messages go nowhere")
	r.Await(t, "the slot interrupting again", func() bool { return dev.Config().Read16(s.exp+pci.ExpSltCtl)&pci.SltCtlHP != 0 })
	if err := m.Plug(t.Context(), qemu.DeviceSpec{Name: "c0", Model: "edu", Bus: "rp0"}); err != nil {
		t.Fatal(err)
	}
	is(t, r, s, on)
}
