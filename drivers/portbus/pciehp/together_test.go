package pciehp

import (
	"context"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/aer"
	"github.com/ring3dev/ring3/drivers/portbus/dpc"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
)

// patient is a driver of cards that takes part in recovery.
type patient struct{}

func (patient) Close() error                                                  { return nil }
func (patient) ErrorDetected(bool) bus.Verdict                                { return bus.NeedReset }
func (patient) SlotReset(context.Context) bus.Verdict                         { return bus.Recovered }
func (patient) ErrorResume()                                                  {}
func probePatient(context.Context, bus.Device, pci.Env) (pci.Instance, error) { return patient{}, nil }

// TestWithDPC: the port contains a failure, recovers, and the slot stays on, with its card.
func TestWithDPC(t *testing.T) {
	bustest.NoLeaks(t)
	b, err := portbus.New(&aer.Driver, Driver(Options{}), &dpc.Driver)
	if err != nil {
		t.Fatal(err)
	}
	r := porttest.New(t, sim.Config{Clock: sim.Eager, Devices: []sim.DeviceSpec{port("rp0", "dpc=on", "vectors=4"), card("c0", "rp0")}}, b,
		&pci.Driver{Name: "patient", IDs: []pci.ID{{Vendor: pci.Any, Device: pci.Any}}, API: 1, Probe: probePatient})
	s := slotOf(t, r, "rp0")
	is(t, r, s, on)
	for range 3 {
		r.ForgetRecords()
		if err := r.Sim().TriggerDPC("rp0", 0, [4]uint32{}); err != nil {
			t.Fatal(err)
		}
		r.AwaitLine(t, "device recovery successful")
		r.AwaitLine(t, "Slot(1): Link Down/Up ignored (recovered by DPC)")
		is(t, r, s, on)
		r.AwaitNames(t, "rp0 pcieport", "c0 patient")
	}
}
