package dpc_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/dpc"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
)

// card is a driver of edu cards that takes part in recovery, and tells what it was asked.
type card struct {
	mu  sync.Mutex
	log []string
}

func (c *card) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log = append(c.log, fmt.Sprintf(format, args...))
}

func (c *card) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.log
	c.log = nil
	return l
}

func (c *card) driver() *pci.Driver {
	return &pci.Driver{Name: "card", API: pci.API, IDs: []pci.ID{{Vendor: 0x1234, Device: 0x11e8}}, Probe: func(_ context.Context, dev bus.Device, _ pci.Env) (pci.Instance, error) {
		pci.SetCommand(dev.Config(), pci.CmdMaster, 0)
		return &cardInstance{c, dev}, nil
	}}
}

type cardInstance struct {
	*card
	dev bus.Device
}

func (c *cardInstance) Close() error { return nil }

func (c *cardInstance) ErrorDetected(frozen bool) bus.Verdict {
	c.say("detected:%t id:%04x", frozen, c.dev.Config().Read16(pci.CfgVendor))
	return bus.NeedReset
}

func (c *cardInstance) SlotReset(context.Context) bus.Verdict {
	c.say("reset id:%04x master:%t", c.dev.Config().Read16(pci.CfgVendor), pci.Command(c.dev.Config().Read16(pci.CfgCommand))&pci.CmdMaster != 0)
	return bus.Recovered
}

func (c *cardInstance) ErrorResume() { c.say("resume") }

// rig is a root port rp0 with a card behind it.
func rig(t *testing.T, profile string, props ...string) (*porttest.Rig, *card) {
	t.Helper()
	bustest.NoLeaks(t)
	drv := dpc.Driver
	b, err := portbus.New(&drv)
	if err != nil {
		t.Fatal(err)
	}
	c := &card{}
	return porttest.Start(t, sim.Config{Clock: sim.Eager, Devices: []sim.DeviceSpec{
		{Name: "rp0", Model: "root-port", Props: append(props, "dpc=on")}, {Name: "edu0", Model: "edu", Bus: "rp0"},
	}}, porttest.Options{Bus: b, Drivers: []*pci.Driver{c.driver()}, Profile: profile}), c
}

const prefix = "pcieport 1000:00:03.0: "

