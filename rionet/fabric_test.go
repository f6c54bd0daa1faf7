package rionet

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// patience bounds every wait of the tests.
const patience = 30 * time.Second

// world is a fabric, whose device IDs and routes the test writes itself, so that it can say who finds whom and when.
type world struct {
	t    testing.TB
	f    *fabric.Fabric
	wrap func(rapidio.Ops) rapidio.Ops // what the next nodes' ports are given in place of the fabric's; nil: these
}

// wrapped is a port of the fabric, of which a test's port changes something.
type wrapped struct{ rapidio.Ops }

func (w wrapped) Close() error { return w.Ops.(interface{ Close() error }).Close() }

// star has endpoints pe0, pe1 and so on at one switch; options stand in the first endpoint's link.
func star(n int, options string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "switches: [{name: sw0, ports: %d, kind: standard}]\nendpoints:\n", n)
	for i := range n {
		fmt.Fprintf(&s, "  - {name: pe%d}\n", i)
	}
	s.WriteString("links:\n")
	for i := range n {
		if i == 0 && options != "" {
			fmt.Fprintf(&s, "  - {ends: [pe0, \"sw0:0\"], %s}\n", options)
			continue
		}
		fmt.Fprintf(&s, "  - [pe%d, \"sw0:%d\"]\n", i, i)
	}
	return s.String()
}

// direct is two endpoints that are linked to each other.
const direct = "endpoints: [{name: pe0}, {name: pe1}]\nlinks: [[pe0, pe1]]\n"

