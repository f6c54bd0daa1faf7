package dpc_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/dpc"
	"github.com/ring3dev/ring3/drivers/portbus/internal/portmodel"
)

const (
	sta    = portmodel.DPC + pci.DPCSta
	lnkSta = portmodel.Express + pci.ExpLnkSta
)

// bare is a port without a machine, whose link is down while it is contained.
func bare(t *testing.T, s portmodel.Spec, below bool) (*portmodel.Port, *portmodel.Tree, *portbus.Port) {
	t.Helper()
	if s.Type = pci.ExpRootPort; s.DPC == 0 {
		s.DPC = pci.DPCCapRP | 7<<8
	}
	s.AER = true
	m, tree, drv := portmodel.New(s), &portmodel.Tree{}, dpc.Driver
	if below {
		tree.Add(&pci.Member{Function: &pci.Function{}, Device: portmodel.New(portmodel.Spec{Type: pci.ExpEndpoint}), Use: func(f func(pci.Instance)) { f(nil) }})
	}
	m.OnWrite(func(off bus.Off, _ int, v uint32) {
		if off == sta && uint16(v)&pci.DPCStaTriggered != 0 {
			m.Set(lnkSta, 0, pci.LnkStaActive)
		}
	})
	b, _ := portbus.New(&drv)
	inst, err := tree.Probe(t, m, b.PortDriver(), "")
	if err != nil {
		t.Fatal(err)
	}
	return m, tree, inst.(*portbus.Port)
}

// trigger contains.
func trigger(m *portmodel.Port, more uint16) {
	m.Set(lnkSta, pci.LnkStaActive, 0)
	m.Set(sta, 0xffff, pci.DPCStaTriggered|pci.DPCStaIRQ|more)
	m.Fire(0)
}

func await(t *testing.T, tree *portmodel.Tree, text string) {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); !strings.Contains(strings.Join(tree.Lines(), "\n"), text); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("no message %q, but\n%s", text, strings.Join(tree.Lines(), "\n"))
		}
	}
}

// lines are the messages after the probe's.
func lines(tree *portmodel.Tree) []string {
	var out []string
	for _, l := range tree.Lines()[2:] {
		out = append(out, strings.TrimPrefix(l, "pcieport 1000:00:04.0: "))
	}
	return out
}

func TestReleaseFails(t *testing.T) {
	bustest.NoLeaks(t)
	for _, c := range []struct {
		what  string
		spoil func(*portmodel.Port)
		want  string
	}{
		{"a busy root port", func(m *portmodel.Port) { trigger(m, pci.DPCStaBusy|2<<1) }, "DPC: root port still busy"},
		{"a link that stays up", func(m *portmodel.Port) {
			m.Set(sta, 0xffff, pci.DPCStaTriggered|pci.DPCStaIRQ|pci.DPCStaBusy|2<<1)
			m.Fire(0)
		}, "DPC: Data Link Layer Link Active not cleared in 1000 msec"},
		{"a link that stays down", func(m *portmodel.Port) { m.OnWrite(nil); trigger(m, 2<<1) }, "DPC: Data Link Layer Link Active not set in 1000 msec"},
	} {
		m, tree, p := bare(t, portmodel.Spec{}, true)
		c.spoil(m)
		await(t, tree, "device recovery failed")
		if got := lines(tree); !slices.Contains(got, c.want) || !slices.Contains(got, "AER: subordinate device reset failed") {
			t.Errorf("%s: messages %q, want %q", c.what, got, c.want)
		}
		if p.Service(portbus.DPC).(portbus.Container).Recovered(t.Context()) {
			t.Errorf("%s: Recovered = true", c.what)
		}
	}
}

// An empty slot is released without waiting for a link.
func TestNothingBelow(t *testing.T) {
	bustest.NoLeaks(t)
	m, tree, p := bare(t, portmodel.Spec{}, false)
	m.OnWrite(nil)
	trigger(m, 2<<1)
	await(t, tree, "device recovery successful")
	if !p.Service(portbus.DPC).(portbus.Container).Recovered(t.Context()) {
		t.Error("Recovered = false")
	}
}

// stopped is a driver whose ErrorDetected has something happen.
type stopped struct {
	log       []string
	meanwhile func()
}

func (s *stopped) Close() error { return nil }
func (s *stopped) ErrorDetected(bool) bus.Verdict {
	s.meanwhile()
	return bus.NeedReset
}
func (s *stopped) SlotReset(context.Context) bus.Verdict {
	s.log = append(s.log, "reset")
	return bus.Recovered
}
func (s *stopped) ErrorResume() { s.log = append(s.log, "resume") }

// The port is closed while what is below was told: it is released, and what is below goes on.
func TestCloseDuringRecovery(t *testing.T) {
	bustest.NoLeaks(t)
	m, tree, p := bare(t, portmodel.Spec{}, false)
	card, closed := &stopped{}, make(chan error, 1)
	card.meanwhile = func() {
		go func() { closed <- p.Close() }()
		<-p.Context().Done()
	}
	tree.Add(&pci.Member{Function: &pci.Function{}, Device: portmodel.New(portmodel.Spec{Type: pci.ExpEndpoint}), Use: func(f func(pci.Instance)) { f(card) },
		Restore: func() error { card.log = append(card.log, "restore"); return nil }})
	trigger(m, 2<<1)
	if err := <-closed; err != nil {
		t.Errorf("Close = %v", err)
	}
	if got := m.Peek(sta, 2) & uint32(pci.DPCStaTriggered); got != 0 || !slices.Equal(card.log, []string{"restore", "reset", "resume"}) {
		t.Errorf("DPC Status %#x, calls %q, want it released, restore, reset, resume", got, card.log)
	}
}

