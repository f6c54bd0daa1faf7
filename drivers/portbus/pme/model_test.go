package pme_test

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/internal/portmodel"
	"github.com/ring3dev/ring3/drivers/portbus/pme"
)

const (
	rootSta = portmodel.Express + pci.ExpRtSta
	rootCtl = portmodel.Express + pci.ExpRtCtl
)

// bare is a root port without a machine.
func bare(t *testing.T, s portmodel.Spec) (*portmodel.Port, *portmodel.Tree, *portbus.Port) {
	t.Helper()
	s.Type = pci.ExpRootPort
	m, tree, drv := portmodel.New(s), &portmodel.Tree{}, pme.Driver
	b, _ := portbus.New(&drv)
	inst, err := tree.Probe(t, m, b.PortDriver(), "")
	if err != nil {
		t.Fatal(err)
	}
	return m, tree, inst.(*portbus.Port)
}

// ask makes the port say that a requester asked.
func ask(m *portmodel.Port, from uint16, more uint32) {
	m.Set32(rootSta, 0xffffffff, uint32(from)|pci.RtStaPME|more)
	m.Fire(0)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("waited 20 s in vain: %s", what)
		}
	}
}

func enabled(m *portmodel.Port) bool { return m.Peek(rootCtl, 2)&uint32(pci.RtCtlPME) != 0 }

// Whoever did not ask, or is not there, gives the kernel's words.
func TestSpurious(t *testing.T) {
	bustest.NoLeaks(t)
	m, tree, _ := bare(t, portmodel.Spec{})
	line := "pcieport 1000:00:04.0: PME: Spurious native interrupt!"
	for i, from := range []uint16{0x0100, 0xffff, 4 << 3} {
		ask(m, from, 0)
		eventually(t, line, func() bool { return len(tree.Lines()) == 2+i && enabled(m) })
	}
	if got := tree.Lines()[1:]; !slices.Equal(got, []string{line, line, line}) {
		t.Errorf("messages = %q", got)
	}
	if got := m.Peek(rootSta, 4) & pci.RtStaPME; got != 0 {
		t.Errorf("Root Status = %#x, want it clear", got)
	}
}

// The port itself asks, and the owner of the bus is told to wake it.
func TestWaker(t *testing.T) {
	bustest.NoLeaks(t)
	m, tree, _ := bare(t, portmodel.Spec{})
	m.Set(portmodel.PM+pci.PMCtl, 0, pci.PMCtlPMEEn|pci.PMCtlPMESta)
	ask(m, 4<<3, 0)
	eventually(t, "woken", func() bool { return len(tree.Woken()) == 1 && enabled(m) })
	if got := tree.Woken(); !slices.Equal(got, []string{"1000:00:04.0"}) {
		t.Errorf("woken = %q", got)
	}
	if got := uint16(m.Peek(portmodel.PM+pci.PMCtl, 2)); got&(pci.PMCtlPMEEn|pci.PMCtlPMESta) != 0 {
		t.Errorf("power control = %#x, want PME acknowledged and off", got)
	}
}

// A port that has PME set for ever, or PME Pending for ever, is served in bursts; it can be closed all the time.
func TestStorm(t *testing.T) {
	for _, c := range []struct {
		what string
		sta  uint32
	}{{"PME", pci.RtStaPME | 0x100}, {"pending", pci.RtStaMore}} {
		t.Run(c.what, func(t *testing.T) {
			bustest.NoLeaks(t)
			m, _, p := bare(t, portmodel.Spec{})
			var cleared atomic.Int64
			m.OnWrite(func(off bus.Off, _ int, _ uint32) {
				if off == rootSta {
					cleared.Add(1)
					m.Set32(rootSta, 0xffffffff, c.sta)
				}
			})
			began := p.Clock().Now()
			ask(m, 0x100, pci.RtStaMore)
			eventually(t, "many rounds", func() bool { return m.Accesses() > 1000 })
			rounds := (p.Clock().Now()-began)/(10*time.Millisecond) + 1
			if n := cleared.Load(); time.Duration(n) > 64*(rounds+1) {
				t.Errorf("%d events in %d pauses, want at most 64 each", n, rounds)
			}
			if enabled(m) {
				t.Error("the interrupt is on in the storm")
			}
			if err := p.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
		})
	}
}

// Without interrupts there is no service, and no complaint.
func TestNoInterrupts(t *testing.T) {
	bustest.NoLeaks(t)
	_, tree, p := bare(t, portmodel.Spec{Vectors: map[bus.IRQMode]int{}})
	if got := p.Service(portbus.PME); got != nil || len(tree.Lines()) != 0 {
		t.Errorf("service %v, messages %q, want neither", got, tree.Lines())
	}
}

