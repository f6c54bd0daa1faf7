package pciehp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
)

// transcript is what a slot says and is told, in order; slog.Handler.
type transcript struct {
	mu      sync.Mutex
	lines   []string
	results []string // of writes, which end when they like
}

func (x *transcript) add(line string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.lines = append(x.lines, line)
}

func (x *transcript) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return strings.Join(append(slices.Clone(x.lines), x.results...), "\n")
}

func (x *transcript) Enabled(context.Context, slog.Level) bool { return true }
func (x *transcript) WithAttrs([]slog.Attr) slog.Handler       { return x }
func (x *transcript) WithGroup(string) slog.Handler            { return x }
func (x *transcript) Handle(_ context.Context, r slog.Record) error {
	if _, msg, ok := strings.Cut(r.Message, ": "+prefix); ok {
		x.add(strings.TrimPrefix(msg, "Slot(1): "))
	} else {
		x.add(r.Message)
	}
	return nil
}

// spy is a port whose commands to the slot are written down.
type spy struct {
	bus.Device
	x      *transcript
	asleep *sleepers
}

func (d *spy) Config() bus.Config {
	e, _ := pci.FindExpress(d.Device.Config())
	return &spyConfig{d.Device.Config(), e.At + pci.ExpSltCtl, d.x}
}
func (d *spy) Clock() bus.Clock        { return &spyClock{bus.ClockOf(d.Device), d.asleep} }
func (d *spy) SaveState() func() error { return bus.SaveState(d.Device) }

type spyConfig struct {
	bus.Config
	ctl bus.Off
	x   *transcript
}

func (c *spyConfig) Write16(o bus.Off, v uint16) {
	if o == c.ctl {
		c.x.add("> " + command(c.Config.Read16(o), v))
	}
	c.Config.Write16(o, v)
}

// sleepers are who waits for less than graceTime, and until when.
type sleepers struct {
	mu    sync.Mutex
	until map[*time.Duration]bool
}

// any says whether somebody's time has not come yet.
func (x *sleepers) any(now time.Duration) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	for at := range x.until {
		if *at > now {
			return true
		}
	}
	return false
}

func (x *sleepers) drop(at *time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.until, at)
}

// spyClock writes down who waits.
type spyClock struct {
	bus.Clock
	x *sleepers
}

func (c *spyClock) AfterFunc(d time.Duration, f func()) func() bool {
	if d >= graceTime {
		return c.Clock.AfterFunc(d, f)
	}
	at := c.Now() + d
	c.x.mu.Lock()
	if c.x.until == nil {
		c.x.until = map[*time.Duration]bool{}
	}
	stop := c.Clock.AfterFunc(d, func() {
		c.x.drop(&at)
		f()
	})
	c.x.until[&at] = true // not before there is a timer, or time goes on past it
	c.x.mu.Unlock()
	return func() bool {
		c.x.drop(&at)
		return stop()
	}
}

// command is what changes in Slot Control.
func command(old, v uint16) string {
	var s []string
	diff := old ^ v
	if diff&pci.SltCtlPowerOff != 0 {
		s = append(s, "power "+map[bool]string{true: "off", false: "on"}[v&pci.SltCtlPowerOff != 0])
	}
	led := [...]string{"reserved", "on", "blink", "off"}
	if diff&pci.SltCtlPowerLED != 0 {
		s = append(s, "pwr "+led[v&pci.SltCtlPowerLED>>8])
	}
	if diff&pci.SltCtlAttnLED != 0 {
		s = append(s, "attn "+led[v&pci.SltCtlAttnLED>>6])
	}
	if diff&notification != 0 {
		s = append(s, fmt.Sprintf("listen %#x", v&notification))
	}
	if rest := diff &^ (pci.SltCtlPowerOff | pci.SltCtlPowerLED | pci.SltCtlAttnLED | notification); rest != 0 {
		s = append(s, fmt.Sprintf("%#x", v&rest))
	}
	return strings.Join(append(s, "")[:max(1, len(s))], ", ")
}

// stage is a machine whose time moves when the script says so.
type stage struct {
	t     testing.TB
	r     *porttest.Rig
	m     *sim.Machine
	s     *Slot
	x     *transcript
	b     *portbus.Bus
	gate  *gate
	sleep sleepers
	asked atomic.Int32 // writers that wait
}

// gate is a driver of cards whose Probe and Close can be held up.
type gate struct {
	mu     sync.Mutex
	probes chan struct{} // nil: open
	closes chan struct{}
	in     chan string
}

func (g *gate) driver() *pci.Driver {
	return &pci.Driver{
		Name: "gate", IDs: []pci.ID{{Vendor: pci.Any, Device: pci.Any}}, API: 1,
		Probe: func(ctx context.Context, dev bus.Device, _ pci.Env) (pci.Instance, error) {
			g.pass(g.probes, "probe")
			if err := dev.Err(); err != nil {
				return nil, err
			}
			return g, nil
		},
	}
}

