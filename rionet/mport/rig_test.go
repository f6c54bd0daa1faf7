package mport

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/ivshmem"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/fabricd"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

const topology = `
switches: [{name: sw0, ports: 4}]
endpoints: [{name: pe0}, {name: pe1}, {name: pe2}]
links: [[pe0, "sw0:0"], [pe1, "sw0:1"], [pe2, "sw0:2"]]
`

const trusting = `
switches: [{name: sw0, ports: 4}]
endpoints: [{name: pe0}, {name: pe1}, {name: pe2}]
links: [[pe0, "sw0:0"], [pe1, "sw0:1"], [pe2, "sw0:2"], {ends: [pe0, pe1], trust: true}]
`

// way is how a port reaches its device.
type way struct {
	name string
	wrap func(bus.Device) bus.Device
}

var ways = []way{
	{"mapped", func(d bus.Device) bus.Device { return d }},
	{"copied", func(d bus.Device) bus.Device { return copied{d, 0} }},
	{"one vector", func(d bus.Device) bus.Device { return copied{d, 1} }},
}

// copied is a device whose memory cannot be held, and that may have fewer vectors.
type copied struct {
	bus.Device
	vectors int // 0: as many as there are
}

func (c copied) HardwareIDs() []string { return bus.HardwareIDs(c.Device) }

func (c copied) IRQVectors(m bus.IRQMode) int {
	n := c.Device.IRQVectors(m)
	if c.vectors > 0 {
		n = min(n, c.vectors)
	}
	return n
}

func (c copied) Region(i int) (bus.Region, error) {
	r, err := c.Device.Region(i)
	if err != nil || i == 0 {
		return r, err
	}
	return struct {
		bus.Region
		bus.Copier
	}{r, r.(bus.Copier)}, nil
}

// patience bounds every wait for what must happen.
const patience = 30 * time.Second

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// serve has a daemon serve a topology.
func serve(t testing.TB, topo string) (path string, s *fabricd.Server) {
	t.Helper()
	x, err := fabric.Parse("test.yaml", []byte(topo))
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "fabric.sock")
	if s, err = fabricd.Open(fabricd.Config{Topology: x, Socket: path}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return path, s
}

// device joins as a node.
func device(t testing.TB, path, node string) *ivshmem.Device {
	t.Helper()
	conn, _, err := fabricd.Join(t.Context(), path, fabricd.Request{Node: node})
	if err != nil {
		t.Fatal(err)
	}
	return opened(t, conn)
}

func opened(t testing.TB, conn *net.UnixConn) *ivshmem.Device {
	t.Helper()
	d, err := ivshmem.Open(t.Context(), conn, ivshmem.Options{Vectors: shm.NumVectors, Backend: "fabric"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// bind brings a port into service.
func bind(t testing.TB, d bus.Device, options map[string]string) *Port {
	t.Helper()
	r := pci.Bind(context.Background(), d, pci.Env{Name: "rio0", Options: options}, []*pci.Driver{Driver})
	if r.Outcome != pci.Bound {
		t.Fatalf("Bind = %v: %v", r.Outcome, r.Err)
	}
	p := r.Instance.(*Port)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return p
}

// join is a port of a node.
func join(t testing.TB, path, node string, w way) *Port {
	t.Helper()
	return bind(t, w.wrap(device(t, path, node)), nil)
}

// rig is three ports with the IDs 1, 2 and 3.
type rig struct {
	path string
	s    *fabricd.Server
	p    [3]*Port
}

func newRig(t testing.TB, topo string, w way) *rig {
	t.Helper()
	r := &rig{}
	r.path, r.s = serve(t, topo)
	for i, name := range []string{"pe0", "pe1", "pe2"} {
		r.p[i] = join(t, r.path, name, w)
		r.number(t, i)
	}
	return r
}

// number gives a port its ID, and its route.
func (r *rig) number(t testing.TB, i int) {
	t.Helper()
	id := uint32(i + 1)
	must(t, r.p[i].LocalWrite(t.Context(), rapidio.RegBaseDeviceID, 4, rapidio.Small.Reg(rapidio.DestID(id))))
	must(t, r.p[0].Write(t.Context(), 0xff, 0, rapidio.RegRouteDestID, 4, id))
	must(t, r.p[0].Write(t.Context(), 0xff, 0, rapidio.RegRoutePort, 4, uint32(i)))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// recorder is Events that remembers.
type recorder struct {
	mu    sync.Mutex
	bells []uint32 // source<<16 | info
	pw    []string
	links []bool
	confs int
	bell  func(src rapidio.DestID, info uint16) // called too; may be nil
}

func (r *recorder) Doorbell(src rapidio.DestID, info uint16) {
	r.mu.Lock()
	r.bells = append(r.bells, uint32(src)<<16|uint32(info))
	r.mu.Unlock()
	if r.bell != nil {
		r.bell(src, info)
	}
}

func (r *recorder) PortWrite(p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pw = append(r.pw, string(p))
}

func (r *recorder) ConfigWritten() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.confs++
}

func (r *recorder) Link(up bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.links = append(r.links, up)
}

// has says whether something of what is remembered is so.
func (r *recorder) has(f func(*recorder) bool) func() bool {
	return func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return f(r)
	}
}

// inEachWay runs a test over each way to reach a device.
func inEachWay(t *testing.T, f func(t *testing.T, w way)) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			bustest.NoLeaks(t)
			f(t, w)
		})
	}
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s = %v, want %v", what, err, want)
	}
}
