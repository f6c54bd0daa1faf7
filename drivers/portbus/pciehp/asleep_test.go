package pciehp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
)

// patience is how long, by the wall clock, something may take that must not wait for anybody.
const patience = 10 * time.Second

// isAway says whether the worker let go of hold for a call of others, and has not come back.
func (s *Slot) isAway() bool {
	select {
	case s.hold <- struct{}{}:
		defer s.release()
		return s.away
	default:
		return false
	}
}

// change has the host's locks while f runs, which must not take long.
func change(t *testing.T, r *porttest.Rig, name string, f func(ctx context.Context, p *portbus.Port) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := r.Change(ctx, name, func(i pci.Instance) error { return f(ctx, i.(*portbus.Port)) })
	if err != nil {
		t.Fatalf("with the host's locks: %v, want nil", err)
	}
}

func suspend(t *testing.T, r *porttest.Rig) {
	t.Helper()
	change(t, r, "rp0", func(ctx context.Context, p *portbus.Port) error { return p.Suspend(ctx) })
}

func resume(t *testing.T, r *porttest.Rig) {
	t.Helper()
	change(t, r, "rp0", func(ctx context.Context, p *portbus.Port) error { return p.Resume(ctx) })
}

// reset is what a host does for the file reset of a port.
func reset(ctx context.Context, p *portbus.Port) error {
	if v := p.SlotReset(ctx); v != bus.Recovered {
		return fmt.Errorf("SlotReset = %v, want recovered", v)
	}
	return nil
}

// TestSuspendMeanwhile suspends, and resets, a port whose slot waits for its turn to have a card taken into service, or out of it. Whoever does
// so has the turn.
func TestSuspendMeanwhile(t *testing.T) {
	for _, c := range []struct {
		name  string
		sleep bool // it is suspended in the end
		do    func(ctx context.Context, p *portbus.Port) error
	}{
		{"Suspend", true, func(ctx context.Context, p *portbus.Port) error { return p.Suspend(ctx) }},
		{"Suspend, Resume", false, func(ctx context.Context, p *portbus.Port) error { return errors.Join(p.Suspend(ctx), p.Resume(ctx)) }},
		{"Suspend twice", true, func(ctx context.Context, p *portbus.Port) error { return errors.Join(p.Suspend(ctx), p.Suspend(ctx)) }},
		{"SlotReset", false, reset},
		{"ResetBelow", false, func(ctx context.Context, p *portbus.Port) error { return p.ResetBelow(ctx) }},
		{"all", true, func(ctx context.Context, p *portbus.Port) error {
			return errors.Join(p.ResetBelow(ctx), p.Suspend(ctx), p.ResetBelow(ctx), reset(ctx, p))
		}},
	} {
		for _, props := range []string{"button=off auto_eject=off", "button=off auto_eject=off reset_link=on"} {
			t.Run(c.name+" "+props, func(t *testing.T) {
				bustest.NoLeaks(t)
				r := rig(t, porttest.Options{}, port("rp0", strings.Fields(props)...))
				s := slotOf(t, r, "rp0")
				is(t, r, s, off)
				during := func(start func() error, busy state, names ...string) {
					t.Helper()
					change(t, r, "rp0", func(ctx context.Context, p *portbus.Port) error {
						if err := start(); err != nil {
							return err
						}
						r.Await(t, "the slot waiting for its turn", s.isAway)
						return c.do(ctx, p)
					})
					if !c.sleep {
						return
					}
					r.Await(t, "the slot having stopped", s.isAway)
					if !s.is(busy) || !slices.Equal(r.Names(), names) {
						t.Errorf("suspended it is %s with %v, want %s with %v", s.State(), r.Names(), busy, names)
					}
					resume(t, r)
				}
				during(func() error { return r.Sim().Plug(t.Context(), card("c0", "rp0")) }, poweringOn, "rp0 pcieport")
				is(t, r, s, on)
				r.AwaitNames(t, "rp0 pcieport", "c0 edu")
				result := make(chan error, 1)
				during(func() error {
					go func() { result <- s.Switch(t.Context(), false) }()
					return nil
				}, poweringOff, "rp0 pcieport", "c0 edu")
				if err := <-result; err != nil {
					t.Errorf("Switch(off) = %v, want nil", err)
				}
				is(t, r, s, off)
				r.AwaitNames(t, "rp0 pcieport")
			})
		}
	}
}

