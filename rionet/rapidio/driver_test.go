package rapidio

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

// recorder is a driver that says what is asked of it.
type recorder struct {
	mu    sync.Mutex
	lines []string
	fail  error
	block chan struct{} // Probe waits for it, unless nil
}

func (r *recorder) say(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, s)
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.lines
	r.lines = nil
	return l
}

type recorded struct {
	r    *recorder
	d    *Device
	name string
}

func (i recorded) Remove() { i.r.say(i.name + " remove " + i.d.Name()) }

func (r *recorder) driver(name string, ids ...ID) *Driver {
	return &Driver{Name: name, IDs: ids, Probe: func(ctx context.Context, d *Device) (Instance, error) {
		r.say(name + " probe " + d.Name())
		if r.block != nil {
			select {
			case <-r.block:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if r.fail != nil {
			return nil, r.fail
		}
		return recorded{r, d, name}, nil
	}}
}

var anyDevice = ID{AnyID, AnyID, AnyID, AnyID}

func TestServes(t *testing.T) {
	d := &Device{VID: 1, DID: 2, AsmVID: 3, AsmDID: 4}
	for _, c := range []struct {
		ids  []ID
		want bool
	}{
		{nil, false}, {[]ID{anyDevice}, true}, {[]ID{{1, 2, 3, 4}}, true}, {[]ID{{1, 2, AnyID, AnyID}}, true}, {[]ID{{9, 9, 9, 9}, {AnyID, 2, 3, AnyID}}, true},
		{[]ID{{2, 2, 3, 4}}, false}, {[]ID{{1, 1, 3, 4}}, false}, {[]ID{{1, 2, 1, 4}}, false}, {[]ID{{1, 2, 3, 1}}, false}, {[]ID{{}}, false},
	} {
		if got := (&Driver{IDs: c.ids}).Serves(d); got != c.want {
			t.Errorf("Serves(%v) = %v, want %v", c.ids, got, c.want)
		}
	}
}

func TestDrivers(t *testing.T) {
	r := newRig(t, Small, 3)
	rec := &recorder{}
	endpoints := rec.driver("endpoints", ID{modelVendor, modelEndpoint, AnyID, AnyID})
	check := func(want ...string) {
		t.Helper()
		if got := rec.take(); !slices.Equal(got, want) {
			t.Errorf("drivers were asked for %q, want %q", got, want)
		}
	}
	for _, bad := range []*Driver{{}, {Name: "x"}, {Name: "a/b", Probe: endpoints.Probe}, {Name: "..", Probe: endpoints.Probe}} {
		if err := r.b.Register(bad); err == nil {
			t.Errorf("Register(%q) succeeded", bad.Name)
		}
	}
	if err := r.b.Register(endpoints); err != nil {
		t.Fatal(err)
	}
	check("endpoints probe 00:e:0002", "endpoints probe 00:e:0003")
	if err := r.b.Register(rec.driver("endpoints", anyDevice)); !errors.Is(err, bus.ErrBusy) {
		t.Errorf("Register of a name that is taken = %v, want ErrBusy", err)
	}
	all := rec.driver("all", anyDevice)
	if err := r.b.Register(all); err != nil {
		t.Fatal(err)
	}
	check("all probe 00:s:0000") // the others have a driver
	d := r.device("00:e:0002")
	if got := d.Driver(); got != "endpoints" {
		t.Errorf("Driver() = %q, want endpoints", got)
	}
	r.b.Unregister(endpoints)
	r.b.Unregister(endpoints)
	check("endpoints remove 00:e:0003", "endpoints remove 00:e:0002")
	if got := d.Driver(); got != "" {
		t.Errorf("Driver() after Unregister = %q, want none", got)
	}
	if err := r.b.Probe(t.Context(), "00:e:0002"); err != nil {
		t.Error(err)
	}
	check("all probe 00:e:0002")
	d.Net.RemoveDevice(d)
	d.Net.RemoveDevice(d)
	check("all remove 00:e:0002")
	select {
	case <-d.Gone():
	default:
		t.Error("a device that was removed is not gone")
	}
	if _, err := d.Read32(t.Context(), 0); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Read32 of a device that was removed = %v, want ErrGone", err)
	}
	r.b.Close()
	check("all remove 00:s:0000")
	if err := r.b.Register(all); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Register after Close = %v, want ErrClosed", err)
	}
}