// The port dies at each access of an event's and of the end: nothing stays, and at most one line is said.
func TestDies(t *testing.T) {
	bustest.NoLeaks(t)
	run := func(k int) (accesses int) {
		m, tree, p := bare(t, portmodel.Spec{})
		before := m.Accesses()
		if k > 0 {
			m.FailAt(k)
		}
		ask(m, 0x100, 0)
		eventually(t, "served", func() bool { return enabled(m) && m.Peek(rootSta, 4)&pci.RtStaPME == 0 || m.Err() != nil })
		if err := p.Close(); err != nil {
			t.Errorf("access %d fails: Close = %v", k, err)
		}
		if n := len(tree.Lines()); n > 2 {
			t.Errorf("access %d fails: messages = %q, want one", k, tree.Lines()[1:])
		}
		return m.Accesses() - before
	}
	for k := range run(0) {
		run(k + 1)
	}
}

// member makes a function of a model known; parent nil: it stands behind the port.
func member(tree *portmodel.Tree, dev *portmodel.Port, parent *pci.Function, secondary uint8) *pci.Function {
	f := portmodel.Function(dev, secondary, secondary)
	f.Parent = parent
	tree.Add(&pci.Member{Function: f, Device: dev, Use: func(g func(pci.Instance)) { g(nil) }})
	return f
}

// conventional makes a function with power management and no PCI Express, which asks for power.
func conventional(name string) *portmodel.Port {
	dev := portmodel.New(portmodel.Spec{NoExp: true, Name: name})
	dev.Set(pci.CfgCapPtr, 0xff, uint16(portmodel.PM))
	dev.Set(portmodel.PM, 0xff00, 0)
	dev.Set(portmodel.PM+pci.PMCtl, 0, pci.PMCtlPMEEn|pci.PMCtlPMESta)
	return dev
}

// PME of conventional PCI is a wire: whoever is behind the bridge that signals is asked, and nobody else.
func TestConventional(t *testing.T) {
	for _, c := range []struct {
		what string
		from uint16
		want []string
	}{
		{"the bridge signals with its secondary bus's number", 0x0200, []string{"1000:02:01.0", "1000:02:02.0"}},
		{"the bridge signals in its own name", 0x0100, []string{"1000:02:01.0", "1000:02:02.0"}},
		{"a device behind it is named", 0x0208, []string{"1000:02:01.0"}},
		{"the port signals for them", 4 << 3, []string{"1000:02:01.0", "1000:02:02.0", "1000:03:00.0"}},
	} {
		bustest.NoLeaks(t)
		m, tree, _ := bare(t, portmodel.Spec{})
		bridge := member(tree, portmodel.New(portmodel.Spec{Type: pci.ExpToPCI, Name: "1000:01:00.0"}), nil, 2)
		member(tree, conventional("1000:02:01.0"), bridge, 0)
		member(tree, conventional("1000:02:02.0"), bridge, 0)
		member(tree, conventional("1000:03:00.0"), nil, 0)
		ask(m, c.from, 0)
		eventually(t, c.what, func() bool { return len(tree.Woken()) == len(c.want) && enabled(m) })
		if got := tree.Woken(); !slices.Equal(got, c.want) {
			t.Errorf("%s: woken %q, want %q", c.what, got, c.want)
		}
		if got := tree.Lines()[1:]; len(got) != 0 {
			t.Errorf("%s: messages %q", c.what, got)
		}
	}
}

// Status that is left over from before PME was enabled is cleared, and wakes nobody.
func TestLeftOver(t *testing.T) {
	bustest.NoLeaks(t)
	m, tree, p := bare(t, portmodel.Spec{})
	m.Set(portmodel.PM+pci.PMCtl, 0, pci.PMCtlPMESta)
	ask(m, 4<<3, 0)
	eventually(t, "spurious", func() bool { return len(tree.Lines()) == 2 && enabled(m) })
	if got := m.Peek(portmodel.PM+pci.PMCtl, 2); got&uint32(pci.PMCtlPMESta) != 0 || len(tree.Woken()) != 0 {
		t.Errorf("power control %#x, woken %q, want it clear, nobody", got, tree.Woken())
	}
	m.Set(rootCtl, pci.RtCtlPME, 0)
	if got := p.SlotReset(t.Context()); got != bus.Recovered || !enabled(m) {
		t.Errorf("SlotReset = %v, interrupt on: %t", got, enabled(m))
	}
}