// TestPulledMeanwhile: what became of a card while its slot was suspended in the midst of taking it into service is found.
func TestPulledMeanwhile(t *testing.T) {
	bustest.NoLeaks(t)
	r := rig(t, porttest.Options{}, port("rp0", "button=off"))
	s := slotOf(t, r, "rp0")
	is(t, r, s, off)
	change(t, r, "rp0", func(ctx context.Context, p *portbus.Port) error {
		if err := r.Sim().Plug(ctx, card("c0", "rp0")); err != nil {
			return err
		}
		r.Await(t, "the slot waiting for its turn", s.isAway)
		return errors.Join(p.Suspend(ctx), r.Sim().Unplug("c0"))
	})
	resume(t, r)
	is(t, r, s, off)
	r.AwaitNames(t, "rp0 pcieport")
	// By a reset, too.
	change(t, r, "rp0", func(ctx context.Context, p *portbus.Port) error {
		if err := r.Sim().Plug(ctx, card("c0", "rp0")); err != nil {
			return err
		}
		r.Await(t, "the slot waiting for its turn", s.isAway)
		return s.ResetSlot(ctx, func(context.Context) error { return r.Sim().Unplug("c0") })
	})
	is(t, r, s, off)
	r.AwaitNames(t, "rp0 pcieport")
}

// TestClosedMeanwhile takes hot-plug away while its slot waits for its turn, suspended or not.
func TestClosedMeanwhile(t *testing.T) {
	for _, asleep := range []bool{false, true} {
		for _, want := range []state{poweringOn, poweringOff} {
			t.Run(fmt.Sprintf("%s, asleep %v", want, asleep), func(t *testing.T) {
				bustest.NoLeaks(t)
				r := rig(t, porttest.Options{}, port("rp0", "button=off", "auto_eject=off"))
				s := slotOf(t, r, "rp0")
				is(t, r, s, off)
				result := make(chan error, 1)
				if want == poweringOff {
					if err := r.Sim().Plug(t.Context(), card("c0", "rp0")); err != nil {
						t.Fatal(err)
					}
					is(t, r, s, on)
				}
				change(t, r, "rp0", func(ctx context.Context, p *portbus.Port) error {
					var err error
					if want == poweringOn {
						err = r.Sim().Plug(ctx, card("c0", "rp0"))
						result <- errEnded
					} else {
						go func() { result <- s.Switch(context.Background(), false) }()
					}
					r.Await(t, "the slot waiting for its turn", s.isAway)
					if asleep {
						err = errors.Join(err, p.Suspend(ctx))
					}
					return errors.Join(err, p.Bus().UnbindDevice(Name, s.dev.Name()))
				})
				if err := <-result; !errors.Is(err, errEnded) {
					t.Errorf("Switch(off) = %v, want %v", err, errEnded)
				}
				// What was not on yet is off, and what was not off yet is on.
				if got := s.powered(); got != (want == poweringOff) {
					t.Errorf("the slot has power: %v, want %v", got, !got)
				}
				reset := false
				if err := s.ResetSlot(t.Context(), func(context.Context) error { reset = true; return nil }); err != nil || !reset {
					t.Errorf("ResetSlot of a slot that is out of service = %v, and has reset: %v; want nil, true", err, reset)
				}
				if err := s.SlotReset(t.Context()); err != nil {
					t.Errorf("SlotReset of a slot that is out of service = %v, want nil", err)
				}
				if v := s.cfg.Read16(s.exp + pci.ExpSltCtl); v&notification != 0 {
					t.Errorf("it interrupts for %#x, want 0", v&notification)
				}
			})
		}
	}
}

// TestAsleep: a suspended slot lets resets pass, and refuses its files.
func TestAsleep(t *testing.T) {
	bustest.NoLeaks(t)
	b, err := portbus.New(Driver(Options{}))
	if err != nil {
		t.Fatal(err)
	}
	r := rig(t, porttest.Options{Bus: b}, port("rp0", "reset_link=on"), card("c0", "rp0"))
	s := slotOf(t, r, "rp0")
	is(t, r, s, on)
	suspend(t, r)
	r.ForgetRecords()
	ctl := func() uint16 { return s.cfg.Read16(s.exp + pci.ExpSltCtl) }
	before := ctl()
	for _, c := range []struct{ path, text string }{{"1/power", "0\n"}, {"1/power", "1\n"}, {"1/attention", "1\n"}} {
		if got := errno(write(r, b, c.path, c.text)); got != "EBUSY" {
			t.Errorf("%s %q = %s, want EBUSY", c.path, c.text, got)
		}
	}
	if got, want := said(r, s.port.Addr()), slices.Repeat([]string{"Slot(1): It is suspended"}, 3); !slices.Equal(got, want) {
		t.Errorf("it said %q, want %q", got, want)
	}
	r.ForgetRecords()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 3 {
		if err := s.port.ResetBelow(ctx); err != nil {
			t.Fatalf("ResetBelow of a suspended port = %v, want nil", err)
		}
		s.cfg.Write16(s.exp+pci.ExpSltCtl, 0) // as a reset of the port leaves it
		if err := reset(ctx, s.port); err != nil {
			t.Fatal(err)
		}
		if got := ctl(); got != before || got&pci.SltCtlHP != 0 {
			t.Errorf("Slot Control is %#x, want %#x, which does not interrupt", got, before)
		}
	}
	resume(t, r)
	is(t, r, s, on)
	r.AwaitNames(t, "rp0 pcieport", "c0 edu")
	if got := said(r, s.port.Addr()); len(got) != 0 {
		t.Errorf("it said %q, want nothing", got)
	}
	if v := ctl(); v&pci.SltCtlHP == 0 {
		t.Errorf("Slot Control is %#x after Resume, want interrupts", v)
	}
}

