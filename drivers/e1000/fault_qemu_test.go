package e1000_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/fault/faulttest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
)

// openFaultQEMU makes one of QEMU's devices to be driven, with a peer if there is to be one.
func openFaultQEMU(model string, peer bool) func(t testing.TB) bus.Device {
	return func(t testing.TB) bus.Device {
		t.Helper()
		c := qemu.Config{Devices: []qemu.DeviceSpec{{Name: "eth0", Model: model}}}
		if peer {
			c.Devices = append(c.Devices, qemu.DeviceSpec{Name: "eth1", Model: model})
			c.Wires = [][2]string{{"eth0", "eth1"}}
		}
		m, err := qemu.Start(context.Background(), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() }) // it may have ended by itself
		d := wired{}
		if peer {
			d.peer = bind(t, m, "eth1", map[string]string{"ring": "64"}, nil).(netdev.Device)
		}
		if d.Device, err = m.Device("eth0"); err != nil {
			t.Fatal(err)
		}
		return d
	}
}

// Some accesses of the short scenarios fail on QEMU's models too; with RING3_LONG all do.
func TestFaultsOnQEMU(t *testing.T) {
	bustest.NeedQEMU(t)
	o := faulttest.Options{
		Kinds:    []fault.Kind{fault.Ones, fault.Flip, fault.LostWrite, fault.Deny, fault.IRQLost, fault.Garbage, fault.Gone},
		Parallel: 3, Patience: 200 * time.Millisecond, Max: 16,
	}
	switch {
	case testing.Short():
		o.Max = 4
	case os.Getenv("RING3_LONG") != "":
		o.Max = 0
	}
	for _, c := range []struct {
		name, model string
		id          uint16
		peer        bool
		use         func(context.Context, bus.Device, netdev.Device) error
	}{
		{"82574L-bringup", "e1000e", 0x10d3, false, nothing},
		{"82574L-transmit", "e1000e", 0x10d3, true, transmit},
		{"82540EM-bringup", "e1000", 0x100e, false, nothing},
	} {
		faulttest.Every(t, faulttest.Scenario{
			Name: c.name, Driver: "e1000",
			Registers: e1000.Driver.Registers(pci.FunctionID{Vendor: 0x8086, Device: c.id}),
			Open:      openFaultQEMU(c.model, c.peer), Run: lifeOf(map[string]string{"ring": "64"}, c.use),
		}, o)
	}
}