// Sizes of the logs, and reserved reasons.
func TestLogs(t *testing.T) {
	bustest.NoLeaks(t)
	m, tree, _ := bare(t, portmodel.Spec{}, false)
	m.Set32(portmodel.DPC+pci.DPCPIOImp, 0, 0xabc)
	m.Set32(portmodel.DPC+pci.DPCPIOSta, 0, 1<<31|1)
	trigger(m, 3<<1|31<<8)
	await(t, tree, "device recovery successful")
	want := []string{
		"DPC: containment event, status:0x1f07: RP PIO error detected",
		"DPC: rp_pio_status: 0x80000001, rp_pio_mask: 0x00000000",
		"DPC: RP PIO severity=0x00000000, syserror=0x00000000, exception=0x00000000",
		"DPC: [ 0] Configuration Request received UR Completion",
		"DPC: TLP Header: 0x00000000 0x00000000 0x00000000 0x00000000",
		"DPC: RP PIO ImpSpec Log 0x00000abc",
		"DPC: TLP Prefix Header: dw0, 0x00000000", "DPC: TLP Prefix Header: dw1, 0x00000000",
		"AER: device recovery successful",
	}
	if got := lines(tree); !slices.Equal(got, want) {
		t.Errorf("messages:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	_, tree, _ = bare(t, portmodel.Spec{DPC: pci.DPCCapRP | 3<<8 | pci.DPCCapPoisoned}, false)
	want = []string{
		"DPC: RP PIO log size 3 is invalid", "DPC: enabled with IRQ 24",
		"DPC: error containment capabilities: Int Msg #0, RPExt+ PoisonedTLP+ SwTrigger- RP PIO Log 0, DL_ActiveErr-",
	}
	for i, l := range tree.Lines() {
		if l != "pcieport 1000:00:04.0: "+want[i] {
			t.Errorf("message %d = %q, want %q", i, l, want[i])
		}
	}
}

// The port was contained before the driver came.
func TestContainedBefore(t *testing.T) {
	bustest.NoLeaks(t)
	m, tree, p := bare(t, portmodel.Spec{}, false)
	b := p.Bus()
	if err := b.UnbindDevice("dpc", "1000:00:04.0:pcie008"); err != nil {
		t.Fatal(err)
	}
	trigger(m, 2<<1)
	if err := b.BindDevice(t.Context(), "dpc", "1000:00:04.0:pcie008"); err != nil {
		t.Fatal(err)
	}
	await(t, tree, "device recovery successful")
	if got := m.Peek(sta, 2) & uint32(pci.DPCStaTriggered|pci.DPCStaIRQ); got != 0 {
		t.Errorf("DPC Status = %#x, want it released", got)
	}
}

func TestPower(t *testing.T) {
	bustest.NoLeaks(t)
	m, _, p := bare(t, portmodel.Spec{}, false)
	ctl := func() uint16 { return uint16(m.Peek(portmodel.DPC+pci.DPCCtl, 2)) }
	on := pci.DPCCtlFatal | pci.DPCCtlIRQ
	if got := ctl(); got != on {
		t.Errorf("DPC Control = %#x, want %#x", got, on)
	}
	if err := p.Suspend(t.Context()); err != nil || ctl() != 0 {
		t.Errorf("Suspend = %v, DPC Control %#x, want 0", err, ctl())
	}
	if got := p.SlotReset(t.Context()); got != bus.Recovered || ctl() != 0 {
		t.Errorf("SlotReset of a suspended port = %v, DPC Control %#x, want 0", got, ctl())
	}
	if err := p.Resume(t.Context()); err != nil || ctl() != on {
		t.Errorf("Resume = %v, DPC Control %#x, want %#x", err, ctl(), on)
	}
	m.Set(portmodel.DPC+pci.DPCCtl, 0xffff, 0)
	if got := p.SlotReset(t.Context()); got != bus.Recovered || ctl() != on {
		t.Errorf("SlotReset = %v, DPC Control %#x, want %#x", got, ctl(), on)
	}
}

// The port dies at each access of an event's: nothing stays, no wait is endless.
func TestDies(t *testing.T) {
	bustest.NoLeaks(t)
	run := func(k int) int {
		m, tree, p := bare(t, portmodel.Spec{}, true)
		before := m.Accesses()
		if k > 0 {
			m.FailAt(k)
		}
		trigger(m, 2<<1)
		for until := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Microsecond) {
			if m.Err() != nil || strings.Contains(fmt.Sprint(tree.Lines()), "device recovery") {
				break
			}
			if time.Now().After(until) {
				t.Fatalf("access %d fails: no end, but %q", k, tree.Lines())
			}
		}
		n := m.Accesses() - before
		if err := p.Close(); err != nil {
			t.Errorf("access %d fails: Close = %v", k, err)
		}
		return n
	}
	for k := range run(0) {
		run(k + 1)
	}
}

// Each bit of the port's status set is a status like any other: it is reported, and cleared.
func TestAllBits(t *testing.T) {
	bustest.NoLeaks(t)
	const unc = portmodel.AER + pci.AERUncSta
	m, tree, p := bare(t, portmodel.Spec{}, false)
	m.Set32(unc, 0, ^uint32(0))
	trigger(m, 0)
	await(t, tree, "device recovery successful")
	if got := m.Peek(unc, 4); got != 0 || p.Function().AER.Total(pci.AERNonFatal) != 1 {
		t.Errorf("status %#x, %d errors counted, want 0, 1", got, p.Function().AER.Total(pci.AERNonFatal))
	}
}
