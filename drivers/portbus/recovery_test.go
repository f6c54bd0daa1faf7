package portbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus/internal/portmodel"
)

// voter is a driver's instance that votes as it is told.
type voter struct {
	log                     *trail
	name                    string
	detected, reset, enable bus.Verdict
}

func (v *voter) Close() error { return nil }

func (v *voter) ErrorDetected(frozen bool) bus.Verdict {
	v.log.add("%s:detected(%t)", v.name, frozen)
	return v.detected
}

func (v *voter) MMIOEnabled() bus.Verdict { v.log.add("%s:enabled", v.name); return v.enable }

func (v *voter) SlotReset(context.Context) bus.Verdict {
	v.log.add("%s:reset", v.name)
	return v.reset
}

func (v *voter) ErrorResume() { v.log.add("%s:resume", v.name) }

// below puts a function with an instance behind the port. Address: 1000:01:00.N.
func (r *rig) below(n uint8, inst pci.Instance) *portmodel.Port {
	dev := portmodel.New(portmodel.Spec{Type: pci.ExpEndpoint, AER: true, Name: fmt.Sprintf("1000:01:00.%d", n)})
	f := portmodel.Function(dev, 0, 0)
	f.Header, f.Parent = pci.HeaderDevice, r.port.Function()
	r.tree.Add(&pci.Member{Function: f, Device: dev, Driver: "card", Use: func(g func(pci.Instance)) { g(inst) }, Restore: func() error {
		r.log.add("restore:%d", n)
		return nil
	}})
	return dev
}

func TestRecover(t *testing.T) {
	const c, n, r, d, none = bus.CanRecover, bus.NeedReset, bus.Recovered, bus.Disconnect, bus.NoVote
	for _, x := range []struct {
		what   string
		frozen bool
		link   bus.Verdict // of reset
		a, b   *voter      // nil: a driver without handlers
		calls  string
		want   bus.Verdict
		lines  []string
	}{
		{"all can", false, none, &voter{detected: c, enable: r}, &voter{detected: c, enable: r},
			"a:detected(false) b:detected(false) a:enabled b:enabled a:resume b:resume", r, []string{"device recovery successful"}},
		{"one needs a reset once it looked", false, none, &voter{detected: c, enable: n, reset: r}, &voter{detected: c, enable: r, reset: r},
			"a:detected(false) b:detected(false) a:enabled b:enabled a:reset b:reset a:resume b:resume", r, []string{"device recovery successful"}},
		{"frozen", true, r, &voter{detected: n, reset: r}, &voter{detected: c, reset: r},
			"a:detected(true) b:detected(true) link a:reset b:reset a:resume b:resume", r, []string{"device recovery successful"}},
		{"frozen, both need it", true, r, &voter{detected: n, reset: r}, &voter{detected: n, reset: r},
			"a:detected(true) b:detected(true) link a:reset b:reset a:resume b:resume", r, []string{"device recovery successful"}},
		{"a link that stays down", true, d, &voter{detected: n, reset: r}, &voter{detected: n, reset: r},
			"a:detected(true) b:detected(true) link", n, []string{"subordinate device reset failed", "device recovery failed"}},
		{"one gives up after the reset", true, r, &voter{detected: n, reset: d}, &voter{detected: n, reset: r},
			"a:detected(true) b:detected(true) link a:reset b:reset", d, []string{"device recovery failed"}},
		{"one has no handlers", true, r, &voter{detected: n, reset: r}, nil,
			"a:detected(true) link", bus.NoHandler, []string{"device recovery failed"}},
		{"one is hopeless", false, none, &voter{detected: d}, &voter{detected: c},
			"a:detected(false) b:detected(false)", d, []string{"device recovery failed"}},
	} {
		rig := newRig(t, all(pci.ExpRootPort))
		for i, v := range []*voter{x.a, x.b} {
			if v == nil {
				rig.below(uint8(i), &fake{name: "plain", log: rig.log})
				continue
			}
			v.log, v.name = rig.log, string(rune('a'+i))
			rig.below(uint8(i), v)
		}
		got := rig.port.Recover(t.Context(), rig.port.Member(), x.frozen, func(context.Context) bus.Verdict {
			rig.log.add("link")
			return x.link
		})
		calls := rig.log.take()
		if got != x.want {
			t.Errorf("%s: Recover = %v, want %v", x.what, got, x.want)
		}
		if calls != x.calls {
			t.Errorf("%s: calls %q, want %q", x.what, calls, x.calls)
		}
		var lines []string
		for _, l := range rig.tree.Lines() {
			if text, ok := strings.CutPrefix(l, "pcieport 1000:00:04.0: AER: "); ok {
				lines = append(lines, text)
			}
		}
		equal(t, x.what+": messages", lines, x.lines)
	}
}

