package aer_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
)

// What drivers vote, what they are told, in order, and what is said of it. eth0 and eth1 stand behind a switch of rp0, whose own error it is.
func TestVotes(t *testing.T) {
	const (
		can, need, gone, none, back = bus.CanRecover, bus.NeedReset, bus.Disconnect, bus.NoVote, bus.Recovered
		begin, over, failed         = "BEGIN_RECOVERY DEVICE_ONLINE=0", "SUCCESSFUL_RECOVERY DEVICE_ONLINE=1", "FAILED_RECOVERY DEVICE_ONLINE=0"
	)
	for _, c := range []struct {
		name   string
		fatal  bool
		votes  votes
		calls  string
		said   string // after the report
		events string // of eth0, eth1
	}{
		{"both can", false, votes{"eth0": ok, "eth1": ok}, "eth0 detected false, eth1 detected false, eth0 mmio, eth1 mmio, eth0 resume, eth1 resume",
			"device recovery successful", begin + ", " + begin + ", " + over + ", " + over},
		{"one needs a reset", false, votes{"eth0": ok, "eth1": {need, none, back}}, "eth0 detected false, eth1 detected false, eth0 reset, eth1 reset, eth0 resume, eth1 resume",
			"device recovery successful", begin + ", " + begin + ", " + over + ", " + over},
		{"one wants a reset later", false, votes{"eth0": {can, need, back}, "eth1": ok}, "eth0 detected false, eth1 detected false, eth0 mmio, eth1 mmio, eth0 reset, eth1 reset, eth0 resume, eth1 resume",
			"device recovery successful", begin + ", " + begin + ", " + over + ", " + over},
		{"no opinion", false, votes{"eth0": {none, none, none}, "eth1": ok}, "eth0 detected false, eth1 detected false, eth0 mmio, eth1 mmio, eth0 resume, eth1 resume",
			"device recovery successful", begin + ", " + begin + ", " + over + ", " + over},
		{"one gives up", false, votes{"eth0": {gone, none, none}, "eth1": ok}, "eth0 detected false, eth1 detected false",
			"device recovery failed", failed + ", " + begin + ", " + failed + ", " + failed},
		{"a reset overrules", false, votes{"eth0": {gone, none, back}, "eth1": {need, none, back}}, "eth0 detected false, eth1 detected false, eth0 reset, eth1 reset, eth0 resume, eth1 resume",
			"device recovery successful", failed + ", " + begin + ", " + over + ", " + over},
		{"the reset did not help", false, votes{"eth0": {need, none, gone}, "eth1": ok}, "eth0 detected false, eth1 detected false, eth0 reset, eth1 reset",
			"device recovery failed", begin + ", " + begin + ", " + failed + ", " + failed},
		{"one takes no part", false, votes{"eth0": ok}, "eth0 detected false",
			"can't recover (no error_detected callback), device recovery failed", begin + ", " + failed + ", " + failed},
		{"fatal", true, votes{"eth0": {need, none, back}, "eth1": {need, none, back}}, "eth0 detected true, eth1 detected true, eth0 reset, eth1 reset, eth0 resume, eth1 resume",
			"Root Port link has been reset (0), device recovery successful", begin + ", " + begin + ", " + over + ", " + over},
		{"fatal, and one takes no part", true, votes{"eth1": {need, none, back}}, "eth1 detected true",
			"can't recover (no error_detected callback), Root Port link has been reset (0), device recovery failed", begin + ", " + failed + ", " + failed},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, options{votes: c.votes})
			e := pci.AERError{Uncorrectable: uncTO}
			if c.fatal {
				e.Uncorrectable = uncDLP
			}
			r.hit("rp0", e)
			r.AwaitLine(t, "device recovery")
			lines, events := r.quiet("rp1")
			if got := strings.Join(r.calls.take(), ", "); got != c.calls {
				t.Errorf("calls = %s, want %s", got, c.calls)
			}
			var said []string
			for _, l := range lines[4:] {
				said = append(said, l[strings.Index(l, "AER: ")+5:])
			}
			if got := strings.Join(said, ", "); got != c.said {
				t.Errorf("messages = %s, want %s", got, c.said)
			}
			var told []string
			for _, e := range events {
				path, what, _ := strings.Cut(e, " pci ERROR_EVENT=")
				if strings.HasSuffix(path, eth0) || strings.HasSuffix(path, eth1) {
					told = append(told, what)
				}
			}
			if got := strings.Join(told, ", "); got != c.events {
				t.Errorf("events = %s, want %s", got, c.events)
			}
			for _, name := range []string{"rp0", "up0", "dn0", "dn1", "eth0", "eth1"} {
				if d, _ := r.Sim().Device(name); d.Err() != nil {
					t.Errorf("%s: %v", name, d.Err())
				}
			}
			if v := r.read("rp0", pci.AERRootCmd); v != pci.RootCmdAll {
				t.Errorf("Root Error Command = %#x, want %#x", v, pci.RootCmdAll)
			}
		})
	}
}

