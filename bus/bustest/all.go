package bustest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// patience bounds every wait of the suite: long enough for a loaded machine.
const patience = 10 * time.Second

// All runs the suite. open makes a fresh device.
func All(t *testing.T, open func(t *testing.T) Subject) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Subject)
	}{
		{"Identity", identity},
		{"Config", config},
		{"ConfigOutside", configOutside},
		{"RegionOutside", regionOutside},
		{"Scratch", scratch},
		{"PostedOrder", postedOrder},
		{"DMARequests", dmaRequests},
		{"DMAReuse", dmaReuse},
		{"DMAConcurrent", dmaConcurrent},
		{"DMAMove", dmaMove},
		{"DMACross", dmaCross},
		{"DMAMask", dmaMask},
		{"DMAStray", dmaStray},
		{"IRQCounts", irqCounts},
		{"IRQFires", irqFires},
		{"IRQReplace", irqReplace},
		{"IRQDisable", irqDisable},
		{"INTxLevel", intxLevel},
		{"Reset", reset},
		{"Concurrent", concurrent},
		{"Close", closing},
		{"CloseUnderLoad", closeUnderLoad},
		{"Dead", dead},
	} {
		t.Run(test.name, func(t *testing.T) {
			NoLeaks(t)
			s := open(t)
			test.run(t, s)
			if err := s.Device.Close(); err != nil {
				t.Errorf("Close = %v, want nil", err)
			}
		})
	}
}

// wait waits for one vector with patience.
func wait(t *testing.T, q *bus.IRQ) uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	n, err := q.Wait(ctx)
	if err != nil {
		t.Fatalf("%s vector %d: Wait = %v, want an interrupt", q.Mode(), q.Vector(), err)
	}
	return n
}

// quiet checks that a vector does not fire.
func quiet(t *testing.T, q *bus.IRQ, why string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if n, err := q.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%s vector %d fired %d times (%v): %s", q.Mode(), q.Vector(), n, err, why)
	}
}

// wantErr checks that an error wraps one of the sentinels and names its device.
func wantErr(t *testing.T, what string, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if errors.Is(err, w) {
			return
		}
	}
	t.Errorf("%s = %v, want it to wrap %v", what, err, want)
}

// firstRegion is some region of the device, or a skip.
func firstRegion(t *testing.T, d bus.Device) bus.Region {
	t.Helper()
	all := d.Regions()
	if len(all) == 0 {
		t.Skip("the device has no region")
	}
	r, err := d.Region(all[0].Index)
	if err != nil {
		t.Fatalf("Region(%d) = %v", all[0].Index, err)
	}
	return r
}
