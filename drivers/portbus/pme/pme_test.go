package pme_test

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
	"github.com/ring3dev/ring3/drivers/portbus/pme"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
)

// sleeper is a driver of network cards that can sleep, and tells what happens.
type sleeper struct {
	mu  sync.Mutex
	log []string
}

func (s *sleeper) take() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.Sort(s.log)
	l := strings.Join(s.log, " ")
	s.log = nil
	return l
}

func (s *sleeper) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.log)
}

func (s *sleeper) driver() *pci.Driver {
	return &pci.Driver{Name: "sleeper", API: pci.API, IDs: []pci.ID{{Vendor: 0x8086, Device: pci.Any}}, Probe: func(_ context.Context, dev bus.Device, env pci.Env) (pci.Instance, error) {
		return &sleeping{s, env.Name}, nil
	}}
}

type sleeping struct {
	*sleeper
	name string
}

func (s *sleeping) Close() error                  { return nil }
func (s *sleeping) Suspend(context.Context) error { return nil }
func (s *sleeping) Resume(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, s.name)
	return nil
}

// rig is a root port, and below it a switch with two cards.
func rig(t *testing.T) (*porttest.Rig, *sleeper) {
	t.Helper()
	bustest.NoLeaks(t)
	drv := pme.Driver
	b, err := portbus.New(&drv)
	if err != nil {
		t.Fatal(err)
	}
	s := &sleeper{}
	on := []string{"pme=on"}
	return porttest.New(t, sim.Config{Clock: sim.Eager, Devices: []sim.DeviceSpec{
		{Name: "rp0", Model: "root-port", Props: on}, {Name: "sw0", Model: "upstream", Bus: "rp0"},
		{Name: "dn0", Model: "downstream", Bus: "sw0"}, {Name: "dn1", Model: "downstream", Bus: "sw0"},
		{Name: "e0", Model: "e1000e", Bus: "dn0", Props: on}, {Name: "e1", Model: "e1000e", Bus: "dn1", Props: on},
	}}, b, s.driver()), s
}

// control is a device's power management control register.
func control(t *testing.T, r *porttest.Rig, name string) (bus.Config, bus.Off) {
	t.Helper()
	f, err := r.Sim().Function(name)
	if err != nil {
		t.Fatal(err)
	}
	at, ok := pci.FindCap(f.Config, pci.CapPM)
	if !ok {
		t.Fatalf("%s has no power management", name)
	}
	return f.Config, at + pci.PMCtl
}

// sleep puts devices into D3, with PME enabled.
func sleep(t *testing.T, r *porttest.Rig, names ...string) {
	for _, n := range names {
		c, ctl := control(t, r, n)
		c.Write16(ctl, pci.PMCtlPMEEn|pci.PMCtlPMESta|pci.PMCtlState)
	}
}

func signal(t *testing.T, r *porttest.Rig, names ...string) {
	t.Helper()
	for _, n := range names {
		if err := r.Sim().SignalPME(n); err != nil {
			t.Fatal(err)
		}
	}
}

func rootControl(r *porttest.Rig) uint16 {
	p := r.Port("rp0")
	return p.Member().Device.Config().Read16(p.Express().At + pci.ExpRtCtl)
}

func TestProbe(t *testing.T) {
	r, _ := rig(t)
	p := r.Port("rp0")
	if got, want := r.Texts("pcieport 1000:00:03.0: "), []string{fmt.Sprintf("PME: Signaling with IRQ %d", p.IRQHandlers()[0].IRQ().Number())}; !slices.Equal(got, want) {
		t.Errorf("messages = %q, want %q", got, want)
	}
	if got := p.IRQHandlers()[0].Name(); got != "PCIe PME" {
		t.Errorf("name in /proc/interrupts = %q", got)
	}
	if got := rootControl(r); got&pci.RtCtlPME == 0 {
		t.Errorf("Root Control = %#x, want the PME interrupt on", got)
	}
	if err := p.Bus().UnbindDevice("pcie_pme", "1000:00:03.0:pcie001"); err != nil {
		t.Fatal(err)
	}
	if got := rootControl(r); got&pci.RtCtlPME != 0 {
		t.Errorf("Root Control without a driver = %#x, want the PME interrupt off", got)
	}
}

