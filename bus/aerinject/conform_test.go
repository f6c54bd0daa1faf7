package aerinject_test

import (
	"testing"

	"github.com/ring3dev/ring3/bus/aerinject"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/sim"
)

// A wrapped device keeps every promise of the bus.
func TestConformance(t *testing.T) {
	bustest.All(t, func(t *testing.T) bustest.Subject {
		m, err := sim.Start(t.Context(), sim.Config{Devices: []sim.DeviceSpec{{Name: "edu0", Model: "edu"}}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		d, err := m.Device("edu0")
		if err != nil {
			t.Fatal(err)
		}
		s := bustest.Edu(t, aerinject.Wrap(d))
		s.Kill = func() {
			if err := m.Unplug("edu0"); err != nil {
				t.Error(err)
			}
		}
		return s
	})
}