// TestAskedBefore: what somebody asked for, and nobody began, is not done after a suspension, nor once he stopped waiting.
func TestAskedBefore(t *testing.T) {
	bustest.NoLeaks(t)
	r := rig(t, porttest.Options{}, port("rp0"), card("c0", "rp0"))
	s := slotOf(t, r, "rp0")
	is(t, r, s, on)
	waits := func() bool {
		s.sta.Lock()
		defer s.sta.Unlock()
		return len(s.waiters) > 0
	}
	for _, want := range []error{errAsleep, context.Canceled} {
		s.hold <- struct{}{} // the worker does not get to it
		ctx, interrupt := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { result <- s.Switch(ctx, false) }()
		r.Await(t, "somebody waiting", waits)
		if want == errAsleep { // as Suspend does
			s.resumed = make(chan struct{})
			answer(s.setAsleep(true), outcome{done: true, err: errAsleep})
		} else {
			interrupt()
		}
		if err := <-result; !errors.Is(err, want) {
			t.Errorf("Switch(off) = %v, want %v", err, want)
		}
		s.release()
		resume(t, r)
		interrupt()
		is(t, r, s, on)
	}
	r.AwaitNames(t, "rp0 pcieport", "c0 edu")
}

// TestAllAtOnce suspends, resets, switches, and takes hot-plug away, all at once; afterwards all is well.
func TestAllAtOnce(t *testing.T) {
	bustest.NoLeaks(t)
	n := 60
	if testing.Short() {
		n = 15
	}
	b, err := portbus.New(Driver(Options{}))
	if err != nil {
		t.Fatal(err)
	}
	r := rig(t, porttest.Options{Bus: b}, port("rp0", "button=off", "auto_eject=off", "reset_link=on"))
	p, dev := r.Port("rp0"), slotOf(t, r, "rp0").dev.Name()
	ctx, cancel := context.WithTimeout(t.Context(), 6*patience)
	defer cancel()
	change := func(f func() error) { _ = r.Change(ctx, "rp0", func(pci.Instance) error { return f() }) }
	acts := []func(){
		func() { change(func() error { return p.Suspend(ctx) }); change(func() error { return p.Resume(ctx) }) },
		func() { change(func() error { return reset(ctx, p) }) },
		func() { _ = p.ResetBelow(ctx) },
		func() {
			if s, ok := p.Service(portbus.HP).(*Slot); ok {
				_ = s.Switch(ctx, true)
				_ = s.Switch(ctx, false)
			}
		},
		func() { _ = r.Sim().Plug(ctx, card("c0", "rp0")); _ = r.Sim().Unplug("c0") },
		func() { _ = write(r, b, "1/attention", "1"); _ = write(r, b, "1/power", "0") },
		func() { _ = b.UnbindDevice(Name, dev); _ = b.BindDevice(ctx, Name, dev) },
	}
	var all sync.WaitGroup
	for _, act := range acts {
		all.Go(func() {
			for range n {
				act()
			}
		})
	}
	all.Wait()
	if ctx.Err() != nil {
		t.Fatal("somebody waits for ever")
	}
	change(func() error { return p.Resume(ctx) })
	s := slotOf(t, r, "rp0")
	_ = r.Sim().Unplug("c0")
	is(t, r, s, off)
	cycleOnce(t, r, s)
	noStray(t, r.Sim())
}

// cycleOnce puts a card in, and takes it out.
func cycleOnce(t *testing.T, r *porttest.Rig, s *Slot) {
	t.Helper()
	if err := r.Sim().Plug(t.Context(), sim.DeviceSpec{Name: "c9", Model: "edu", Bus: "rp0"}); err != nil {
		t.Fatal(err)
	}
	is(t, r, s, on)
	if err := s.Switch(t.Context(), false); err != nil {
		t.Errorf("Switch(off) = %v, want nil", err)
	}
	is(t, r, s, off)
	r.AwaitNames(t, "rp0 pcieport")
}