// A driver that does not want a device, or fails, leaves it to the next.
func TestProbeOrder(t *testing.T) {
	r := newRig(t, Small, 2)
	first, second := &recorder{fail: ErrNoDevice}, &recorder{fail: errors.New("out of order")}
	third := &recorder{}
	for i, rec := range []*recorder{first, second, third} {
		if err := r.b.Register(rec.driver(fmt.Sprint("driver", i), ID{modelVendor, modelEndpoint, AnyID, AnyID})); err != nil {
			t.Fatal(err)
		}
	}
	d := r.device("00:e:0002")
	if got := d.Driver(); got != "driver2" {
		t.Errorf("Driver() = %q, want driver2", got)
	}
	if r.log.count("rapidio 00:e:0002: probe with driver driver1 failed: out of order") != 1 || r.log.count("driver0") != 0 {
		t.Errorf("log: %s", r.log.b.String())
	}
	// A device that comes later: in order of registration.
	n := d.Net
	n.RemoveDevice(d)
	again := &Device{VID: modelVendor, DID: modelEndpoint, Tag: 2, DestID: 1, Hop: 0xff}
	if err := n.AddDevice(again); err != nil {
		t.Fatal(err)
	}
	if got := len(first.take()) + len(second.take()); got != 4 || again.Driver() != "driver2" {
		t.Errorf("%d probes by the first two, driver %q, want 4, driver2", got, again.Driver())
	}
	for _, bad := range []*Device{again, {Tag: 2}, {Tag: 2 | 1<<20}, {Tag: 9, Switch: &Switch{}}} {
		if err := n.AddDevice(bad); err == nil {
			t.Errorf("AddDevice(tag %#x) succeeded", bad.Tag)
		}
	}
	if again.here() != nil || again.Driver() != "driver2" {
		t.Error("a device that was added twice is gone")
	}
}

func TestBindUnbind(t *testing.T) {
	r := newRig(t, Small, 3)
	rec := &recorder{}
	ctx := t.Context()
	r.b.SetAutoprobe(false)
	if err := r.b.Register(rec.driver("a", ID{modelVendor, modelEndpoint, AnyID, AnyID})); err != nil {
		t.Fatal(err)
	}
	if err := r.b.Register(rec.driver("b", anyDevice)); err != nil {
		t.Fatal(err)
	}
	if got := rec.take(); got != nil || r.b.Autoprobe() {
		t.Errorf("without autoprobe %q", got)
	}
	for _, c := range []struct {
		what string
		err  error
		want error
	}{
		{"Bind(a, switch)", r.b.Bind(ctx, "a", "00:s:0000"), bus.ErrNotSupported},
		{"Bind(a, none)", r.b.Bind(ctx, "a", "00:e:0009"), bus.ErrGone},
		{"Bind(none)", r.b.Bind(ctx, "c", "00:e:0002"), bus.ErrGone},
		{"Unbind(a) of what it does not have", r.b.Unbind(ctx, "a", "00:e:0002"), bus.ErrGone},
		{"Bind(a)", r.b.Bind(ctx, "a", "00:e:0002"), nil},
		{"Bind(a) again", r.b.Bind(ctx, "a", "00:e:0002"), bus.ErrBusy},
		{"Bind(b) of what a has", r.b.Bind(ctx, "b", "00:e:0002"), bus.ErrBusy},
		{"Unbind(b) of what a has", r.b.Unbind(ctx, "b", "00:e:0002"), bus.ErrGone},
		{"Probe of what a has", r.b.Probe(ctx, "00:e:0002"), nil},
		{"Unbind(a)", r.b.Unbind(ctx, "a", "00:e:0002"), nil},
		{"Probe(none)", r.b.Probe(ctx, ""), bus.ErrGone},
	} {
		if !errors.Is(c.err, c.want) || (c.err == nil) != (c.want == nil) {
			t.Errorf("%s = %v, want %v", c.what, c.err, c.want)
		}
	}
	if got, want := rec.take(), []string{"a probe 00:e:0002", "a remove 00:e:0002"}; !slices.Equal(got, want) {
		t.Errorf("drivers were asked for %q, want %q", got, want)
	}
	rec.fail = errors.New("no")
	if err := r.b.Bind(ctx, "b", "00:e:0002"); err == nil || r.device("00:e:0002").Driver() != "" {
		t.Errorf("Bind with a driver that fails = %v", err)
	}
}

