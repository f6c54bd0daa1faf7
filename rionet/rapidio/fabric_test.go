package rapidio_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/rapidio/scan"
	"github.com/ring3dev/ring3/sysfs"
)

// node is an endpoint of a fabric with a bus of its own, as a process has it.
type node struct {
	bus  *rapidio.Bus
	ops  *fabric.Mport
	port *rapidio.Mport
}

func join(t *testing.T, f *fabric.Fabric, name string, id rapidio.DestID) *node {
	t.Helper()
	n := enter(t, f, name, -1)
	if err := n.port.LocalWrite32(t.Context(), rapidio.RegBaseDeviceID, n.port.IDs().Reg(id)); err != nil {
		t.Fatal(err)
	}
	return n
}

// enter is join for nodes that will be numbered: a host, whose ID is given, or -1.
func enter(t *testing.T, f *fabric.Fabric, name string, host int) *node {
	t.Helper()
	ops, err := f.Mport(name)
	if err != nil {
		t.Fatal(err)
	}
	b := rapidio.NewBus(rapidio.BusOptions{})
	s := scan.New(b, scan.Options{})
	m, err := b.AddMport(t.Context(), ops, rapidio.MportOptions{Host: host, Scan: s})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.Close()
		if err := ops.Close(); err != nil {
			t.Error(err)
		}
		s.Wait()
	})
	return &node{b, ops, m}
}

// pair is two endpoints that are linked, one of which knows the other as a device.
func pair(t *testing.T) (f *fabric.Fabric, a, b *node, d *rapidio.Device) {
	t.Helper()
	topo, err := fabric.Parse("pair.yaml", []byte("endpoints: [{name: pe0}, {name: pe1}]\nlinks: [[pe0, pe1]]\n"))
	if err != nil {
		t.Fatal(err)
	}
	f = fabric.New(topo, fabric.Options{})
	a, b = join(t, f, "pe0", 0), join(t, f, "pe1", 1)
	d, err = rapidio.ReadDevice(t.Context(), rapidio.Remote{Mport: a.port, Dest: 1})
	if err != nil {
		t.Fatal(err)
	}
	d.DestID, d.Tag = 1, 1
	if err := a.bus.AddNet(a.port).AddDevice(d); err != nil {
		t.Fatal(err)
	}
	return f, a, b, d
}

func soon(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: it did not come to that", what)
		}
	}
}

func TestOverFabric(t *testing.T) {
	_, _, b, d := pair(t)
	ctx := t.Context()
	if d.IsSwitch() || d.PHY == 0 || d.SrcOps&rapidio.OpMessage == 0 || d.PEF&rapidio.PEFDoorbell == 0 {
		t.Errorf("ReadDevice() = %+v", d)
	}
	if err := d.SendDoorbell(ctx, 7); !errors.Is(err, rapidio.ErrResponse) {
		t.Errorf("SendDoorbell to closed doorbells = %v, want an error response", err)
	}
	rung := make(chan string, 1)
	release, err := b.port.RequestInbDoorbell("test", 7, 7, func(src rapidio.DestID, info uint16) { rung <- fmt.Sprint(src, info) })
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SendDoorbell(ctx, 7); err != nil {
		t.Errorf("SendDoorbell = %v", err)
	}
	if got := <-rung; got != "0 7" {
		t.Errorf("doorbell from and with %s, want 0 7", got)
	}
	release()
	if err := d.SendDoorbell(ctx, 7); !errors.Is(err, rapidio.ErrResponse) {
		t.Errorf("SendDoorbell after the release = %v, want an error response", err)
	}
	if err := d.Write32(ctx, rapidio.RegComponentTag, 0x1234); err != nil {
		t.Error(err)
	}
	if v, err := b.port.LocalRead(ctx, rapidio.RegComponentTag+2, 1); v != 0x12 || err != nil {
		t.Errorf("LocalRead = %#x, %v, want 0x12", v, err)
	}
	if err := b.ops.Close(); err != nil {
		t.Error(err)
	}
	<-b.port.Done()
	if _, err := d.Read32(ctx, 0); err == nil {
		t.Error("Read32 of an endpoint that left succeeded")
	}
	if _, err := b.port.LocalRead32(ctx, 0); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("LocalRead32 of a closed port = %v, want ErrClosed", err)
	}
}