func check(t *testing.T, r *porttest.Rig, want []string) {
	t.Helper()
	got := r.Texts(prefix)
	if !slices.Equal(got, want) {
		t.Errorf("messages:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestProbe(t *testing.T) {
	r, _ := rig(t, "")
	check(t, r, []string{
		"DPC: enabled with IRQ 24",
		"DPC: error containment capabilities: Int Msg #0, RPExt+ PoisonedTLP- SwTrigger+ RP PIO Log 4, DL_ActiveErr+",
	})
	p := r.Port("rp0")
	if got := p.IRQHandlers()[0].Name(); got != "pcie-dpc" {
		t.Errorf("name in /proc/interrupts = %q, want pcie-dpc", got)
	}
}

func TestContainment(t *testing.T) {
	for _, c := range []struct {
		what, profile string
		do            func(*sim.Machine) error
		want          []string
	}{
		{"an error of the port", "", func(m *sim.Machine) error { return m.TriggerDPC("rp0", 0, [4]uint32{}) }, []string{
			"DPC: containment event, status:0x1f01: unmasked uncorrectable error detected"}},
		{"an error of the port", "6.1", func(m *sim.Machine) error { return m.TriggerDPC("rp0", 0, [4]uint32{}) }, []string{
			"DPC: containment event, status:0x1f01 source:0x0018", "DPC: unmasked uncorrectable error detected"}},
		{"programmed I/O", "", func(m *sim.Machine) error { return m.TriggerDPC("rp0", 1<<18|1<<8, [4]uint32{1, 2, 3, 4}) }, []string{
			"DPC: containment event, status:0x0807: RP PIO error detected",
			"DPC: rp_pio_status: 0x00040100, rp_pio_mask: 0x00000000",
			"DPC: RP PIO severity=0x00000000, syserror=0x00000000, exception=0x00000000",
			"DPC: [ 8] I/O Request received UR Completion (First)", "DPC: [18] Memory Request Completion Timeout",
			"DPC: TLP Header: 0x00000001 0x00000002 0x00000003 0x00000004"}},
		{"software", "", func(m *sim.Machine) error {
			f, err := m.Function("rp0")
			if err == nil {
				at, _ := pci.FindExtCap(f.Config, pci.ExtCapDPC)
				f.Config.Write16(at+pci.DPCCtl, f.Config.Read16(at+pci.DPCCtl)|pci.DPCCtlTrigger)
			}
			return err
		}, []string{"DPC: containment event, status:0x1f27: software trigger detected"}},
	} {
		t.Run(c.what+" "+c.profile, func(t *testing.T) {
			r, card := rig(t, c.profile)
			f, err := r.Sim().Function("rp0")
			if err != nil {
				t.Fatal(err)
			}
			at, _ := pci.FindExtCap(f.Config, pci.ExtCapDPC)
			f.Config.Write32(at+pci.DPCPIOMask, 0)
			r.ForgetRecords()
			if err := c.do(r.Sim()); err != nil {
				t.Fatal(err)
			}
			r.AwaitLine(t, "device recovery")
			check(t, r, append(c.want, "AER: device recovery successful"))
			if got, want := fmt.Sprint(card.take()), "[detected:true id:ffff reset id:1234 master:true resume]"; got != want {
				t.Errorf("the card's driver was asked %s, want %s", got, want)
			}
			i := r.Port("rp0").Service(portbus.DPC).(portbus.Container)
			if got := []bool{i.Recovered(t.Context()), i.Recovered(t.Context())}; !got[0] || got[1] {
				t.Errorf("Recovered = %v, want once", got)
			}
		})
	}
}

// ERR_FATAL from below: the source is named, the card reset, and it works again; many times.
func TestFatalFromBelow(t *testing.T) {
	bustest.NoLeaks(t)
	drv := dpc.Driver
	b, _ := portbus.New(&drv)
	c := &card{}
	r := porttest.New(t, sim.Config{Clock: sim.Eager, Devices: []sim.DeviceSpec{
		{Name: "rp0", Model: "root-port", Props: []string{"dpc=on"}},
		{Name: "e0", Model: "e1000e", Bus: "rp0", Props: []string{"aer=on"}},
	}}, b, c.driver())
	f, err := r.Sim().Function("e0")
	if err != nil {
		t.Fatal(err)
	}
	pci.SetCommand(f.Config, pci.CmdSERR, 0)
	for range 3 {
		r.ForgetRecords()
		if err := r.Sim().InjectError("e0", pci.AERError{Uncorrectable: 1 << 18}); err != nil {
			t.Fatal(err)
		}
		r.AwaitLine(t, "device recovery")
		check(t, r, []string{
			fmt.Sprintf("DPC: containment event, status:0x1f05, ERR_FATAL received from %s", f.Addr),
			"AER: device recovery failed",
		})
		if got := f.Config.Read16(pci.CfgVendor); got != 0x8086 {
			t.Errorf("the card reads %#x after release, want 0x8086", got)
		}
		pci.SetCommand(f.Config, pci.CmdSERR, 0)
	}
}

// A card that is pulled out is no error of the port's.
func TestPulledOut(t *testing.T) {
	r, _ := rig(t, "")
	r.ForgetRecords()
	f, err := r.Sim().Function("rp0")
	if err != nil {
		t.Fatal(err)
	}
	dpcAt, _ := pci.FindExtCap(f.Config, pci.ExtCapDPC)
	aer, _ := pci.FindExtCap(f.Config, pci.ExtCapAER)
	if err := r.Sim().InjectError("rp0", pci.AERError{Uncorrectable: 1 << 5}); err != nil {
		t.Fatal(err)
	}
	r.Await(t, "release", func() bool {
		return f.Config.Read16(dpcAt+pci.DPCSta)&pci.DPCStaTriggered == 0 && f.Config.Read32(aer+pci.AERUncSta) == 0
	})
	check(t, r, nil)
	if r.Port("rp0").Service(portbus.DPC).(portbus.Container).Recovered(t.Context()) {
		t.Error("Recovered = true after a card was pulled out")
	}
}

// The service is taken away while the port is contained and its recovery runs; the next one releases the port.
func TestUnbindWhileContained(t *testing.T) {
	r, _ := rig(t, "")
	b := r.Port("rp0").Bus()
	f, _ := r.Sim().Function("rp0")
	at, _ := pci.FindExtCap(f.Config, pci.ExtCapDPC)
	for i := range 20 {
		if err := r.Sim().TriggerDPC("rp0", 0, [4]uint32{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 50 * time.Microsecond) // at whatever step it is
		if err := b.UnbindDevice("dpc", "1000:00:03.0:pcie008"); err != nil {
			t.Fatal(err)
		}
		if got := f.Config.Read16(at+pci.DPCCtl) & (pci.DPCCtlIRQ | pci.DPCCtlFatal); got != 0 {
			t.Errorf("DPC Control = %#x without a driver, want nothing enabled", got)
		}
		if err := b.BindDevice(context.Background(), "dpc", "1000:00:03.0:pcie008"); err != nil {
			t.Fatal(err)
		}
		r.Await(t, "release", func() bool { return f.Config.Read16(at+pci.DPCSta)&pci.DPCStaTriggered == 0 })
	}
}

// Two hundred containments one after the other, and a storm of them: each is recovered, or was part of one that is.
func TestManyContainments(t *testing.T) {
	r, c := rig(t, "")
	for range 200 {
		r.ForgetRecords()
		if err := r.Sim().TriggerDPC("rp0", 0, [4]uint32{}); err != nil {
			t.Fatal(err)
		}
		r.AwaitLine(t, "device recovery successful")
	}
	c.take()
	for range 5000 {
		if err := r.Sim().TriggerDPC("rp0", 0, [4]uint32{}); err != nil {
			t.Fatal(err)
		}
	}
	f, _ := r.Sim().Function("rp0")
	at, _ := pci.FindExtCap(f.Config, pci.ExtCapDPC)
	r.Await(t, "release", func() bool {
		l := c.take()
		return f.Config.Read16(at+pci.DPCSta)&pci.DPCStaTriggered == 0 && (len(l) == 0 || l[len(l)-1] == "resume")
	})
}

// An error that the port itself detected is reported, counted and cleared. With kernel 6.1 so is Surprise Down of a hot-plug port.
func TestOwnErrors(t *testing.T) {
	for _, c := range []struct {
		profile string
		bits    uint32
		lines   []string
	}{
		{"", 1 << 4, []string{
			"DPC: containment event, status:0x1f01: unmasked uncorrectable error detected",
			"PCIe Bus Error: severity=Uncorrectable (Fatal), type=Data Link Layer, (Receiver ID)",
			"  device [1b36:000c] error status/mask=00000010/00000000",
			"   [ 4] DLP                    (First)",
			"AER: device recovery successful"}},
		{"6.1", 1 << 5, []string{
			"DPC: containment event, status:0x1f01 source:0x0018", "DPC: unmasked uncorrectable error detected",
			"PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer, (Receiver ID)",
			"  device [1b36:000c] error status/mask=00000020/00000000",
			"   [ 5] SDES                   (First)",
			"AER: device recovery successful"}},
		{"", 1 << 14, []string{ // not fatal, and the port contains it all the same
			"DPC: containment event, status:0x1f01: unmasked uncorrectable error detected",
			"PCIe Bus Error: severity=Uncorrectable (Non-Fatal), type=Transaction Layer, (Requester ID)",
			"  device [1b36:000c] error status/mask=00004000/00000000",
			"   [14] CmpltTO                (First)",
			"AER: device recovery successful"}},
	} {
		r, _ := rig(t, c.profile)
		r.ForgetRecords()
		if err := r.Sim().InjectError("rp0", pci.AERError{Uncorrectable: c.bits}); err != nil {
			t.Fatal(err)
		}
		r.AwaitLine(t, "device recovery")
		check(t, r, c.lines)
		p := r.Port("rp0")
		if got := p.Member().Device.Config().Read32(p.AER() + pci.AERUncSta); got != 0 {
			t.Errorf("Uncorrectable Error Status = %#x, want it clear", got)
		}
		n := p.Function().AER
		if got := n.Total(pci.AERFatal) + n.Total(pci.AERNonFatal); got != 1 {
			t.Errorf("errors counted = %d, want 1", got)
		}
	}
}