// A driver that takes its time hinders nobody who looks, and its device can go meanwhile.
func TestSlowDriver(t *testing.T) {
	r := newRig(t, Small, 3)
	rec := &recorder{block: make(chan struct{})}
	slow := rec.driver("slow", ID{modelVendor, modelEndpoint, AnyID, AnyID})
	registered := make(chan error)
	go func() { registered <- r.b.Register(slow) }()
	eventually(t, "the probe", func() bool { return len(rec.take()) > 0 })
	d := r.device("00:e:0002")
	for _, at := range []string{"devices/00:e:0002/uevent", "devices/00:e:0002/lprev", "devices/00:s:0000/lnext", "devices/00:e:0002/config"} {
		if _, err := r.read("/sys/bus/rapidio/" + at); err != nil {
			t.Errorf("%s while a driver probes: %v", at, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.b.Bind(ctx, "slow", "00:e:0002"); !errors.Is(err, context.Canceled) {
		t.Errorf("Bind with an ended context while a driver probes = %v", err)
	}
	d.Net.RemoveDevice(d) // ends the Probe
	eventually(t, "the next probe", func() bool { return len(rec.take()) > 0 })
	unregistered := make(chan struct{})
	go func() { r.b.Unregister(slow); close(unregistered) }()
	close(rec.block)
	if err := <-registered; err != nil {
		t.Error(err)
	}
	<-unregistered
	if got := r.device("00:e:0003").Driver(); got != "" {
		t.Errorf("Driver() after Unregister = %q, want none", got)
	}
	if n := r.log.count("probe with driver"); n != 0 {
		t.Errorf("%d lines about a probe that ended since its device went, want 0", n)
	}
}

// Nor does it hinder a port that goes.
func TestSlowDriverPortGoes(t *testing.T) {
	r := newRig(t, Small, 3)
	rec := &recorder{block: make(chan struct{})}
	registered := make(chan error)
	go func() { registered <- r.b.Register(rec.driver("slow", anyDevice)) }()
	eventually(t, "the probe", func() bool { return len(rec.take()) > 0 })
	r.b.RemoveMport(r.m)
	if err := <-registered; err != nil {
		t.Error(err)
	}
}

// Everything at the same time.
func TestChurn(t *testing.T) {
	r := newRig(t, Small, 6)
	rec := &recorder{}
	n := r.m.Net()
	var wg sync.WaitGroup
	for w := range 3 {
		drv := rec.driver(fmt.Sprint("churn", w), anyDevice)
		wg.Go(func() {
			for range 50 {
				if err := r.b.Register(drv); err != nil {
					t.Error(err)
				}
				r.b.Unregister(drv)
			}
		})
		wg.Go(func() {
			for i := range 50 {
				d := &Device{VID: modelVendor, DID: modelEndpoint, Tag: uint32(100 + 10*w + i%3), DestID: DestID(w), Hop: 0xff}
				if err := n.AddDevice(d); err != nil {
					t.Error(err)
				}
				n.SetNext(r.device("00:s:0000"), w, d)
				n.RemoveDevice(d)
			}
		})
		wg.Go(func() {
			for range 50 {
				r.tree()
			}
		})
	}
	wg.Wait()
	if got := len(r.b.Devices()); got != 6 {
		t.Errorf("%d devices at the end, want 6", got)
	}
	for _, d := range r.b.Devices() {
		if d.Driver() != "" {
			t.Errorf("%s has driver %s at the end", d.Name(), d.Driver())
		}
	}
}