// Whose link is concerned: that of the port which detected the error, or the one above; and what is below another port hears nothing.
func TestWhichPort(t *testing.T) {
	reset := vote{bus.NeedReset, bus.NoVote, bus.Recovered}
	for _, c := range []struct {
		at, said, calls string
	}{
		{"rp0", "pcieport " + rp0 + ": AER: Root Port link has been reset (0)", "eth0 eth1"},
		{"up0", "pcieport " + rp0 + ": AER: Root Port link has been reset (0)", "eth0 eth1"},
		{"dn0", "pcieport " + dn0 + ": AER: Downstream Port link has been reset (0)", "eth0"},
		{"dn1", "pcieport " + dn1 + ": AER: Downstream Port link has been reset (0)", "eth1"},
		{"eth0", "pcieport " + dn0 + ": AER: Downstream Port link has been reset (0)", "eth0"},
		{"eth2", "pcieport " + rp1 + ": AER: Root Port link has been reset (0)", "eth2"},
	} {
		t.Run(c.at, func(t *testing.T) {
			r := newRig(t, options{votes: votes{"eth0": reset, "eth1": reset, "eth2": reset}})
			r.hit(c.at, pci.AERError{Uncorrectable: uncMalf, Header: [4]uint32{1}})
			r.AwaitLine(t, c.said)
			r.AwaitLine(t, strings.SplitAfter(c.said, ": AER: ")[0]+"device recovery successful")
			var names []string
			for _, call := range r.calls.take() {
				if name, ok := strings.CutSuffix(call, " resume"); ok {
					names = append(names, name)
				}
			}
			if got := strings.Join(names, " "); got != c.calls {
				t.Errorf("resumed: %s, want %s", got, c.calls)
			}
			// It works afterwards.
			r.ForgetRecords()
			r.hit(c.at, pci.AERError{Correctable: corBadTLP})
			r.AwaitLine(t, "[ 6] BadTLP")
		})
	}
}

// A port in the middle that nobody drives: the one above recovers.
func TestUnservedPort(t *testing.T) {
	reset := vote{bus.NeedReset, bus.NoVote, bus.Recovered}
	r := newRig(t, options{votes: votes{"eth0": reset, "eth1": reset}})
	if err := r.Unbind(t.Context(), "dn0"); err != nil {
		t.Fatal(err)
	}
	r.hit("eth0", pci.AERError{Uncorrectable: uncMalf})
	r.AwaitLine(t, "pcieport "+rp0+": AER: Root Port link has been reset (0)")
	r.AwaitLine(t, "pcieport "+rp0+": AER: device recovery successful")
}

// A link that does not come back.
func TestResetFails(t *testing.T) {
	r := newRig(t, options{votes: votes{"eth2": {bus.NeedReset, bus.NoVote, bus.Recovered}}})
	if err := r.Sim().SetPortLink("rp1", false); err != nil {
		t.Fatal(err)
	}
	r.ForgetRecords()
	before := r.Sim().Now()
	r.hit("rp1", pci.AERError{Uncorrectable: uncDLP})
	r.AwaitLine(t, "device recovery failed")
	if d := r.Sim().Now() - before; d < time.Second || d > 2*time.Second {
		t.Errorf("it took %v, want a second for the link", d)
	}
	lines, _ := r.quiet("rp1")
	p := "pcieport " + rp1 + ": AER: "
	r.want("lines", lines[4:], []string{p + "Root Port link has been reset (-25)", p + "subordinate device reset failed", p + "device recovery failed"})
	if err := r.Sim().SetPortLink("rp1", true); err != nil {
		t.Fatal(err)
	}
	r.write("rp1", pci.AERUncSta, uncDLP)
	r.hit("rp1", pci.AERError{Uncorrectable: uncDLP})
	r.AwaitLine(t, p+"Root Port link has been reset (0)")
	r.AwaitLine(t, p+"device recovery successful")
}