// Messages by callbacks, more of them than there is room for at either end.
func TestMailboxFuncsOverFabric(t *testing.T) {
	_, a, b, _ := pair(t)
	const n = 2000
	var mu sync.Mutex
	var got, sent, done int
	room := make([]byte, rapidio.MaxMessage)
	stop, err := b.port.RequestInbMboxFunc("receiver", 1, 16, func(i rapidio.Inbox) {
		for {
			msgs := [1]rapidio.Message{{Data: room}}
			if i.Get(msgs[:]) == 0 {
				return
			}
			mu.Lock()
			if want := fmt.Sprint(got); string(msgs[0].Data) != want || msgs[0].Peer != 0 {
				t.Errorf("message %q from %d, want %s from 0", msgs[0].Data, msgs[0].Peer, want)
			}
			got++
			mu.Unlock()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	kick, end, err := a.port.RequestOutbMboxFunc("sender", 1, 8, func(o rapidio.Outbox) {
		mu.Lock()
		defer mu.Unlock()
		var st [8]rapidio.Status
		retry := 0
		for _, s := range st[:o.Results(st[:])] {
			if s == rapidio.Retry {
				retry++
			} else {
				done++
			}
		}
		// What found no room is sent again, after the next kick; since only one is under way there is no order to keep.
		sent -= retry
		if retry == 0 && o.InFlight() == 0 && sent < n {
			sent += o.Add([]rapidio.Message{{Peer: 1, Mbox: 1, Data: []byte(fmt.Sprint(sent))}})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	soon(t, "all messages arrived", func() bool {
		kick()
		mu.Lock()
		defer mu.Unlock()
		return got == n && done == n
	})
}

// The example of the 2005 paper (3.5): four processors at a switch, the first of which enumerates. Its files, and those of one
// that discovered.
func TestPaperFiles(t *testing.T) {
	topo, err := fabric.Parse("paper.yaml", []byte("switches: [{name: sw0, ports: 4, kind: standard}]\nendpoints: [{name: pe0}, {name: pe1}, {name: pe2}, {name: pe3}]\n"+
		"links: [[pe0, \"sw0:0\"], [pe1, \"sw0:1\"], [pe2, \"sw0:2\"], [pe3, \"sw0:3\"]]\n"))
	if err != nil {
		t.Fatal(err)
	}
	f := fabric.New(topo, fabric.Options{})
	var nodes []*node
	for i := range 4 {
		nodes = append(nodes, enter(t, f, fmt.Sprint("pe", i), map[bool]int{true: 0, false: -1}[i == 0]))
	}
	for _, n := range nodes[:3] { // the last one never looks
		write(t, n, "scan", "-1\n")
	}
	devices := func(n *node) string {
		return strings.Join(n.bus.SysfsBus().MkdirAll("devices").Names(), " ")
	}
	if got, want := devices(nodes[0]), "00:e:0003 00:e:0004 00:e:0005 00:s:0002"; got != want {
		t.Errorf("the host's devices = %s, want %s", got, want)
	}
	// Component tag 1 is the host's own.
	if got, want := devices(nodes[2]), "00:e:0001 00:e:0003 00:e:0005 00:s:0002"; got != want {
		t.Errorf("the devices of the third = %s, want %s", got, want)
	}
	for _, c := range []struct {
		node     int
		at, want string
	}{
		{0, "00:s:0002/routes", "0000 00\n0001 01\n0002 02\n0003 03\n"},
		{0, "00:s:0002/lnext", "null\n00:e:0003\n00:e:0004\n00:e:0005\n"},
		{0, "00:s:0002/hopcount", "0x00\n"},
		{0, "00:e:0003/destid", "0x0001\n"}, {0, "00:e:0004/destid", "0x0002\n"}, {0, "00:e:0005/destid", "0x0003\n"},
		{0, "00:e:0005/lprev", "00:s:0002\n"},
		{2, "00:s:0002/lnext", "00:e:0001\n00:e:0003\nnull\n00:e:0005\n"},
		{2, "00:s:0002/routes", "0000 00\n0001 01\n0002 02\n0003 03\n"},
	} {
		if got := show(t, nodes[c.node], c.at); got != c.want {
			t.Errorf("node %d: %s = %q, want %q", c.node, c.at, got, c.want)
		}
	}
}

// show reads a file of a device.
func show(t *testing.T, n *node, at string) string {
	t.Helper()
	dir, name, _ := strings.Cut(at, "/")
	d, ok := n.port.SysfsDevices().MkdirAll(n.port.Net().Name()).Lookup(dir).(*sysfs.Dir)
	if !ok {
		t.Fatalf("%s: no such device", at)
	}
	b, err := d.Lookup(name).(*sysfs.File).ReadAll()
	if err != nil {
		t.Errorf("%s: %v", at, err)
	}
	return string(b)
}

// write writes to a file of the bus.
func write(t *testing.T, n *node, name, s string) {
	t.Helper()
	if got, err := n.bus.SysfsBus().Lookup(name).(*sysfs.File).Write(t.Context(), []byte(s)); got != len(s) || err != nil {
		t.Fatalf("writing %q to %s = %d, %v", s, name, got, err)
	}
}
