package portbus_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
)

// button tells of each press of a slot's attention button. It is the least that a service can be; docs/port-services.md
// has one with everything, step by step.
type button struct {
	d   *portbus.Device
	sta bus.Off // Slot Status
}

// buttons is its driver.
var buttons = portbus.ServiceDriver{
	Name: "button", Service: portbus.HP, Port: portbus.AnyPort, Prefix: "button: ",
	Probe: func(_ context.Context, d *portbus.Device) (portbus.Instance, error) {
		b := &button{d: d, sta: d.Port().Express().At + pci.ExpSltSta}
		if _, err := d.Handle("button", b.interrupt); err != nil {
			return nil, err
		}
		// Last of all, since it may interrupt at once: the slot's own bits of a register that services share.
		if _, err := d.Modify(pci.ExpSltCtl, 0, pci.SltCtlButton|pci.SltCtlHP, false); err != nil {
			return nil, err
		}
		return b, nil
	},
}

// interrupt reads the cause, acknowledges what it read, and says whether it was meant.
func (b *button) interrupt() bool {
	v := b.d.Config().Read16(b.sta)
	if v == 0xffff || v&pci.SltStaButton == 0 {
		return false
	}
	b.d.Config().Write16(b.sta, pci.SltStaButton)
	b.d.Log(slog.LevelInfo, "pressed")
	return true
}

// Close keeps the port from interrupting. The bus takes the handler away after it.
func (b *button) Close() error {
	_, err := b.d.Modify(pci.ExpSltCtl, pci.SltCtlButton|pci.SltCtlHP, 0, false)
	return err
}

// A service driver of one's own, on a root port of bus/sim. A program would give it to host.Program, in Services.
func Example() {
	b, err := portbus.New(&buttons)
	if err != nil {
		log.Fatal(err)
	}
	m, err := sim.Start(context.Background(), sim.Config{Domain: 0x1000, Clock: sim.Eager, Devices: []sim.DeviceSpec{{Name: "rp0", Model: "root-port"}}})
	if err != nil {
		log.Fatal(err)
	}
	said := make(lines, 8)
	host := porttest.Make(m, porttest.Options{Bus: b, Log: slog.New(said)})

	for _, d := range b.Devices() {
		fmt.Printf("%s, %v: served %t\n", d.Name(), d.Service(), d.Port().Service(d.Service()) != nil)
	}
	if err := m.PressButton("rp0"); err != nil {
		log.Fatal(err)
	}
	fmt.Println(<-said)
	if err := host.Close(); err != nil {
		log.Fatal(err)
	}

	// Output:
	// 1000:00:03.0:pcie001, PME: served false
	// 1000:00:03.0:pcie002, AER: served false
	// 1000:00:03.0:pcie004, hot-plug: served true
	// 1000:00:03.0:pcie010, bandwidth notification: served false
	// pcieport 1000:00:03.0: button: pressed
}

// A driver may come before the ports or after them, and go while they stay.
func ExampleBus_Register() {
	b, err := portbus.New()
	if err != nil {
		log.Fatal(err)
	}
	m, err := sim.Start(context.Background(), sim.Config{Clock: sim.Eager, Devices: []sim.DeviceSpec{{Name: "rp0", Model: "root-port"}}})
	if err != nil {
		log.Fatal(err)
	}
	host := porttest.Make(m, porttest.Options{Bus: b})
	served := func() bool { return host.Port("rp0").Service(portbus.HP) != nil }

	fmt.Println("at first:", served())
	if err := b.Register(context.Background(), &buttons); err != nil {
		log.Fatal(err)
	}
	fmt.Println("registered:", served())
	if err := b.Unregister("button"); err != nil {
		log.Fatal(err)
	}
	fmt.Println("unregistered:", served())
	if err := host.Close(); err != nil {
		log.Fatal(err)
	}

	// Output:
	// at first: false
	// registered: true
	// unregistered: false
}

// lines is a log: what is said, a message at a time.
type lines chan string

func (l lines) Enabled(context.Context, slog.Level) bool { return true }
func (l lines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l lines) WithGroup(string) slog.Handler            { return l }

// Handle is a slog.Handler's.
func (l lines) Handle(_ context.Context, r slog.Record) error {
	l <- r.Message
	return nil
}