// Two cards wake up, one while the other is seen to; then they sleep and wake again.
func TestWake(t *testing.T) {
	r, s := rig(t)
	for range 20 {
		sleep(t, r, "e0", "e1")
		signal(t, r, "e0", "e1")
		r.Await(t, "both awake", func() bool { return s.len() == 2 })
		if got := s.take(); got != "e0 e1" {
			t.Errorf("resumed %q, want e0 e1", got)
		}
		for _, n := range []string{"e0", "e1"} {
			c, ctl := control(t, r, n)
			if got := c.Read16(ctl) & (pci.PMCtlPMEEn | pci.PMCtlPMESta | pci.PMCtlState); got != 0 {
				t.Errorf("%s: power control = %#x, want D0 and no PME", n, got)
			}
		}
		r.Await(t, "interrupt on", func() bool { return rootControl(r)&pci.RtCtlPME != 0 })
	}
	if got := r.Texts("pcieport 1000:00:03.0: PME: Spurious"); len(got) != 0 {
		t.Errorf("%d spurious interrupts, want none", len(got))
	}
}

// A card that is awake and asks is acknowledged, and its driver not resumed.
func TestAwake(t *testing.T) {
	r, s := rig(t)
	c, ctl := control(t, r, "e0")
	c.Write16(ctl, pci.PMCtlPMEEn|pci.PMCtlPMESta)
	signal(t, r, "e0")
	r.Await(t, "acknowledged", func() bool { return c.Read16(ctl)&(pci.PMCtlPMESta|pci.PMCtlPMEEn) == 0 })
	r.Await(t, "interrupt on", func() bool { return rootControl(r)&pci.RtCtlPME != 0 })
	if got := s.take(); got != "" {
		t.Errorf("resumed %q, want nobody", got)
	}
}

// A port is suspended with its interrupt if nobody below may wake it up, and without otherwise.
func TestSuspend(t *testing.T) {
	r, s := rig(t)
	p, ctx := r.Port("rp0"), t.Context()
	if err := p.Suspend(ctx); err != nil || rootControl(r)&pci.RtCtlPME != 0 {
		t.Errorf("Suspend with nobody to wake up = %v, Root Control %#x, want the interrupt off", err, rootControl(r))
	}
	if got := p.SlotReset(ctx); got != bus.Recovered || rootControl(r)&pci.RtCtlPME != 0 {
		t.Errorf("SlotReset of a suspended port = %v, Root Control %#x, want the interrupt off", got, rootControl(r))
	}
	if err := p.Resume(ctx); err != nil || rootControl(r)&pci.RtCtlPME == 0 {
		t.Errorf("Resume = %v, Root Control %#x, want the interrupt on", err, rootControl(r))
	}
	sleep(t, r, "e1")
	if err := p.Suspend(ctx); err != nil || rootControl(r)&pci.RtCtlPME == 0 {
		t.Errorf("Suspend with a sleeper below = %v, Root Control %#x, want the interrupt on", err, rootControl(r))
	}
	signal(t, r, "e1")
	r.Await(t, "awake", func() bool { return s.len() == 1 })
	if err := p.Resume(ctx); err != nil {
		t.Errorf("Resume = %v", err)
	}
}

// The driver is taken away while events are pending; the next one gets those after it.
func TestUnbindWhilePending(t *testing.T) {
	r, s := rig(t)
	b := r.Port("rp0").Bus()
	for i := range 20 {
		sleep(t, r, "e0", "e1")
		signal(t, r, "e0", "e1")
		time.Sleep(time.Duration(i) * 20 * time.Microsecond) // at whatever step it is
		if err := b.UnbindDevice("pcie_pme", "1000:00:03.0:pcie001"); err != nil {
			t.Fatal(err)
		}
		if err := b.BindDevice(context.Background(), "pcie_pme", "1000:00:03.0:pcie001"); err != nil {
			t.Fatal(err)
		}
		for _, n := range []string{"e0", "e1"} { // whoever nobody saw to asks again
			c, ctl := control(t, r, n)
			r.Await(t, n+" awake", func() bool {
				if c.Read16(ctl)&pci.PMCtlPMEEn == 0 {
					return true
				}
				signal(t, r, n)
				return false
			})
		}
		r.Await(t, "idle", func() bool { return rootControl(r)&pci.RtCtlPME != 0 })
		s.take()
	}
}
