package host

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/fabricd"
	"github.com/ring3dev/ring3/rionet/mport"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/sysfs"
)

// runFabric runs a fabric of pe0 and pe1 at a socket.
func runFabric(t *testing.T, socket, ids string) *fabricd.Server {
	t.Helper()
	topo, err := fabric.Parse("test", []byte("ids: "+ids+"\nswitches: [{name: sw0, ports: 2}]\nendpoints: [{name: pe0}, {name: pe1}]\nlinks: [[pe0, \"sw0:0\"], [pe1, \"sw0:1\"]]\n"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := fabricd.Open(fabricd.Config{Topology: topo, Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// rioSystem is a System with one node.
func rioSystem(t *testing.T, device string) *System {
	t.Helper()
	return rioSystemOf(t, device, mport.Driver, nil)
}

// rioSystemOf is one with a driver of the test's, and a log.
func rioSystemOf(t *testing.T, device string, driver *pci.Driver, log *slog.Logger) *System {
	t.Helper()
	p, err := ParsePlan([]string{device}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSystem(t.Context(), Config{Plan: p, Drivers: []*pci.Driver{driver}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return s
}

// mutePort is a master port whose fabric does not answer now and then.
type mutePort struct {
	*mport.Port
	doorbells *atomic.Int32 // how often letting doorbells in is not answered
	mute      *atomic.Bool  // nothing is
}

func (p mutePort) OpenDoorbells(open bool) error {
	if open && p.doorbells.Add(-1) >= 0 {
		return rapidio.ErrNoReply
	}
	return p.Port.OpenDoorbells(open)
}

func (p mutePort) LocalRead(ctx context.Context, off rapidio.Off, w rapidio.Width) (uint32, error) {
	if p.mute.Load() {
		return 0, rapidio.ErrNoReply
	}
	return p.Port.LocalRead(ctx, off, w)
}

// muteDriver makes such ports.
func muteDriver(port mutePort) *pci.Driver {
	d := *mport.Driver
	d.Probe = func(ctx context.Context, dev bus.Device, env pci.Env) (pci.Instance, error) {
		i, err := mport.Driver.Probe(ctx, dev, env)
		if err != nil {
			return nil, err
		}
		p := port
		p.Port = i.(*mport.Port)
		return p, nil
	}
	return &d
}

// TestFabricAnswersLate: what the fabric does not answer once is asked again, and it is said that it does not answer.
func TestFabricAnswersLate(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "f.sock")
	runFabric(t, socket, "8")
	port := mutePort{doorbells: new(atomic.Int32), mute: new(atomic.Bool)}
	port.doorbells.Store(2)
	var said lockedBuffer
	s := rioSystemOf(t, "rio0=fabric:"+socket+",node=pe0,host=0", muteDriver(port), slog.New(slog.NewTextHandler(&said, nil)))
	await(t, "it has a network device", func() bool { return rio0(s).MAC == "00:01:00:01:00:00" })
	if n := port.doorbells.Load(); n >= 0 {
		t.Errorf("letting doorbells in = %d tries left that fail, want that it was tried again", n)
	}
	port.mute.Store(true)
	await(t, "its cause says so", func() bool {
		d := rio0(s)
		return d.State == stateUp && strings.Contains(d.Cause, "does not answer")
	})
	port.mute.Store(false)
	await(t, "it has no cause any more", func() bool { return rio0(s).Cause == "" })
	if n := strings.Count(said.String(), "rio0: its fabric does not answer"); n != 1 {
		t.Errorf("lines that the fabric does not answer = %d, want 1, in %s", n, said.String())
	}
}

// lockedBuffer is a buffer for a log.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// await waits for something that others do.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waiting until %s: it took more than 30s", what)
		}
	}
}

// rio0 is the device of a System as it is now.
func rio0(s *System) DeviceInfo { return s.Devices()[0] }

func linked(s *System) func() bool {
	return func() bool { d := rio0(s); return d.State == stateUp && d.Link != "" && d.Link != "down" }
}

func TestFabric(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "f.sock")
	server := runFabric(t, socket, "8")
	node := rioSystem(t, "rio0=fabric:"+socket+",node=pe1,window=64K")
	if d := rio0(node); d.MAC != "" || d.State != stateUp || d.Cause != waiting {
		t.Errorf("a node without a host = %+v, want no MAC and that it waits", d)
	}
	host := rioSystem(t, "rio0=fabric:"+socket+",node=pe0,host=0")
	if d := rio0(host); d.MAC != "00:01:00:01:00:00" || d.Driver != "rionet" || d.State != stateUp || d.Cause != "" {
		t.Errorf("the host after its start = %+v, want rionet with the ID 0", d)
	}
	await(t, "the node has a network device", func() bool { return rio0(node).MAC == "00:01:00:01:00:01" })
	await(t, "the links are up", func() bool { return linked(host)() && linked(node)() })
	at := "/devices/virtual/rapidio_port/rapidio0/net/rio0"
	for _, dir := range []string{at, "/class/net", "/bus/rapidio/devices", "/class/rapidio_port"} {
		await(t, "/sys"+dir+" has something", func() bool { return len(node.tree.sys.MkdirAll(strings.TrimPrefix(dir, "/")).Names()) > 0 })
	}

	if err := node.suspend(t.Context(), "rio0"); !errors.Is(err, bus.ErrNotSupported) || !strings.Contains(err.Error(), "suspending rio0: a node of a RapidIO fabric") {
		t.Errorf("suspending a node = %v, want that it is refused", err)
	}
	if err := node.resume(t.Context(), "rio0"); err == nil || rio0(node).State != stateUp {
		t.Errorf("resuming a node that is up = %v, want an error", err)
	}

	// The network device stays while the fabric is gone.
	net := node.boundOf("rio0").net
	if err := server.Close(); err != nil {
		t.Errorf("closing the fabric: %v", err)
	}
	await(t, "the node misses its fabric", func() bool { d := rio0(node); return d.State == stateJoining && d.Cause != "" && d.Link == "down" })
	if err := node.suspend(t.Context(), "rio0"); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("suspending a node without its fabric = %v, want that it is refused", err)
	}
	runFabric(t, socket, "8")
	await(t, "both are back", func() bool { return linked(host)() && linked(node)() })
	if now := node.boundOf("rio0").net; now != net {
		t.Errorf("the network device is another one after the fabric came back")
	}

	// With another ID it is another one.
	from, ctx := host.boundOf("rio0").rio.port, t.Context()
	await(t, "the node has another ID", func() bool {
		return from.Write32(ctx, 1, 0xff, rapidio.RegBaseDeviceID, rapidio.Small.Reg(9)) == nil
	})
	await(t, "the network device follows", func() bool { b := node.boundOf("rio0"); return b.net != nil && b.net != net })
}

// TestWindowJoinsLast has the node with a window join when the host is there already, again and again: whoever shows its device may be
// sooner or later than the fabric's news.
func TestWindowJoinsLast(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "f.sock")
	runFabric(t, socket, "8")
	host := rioSystem(t, "rio0=fabric:"+socket+",node=pe0,host=0")
	net := host.tree.sys.MkdirAll("devices/virtual/rapidio_port/rapidio0/rnet_0")
	windows := func() (n int) {
		for _, name := range net.Names() {
			if d, ok := net.Lookup(name).(*sysfs.Dir); ok && d.Lookup("window0") != nil {
				n++
			}
		}
		return n
	}
	for range 5 {
		node := rioSystem(t, "rio0=fabric:"+socket+",node=pe1,window=64K")
		await(t, "the host sees the node's window", func() bool { return windows() == 1 })
		if err := node.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
		await(t, "the node's window is gone", func() bool { return windows() == 0 })
	}
}

func TestFabricRefuses(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "f.sock")
	server := runFabric(t, socket, "8")
	s := rioSystem(t, "rio0=fabric:"+socket+",node=pe0,host=3,ids=8")
	for device, want := range map[string]string{
		"rio0=fabric:" + socket + ",node=pe0":                        "pe0",
		"rio0=fabric:" + socket + ",node=pe9":                        "pe9",
		"rio0=fabric:" + socket + ",node=pe1,ids=16":                 "16",
		"rio0=fabric:" + socket + ",node=pe1,host=255":               "want a device ID, 0 to 0xfe",
		"rio0=fabric:" + socket + "x,node=pe1":                       "no fabric at",
		"rio0=qemu:ivshmem-doorbell,fabric=" + socket + ",node=pe9":  "has no endpoint pe9",
		"rio0=qemu:ivshmem-doorbell,fabric=" + socket + "x,node=pe1": "no fabric at",
	} {
		p, err := ParsePlan([]string{device}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = NewSystem(t.Context(), Config{Plan: p, Drivers: []*pci.Driver{mport.Driver}})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("NewSystem of %s = %v, want one line with %q", device, err, want)
		}
	}
	// What came back is another fabric: the node stays out, and says why.
	if err := server.Close(); err != nil {
		t.Errorf("closing the fabric: %v", err)
	}
	runFabric(t, socket, "16")
	await(t, "the node says why", func() bool { d := rio0(s); return d.State == stateJoining && strings.Contains(d.Cause, "16") })
}

// TestFabricInterrupted ends a System while it joins again, and one that starts.
func TestFabricInterrupted(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "f.sock")
	server := runFabric(t, socket, "8")
	s := rioSystem(t, "rio0=fabric:"+socket+",node=pe0,host=0")
	if err := server.Close(); err != nil {
		t.Errorf("closing the fabric: %v", err)
	}
	await(t, "the node misses its fabric", func() bool { return rio0(s).State == stateJoining })
	if err := s.Close(); err != nil {
		t.Errorf("Close while joining again = %v", err)
	}
	runFabric(t, socket, "8")
	p, err := ParsePlan([]string{"rio0=fabric:" + socket + ",node=pe1"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := NewSystem(ctx, Config{Plan: p, Drivers: []*pci.Driver{mport.Driver}}); !errors.Is(err, context.Canceled) {
		t.Errorf("NewSystem that is interrupted while it waits for a host = %v, want %v", err, context.Canceled)
	}
}
