package trace_test

import (
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/trace"
)

// A copy is recorded as what it is made of; while nothing is, it goes through as it is.
func TestCopies(t *testing.T) {
	bustest.NoLeaks(t)
	d, _, r := open(t, trace.Options{})
	p := []byte{5, 0, 0, 0, 9}
	bus.WriteBytes(r, 0x3000, p)
	bus.ReadBytes(r, 0x3000, p[:4])
	want(t, lines(d, 99),
		"open bar0 - 0x0 16384 bytes",
		"write bar0+0x3000/4 - 0x5",
		"write bar0+0x3004/1 - 0x9",
		"read bar0+0x3000/4 - 0x5",
	)
	d.SetEnabled(false)
	bus.WriteBytes(r, 0x3000, []byte{1, 2, 3, 4})
	if bus.ReadBytes(r, 0x3000, p); p[0] != 1 || p[4] != 9 {
		t.Errorf("ReadBytes while nothing is recorded = % x", p)
	}
	if b, release := bus.Hold(r); b != nil {
		t.Error("Hold of a model's registers gives memory")
	} else {
		release()
	}
}
