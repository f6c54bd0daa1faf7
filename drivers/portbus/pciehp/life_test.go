package pciehp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/fault/faulttest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/edu"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
	"github.com/ring3dev/ring3/sysfs"
)

// noStray fails the test where a device did DMA that nobody allowed.
func noStray(t *testing.T, m *sim.Machine) {
	t.Helper()
	if n, err := m.StrayDMA(); n != 0 {
		t.Errorf("%d accesses went astray: %v", n, err)
	}
}

// cycle puts a card in, waits until it is driven, and switches the slot off, which ejects it.
func cycle(t *testing.T, r *porttest.Rig, b *portbus.Bus, s *Slot, c sim.DeviceSpec) {
	t.Helper()
	if err := r.Sim().Plug(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	is(t, r, s, on)
	if !slices.Contains(r.Names(), c.Name+" edu") {
		t.Fatalf("after the plug there are %v, want %s with its driver", r.Names(), c.Name)
	}
	if err := write(r, b, s.name+"/power", "0\n"); err != nil {
		t.Fatal(err)
	}
	is(t, r, s, off)
}

// TestCycles: nothing is left behind, and no event missed, however often.
func TestCycles(t *testing.T) {
	bustest.NoLeaks(t)
	n := 1000
	if testing.Short() {
		n = 100
	}
	b, err := portbus.New(Driver(Options{}))
	if err != nil {
		t.Fatal(err)
	}
	r := rig(t, porttest.Options{Bus: b}, port("rp0"), port("rp1"))
	var wg sync.WaitGroup
	for i, name := range []string{"rp0", "rp1"} { // two at once
		s := slotOf(t, r, name)
		wg.Go(func() {
			for range n / 2 {
				if t.Failed() {
					return
				}
				cycle(t, r, b, s, card(fmt.Sprintf("c%d", i), name))
			}
		})
	}
	wg.Wait()
	for _, x := range []struct {
		what string
		want int
	}{{"Card present", n}, {"Button press: will power on in 5 sec", n}, {"Card not present", 0}, {"Link Down", 0}} {
		got := 0
		for _, l := range r.Lines() {
			if strings.HasSuffix(l.Text, x.what) {
				got++
			}
		}
		if got != x.want {
			t.Errorf("%q was said %d times, want %d", x.what, got, x.want)
		}
	}
	got := 0
	for _, e := range r.Events() {
		if strings.HasPrefix(e, "bind@") && strings.HasSuffix(e, "DRIVER=edu") && (strings.Contains(e, "1000:01:00.0") || strings.Contains(e, "1000:09:00.0")) {
			got++
		}
	}
	if got != n {
		t.Errorf("cards were bound %d times at the first bus behind their ports, want %d", got, n)
	}
	noStray(t, r.Sim())
}

// TestPulledOut pulls cards out while their driver is at work.
func TestPulledOut(t *testing.T) {
	bustest.NoLeaks(t)
	b, err := portbus.New(Driver(Options{}))
	if err != nil {
		t.Fatal(err)
	}
	r := rig(t, porttest.Options{Bus: b}, port("rp0"))
	s := slotOf(t, r, "rp0")
	for range 20 {
		if err := r.Sim().Plug(t.Context(), card("c0", "rp0")); err != nil {
			t.Fatal(err)
		}
		is(t, r, s, on)
		var work sync.WaitGroup
		var done atomic.Int32
		work.Go(func() {
			for err := error(nil); err == nil; done.Add(1) {
				r.Use("c0", func(i pci.Instance) {
					d, ok := i.(*edu.Device)
					if !ok {
						err = bus.ErrGone
						return
					}
					_, err = d.Factorial(t.Context(), 10)
				})
			}
		})
		r.Await(t, "the driver being at work", func() bool { return done.Load() > 2 })
		if err := r.Sim().Unplug("c0"); err != nil {
			t.Fatal(err)
		}
		work.Wait()
		is(t, r, s, off)
		r.AwaitNames(t, "rp0 pcieport")
	}
	noStray(t, r.Sim())
}

// TestUnbound takes hot-plug away and gives it back, in the midst of things.
func TestUnbound(t *testing.T) {
	bustest.NoLeaks(t)
	b, err := portbus.New(Driver(Options{}))
	if err != nil {
		t.Fatal(err)
	}
	r := rig(t, porttest.Options{Bus: b}, port("rp0"))
	dev := "1000:00:03.0:pcie004"
	for i, when := range []func(){
		func() {},
		func() { r.AwaitLine(t, "Card present") },
		func() { r.AwaitNames(t, "rp0 pcieport", "c0 edu") },
	} {
		r.ForgetRecords()
		if err := r.Sim().Plug(t.Context(), card("c0", "rp0")); err != nil {
			t.Fatal(err)
		}
		when()
		if err := b.UnbindDevice(Name, dev); err != nil {
			t.Errorf("%d: UnbindDevice = %v, want nil", i, err)
		}
		if names := b.Slots().Names(); len(names) != 0 {
			t.Errorf("%d: slots of nobody's: %v", i, names)
		}
		if err := b.BindDevice(t.Context(), Name, dev); err != nil {
			t.Fatalf("%d: BindDevice = %v, want nil", i, err)
		}
		s := slotOf(t, r, "rp0")
		// Nobody presses its button any more, so it may take a word.
		r.Await(t, "the slot being at rest", func() bool { return (s.is(on) || s.is(off)) && s.idle() })
		if s.is(off) {
			_ = write(r, b, "1/power", "1")
		}
		if s.is(on) {
			if err := write(r, b, "1/power", "0"); err != nil {
				t.Errorf("%d: power 0: %v", i, err)
			}
		}
		is(t, r, s, off)
		_ = r.Sim().Unplug("c0") // it may have left by itself
		is(t, r, s, off)
		r.AwaitNames(t, "rp0 pcieport")
	}
	noStray(t, r.Sim())
}

// TestColdCard: a card that is there before the driver is on, and stays.
func TestColdCard(t *testing.T) {
	bustest.NoLeaks(t)
	for _, o := range []porttest.Options{{}, {Alone: true}} {
		r := rig(t, o, port("rp0"), card("c0", "rp0"))
		s := slotOf(t, r, "rp0")
		is(t, r, s, on)
		if got := said(r, s.port.Addr()); len(got) != 1 {
			t.Errorf("it said %q, want its banner alone", got)
		}
	}
}

// TestModes: what a slot that interrupts by a line, or not at all, does.
func TestModes(t *testing.T) {
	for _, c := range []struct {
		name string
		o    Options
		prop string
		lose bool
	}{
		{"MSI-X", Options{}, "vectors=1", false},
		{"MSI", Options{}, "msi=4", false},
		{"INTx", Options{}, "intx=on", false},
		{"poll", Options{Poll: true, PollTime: time.Second}, "vectors=1", false},
		{"no interrupts", Options{}, "vectors=1", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			bustest.NoLeaks(t)
			b, err := portbus.New(Driver(c.o))
			if err != nil {
				t.Fatal(err)
			}
			o := porttest.Options{Bus: b}
			if c.lose {
				o.Wrap = func(name string, dev bus.Device) bus.Device {
					if name == "rp0" {
						return &dumb{dev}
					}
					return dev
				}
			}
			r := rig(t, o, port("rp0", c.prop))
			s := slotOf(t, r, "rp0")
			for range 3 {
				cycle(t, r, b, s, card("c0", "rp0"))
			}
			if want := c.o.Poll || c.lose; s.poll != want {
				t.Errorf("poll = %v, want %v", s.poll, want)
			}
		})
	}
}

