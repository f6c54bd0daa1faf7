package rapidio

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

func TestMports(t *testing.T) {
	r := &rig{t: t, f: newModel(Small, 10), scan: &modelScan{}}
	var changes atomic.Int32
	r.b = NewBus(BusOptions{Changed: func() { changes.Add(1) }})
	defer r.b.Close()
	var all []*Mport
	for i := range MaxMports {
		all = append(all, r.add(i, -1))
	}
	if _, err := r.b.AddMport(t.Context(), r.f.ports[8], MportOptions{Host: -1}); !errors.Is(err, bus.ErrBusy) || !strings.HasPrefix(err.Error(), "pe8: adding a master port: ") {
		t.Errorf("AddMport of a ninth = %v, want ErrBusy", err)
	}
	r.b.RemoveMport(all[3])
	r.b.RemoveMport(all[3])
	if m := r.add(8, -1); m.ID() != 3 || m.Name() != "rapidio3" || m.IDs() != Small || m.Host() != -1 || m.Ops() != Ops(r.f.ports[8]) {
		t.Errorf("AddMport after a removal = %s, want rapidio3", m.Name())
	}
	for _, host := range []int{-2, 255, 1 << 20} {
		if _, err := r.b.AddMport(t.Context(), r.f.ports[9], MportOptions{Host: host}); !errors.Is(err, ErrRange) {
			t.Errorf("AddMport(host %d) = %v, want ErrRange", host, err)
		}
	}
	if got := changes.Load(); got != 10 {
		t.Errorf("Changed was called %d times, want 10", got)
	}
	r.b.Close()
	r.b.Close()
	if got := len(r.b.Mports()); got != 0 {
		t.Errorf("%d ports after Close, want 0", got)
	}
	if _, err := r.b.AddMport(t.Context(), r.f.ports[9], MportOptions{Host: -1}); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("AddMport after Close = %v, want ErrClosed", err)
	}
	for _, m := range all {
		select {
		case <-m.Done():
		default:
			t.Errorf("%s is not done after Close", m.Name())
		}
	}
}

// A port that is gone for good leaves, with all that it reached.
func TestPortGoes(t *testing.T) {
	r := newRig(t, Small, 3)
	d := r.device("00:e:0002")
	r.f.ports[0].die()
	<-d.Gone()
	<-r.m.Done()
	eventually(t, "no port, no net", func() bool { return len(r.b.Mports()) == 0 && len(r.b.Nets()) == 0 })
	if n := r.log.count("RIO: master port 0, rapidio0: pe0: unplugged: device gone"); n != 1 {
		t.Errorf("%d lines, want 1: %s", n, r.log.b.String())
	}
	n := r.b.AddNet(r.m)
	if err := n.AddDevice(&Device{}); !errors.Is(err, bus.ErrGone) || len(r.b.Nets()) != 0 {
		t.Errorf("AddDevice to the net of a port that is gone = %v, want ErrGone", err)
	}
}

func TestScan(t *testing.T) {
	r := newRig(t, Small, 4)
	if err := r.b.Scan(t.Context(), 5); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Scan(5) = %v, want ErrGone", err)
	}
	none, err := r.b.AddMport(t.Context(), r.f.ports[1], MportOptions{Host: -1})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.b.Scan(t.Context(), none.ID()); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Scan without an enumerator = %v, want ErrNotSupported", err)
	}
	r.b.RemoveMport(none)
	// Two scans of a port, one after the other.
	var running, most atomic.Int32
	r.scan.fail = errors.New("enough")
	r.scan.during = func(context.Context) {
		most.Store(max(most.Load(), running.Add(1)))
		running.Add(-1)
	}
	errs := make(chan error)
	for range 4 {
		go func() { errs <- r.b.Scan(t.Context(), 0) }()
	}
	for range 4 {
		if err := <-errs; err == nil || err.Error() != "rapidio0: enumerating: enough" {
			t.Errorf("Scan = %v", err)
		}
	}
	if most.Load() != 1 {
		t.Errorf("%d scans of one port at a time, want 1", most.Load())
	}
	// Whoever waits for another scan gives up with its context, and a port that goes ends its scan.
	in := make(chan struct{})
	r.scan.during = func(ctx context.Context) { close(in); <-ctx.Done() }
	r.scan.fail = nil
	go func() { errs <- r.b.Scan(t.Context(), 0) }()
	<-in
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.b.Scan(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("Scan with an ended context = %v", err)
	}
	r.b.RemoveMport(r.m)
	if err := <-errs; !errors.Is(err, bus.ErrGone) {
		t.Errorf("Scan of a port that went = %v, want ErrGone", err)
	}
}