func (g *gate) pass(c chan struct{}, what string) {
	if c != nil {
		g.in <- what
		<-c
	}
}

// Close is a pci.Instance's.
func (g *gate) Close() error { g.pass(g.closes, "close"); return nil }

func newStage(t testing.TB, profile string, o Options, props ...string) *stage {
	t.Helper()
	x := &transcript{}
	b, err := portbus.New(Driver(o))
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{in: make(chan string, 1)}
	st := &stage{t: t, x: x, b: b, gate: g}
	st.r = porttest.Start(t, sim.Config{Devices: []sim.DeviceSpec{port("rp0", props...)}, Clock: sim.Stepped}, porttest.Options{
		Bus: b, Drivers: []*pci.Driver{g.driver()}, Profile: profile, Log: slog.New(x),
		Wrap: func(name string, dev bus.Device) bus.Device {
			if name == "rp0" {
				return &spy{dev, x, &st.sleep}
			}
			return dev
		},
	})
	st.m = st.r.Sim()
	st.s = slotOf(t, st.r, "rp0")
	return st
}

// settle moves time on until nothing happens any more.
func (st *stage) settle() {
	st.t.Helper()
	st.r.Await(st.t, "the slot having nothing to do", func() bool {
		return st.step() && st.asked.Load() == 0
	})
}

// step moves time on to what comes next, once the slot waits for it, or says that nothing does and the slot waits for nothing.
func (st *stage) step() (quiet bool) {
	idle := st.s.idle()
	if !st.sleep.any(st.m.Now()) && !idle {
		return false
	}
	if d, ok := st.m.Next(); ok {
		st.m.Advance(d)
		return false
	}
	return idle
}

// play plays a script of acts, "plug; settle; =on".
func (st *stage) play(script string) {
	st.t.Helper()
	for _, act := range strings.Split(script, ";") {
		if err := st.act(strings.TrimSpace(act)); err != nil {
			st.t.Fatalf("%s: %v", act, err)
		}
	}
}

func (st *stage) act(act string) error {
	st.t.Helper()
	verb, arg, _ := strings.Cut(act, " ")
	switch verb {
	case "plug":
		return st.m.Plug(context.Background(), card("c0", "rp0"))
	case "replug":
		if err := st.m.Unplug("c0"); err != nil {
			return err
		}
		return st.m.Plug(context.Background(), card("c0", "rp0"))
	case "unplug":
		return st.m.Unplug("c0")
	case "press":
		return st.m.PressButton("rp0")
	case "fault":
		return st.m.PowerFault("rp0")
	case "latch":
		return st.m.OpenLatch("rp0", arg == "open")
	case "link":
		return st.m.SetPortLink("rp0", arg == "up")
	case "power": // goes on behind the scenes
		st.asked.Add(1)
		go func() {
			defer st.asked.Add(-1)
			got := fmt.Sprintf("power %s = %s", arg, errno(write(st.r, st.b, "1/power", arg)))
			st.x.mu.Lock()
			defer st.x.mu.Unlock()
			st.x.results = append(st.x.results, got)
		}()
		return nil
	case "said":
		st.r.Await(st.t, "a line with "+arg, func() bool { return strings.Contains(st.x.String(), arg) })
		return nil
	case "settle":
		st.settle()
		return nil
	case "wait":
		d, err := time.ParseDuration(arg)
		st.m.Advance(d)
		st.r.Await(st.t, "the slot having nothing to do", func() bool { return st.sleep.any(st.m.Now()) || st.s.idle() })
		return err
	case "hold": // the next probe, or close
		st.gate.mu.Lock()
		defer st.gate.mu.Unlock()
		if arg == "probe" {
			st.gate.probes = make(chan struct{})
		} else {
			st.gate.closes = make(chan struct{})
		}
		return nil
	case "held": // wait until somebody is
		return st.held(arg)
	case "go": // on with it
		if arg == "probe" {
			close(st.gate.probes)
			st.gate.probes = nil
		} else {
			close(st.gate.closes)
			st.gate.closes = nil
		}
		return nil
	}
	if want, ok := strings.CutPrefix(act, "="); ok {
		busy := want == poweringOn.String() || want == poweringOff.String() // and held
		st.r.Await(st.t, act, func() bool { return st.s.State() == want && (busy || st.s.idle()) })
		return nil
	}
	return errors.New("no such act")
}

func (st *stage) held(arg string) error {
	st.t.Helper()
	var err error
	st.r.Await(st.t, "somebody being held", func() bool {
		st.step()
		select {
		case got := <-st.gate.in:
			if got != arg {
				err = fmt.Errorf("held at %s", got)
			}
			return true
		default:
			return false
		}
	})
	return err
}

// errno is what a writer sees.
func errno(err error) string {
	var e unix.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	}
	return err.Error()
}