// What is behind a port is told of in uevents, begin to end.
func TestRecoverEvents(t *testing.T) {
	r := newRig(t, all(pci.ExpRootPort))
	r.below(0, &voter{log: r.log, name: "a", detected: bus.CanRecover, enable: bus.Recovered})
	before := len(r.tree.Uevents())
	if got := r.port.Recover(t.Context(), r.port.Member(), false, nil); got != bus.Recovered {
		t.Fatalf("Recover = %v", got)
	}
	at := "change /devices/pci1000:00/1000:00:04.0/1000:01:00.0 "
	equal(t, "uevents", r.tree.Uevents()[before:], []string{at + "ERROR_EVENT=BEGIN_RECOVERY DEVICE_ONLINE=0", at + "ERROR_EVENT=SUCCESSFUL_RECOVERY DEVICE_ONLINE=1"})
}

// One recovery below a root port waits for another, and gives its turn up when its ctx ends.
func TestRecoverTurns(t *testing.T) {
	r := newRig(t, all(pci.ExpRootPort))
	in, out := make(chan struct{}), make(chan struct{})
	done := make(chan bus.Verdict)
	go func() {
		done <- r.port.Recover(context.Background(), r.port.Member(), true, func(context.Context) bus.Verdict {
			close(in)
			<-out
			return bus.Recovered
		})
	}()
	<-in
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := r.port.Recover(ctx, r.port.Member(), false, nil); got != bus.Disconnect {
		t.Errorf("Recover whose turn does not come = %v, want disconnect", got)
	}
	close(out)
	if got := <-done; got != bus.Recovered {
		t.Errorf("Recover = %v, want recovered", got)
	}
}

// slot is a hot-plug service that takes part in resets.
type slot struct {
	fake
	n int
}

func (s *slot) ResetSlot(ctx context.Context, reset func(context.Context) error) error {
	s.log.add("slot")
	s.n++
	return reset(ctx)
}

func TestResetBelow(t *testing.T) {
	s := &slot{}
	r := newRig(t, all(pci.ExpRootPort), &ServiceDriver{Name: "hp", Service: HP, Port: AnyPort, Probe: func(context.Context, *Device) (Instance, error) { return s, nil }})
	s.log, s.name = r.log, "hp"
	var ctl []uint32
	r.model.OnWrite(func(off bus.Off, _ int, v uint32) {
		if off == pci.CfgBridgeCtl {
			ctl = append(ctl, v&uint32(pci.BridgeReset))
		}
	})
	began := r.port.Clock().Now()
	if err := r.port.ResetBelow(t.Context()); err != nil || s.n != 1 {
		t.Errorf("ResetBelow = %v, hot-plug took part %d times, want once", err, s.n)
	}
	if want := uint32(pci.BridgeReset); !slices.Equal(ctl, []uint32{want, 0}) {
		t.Errorf("Secondary Bus Reset = %#x, want on and off", ctl)
	}
	if took := r.port.Clock().Now() - began; took < resetHold {
		t.Errorf("it took %v, want at least %v", took, resetHold)
	}
	// What is below keeps its masks, and loses what it recorded.
	dev := r.below(0, nil)
	dev.Config().Write32(portmodel.AER+pci.AERUncMask, 0x1000)
	dev.Set32(portmodel.AER+pci.AERUncSta, 0, 1<<14)
	r.model.OnWrite(func(off bus.Off, _ int, v uint32) {
		if off == pci.CfgBridgeCtl && v&uint32(pci.BridgeReset) != 0 {
			dev.Set32(portmodel.AER+pci.AERUncMask, 0xffffffff, 0)
		}
	})
	if err := r.port.ResetBelow(t.Context()); err != nil {
		t.Fatal(err)
	}
	if mask, sta := dev.Peek(portmodel.AER+pci.AERUncMask, 4), dev.Peek(portmodel.AER+pci.AERUncSta, 4); mask != 0x1000 || sta != 0 {
		t.Errorf("mask %#x, status %#x after the reset, want 0x1000, 0", mask, sta)
	}
	// It does not answer any more: what it was when it came into service is brought back, if it comes back.
	dev.Set32(pci.CfgVendor, 0, 0xffffffff)
	if err := r.port.ResetBelow(t.Context()); !errors.Is(err, bus.ErrTimeout) {
		t.Errorf("ResetBelow with a card that does not answer = %v, want ErrTimeout", err)
	}
	if got := r.tree.Lines(); len(got) != 1 || got[0] != "card 1000:01:00.0: not ready 1000ms after bus reset; giving up" {
		t.Errorf("messages = %q", got)
	}
	// One that was removed meanwhile is nobody's loss, and the others are brought back.
	dev.Die()
	other := r.below(1, nil)
	other.Set32(portmodel.AER+pci.AERUncSta, 0, 1<<14)
	if err := r.port.ResetBelow(t.Context()); err != nil {
		t.Errorf("ResetBelow with a card that was removed = %v", err)
	}
	if got := other.Peek(portmodel.AER+pci.AERUncSta, 4); got != 0 || len(r.tree.Lines()) != 1 {
		t.Errorf("the other card's status %#x, messages %q, want 0, no new one", got, r.tree.Lines())
	}
	r.model.Die()
	if err := r.port.ResetBelow(t.Context()); !errors.Is(err, bus.ErrGone) {
		t.Errorf("ResetBelow of a dead port = %v, want ErrGone", err)
	}
}