func newWorld(t testing.TB, yaml string) *world {
	t.Helper()
	topo, err := fabric.Parse("test.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, f: fabric.New(topo, fabric.Options{Log: logOf(t)})}
}

// logOf is the test's log. A fuzz test's is none: nothing may be logged to it while it runs.
func logOf(t testing.TB) *slog.Logger {
	if _, ok := t.(*testing.F); ok {
		return slog.New(slog.DiscardHandler)
	}
	return bustest.Log(t)
}

// node is a process on the fabric: a bus with one port.
type node struct {
	w      *world
	id     rapidio.DestID
	ops    io.Closer
	bus    *rapidio.Bus
	port   *rapidio.Mport
	net    *rapidio.Net
	driver *Driver
	found  map[rapidio.DestID]*rapidio.Device
}

// node attaches pe<i>, which has the device ID i+1.
func (w *world) node(i int) *node {
	w.t.Helper()
	port, err := w.f.Mport(fmt.Sprintf("pe%d", i))
	if err != nil {
		w.t.Fatal(err)
	}
	var ops rapidio.Ops = port
	if w.wrap != nil {
		ops = w.wrap(port)
	}
	n := w.on(i, ops)
	n.ops = port
	return n
}

// on is a node on a port, which has no device ID yet.
func (w *world) on(i int, ops rapidio.Ops) *node {
	w.t.Helper()
	n := &node{w: w, id: rapidio.DestID(i + 1), driver: NewDriver(), found: make(map[rapidio.DestID]*rapidio.Device)}
	n.bus = rapidio.NewBus(rapidio.BusOptions{Log: logOf(w.t)})
	var err error
	if n.port, err = n.bus.AddMport(context.Background(), ops, rapidio.MportOptions{Host: -1}); err != nil {
		w.t.Fatal(err)
	}
	n.ops, _ = ops.(io.Closer)
	w.t.Cleanup(n.kill)
	if err := n.bus.Register(n.driver.Rapidio()); err != nil {
		w.t.Fatal(err)
	}
	n.net = n.bus.AddNet(n.port)
	n.number()
	return n
}

// number gives the port its ID.
func (n *node) number() {
	n.w.t.Helper()
	if err := n.port.LocalWrite32(context.Background(), rapidio.RegBaseDeviceID, n.port.IDs().Reg(n.id)); err != nil {
		n.w.t.Fatal(err)
	}
}

// kill ends the process without a word.
func (n *node) kill() {
	_ = n.ops.Close()
	n.bus.Close()
}

// route lets the switch that is next to n send the IDs 1 to ports to ports 0 and so on.
func (n *node) route(ports int) {
	n.w.t.Helper()
	sw := rapidio.Remote{Mport: n.port, Dest: n.port.IDs().Any()}
	for i := range ports {
		for _, r := range []struct {
			off rapidio.Off
			v   uint32
		}{{rapidio.RegRouteDestID, uint32(i + 1)}, {rapidio.RegRoutePort, uint32(i)}} {
			eventually(n.w.t, "a route is written, over a link that may lose something", func() bool {
				return sw.Write32(context.Background(), r.off, r.v) == nil
			})
		}
	}
}

// find adds what n reaches as id to its net.
func (n *node) find(id rapidio.DestID) {
	n.w.t.Helper()
	dev := n.read(id)
	n.net.AddDevice(dev)
	n.found[id] = dev
}

// read is what n reaches as id, which is not in its net yet.
func (n *node) read(id rapidio.DestID) *rapidio.Device {
	n.w.t.Helper()
	var dev *rapidio.Device
	eventually(n.w.t, "the device is read, over a link that may lose something", func() bool {
		var err error
		dev, err = rapidio.ReadDevice(context.Background(), rapidio.Remote{Mport: n.port, Dest: id, Hop: 0xff})
		return err == nil
	})
	dev.Mport, dev.DestID, dev.Tag = n.port, id, uint32(id)
	return dev
}

// open makes n's network device.
func (n *node) open(o Options) *Device {
	n.w.t.Helper()
	d, err := n.tryOpen(o)
	if err != nil {
		n.w.t.Fatal(err)
	}
	return d
}

func (n *node) tryOpen(o Options) (*Device, error) {
	o.Name, o.Driver, o.Log = fmt.Sprintf("rio%d", n.id-1), n.driver, logOf(n.w.t)
	d, err := New(n.port, o)
	if err == nil {
		n.w.t.Cleanup(func() {
			if err := d.Close(); err != nil {
				n.w.t.Errorf("Close of %s = %v", o.Name, err)
			}
		})
	}
	return d, err
}

// stars attaches n nodes at one switch, which all know each other.
func stars(t testing.TB, n int, options string) []*node {
	t.Helper()
	w := newWorld(t, star(n, options))
	nodes := make([]*node, n)
	for i := range nodes {
		nodes[i] = w.node(i)
	}
	meet(nodes)
	return nodes
}

// meet has the first of the nodes at a star's switch write the routes, and each find the others.
func meet(nodes []*node) {
	nodes[0].route(len(nodes))
	for _, a := range nodes {
		for _, b := range nodes {
			if a != b {
				a.find(b.id)
			}
		}
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// state is what d says of a peer: "active exact", "active", "inactive", "none".
func state(d *Device, id rapidio.DestID) string {
	for _, p := range d.Peers() {
		switch {
		case p.ID != id:
		case p.Active && p.Exact:
			return "active exact"
		case p.Active:
			return "active"
		default:
			return "inactive"
		}
	}
	return "none"
}

// knows waits until d says that of a peer.
func knows(t testing.TB, d *Device, id rapidio.DestID, want string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s takes destid %d for %s, is %s", d.name, id, want, state(d, id)), func() bool { return state(d, id) == want })
}

// addr is a node's address.
func addr(id rapidio.DestID) []byte { return []byte{0, 1, 0, 1, byte(id >> 8), byte(id)} }

// frame writes a frame of n bytes into b.
func frame(b *dma.Buf, to, from []byte, seq, n int) {
	b.Data = b.Mem[:n]
	for i := range b.Data {
		b.Data[i] = byte(seq + i)
	}
	copy(b.Data, to)
	copy(b.Data[6:], from)
	binary.BigEndian.PutUint16(b.Data[12:], 0x88b5)
	if n >= headerLen+4 {
		binary.BigEndian.PutUint32(b.Data[headerLen:], uint32(seq))
	}
}

// sender sends frames from a device.
type sender struct {
	t    testing.TB
	d    *Device
	pool *dma.Pool
}

func newSender(t testing.TB, d *Device, bufs int) *sender {
	t.Helper()
	pool, err := d.Tx(0).NewPool(bufs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return &sender{t, d, pool}
}

// send sends one frame, waiting for room.
func (s *sender) send(to []byte, seq, n int) {
	s.t.Helper()
	var b *dma.Buf
	eventually(s.t, "a buffer is free", func() bool { s.d.Tx(0).Reap(); b = s.pool.Get(); return b != nil })
	frame(b, to, s.d.MAC(), seq, n)
	eventually(s.t, "the frame is taken", func() bool { return s.d.Tx(0).Burst([]*dma.Buf{b}) == 1 })
}

func (s *sender) drain() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.d.Tx(0).Drain(ctx); err != nil {
		s.t.Errorf("Drain = %v, want nil", err)
	}
	if n := s.d.Tx(0).Reap(); n != 0 || s.pool.Free() != s.pool.Len() {
		s.t.Errorf("after Drain: %d in flight, %d of %d buffers free", n, s.pool.Free(), s.pool.Len())
	}
}

// receive takes n frames.
func receive(t testing.TB, d *Device, n int, f func(frame []byte)) {
	t.Helper()
	var bufs [netdev.Budget]*dma.Buf
	for end := time.Now().Add(patience); n > 0; {
		k := d.Rx(0).Burst(bufs[:min(n, len(bufs))])
		for _, b := range bufs[:k] {
			f(b.Data)
			b.Free()
		}
		if n -= k; k == 0 {
			if time.Now().After(end) {
				t.Fatalf("%s: %d frames did not arrive within %s", d.name, n, patience)
			}
			runtime.Gosched()
		}
	}
}

// takeSome takes what there is.
func (d *Device) takeSome() []*dma.Buf {
	var bufs [8]*dma.Buf
	return bufs[:d.Rx(0).Burst(bufs[:])]
}

// silence checks that nothing more came.
func silence(t testing.TB, d *Device) {
	t.Helper()
	var bufs [4]*dma.Buf
	for _, b := range bufs[:d.Rx(0).Burst(bufs[:])] {
		t.Errorf("%s: one frame of %d bytes too many: % x", d.name, len(b.Data), b.Data[:min(len(b.Data), 24)])
		b.Free()
	}
}
