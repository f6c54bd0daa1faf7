package aer_test

import (
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/aer"
	"github.com/ring3dev/ring3/drivers/portbus/internal/portmodel"
)

// The handler looks eight times at most. What it reads up to a clear status are messages; what it reads of a status that does not become clear is
// one for each value.
func TestStuckStatus(t *testing.T) {
	for _, c := range []struct {
		what    string
		reads   int              // until the status is clear
		source  func(int) uint32 // of each
		counted uint64
	}{
		{"the same three times", 3, func(int) uint32 { return 0x100 }, 3},
		{"the same seven times", 7, func(int) uint32 { return 0x100 }, 7},
		{"it sticks", 8, func(int) uint32 { return 0x100 }, 1},
		{"it sticks, and its source changes", 8, func(n int) uint32 { return 0x100 + uint32(n)%2 }, 2},
		{"it sticks for two looks", 16, func(int) uint32 { return 0x100 }, 2},
	} {
		bustest.NoLeaks(t)
		b, err := portbus.New(&aer.Driver)
		if err != nil {
			t.Fatal(err)
		}
		m, tree := portmodel.New(portmodel.Spec{Type: pci.ExpRootPort, AER: true}), &portmodel.Tree{}
		inst, err := tree.Probe(t, m, b.PortDriver(), "")
		if err != nil {
			t.Fatal(err)
		}
		stats := inst.(*portbus.Port).Function().AER
		const sta = portmodel.AER + pci.AERRootSta
		wait := func(what string, ok func() bool) {
			for until := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
				if time.Now().After(until) {
					t.Fatalf("%s: waited in vain: %s", c.what, what)
				}
			}
		}
		writes := 0
		set := func() {
			m.Set32(portmodel.AER+pci.AERErrSrc, ^uint32(0), c.source(writes))
			m.Set32(sta, 0, pci.RootStaCor)
		}
		m.OnWrite(func(off bus.Off, _ int, _ uint32) {
			if off != sta {
				return
			}
			if writes++; writes < c.reads {
				set()
			}
		})
		set()
		m.Fire(0)
		// A message of another kind is the last.
		wait("a clear status", func() bool { return stats.Root(pci.AERCorrectable) >= c.counted && m.Peek(sta, 4)&0x7f == 0 })
		m.Set32(sta, 0, pci.RootStaUnc|pci.RootStaNonFatal)
		m.Fire(0)
		wait("the last message", func() bool { return stats.Root(pci.AERNonFatal) == 1 })
		if got := stats.Root(pci.AERCorrectable); got != c.counted {
			t.Errorf("%s: the root port counted %d, want %d", c.what, got, c.counted)
		}
	}
}
