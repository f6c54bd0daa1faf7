package portbus_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/aer"
	"github.com/ring3dev/ring3/drivers/portbus/bwctrl"
	"github.com/ring3dev/ring3/drivers/portbus/dpc"
	"github.com/ring3dev/ring3/drivers/portbus/pciehp"
	"github.com/ring3dev/ring3/drivers/portbus/pme"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
	"github.com/ring3dev/ring3/drivers/portbus/vc"
)

// card takes part in every recovery.
type card struct{}

func (card) Close() error                          { return nil }
func (card) ErrorDetected(bool) bus.Verdict        { return bus.NeedReset }
func (card) SlotReset(context.Context) bus.Verdict { return bus.Recovered }
func (card) ErrorResume()                          {}

var cardDriver = &pci.Driver{Name: "card", API: pci.API, IDs: []pci.ID{{Vendor: 0x8086, Device: pci.Any}, {Vendor: 0x1234, Device: pci.Any}},
	Probe: func(context.Context, bus.Device, pci.Env) (pci.Instance, error) { return card{}, nil }}

// everything is a root port with all services, in so many vectors, and a card behind it.
func everything(t *testing.T, vectors string) *porttest.Rig {
	t.Helper()
	bustest.NoLeaks(t)
	a, p, d, b, v := aer.Driver, pme.Driver, dpc.Driver, bwctrl.Driver, vc.Driver
	all, err := portbus.New(&p, &a, pciehp.Driver(pciehp.Options{}), &d, &b, &v)
	if err != nil {
		t.Fatal(err)
	}
	return porttest.New(t, sim.Config{Clock: sim.Eager, Devices: []sim.DeviceSpec{
		{Name: "rp0", Model: "root-port", Props: []string{"dpc=on", "vc=1", "pme=on", "bw=on", vectors}},
		{Name: "e0", Model: "e1000e", Bus: "rp0", Props: []string{"aer=on", "pme=on"}},
	}}, all, cardDriver)
}

// All services of one port, whatever they share: each gets its own interrupts, and a containment that takes the link down and up is no news for
// hot-plug.
func TestTogether(t *testing.T) {
	for _, c := range []struct{ vectors, names string }{
		{"vectors=1", "PCIe PME, aerdrv, pciehp, pcie-dpc, PCIe bwctrl"},
		{"vectors=3", "PCIe PME, pciehp, PCIe bwctrl; aerdrv; pcie-dpc"},
		{"msi=4", "PCIe PME, pciehp, PCIe bwctrl; aerdrv; pcie-dpc"},
		{"intx=on", "PCIe PME, aerdrv, pciehp, pcie-dpc, PCIe bwctrl"},
	} {
		t.Run(c.vectors, func(t *testing.T) {
			r := everything(t, c.vectors)
			m, p := r.Sim(), r.Port("rp0")
			var names []string
			for _, h := range p.IRQHandlers() {
				names = append(names, h.Name())
			}
			if got := strings.Join(names, "; "); got != c.names {
				t.Errorf("names in /proc/interrupts = %q, want %q", got, c.names)
			}
			for i := range 10 {
				r.ForgetRecords()
				if err := m.InjectError("rp0", pci.AERError{Correctable: 1 << 6}); err != nil {
					t.Fatal(err)
				}
				r.AwaitLine(t, "BadTLP")
				if err := m.SetLinkSpeed("rp0", 1, 1, true); err != nil {
					t.Fatal(err)
				}
				r.Await(t, "a uevent of the link", func() bool { return strings.Contains(fmt.Sprint(r.Events()), "LINK_SPEED=2.5") })
				f, err := m.Function("e0")
				if err != nil {
					t.Fatal(err)
				}
				at, _ := pci.FindCap(f.Config, pci.CapPM)
				f.Config.Write16(at+pci.PMCtl, pci.PMCtlPMEEn|pci.PMCtlPMESta)
				if err := m.SignalPME("e0"); err != nil {
					t.Fatal(err)
				}
				r.Await(t, "PME acknowledged", func() bool { return f.Config.Read16(at+pci.PMCtl)&pci.PMCtlPMESta == 0 })
				if err := m.TriggerDPC("rp0", 0, [4]uint32{}); err != nil {
					t.Fatal(err)
				}
				r.AwaitLine(t, "device recovery successful")
				r.AwaitLine(t, "Link Down/Up ignored (recovered by DPC)")
				if got := r.Names(); !slices.Equal(got, []string{"rp0 pcieport", "e0 card"}) {
					t.Errorf("round %d: in service are %q, want the card still", i, got)
				}
			}
			for _, l := range r.Lines() {
				for _, bad := range []string{"nobody cared", "Spurious", "failed", "Card not present"} {
					if strings.Contains(l.Text, bad) {
						t.Errorf("message %q", l.Text)
					}
				}
			}
		})
	}
}

// A storm of one service's keeps no other from being served.
func TestStormOfOne(t *testing.T) {
	r := everything(t, "vectors=1")
	m := r.Sim()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_ = m.InjectError("rp0", pci.AERError{Correctable: 1})
			}
		}
	}()
	f, err := m.Function("e0")
	if err != nil {
		t.Fatal(err)
	}
	at, _ := pci.FindCap(f.Config, pci.CapPM)
	for range 20 {
		f.Config.Write16(at+pci.PMCtl, pci.PMCtlPMEEn|pci.PMCtlPMESta)
		if err := m.SignalPME("e0"); err != nil {
			t.Fatal(err)
		}
		r.Await(t, "PME acknowledged", func() bool { return f.Config.Read16(at+pci.PMCtl)&pci.PMCtlPMESta == 0 })
	}
	close(stop)
	<-done
}

// A card that is pulled out of a port that contains: hot-plug takes it out of service, containment releases the port in silence, and the next card works.
func TestPulledOut(t *testing.T) {
	r := everything(t, "vectors=1")
	m := r.Sim()
	for i := range 5 {
		name := fmt.Sprintf("e%d", i)
		r.ForgetRecords()
		f, err := m.Function("rp0")
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Unplug(name); err != nil {
			t.Fatal(err)
		}
		if err := m.InjectError("rp0", pci.AERError{Uncorrectable: 1 << 5}); err != nil { // Surprise Down
			t.Fatal(err)
		}
		r.Await(t, "the card's end", func() bool { return len(r.Names()) == 1 })
		at, _ := pci.FindExtCap(f.Config, pci.ExtCapDPC)
		r.Await(t, "release", func() bool { return f.Config.Read16(at+pci.DPCSta)&pci.DPCStaTriggered == 0 })
		for _, l := range r.Lines() {
			if strings.Contains(l.Text, "DPC") || strings.Contains(l.Text, "recovery") {
				t.Errorf("message %q after a card was pulled out", l.Text)
			}
		}
		// The slot is off, indicator included: before, a card that comes would be let go of, as QEMU does.
		e, _ := pci.FindExpress(f.Config)
		r.Await(t, "the slot to be off", func() bool {
			return f.Config.Read16(e.At+pci.ExpSltCtl)&(pci.SltCtlPowerLED|pci.SltCtlPowerOff) == pci.LEDOff<<8|pci.SltCtlPowerOff
		})
		next := sim.DeviceSpec{Name: fmt.Sprintf("e%d", i+1), Model: "e1000e", Bus: "rp0"}
		if err := m.Plug(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		r.Await(t, "the next card", func() bool { return slices.Equal(r.Names(), []string{"rp0 pcieport", next.Name + " card"}) })
	}
}
