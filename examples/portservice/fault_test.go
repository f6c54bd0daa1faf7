package slotcount_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"example.com/slotcount"
	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/fault/faulttest"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
	"github.com/ring3dev/ring3/sysfs"
)

// simPort is a port of a machine of its own.
type simPort struct {
	bus.Device
	m *sim.Machine
}

func (d *simPort) Clock() bus.Clock        { return bus.ClockOf(d.Device) }
func (d *simPort) SaveState() func() error { return bus.SaveState(d.Device) }

// TestFaults makes each access to the port go wrong while its button is pressed: nothing may panic, hang or be left behind.
func TestFaults(t *testing.T) {
	faulttest.Every(t, faulttest.Scenario{
		Name: "press", Driver: portbus.DriverName,
		Open: func(t testing.TB) bus.Device {
			m, err := sim.Start(context.Background(), sim.Config{Clock: sim.Eager, Devices: []sim.DeviceSpec{{Name: "rp0", Model: "root-port"}}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = m.Close() })
			dev, err := m.Device("rp0")
			if err != nil {
				t.Fatal(err)
			}
			return &simPort{dev, m}
		},
		Run:     press,
		Notices: func(fault.Fault) bool { return false }, // a count that stays is one that somebody sees
	}, faulttest.Options{})
}

// press brings the port up on dev, presses the button, and waits until that is counted.
func press(ctx context.Context, dev bus.Device) error {
	p, _ := faulttest.As[*simPort](dev)
	drv := slotcount.Driver
	b, err := portbus.New(&drv)
	if err != nil {
		return err
	}
	r := porttest.Make(p.m, porttest.Options{Bus: b, Wrap: func(string, bus.Device) bus.Device { return dev }})
	defer r.Close()
	port := r.Port("rp0")
	if port == nil || port.Service(portbus.HP) == nil {
		return faulttest.Wrong("the slot is not in service")
	}
	f, _ := port.Dirs()[port.Addr().String()+":pcie004"].Lookup("slot_events").(*sysfs.File)
	if err := p.m.PressButton("rp0"); err != nil {
		return faulttest.Wrong("pressing: %v", err)
	}
	for {
		text, err := f.ReadAll()
		if err != nil || strings.HasPrefix(string(text), "button 1\n") {
			return err
		}
		if ctx.Err() != nil || port.Err() != nil {
			return faulttest.Wrong("slot_events = %q, want button 1", text)
		}
		_ = bus.Sleep(ctx, port.Clock(), time.Millisecond)
	}
}