// dumb is a port that has no interrupts.
type dumb struct{ bus.Device }

func (d *dumb) IRQVectors(bus.IRQMode) int { return 0 }
func (d *dumb) Clock() bus.Clock           { return bus.ClockOf(d.Device) }

// TestNotOurs: the slot works where somebody else has the bus behind it.
func TestNotOurs(t *testing.T) {
	for _, o := range []porttest.Options{{NoRescan: true}, {Alone: true}} {
		bustest.NoLeaks(t)
		r := rig(t, o, port("rp0"))
		s := slotOf(t, r, "rp0")
		if err := r.Sim().Plug(t.Context(), card("c0", "rp0")); err != nil {
			t.Fatal(err)
		}
		is(t, r, s, on)
		r.AwaitLine(t, "when root writes 1 to /sys/bus/pci/rescan")
		if err := s.Switch(t.Context(), false); err != nil {
			t.Errorf("Switch(off) = %v, want nil", err)
		}
		is(t, r, s, off)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestOthers: what somebody else has in the slot makes it one that is on, and is told of when the slot goes off.
func TestOthers(t *testing.T) {
	bustest.NoLeaks(t)
	var has atomic.Bool // they found the card
	others := func() []string {
		if has.Load() {
			return []string{"e1000e 1000:01:00.0"}
		}
		return nil
	}
	r := rig(t, porttest.Options{NoRescan: true, Others: others}, port("rp0"))
	s := slotOf(t, r, "rp0")
	if err := r.Sim().Plug(t.Context(), card("c0", "rp0")); err != nil {
		t.Fatal(err)
	}
	is(t, r, s, on)
	has.Store(true)
	dev, b := s.dev.Name(), s.port.Bus()
	if err := errors.Join(b.UnbindDevice(Name, dev), b.BindDevice(t.Context(), Name, dev)); err != nil {
		t.Fatal(err)
	}
	s = slotOf(t, r, "rp0")
	is(t, r, s, on)
	if n := len(r.Texts("pcieport 1000:00:03.0: pciehp: Slot(1): Card present")); n != 1 {
		t.Errorf("%d cards came, want 1", n)
	}
	if err := s.port.ResetBelow(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.AwaitLine(t, "e1000e 1000:01:00.0: reset under the kernel's driver: root writes 1 to its file remove, and to /sys/bus/pci/rescan")
	is(t, r, s, on)
	if err := s.Switch(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	is(t, r, s, off)
	r.AwaitLine(t, "e1000e 1000:01:00.0: still the kernel's, and going off: root writes 1 to its file remove")
}

// contains is a service that contains failures.
type contains struct {
	asked atomic.Int32
	back  chan bool
}

func (c *contains) Close() error { return nil }
func (c *contains) Recovered(ctx context.Context) bool {
	c.asked.Add(1)
	select {
	case ok := <-c.back:
		return ok
	case <-ctx.Done():
		return false
	}
}

// TestContained: a link that went because a failure was contained, and is back, is no news.
func TestContained(t *testing.T) {
	bustest.NoLeaks(t)
	c := &contains{back: make(chan bool)}
	b, err := portbus.New(Driver(Options{}), &portbus.ServiceDriver{
		Name: "dpc", Service: portbus.DPC, Port: portbus.AnyPort,
		Probe: func(context.Context, *portbus.Device) (portbus.Instance, error) { return c, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	r := rig(t, porttest.Options{Bus: b}, port("rp0", "dpc=on"), card("c0", "rp0"))
	s := slotOf(t, r, "rp0")
	is(t, r, s, on)
	flap := func() {
		t.Helper()
		for _, up := range []bool{false, true} {
			if err := r.Sim().SetPortLink("rp0", up); err != nil {
				t.Fatal(err)
			}
		}
	}
	flap()
	c.back <- true
	r.AwaitLine(t, "Slot(1): Link Down/Up ignored (recovered by DPC)")
	is(t, r, s, on)
	r.AwaitNames(t, "rp0 pcieport", "c0 edu")
	flap()
	c.back <- false
	r.AwaitLine(t, "Slot(1): Link Down")
	r.Await(t, "the slot being at rest", func() bool { return !s.is(poweringOff) && s.idle() })
	if n := c.asked.Load(); n != 2 {
		t.Errorf("DPC was asked %d times, want 2", n)
	}
}

// TestResetSlot: a reset of the bus is no news.
func TestResetSlot(t *testing.T) {
	bustest.NoLeaks(t)
	r := rig(t, porttest.Options{}, port("rp0", "reset_link=on"), card("c0", "rp0"))
	s := slotOf(t, r, "rp0")
	is(t, r, s, on)
	for range 5 {
		if err := r.Port("rp0").ResetBelow(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	is(t, r, s, on)
	if got := said(r, s.port.Addr()); len(got) != 1 {
		t.Errorf("it said %q, want its banner alone", got)
	}
	// A card that goes meanwhile is.
	err := s.ResetSlot(t.Context(), func(context.Context) error { return r.Sim().Unplug("c0") })
	if err != nil {
		t.Errorf("ResetSlot = %v, want nil", err)
	}
	is(t, r, s, off)
}

// TestSuspend: what happens in the meantime is found afterwards.
func TestSuspend(t *testing.T) {
	bustest.NoLeaks(t)
	r := rig(t, porttest.Options{}, port("rp0", "button=off"))
	s := slotOf(t, r, "rp0")
	is(t, r, s, off)
	p := r.Port("rp0")
	sleep := func(meanwhile func() error) {
		t.Helper()
		for _, f := range []func() error{func() error { return p.Suspend(t.Context()) }, meanwhile, func() error { return p.Resume(t.Context()) }} {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}
	}
	sleep(func() error { return r.Sim().Plug(context.Background(), card("c0", "rp0")) })
	is(t, r, s, on)
	sleep(func() error { return nil })
	is(t, r, s, on)
	sleep(func() error { return r.Sim().Unplug("c0") })
	is(t, r, s, off)
	if err := p.Resume(t.Context()); err != nil {
		t.Errorf("Resume of what was not suspended = %v, want nil", err)
	}
}

// TestFiles reads and writes what a slot shows.
func TestFiles(t *testing.T) {
	bustest.NoLeaks(t)
	b, err := portbus.New(Driver(Options{}))
	if err != nil {
		t.Fatal(err)
	}
	r := rig(t, porttest.Options{Bus: b}, port("rp0", "slot=7"), port("rp1", "slot=7", "mrl=on", "attn=off"), port("rp2", "slot=7"), card("c0", "rp0"))
	for _, n := range []string{"rp0", "rp1", "rp2"} {
		r.Await(t, n+" being idle", slotOf(t, r, n).idle)
	}
	if got, want := b.Slots().Names(), []string{"7", "7-1", "7-2"}; !slices.Equal(got, want) {
		t.Errorf("slots are %v, want %v", got, want)
	}
	read := func(path string) string {
		n, err := b.Slots().Walk(path)
		if err != nil {
			return err.Error()
		}
		var w bytes.Buffer
		if err := n.(*sysfs.File).Show(&w); err != nil {
			return err.Error()
		}
		return w.String()
	}
	for _, c := range []struct{ path, want string }{
		{"7/address", "1000:01:00\n"}, {"7/power", "1\n"}, {"7/adapter", "1\n"}, {"7/attention", "0\n"}, {"7/max_bus_speed", "16.0 GT/s PCIe\n"},
		{"7-1/address", "1000:09:00\n"}, {"7-1/power", "0\n"}, {"7-1/adapter", "0\n"}, {"7-1/latch", "0\n"},
		{"7-1/attention", "no such file or directory"}, {"7/latch", "no such file or directory"},
	} {
		if got := read(c.path); got != c.want {
			t.Errorf("%s reads %q, want %q", c.path, got, c.want)
		}
	}
	for _, c := range []struct{ text, want string }{
		{"1\n", "1\n"}, {"2", "2\n"}, {"3\n", "0\n"}, {"1x", "1\n"}, {"4", "0\n"}, {"2\n", "2\n"}, {"255\n", "0\n"}, {"257\n", "1\n"}, {"-1", "0\n"}, {"\n", "0\n"},
	} {
		if err := write(r, b, "7/attention", c.text); err != nil {
			t.Errorf("attention %q: %v, want nil", c.text, err)
		}
		if got := read("7/attention"); got != c.want {
			t.Errorf("attention %q reads %q, want %q", c.text, got, c.want)
		}
	}
	for _, c := range []struct{ path, text, want string }{
		{"7/power", "1\n", "ENODEV"}, {"7/power", "257", "ENODEV"}, {"7/power", "2", "EINVAL"}, {"7/power", "12345678901234567890123\n", "EINVAL"},
		{"7-2/power", "\n", "ENODEV"}, {"7-2/power", "0", "ENODEV"}, {"7-2/power", "x", "ENODEV"}, {"7-2/power", "1", "ENODEV"},
		{"7/power", "x\n", "ok"}, {"7/power", "0x1\n", "ENODEV"},
	} {
		if got := errno(write(r, b, c.path, c.text)); got != c.want {
			t.Errorf("%s %q = %s, want %s", c.path, c.text, got, c.want)
		}
	}
	if err := r.Sim().OpenLatch("rp1", true); err != nil {
		t.Fatal(err)
	}
	if got := read("7-1/latch"); got != "1\n" {
		t.Errorf("latch reads %q, want 1", got)
	}
	n, _ := b.Slots().Walk("7/power")
	if err := r.Unbind(t.Context(), "rp0"); err != nil {
		t.Error(err)
	}
	if got, want := b.Slots().Names(), []string{"7-1", "7-2"}; !slices.Equal(got, want) {
		t.Errorf("slots are %v, want %v", got, want)
	}
	if _, err := n.(*sysfs.File).Store(t.Context(), []byte("0")); errno(err) != "ENODEV" {
		t.Errorf("power of a slot that went: %v, want ENODEV", err)
	}
	if err := r.Bind(t.Context(), "rp0"); err != nil {
		t.Error(err)
	}
}

// TestInterrupted: a writer may stop waiting, and the slot goes on.
func TestInterrupted(t *testing.T) {
	bustest.NoLeaks(t)
	st := newStage(t, "", Options{})
	st.settle()
	st.play("plug; settle; =on; hold close")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	n, _ := st.b.Slots().Walk("1/power")
	go func() {
		_, err := n.(*sysfs.File).Store(ctx, []byte("0"))
		ended <- err
	}()
	st.play("held close")
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupted writer got %v, want context.Canceled", err)
	}
	st.play("go close; settle; =off")
}

// TestNested: what is behind a port that goes, goes with it, another slot included.
func TestNested(t *testing.T) {
	bustest.NoLeaks(t)
	r := rig(t, porttest.Options{}, port("rp0"), sim.DeviceSpec{Name: "up", Model: "upstream", Bus: "rp0"}, sim.DeviceSpec{Name: "dn", Model: "downstream", Bus: "up"})
	inner := slotOf(t, r, "dn")
	if err := r.Sim().Plug(t.Context(), card("c0", "dn")); err != nil {
		t.Fatal(err)
	}
	is(t, r, inner, on)
	if err := r.Sim().Unplug("up"); err != nil {
		t.Fatal(err)
	}
	is(t, r, slotOf(t, r, "rp0"), off)
	r.AwaitNames(t, "rp0 pcieport")
}

// simPort is a port of a machine of its own.
type simPort struct {
	bus.Device
	m *sim.Machine
}

func (d *simPort) Clock() bus.Clock        { return bus.ClockOf(d.Device) }
func (d *simPort) SaveState() func() error { return bus.SaveState(d.Device) }

// TestFaults makes each access to the port go wrong while a card comes and goes.
func TestFaults(t *testing.T) {
	o := faulttest.Options{Max: 1500}
	if testing.Short() {
		o.Max = 150
	}
	faulttest.Every(t, faulttest.Scenario{
		Name: "cycle", Driver: portbus.DriverName,
		Open: func(t testing.TB) bus.Device {
			m, err := sim.Start(context.Background(), sim.Config{Clock: sim.Eager, Devices: []sim.DeviceSpec{port("rp0")}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = m.Close() })
			dev, err := m.Device("rp0")
			if err != nil {
				t.Fatal(err)
			}
			return &simPort{dev, m}
		},
		Run:     faultyCycle,
		Notices: func(fault.Fault) bool { return false }, // a slot that stays off, or on, is one that somebody sees
	}, o)
}

func faultyCycle(ctx context.Context, dev bus.Device) error {
	p, _ := faulttest.As[*simPort](dev)
	b, err := portbus.New(Driver(Options{}))
	if err != nil {
		return err
	}
	r := porttest.Make(p.m, porttest.Options{Bus: b, Drivers: []*pci.Driver{edu.Driver}, Wrap: func(name string, d bus.Device) bus.Device {
		if name == "rp0" {
			return dev
		}
		return d
	}})
	defer r.Close()
	s, ok := r.Port("rp0"), false
	if s == nil {
		return faulttest.Wrong("the port is not in service")
	}
	slot, ok := s.Service(portbus.HP).(*Slot)
	if !ok {
		return faulttest.Wrong("the slot is not in service")
	}
	if err := p.m.Plug(ctx, card("c0", "rp0")); err != nil {
		return faulttest.Wrong("plugging: %v", err)
	}
	for want := range slices.Values([]state{on, off}) {
		for !slot.is(want) {
			if ctx.Err() != nil || slot.dead() {
				return faulttest.Wrong("the slot is %s, want %s", slot.State(), want)
			}
			_ = bus.Sleep(ctx, slot.clock, time.Millisecond)
		}
		if want == on {
			if err := slot.Switch(ctx, false); err != nil {
				return faulttest.Wrong("switching off: %v", err)
			}
		}
	}
	return nil
}