func TestRestoreBelow(t *testing.T) {
	r := newRig(t, all(pci.ExpRootPort))
	r.below(0, nil)
	dev := r.below(1, nil)
	dev.Set32(portmodel.AER+pci.AERCorSta, 0, 1)
	if err := r.port.RestoreBelow(t.Context(), "DPC"); err != nil {
		t.Fatal(err)
	}
	if got := r.log.take(); got != "restore:0 restore:1" || dev.Peek(portmodel.AER+pci.AERCorSta, 4) != 0 {
		t.Errorf("restored %q, status %#x, want both, clear", got, dev.Peek(portmodel.AER+pci.AERCorSta, 4))
	}
}

// restorer is a service that sets itself up again.
type restorer struct {
	fake
	err error
}

func (s *restorer) SlotReset(context.Context) error { s.log.add("again:%s", s.name); return s.err }

// A port votes, and sets its services up again, when one above it recovers.
func TestPortRecovers(t *testing.T) {
	log := &trail{}
	service := func(name string, s Service, err error) *ServiceDriver {
		return &ServiceDriver{Name: name, Service: s, Port: AnyPort, Prefix: name + ": ", Probe: func(context.Context, *Device) (Instance, error) {
			return &restorer{fake{name: name, log: log}, err}, nil
		}}
	}
	r := newRig(t, all(pci.ExpDownstream), service("hp", HP, nil), service("dpc", DPC, bus.ErrTimeout))
	if a, b, c := r.port.ErrorDetected(false), r.port.ErrorDetected(true), r.port.MMIOEnabled(); a != bus.CanRecover || b != bus.NeedReset || c != bus.Recovered {
		t.Errorf("votes = %v, %v, %v", a, b, c)
	}
	if got := r.port.SlotReset(t.Context()); got != bus.Recovered || log.take() != "again:hp again:dpc" {
		t.Errorf("SlotReset = %v, want both services asked", got)
	}
	equal(t, "messages", r.tree.Lines(), []string{"pcieport 1000:00:04.0: dpc: setting up again after a reset: timed out"})
	r.port.ErrorResume()
	r.model.Die()
	if got := r.port.SlotReset(t.Context()); got != bus.Disconnect {
		t.Errorf("SlotReset of a dead port = %v, want disconnect", got)
	}
}