// Recoveries below one root port take turns, and one whose port is closed meanwhile does not wait for its own.
func TestTurns(t *testing.T) {
	b := &blocker{entered: make(chan struct{}, 1), release: make(chan struct{})}
	r := newRig(t, options{instance: func(name string) pci.Instance {
		if name == "eth0" {
			return b
		}
		return idle{}
	}})
	r.hit("rp0", pci.AERError{Uncorrectable: uncTO})
	<-b.entered
	p := r.Port("dn1")
	verdict := make(chan bus.Verdict, 1)
	go func() {
		verdict <- p.Recover(p.Context(), p.Member(), true, func(context.Context) bus.Verdict {
			t.Error("two recoveries at once")
			return bus.Recovered
		})
	}()
	if err := r.Unbind(t.Context(), "dn1"); err != nil {
		t.Error(err)
	}
	if v := <-verdict; v != bus.Disconnect {
		t.Errorf("a recovery whose port was closed = %v, want %v", v, bus.Disconnect)
	}
	close(b.release)
	r.AwaitLine(t, "device recovery failed") // eth1 takes no part
}

// However a port interrupts, and if errors have a vector of their own.
func TestInterrupts(t *testing.T) {
	for _, c := range []struct {
		model, prop string
		mode        bus.IRQMode
		vectors     int
	}{
		{"root-port", "intx=on", bus.INTx, 1}, {"root-port", "vectors=4", bus.MSIX, 2}, {"root-port", "msi=2", bus.MSI, 2}, {"ioh3420", "", bus.MSI, 2},
	} {
		props := []string{c.prop}
		if c.prop == "" {
			props = nil
		}
		r := newRig(t, options{votes: votes{"eth2": ok}, devices: []sim.DeviceSpec{
			{Name: "rp1", Model: c.model, Props: props}, {Name: "eth2", Model: "e1000e", Bus: "rp1", Props: []string{"aer=on"}},
		}})
		hs := r.Port("rp1").IRQHandlers()
		if len(hs) != c.vectors || hs[0].IRQ().Mode() != c.mode || hs[len(hs)-1].Name() != "aerdrv" {
			t.Errorf("%s %s: %d vectors, %s, the last for %q, want %d, %s, aerdrv", c.model, c.prop, len(hs), hs[0].IRQ().Mode(), hs[len(hs)-1].Name(), c.vectors, c.mode)
		}
		for range 20 {
			n := r.fn("eth2").AER.Total(pci.AERCorrectable)
			r.hit("eth2", pci.AERError{Correctable: corBadTLP})
			r.Await(t, "the error", func() bool {
				return r.fn("eth2").AER.Total(pci.AERCorrectable) == n+1 && r.read("eth2", pci.AERCorSta) == 0
			})
		}
		r.hit("eth2", pci.AERError{Uncorrectable: uncMalf})
		r.AwaitLine(t, "device recovery successful")
		r.quiet("rp1")
	}
}

// detached is a driver whose ErrorDetected has something happen.
type detached struct {
	handler
	meanwhile func()
}

func (d *detached) ErrorDetected(frozen bool) bus.Verdict {
	defer d.meanwhile()
	return d.handler.ErrorDetected(frozen)
}

// The root port is taken out of service before the reset that a recovery is to do: it is done, the card is what it was, and its driver knows.
func TestUnbindDuringRecovery(t *testing.T) {
	calls := &calls{}
	d := &detached{handler: handler{c: calls, name: "eth2", vote: vote{bus.NeedReset, bus.NoVote, bus.Recovered}}}
	r := newRig(t, options{instance: func(name string) pci.Instance {
		if name == "eth2" {
			return d
		}
		return idle{}
	}})
	done, p := make(chan error, 1), r.Port("rp1")
	d.meanwhile = func() {
		go func() { done <- r.Unbind(context.Background(), "rp1") }()
		<-p.Context().Done()
	}
	cfg := r.fn("eth2").Config
	pci.SetCommand(cfg, pci.CmdMaster|pci.CmdMem, 0)
	bar, cmd := cfg.Read32(pci.CfgBAR0), cfg.Read16(pci.CfgCommand)
	r.hit("rp1", pci.AERError{Uncorrectable: uncDLP})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(calls.take(), ", "); got != "eth2 detected true, eth2 reset, eth2 resume" {
		t.Errorf("calls = %s, want all", got)
	}
	if b, c := cfg.Read32(pci.CfgBAR0), cfg.Read16(pci.CfgCommand); b != bar || c != cmd || bar == 0 {
		t.Errorf("BAR 0 = %#x, Command %#x, want %#x, %#x", b, c, bar, cmd)
	}
	for _, l := range []string{"Root Port link has been reset (0)", "device recovery successful"} {
		if got := r.Texts("pcieport " + rp1 + ": AER: " + l); len(got) != 1 {
			t.Errorf("%q was said %d times, want once", l, len(got))
		}
	}
}
