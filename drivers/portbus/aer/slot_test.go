package aer_test

import (
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/pciehp"
)

// A fatal error below a slot resets its link, and hot-plug takes that for no news, though it shows like a card that is pulled out.
func TestResetBelowSlot(t *testing.T) {
	for _, props := range [][]string{nil, {"reset_link=on"}, {"reset_link=on", "intx=on"}} {
		r := newRig(t, options{
			votes:   votes{"eth2": {bus.NeedReset, bus.NoVote, bus.Recovered}},
			devices: []sim.DeviceSpec{{Name: "rp1", Model: "root-port", Props: props}, {Name: "eth2", Model: "e1000e", Bus: "rp1", Props: []string{"aer=on"}}},
			more:    []*portbus.ServiceDriver{pciehp.Driver(pciehp.Options{})},
		})
		for range 5 {
			r.ForgetRecords()
			r.hit("eth2", pci.AERError{Uncorrectable: uncMalf})
			r.AwaitLine(t, "device recovery successful")
			for _, l := range r.Lines() {
				if strings.Contains(l.Text, "pciehp") {
					t.Errorf("%v: hot-plug says %q", props, l.Text)
				}
			}
			r.AwaitNames(t, "rp1 pcieport", "eth2 fake")
		}
	}
}