// One does not come back, and another stands behind it: the third is brought back all the same, and the first alone is told of.
func TestRestoreOthers(t *testing.T) {
	r := newRig(t, all(pci.ExpRootPort))
	r.below(0, nil).Set32(pci.CfgVendor, 0, 0xffffffff)
	r.below(1, nil).Set32(pci.CfgVendor, 0, 0xffffffff)
	ms := r.tree.Below(r.port.Addr())
	ms[1].Function.Parent = ms[0].Function
	r.below(2, nil)
	if err := r.port.RestoreBelow(t.Context(), "DPC"); !errors.Is(err, bus.ErrTimeout) {
		t.Errorf("RestoreBelow = %v, want ErrTimeout", err)
	}
	if got := r.log.take(); got != "restore:2" {
		t.Errorf("restored %q, want restore:2", got)
	}
	equal(t, "messages", r.tree.Lines(), []string{"card 1000:01:00.0: not ready 1000ms after DPC; giving up"})
}

// Whoever wanted the recovery is gone in the middle of its reset: it is finished, config space is brought back, and drivers are told.
func TestRecoverCutOff(t *testing.T) {
	r := newRig(t, all(pci.ExpRootPort))
	dev := r.below(0, &voter{log: r.log, name: "a", detected: bus.NeedReset, reset: bus.Recovered})
	dev.Config().Write32(portmodel.AER+pci.AERUncMask, 0x1000)
	ctx, cancel := context.WithCancel(t.Context())
	r.model.OnWrite(func(off bus.Off, _ int, v uint32) {
		if off == pci.CfgBridgeCtl && v&uint32(pci.BridgeReset) != 0 {
			dev.Set32(portmodel.AER+pci.AERUncMask, 0xffffffff, 0)
			cancel()
		}
	})
	got := r.port.Recover(ctx, r.port.Member(), true, func(ctx context.Context) bus.Verdict {
		if err := r.port.ResetBelow(ctx); err != nil {
			t.Errorf("ResetBelow = %v", err)
			return bus.Disconnect
		}
		return bus.Recovered
	})
	if calls := r.log.take(); got != bus.Recovered || calls != "a:detected(true) a:reset a:resume" {
		t.Errorf("Recover = %v, calls %q, want it finished", got, calls)
	}
	if mask, ctl := dev.Peek(portmodel.AER+pci.AERUncMask, 4), r.model.Peek(pci.CfgBridgeCtl, 2); mask != 0x1000 || ctl != 0 {
		t.Errorf("mask %#x, Bridge Control %#x, want 0x1000, 0", mask, ctl)
	}
	// Without a recovery around it too; and one that did not begin does not.
	ctx, cancel = context.WithCancel(t.Context())
	if err := r.port.ResetBelow(ctx); err != nil || dev.Peek(portmodel.AER+pci.AERUncMask, 4) != 0x1000 {
		t.Errorf("ResetBelow = %v, mask %#x, want 0x1000", err, dev.Peek(portmodel.AER+pci.AERUncMask, 4))
	}
	cancel()
	before := r.model.Accesses()
	if err := r.port.ResetBelow(ctx); !errors.Is(err, context.Canceled) || r.model.Accesses() != before {
		t.Errorf("ResetBelow without time = %v, %d accesses, want none", err, r.model.Accesses()-before)
	}
	if got := r.port.Recover(ctx, r.port.Member(), true, nil); got != bus.Disconnect || r.log.take() != "" {
		t.Errorf("Recover without time = %v, want disconnect, and nobody told", got)
	}
}

// There is a bound, and what it leaves behind is said.
func TestRecoverBound(t *testing.T) {
	r := newRig(t, all(pci.ExpRootPort))
	r.below(0, &voter{log: r.log, name: "a", detected: bus.NeedReset})
	ctx, cancel := context.WithCancel(t.Context())
	r.port.finish = 20 * time.Millisecond
	began := time.Now()
	got := r.port.Recover(ctx, r.port.Member(), true, func(ctx context.Context) bus.Verdict {
		cancel()
		<-ctx.Done()
		return bus.Disconnect
	})
	if took := time.Since(began); got == bus.Recovered || took < r.port.finish {
		t.Errorf("Recover = %v after %v, want none after %v", got, took, r.port.finish)
	}
	p := "pcieport 1000:00:04.0: AER: "
	equal(t, "messages", r.tree.Lines(), []string{p + "subordinate device reset failed", p + "device recovery failed",
		p + "the recovery was cut off 20ms after the service was taken away: drivers below stay stopped until they are bound again"})
	// A port that dies ends it at once.
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	r.port.Recover(ctx, r.port.Member(), true, func(ctx context.Context) bus.Verdict {
		r.model.Die()
		<-ctx.Done()
		return bus.Disconnect
	})
}
