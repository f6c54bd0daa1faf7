package slotcount_test

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"

	"example.com/slotcount"
	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/edu"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/pciehp"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
	"github.com/ring3dev/ring3/sysfs"
)

// service is the name of the slot's service.
const service = "1000:00:03.0:pcie004"

// rig is a root port of bus/sim with a card in its slot, whose service is served by the first of these drivers.
func rig(t *testing.T, props []string, drivers ...*portbus.ServiceDriver) (*porttest.Rig, *portbus.Bus) {
	t.Helper()
	bustest.NoLeaks(t)
	b, err := portbus.New(drivers...)
	if err != nil {
		t.Fatal(err)
	}
	r := porttest.New(t, sim.Config{Domain: 0x1000, Clock: sim.Eager, Devices: []sim.DeviceSpec{
		{Name: "rp0", Model: "root-port", Props: props}, {Name: "edu0", Model: "edu", Bus: "rp0"},
	}}, b, edu.Driver)
	return r, b
}

// file is a file of the service.
func file(t *testing.T, r *porttest.Rig, name string) *sysfs.File {
	t.Helper()
	f, ok := r.Port("rp0").Dirs()[service].Lookup(name).(*sysfs.File)
	if !ok {
		t.Fatalf("%s has no file %s", service, name)
	}
	return f
}

func counts(t *testing.T, r *porttest.Rig) string {
	t.Helper()
	b, err := file(t, r, "slot_events").ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(strings.ReplaceAll(string(b), "\n", ", "), ", ")
}

func TestEvents(t *testing.T) {
	r, _ := rig(t, []string{"mrl=on"}, &slotcount.Driver)
	for _, c := range []struct {
		what string
		do   func() error
		line string // the message that ends it
		want string
	}{
		{"nothing", func() error { return nil }, "counting", "button 0, power_fault 0, latch 0, presence 0, link 0"},
		{"the button", func() error { return r.Sim().PressButton("rp0") }, "slotcount: button", "button 1, power_fault 0, latch 0, presence 0, link 0"},
		{"the latch", func() error { return r.Sim().OpenLatch("rp0", true) }, "slotcount: latch link", "button 1, power_fault 0, latch 1, presence 0, link 1"},
		{"the card", func() error { return r.Sim().Unplug("edu0") }, "slotcount: presence", "button 1, power_fault 0, latch 1, presence 1, link 1"},
	} {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		r.AwaitLine(t, c.line)
		if got := counts(t, r); got != c.want {
			t.Errorf("slot_events after %s = %q, want %q", c.what, got, c.want)
		}
	}
	if got, want := r.Port("rp0").IRQHandlers()[0].Name(), "slotcount"; got != want {
		t.Errorf("name in /proc/interrupts = %q, want %q", got, want)
	}
	event := "change@/devices/pci1000:00/1000:00:03.0 pci SLOT_EVENTS=button"
	if got := strings.Join(r.Events(), "\n"); !strings.Contains(got, event) {
		t.Errorf("events =\n%s\nwant %q among them", got, event)
	}
}

func TestStore(t *testing.T) {
	r, _ := rig(t, nil, &slotcount.Driver)
	if err := r.Sim().PressButton("rp0"); err != nil {
		t.Fatal(err)
	}
	r.AwaitLine(t, "slotcount: button")
	for _, c := range []struct {
		text string
		want error
		left string // of the first line
	}{{"1\n", syscall.ERANGE, "button 1"}, {"none", syscall.EINVAL, "button 1"}, {"", syscall.EINVAL, "button 1"}, {"0\n", nil, "button 0"}} {
		_, err := file(t, r, "slot_events").Write(t.Context(), []byte(c.text))
		got, _, _ := strings.Cut(counts(t, r), ",")
		if !errors.Is(err, c.want) || got != c.left {
			t.Errorf("writing %q = %v, and then %q, want %v, %q", c.text, err, got, c.want, c.left)
		}
	}
}

// A service has one driver; which one, its files bind and unbind say.
func TestChoose(t *testing.T) {
	r, b := rig(t, nil, pciehp.Driver(pciehp.Options{}), &slotcount.Driver)
	if got := r.Port("rp0").Service(portbus.HP); got == nil {
		t.Fatal("nobody serves the slot")
	}
	if err := b.BindDevice(t.Context(), "slotcount", service); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("bind while pciehp has it = %v, want EBUSY", err)
	}
	for range 3 {
		if err := b.UnbindDevice("pciehp", service); err != nil {
			t.Fatal(err)
		}
		if err := b.BindDevice(t.Context(), "slotcount", service); err != nil {
			t.Fatal(err)
		}
		counts(t, r)
		if err := b.UnbindDevice("slotcount", service); err != nil {
			t.Fatal(err)
		}
		if err := b.BindDevice(t.Context(), "pciehp", service); err != nil {
			t.Fatal(err)
		}
	}
}

// A port that sleeps does not interrupt, and what happened meanwhile is forgotten.
func TestSuspend(t *testing.T) {
	r, _ := rig(t, nil, &slotcount.Driver)
	p := r.Port("rp0")
	if err := p.Suspend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Sim().PressButton("rp0"); err != nil {
		t.Fatal(err)
	}
	if err := p.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Sim().Unplug("edu0"); err != nil {
		t.Fatal(err)
	}
	r.AwaitLine(t, "slotcount: presence")
	if got, want := counts(t, r), "button 0, power_fault 0, latch 0, presence 1, link 1"; got != want {
		t.Errorf("slot_events = %q, want %q", got, want)
	}
}

// Without an interrupt there is no service, and the port is there all the same.
func TestNoInterrupt(t *testing.T) {
	drv := slotcount.Driver
	b, err := portbus.New(&drv)
	if err != nil {
		t.Fatal(err)
	}
	m, err := sim.Start(t.Context(), sim.Config{Clock: sim.Eager, Devices: []sim.DeviceSpec{{Name: "rp0", Model: "root-port"}}})
	if err != nil {
		t.Fatal(err)
	}
	r := porttest.Over(t, m, porttest.Options{Bus: b, Wrap: func(_ string, dev bus.Device) bus.Device { return mute{dev} }})
	r.AwaitLine(t, "the port has no interrupts")
	if got := r.Port("rp0"); got == nil || got.Service(portbus.HP) != nil {
		t.Errorf("port = %v, want one whose slot nobody serves", got)
	}
}

// mute is a device without interrupts.
type mute struct{ bus.Device }

func (mute) IRQVectors(bus.IRQMode) int                      { return 0 }
func (mute) EnableIRQs(bus.IRQMode, int) ([]*bus.IRQ, error) { return nil, bus.ErrNotSupported }
func (m mute) SaveState() (restore func() error)             { return bus.SaveState(m.Device) }
func (m mute) Clock() bus.Clock                              { return bus.ClockOf(m.Device) }
func (m mute) Reset(ctx context.Context) error               { return m.Device.Reset(ctx) }