func TestEvents(t *testing.T) {
	r := newRig(t, Small, 2)
	r.f.ports[0].tell(func(e Events) { e.Link(false); e.Link(true); e.ConfigWritten() })
	if !slices.Equal(r.scan.links, []bool{false, true}) || r.scan.wrote != 1 || r.m.Stats().LinkChanges != 2 {
		t.Errorf("the enumerator was told of links %v, %d writes, want false, true, 1", r.scan.links, r.scan.wrote)
	}
	r.b.RemoveMport(r.m)
	r.f.ports[0].tell(func(e Events) { e.Link(false); e.ConfigWritten(); e.Doorbell(1, 1); e.PortWrite(make([]byte, 16)) })
	if len(r.scan.links) != 2 || r.scan.wrote != 1 || len(r.scan.pws) != 0 {
		t.Error("a port out of service tells of events")
	}
	if r.scan.left != 1 {
		t.Errorf("the enumerator was told %d times that the port left, want 1", r.scan.left)
	}
}

func TestUevents(t *testing.T) {
	r := newRig(t, Small, 2)
	drv := (&recorder{}).driver("rec", ID{modelVendor, modelEndpoint, AnyID, AnyID})
	if err := r.b.Register(drv); err != nil {
		t.Fatal(err)
	}
	if err := r.write("/sys/bus/rapidio/devices/00:e:0002/uevent", "change\n"); err != nil {
		t.Error(err)
	}
	r.b.Unregister(drv)
	r.b.RemoveMport(r.m)
	const port = "/devices/virtual/rapidio_port/rapidio0"
	const sw, ep = " MODALIAS=rapidio:v0038d0500av0038ad0003", " MODALIAS=rapidio:v0038d0721av0038ad0001"
	want := []string{
		"add " + port + " rapidio_port",
		"add " + port + "/rnet_0/00:s:0000 rapidio" + sw,
		"add " + port + "/rnet_0/00:e:0002 rapidio" + ep,
		"bind " + port + "/rnet_0/00:e:0002 rapidio DRIVER=rec" + ep,
		"change " + port + "/rnet_0/00:e:0002 rapidio SYNTH_UUID=0 DRIVER=rec" + ep,
		"unbind " + port + "/rnet_0/00:e:0002 rapidio" + ep,
		"remove " + port + "/rnet_0/00:e:0002 rapidio" + ep,
		"remove " + port + "/rnet_0/00:s:0000 rapidio" + sw,
		"remove " + port + " rapidio_port",
	}
	var got []string
	events, _ := r.events.Read(0)
	for _, e := range events {
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", e.Action, e.Devpath, e.Subsystem, strings.Join(e.Env, " "))))
	}
	if !slices.Equal(got, want) {
		t.Errorf("events:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A thousand devices behind one switch: adding them takes no time that grows with their square to speak of.
func BenchmarkAddDevices(b *testing.B) {
	for range b.N {
		bus := NewBus(BusOptions{})
		m, err := bus.AddMport(b.Context(), newModel(Large, 1).ports[0], MportOptions{Host: 0})
		if err != nil {
			b.Fatal(err)
		}
		n := bus.AddNet(m)
		for i := range 1000 {
			if err := n.AddDevice(&Device{Tag: uint32(i), DestID: DestID(i)}); err != nil {
				b.Fatal(err)
			}
		}
		bus.Close()
	}
}

// A device that is reached by another way stays what it is.
func TestMove(t *testing.T) {
	r := newRig(t, Small, 3)
	sw, ep := r.device("00:s:0000"), r.device("00:e:0002")
	n := sw.Net
	n.Move(sw, 2, 1, ep)
	n.Move(ep, 2, 1, nil)
	if dest, hop, prev := sw.Way(); dest != 2 || hop != 1 || prev != ep {
		t.Errorf("Way() = %d, %d, %v, want 2, 1, %v", dest, hop, prev, ep)
	}
	if dest, hop, prev := ep.Way(); dest != 1 || hop != 0xff || prev != nil {
		t.Errorf("Way() of an endpoint = %d, %d, %v, want 1, 255, nil", dest, hop, prev)
	}
	for at, want := range map[string]string{"00:s:0000/destid": "0x0002\n", "00:s:0000/hopcount": "0x01\n", "00:s:0000/lprev": "00:e:0002\n", "00:e:0002/destid": "0x0001\n", "00:e:0002/lprev": "root\n"} {
		if got, err := r.read("/sys/bus/rapidio/devices/" + at); got != want || err != nil {
			t.Errorf("%s after Move = %q, %v, want %q", at, got, err, want)
		}
	}
	if v, err := sw.Read32(t.Context(), RegDeviceID); v != modelEndpoint<<16|modelVendor || err != nil {
		t.Errorf("Read32 = %#x, %v, want the endpoint that is there now", v, err)
	}
}
