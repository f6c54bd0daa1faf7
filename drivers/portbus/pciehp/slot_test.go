package pciehp

import (
	"context"
	"testing"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/edu"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
	"github.com/ring3dev/ring3/sysfs"
)

// rig is a machine of bus/sim with hot-plug in service.
func rig(t testing.TB, o porttest.Options, devices ...sim.DeviceSpec) *porttest.Rig {
	t.Helper()
	if o.Bus == nil {
		var err error
		if o.Bus, err = portbus.New(Driver(Options{})); err != nil {
			t.Fatal(err)
		}
	}
	o.Drivers = append(o.Drivers, edu.Driver)
	return porttest.Start(t, sim.Config{Devices: devices, Clock: sim.Eager}, o)
}

// port is a root port.
func port(name string, props ...string) sim.DeviceSpec {
	return sim.DeviceSpec{Name: name, Model: "root-port", Props: props}
}

// card is what goes into its slot.
func card(name, port string) sim.DeviceSpec {
	return sim.DeviceSpec{Name: name, Model: "edu", Bus: port}
}

// slotOf is the slot in service of a port.
func slotOf(t testing.TB, r *porttest.Rig, name string) *Slot {
	t.Helper()
	var s *Slot
	if p := r.Port(name); p != nil {
		s, _ = p.Service(portbus.HP).(*Slot)
	}
	if s == nil {
		t.Fatalf("%s has no slot in service", name)
	}
	return s
}

// is waits until the slot is in a state and has nothing to do.
func is(t testing.TB, r *porttest.Rig, s *Slot, want state) {
	t.Helper()
	r.Await(t, "slot "+s.name+" being "+want.String(), func() bool { return s.is(want) && s.idle() })
}

// idle says whether nothing is being acted on.
func (s *Slot) idle() bool {
	select {
	case <-s.ready:
	default:
		return false
	}
	select {
	case s.hold <- struct{}{}:
		defer func() { <-s.hold }()
	default:
		return false
	}
	s.collect()
	s.sta.Lock()
	defer s.sta.Unlock()
	return !s.away && s.pending == 0 && s.asked == 0
}

// said are the slot's messages, without what they all begin with.
func said(r *porttest.Rig, port pci.Addr) []string {
	return r.Texts("pcieport " + port.String() + ": pciehp: ")
}

func write(r *porttest.Rig, b *portbus.Bus, path, text string) error {
	n, err := b.Slots().Walk(path)
	if err != nil {
		return err
	}
	_, err = n.(*sysfs.File).Store(context.Background(), []byte(text))
	return err
}
