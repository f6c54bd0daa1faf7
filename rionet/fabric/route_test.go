package fabric

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

func TestTables(t *testing.T) {
	const n = 5
	f, ports := starred(t, n, "")
	for from := range n {
		for dest := range 0x100 {
			v, err := ports[from].Read(context.Background(), rapidio.DestID(dest), 1, rapidio.RegBaseDeviceID, 4)
			if dest < n {
				if err != nil || v != uint32(dest)<<16 {
					t.Errorf("pe%d: BASE_DID at %d = %#x, %v", from, dest, v, err)
				}
			} else if !errors.Is(err, rapidio.ErrResponse) {
				t.Errorf("pe%d: read of device %d, which is none: %v, want %v", from, dest, err, rapidio.ErrResponse)
			}
		}
		if got, want := ports[from].read(0xff, 0, rapidio.RegSwitchPort), uint32(n<<8|from); got != want {
			t.Errorf("pe%d: SWP_INFO = %#x, want %#x", from, got, want)
		}
	}
	s := f.Switches()[0]
	if want := uint64(n * (0x100 - n)); s.Unrouted != want {
		t.Errorf("unrouted = %d, want %d", s.Unrouted, want)
	}
	var want []SwitchRoute
	for i := range n {
		want = append(want, SwitchRoute{rapidio.DestID(i), uint8(i)})
	}
	if got := fmt.Sprint(s.Routes); got != fmt.Sprint(want) {
		t.Errorf("routes = %v, want %v", got, want)
	}
}

func TestDefaultPort(t *testing.T) {
	f, ports := starred(t, 3, "")
	a := ports[0]
	a.write(0, 0, rapidio.RegRouteDefault, 2)
	if got := a.read(0x77, 1, rapidio.RegBaseDeviceID); got != 2<<16 {
		t.Errorf("BASE_DID by the default port: %#x, want 0x20000", got)
	}
	// A message goes there too, and is not for the endpoint there.
	ports[2].inbox(2)
	if st := send(t, a.outbox(2), 0x77, []byte{1}); st != rapidio.Error {
		t.Errorf("message for another ID: %v, want error", st)
	}
	if got := f.Nodes()[2].WrongID; got != 1 {
		t.Errorf("WrongID = %d, want 1", got)
	}
	for _, port := range []uint32{3, 0xfe, 0xff} { // none of them exists
		a.write(0, 0, rapidio.RegRouteDefault, port)
		if _, err := a.Read(context.Background(), 0x77, 1, 0, 4); !errors.Is(err, rapidio.ErrResponse) {
			t.Errorf("read by port %#x: %v, want %v", port, err, rapidio.ErrResponse)
		}
	}
}

// chain is so many switches in a row, with an endpoint at each end.
func chain(n int, more string) string {
	s := "switches:\n"
	for i := range n {
		s += fmt.Sprintf("- {name: sw%d, ports: 2}\n", i)
	}
	s += "endpoints: [{name: a}, {name: b}]\nlinks:\n- {ends: [a, 'sw0:0']" + more + "}\n"
	for i := range n - 1 {
		s += fmt.Sprintf("- {ends: ['sw%d:1', 'sw%d:0']%s}\n", i, i+1, more)
	}
	return s + fmt.Sprintf("- {ends: ['sw%d:1', b]%s}\n", n-1, more)
}

// routed gives a chain routes for 1 to the left and 2 to the right.
func routed(a testPort, n int) {
	for hop := range n {
		a.write(2, uint8(hop), rapidio.RegRouteDestID, 1)
		a.write(2, uint8(hop), rapidio.RegRoutePort, 0)
		a.write(2, uint8(hop), rapidio.RegRouteDestID, 2)
		a.write(2, uint8(hop), rapidio.RegRoutePort, 1)
	}
}

func TestHops(t *testing.T) {
	const n = 255
	f := newFabric(t, chain(n, ""))
	a, b := attach(t, f, "a"), attach(t, f, "b")
	a.setID(1)
	b.setID(2)
	routed(a, n)
	for hop := range n {
		a.write(2, uint8(hop), rapidio.RegComponentTag, uint32(hop))
	}
	for hop := range n {
		if got := a.read(2, uint8(hop), rapidio.RegComponentTag); got != uint32(hop) {
			t.Errorf("tag of switch %d: %d", hop, got)
		}
		if got := b.read(1, uint8(hop), rapidio.RegComponentTag); got != uint32(n-1-hop) {
			t.Errorf("tag of switch %d from the other end: %d, want %d", hop, got, n-1-hop)
		}
	}
	if got := a.read(2, 255, rapidio.RegBaseDeviceID); got != 2<<16 {
		t.Errorf("BASE_DID behind 255 switches: %#x", got)
	}
	in := b.inbox(2)
	if st := send(t, a.outbox(2), 2, []byte("far")); st != rapidio.Done {
		t.Errorf("message through 255 switches: %v", st)
	}
	if src, data := receive(t, in); src != 1 || string(data) != "far" {
		t.Errorf("message from %d: %q", src, data)
	}
	l := f.Links()
	if got := l[100].Counts[0]; got.TxBytes != 3 || got.TxPackets != l[100].Counts[1].RxPackets {
		t.Errorf("counts of link 100: %+v", l[100])
	}
}

func TestResponseNeedsRoute(t *testing.T) {
	f := newFabric(t, chain(2, ""))
	a := attach(t, f, "a")
	a.setID(1)
	// The first switch answers through the port of the request, the second one's answer has to pass the first.
	if got := a.read(0xff, 0, rapidio.RegSwitchPort); got != 0x0200 {
		t.Errorf("SWP_INFO = %#x, want 0x200", got)
	}
	a.write(0xff, 0, rapidio.RegRouteDestID, 0xff)
	a.write(0xff, 0, rapidio.RegRoutePort, 1)
	if _, err := a.Read(context.Background(), 0xff, 1, 0, 4); !errors.Is(err, rapidio.ErrResponse) {
		t.Errorf("read whose response has no route: %v, want %v", err, rapidio.ErrResponse)
	}
	a.write(0xff, 0, rapidio.RegRouteDestID, 1)
	a.write(0xff, 0, rapidio.RegRoutePort, 0)
	if got := a.read(0xff, 1, rapidio.RegSwitchPort); got != 0x0200 {
		t.Errorf("SWP_INFO of the second switch: %#x, want 0x200", got)
	}
}

func TestTsi500(t *testing.T) {
	f := newFabric(t, "switches: [{name: s, ports: 4, kind: tsi500}]\nendpoints: [{name: a}, {name: b}, {name: c}]\n"+
		"links: [[a, 's:0'], [b, 's:1'], [c, 's:3']]")
	a, b, c := attach(t, f, "a"), attach(t, f, "b"), attach(t, f, "c")
	for i, p := range []testPort{a, b, c} {
		p.setID(rapidio.DestID(9 + i))
	}
	if got := a.read(0, 0, rapidio.RegDeviceID); got != 0x0500000d {
		t.Errorf("DEV_ID = %#x, want 0x0500000d", got)
	}
	if got := rapidio.PEF(a.read(0, 0, rapidio.RegPEF)); got&rapidio.PEFStdRoute != 0 || got&rapidio.PEFSwitch == 0 {
		t.Errorf("PEF = %#x: a switch without standard routes is wanted", uint32(got))
	}
	for table := range rapidio.Off(4) {
		for off := rapidio.Off(0); off < tsiSize; off += 4 {
			checkReg(t, "table", reg{tsiTable + table*tsiStride + off, 0xffffffff, 0xffffffff},
				func(o rapidio.Off) uint32 { return a.read(0, 0, o) }, func(o rapidio.Off, v uint32) { a.write(0, 0, o, v) })
		}
	}
	// ID 9 is in the second register, at bits 7:4. Each port has its own table.
	a.write(0, 0, tsiTable+4, 0xfffff31f)
	a.write(0, 0, tsiTable+tsiStride+4, 0xfffff30f)
	if got := a.read(9, 1, rapidio.RegBaseDeviceID); got != 10<<16 {
		t.Errorf("a reaches by ID 9, which its table sends to b: BASE_DID %#x, want 0xa0000", got)
	}
	a.write(0, 0, tsiTable+tsiStride+4, 0xfffff3ff)
	if _, err := a.Read(context.Background(), 9, 1, 0, 4); err == nil {
		t.Error("a gets an answer of b, whose table has no route for it")
	}
	a.write(0, 0, tsiTable+4, 0xffff310f)
	a.write(0, 0, tsiTable+tsiStride+4, 0xffff310f)
	a.write(0, 0, tsiTable+3*tsiStride+4, 0xffff310f)
	for i, p := range []testPort{a, b} {
		for dest := rapidio.DestID(9); dest < 12; dest++ {
			if got := p.read(dest, 1, rapidio.RegBaseDeviceID); got != uint32(dest)<<16 {
				t.Errorf("BASE_DID of %d from port %d: %#x", dest, i, got)
			}
		}
	}
	a.write(0, 0, tsiTable+3*tsiStride+4, 0xffff320f)
	if _, err := c.Read(context.Background(), 10, 1, 0, 4); err == nil {
		t.Error("c reaches b by port 2, which has no link")
	}
	if got, want := fmt.Sprint(f.Switches()[0].Routes), "[{9 0} {10 1} {11 3}]"; got != want {
		t.Errorf("routes = %v, want %v", got, want)
	}
}

func TestLoop(t *testing.T) {
	f := newFabric(t, "switches: [{name: x, ports: 3}, {name: y, ports: 3}]\nendpoints: [{name: a}, {name: b}]\n"+
		"links: [[a, 'x:0'], ['x:1', 'y:1'], ['x:2', 'y:2'], [b, 'y:0']]")
	a := attach(t, f, "a")
	a.setID(1)
	set := func(hop uint8, dest, port uint32) {
		a.write(0xff, hop, rapidio.RegRouteDestID, dest)
		a.write(0xff, hop, rapidio.RegRoutePort, port)
	}
	set(0, 1, 0)
	set(0, 0xff, 1)
	set(1, 1, 1)
	set(0, 9, 1) // x sends 9 to y, y back to x
	set(1, 9, 2)
	if st := send(t, a.outbox(2), 9, []byte{1}); st != rapidio.Error {
		t.Errorf("message into a circle: %v, want error", st)
	}
	if n := f.Switches()[0].Looped + f.Switches()[1].Looped; n != 1 {
		t.Errorf("looped = %d, want 1", n)
	}
	if got := a.read(0xff, 0, em+rapidio.EMLogDetect); got != logLoop {
		t.Errorf("LOG_DETECT = %#x, want %#x", got, logLoop)
	}
	// A maintenance request ends where its hops do, on the way.
	if got := a.read(9, 3, rapidio.RegSwitchPort); got != 0x0301 {
		t.Errorf("SWP_INFO after three hops in a circle: %#x, want 0x301", got)
	}
}

func TestLarge(t *testing.T) {
	f := newFabric(t, "ids: 16\n"+chain(2, ""))
	a, b := attach(t, f, "a"), attach(t, f, "b")
	a.setID(0x1234)
	b.setID(0xfffe)
	for hop := range uint8(2) {
		for _, r := range [][2]uint32{{0x1234, 0}, {0xfffe, 1}} {
			a.write(0xfffe, hop, rapidio.RegRouteDestID, r[0])
			a.write(0xfffe, hop, rapidio.RegRoutePort, r[1])
		}
	}
	in := b.inbox(2)
	if st := send(t, a.outbox(2), 0xfffe, []byte{1}); st != rapidio.Done {
		t.Errorf("message to 0xfffe: %v", st)
	}
	if src, _ := receive(t, in); src != 0x1234 {
		t.Errorf("message from %#x, want 0x1234", src)
	}
}

func TestAttachErrors(t *testing.T) {
	f := newFabric(t, star(9, ""))
	attach(t, f, "pe1")
	_, err := f.Mport("pe1")
	if want := "fabric: pe1 has a node already: busy"; !errors.Is(err, bus.ErrBusy) || err.Error() != want {
		t.Errorf("attaching twice: %v, want %s", err, want)
	}
	for _, name := range []string{"pe9", "sw0", ""} {
		_, err = f.Mport(name)
		if want := fmt.Sprintf("fabric: no endpoint %q; there are pe0, pe1, pe2, pe3, 5 more", name); err == nil || err.Error() != want {
			t.Errorf("attaching to %q: %v, want %s", name, err, want)
		}
	}
	if err := f.SetLink("pe1", "pe2", false); err == nil {
		t.Error("SetLink of no link: no error")
	}
	if err := f.SetLink("sw0", "pe1", false); err != nil || f.Links()[1].Up {
		t.Errorf("SetLink by a switch's name: %v, %+v", err, f.Links()[1])
	}
	two := newFabric(t, "switches: [{name: x, ports: 2}, {name: y, ports: 2}]\nendpoints: [{name: a}]\nlinks: [['x:0', 'y:0'], ['x:1', 'y:1']]")
	if err := two.SetLink("y", "x", false); err == nil {
		t.Error("SetLink of one of two links: no error")
	}
	if err := two.SetLink("y:1", "x", false); err != nil || two.Links()[1].Up || !two.Links()[0].Up {
		t.Errorf("SetLink of one of two links, by port: %v, %+v", err, two.Links())
	}
}

func TestReattach(t *testing.T) {
	f, ports := starred(t, 2, "")
	ports[1].setLocal(rapidio.RegComponentTag, 5)
	ports[1].inbox(2)
	out := ports[0].outbox(4)
	if st := send(t, out, 1, []byte{1}); st != rapidio.Done {
		t.Fatalf("message: %v", st)
	}
	ports[1].Close()
	if st := send(t, out, 1, []byte{1}); st != rapidio.Error {
		t.Errorf("message to a node that left: %v, want error", st)
	}
	if _, err := ports[1].LocalRead(context.Background(), 0, 4); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("read by a closed port: %v, want %v", err, bus.ErrClosed)
	}
	if err := ports[1].Doorbell(context.Background(), 0, 1); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("doorbell by a closed port: %v, want %v", err, bus.ErrClosed)
	}
	b := attach(t, f, "pe1")
	if id, tag := b.local(rapidio.RegBaseDeviceID), b.local(rapidio.RegComponentTag); id != 0xff0000 || tag != 0 {
		t.Errorf("after coming back: BASE_DID %#x, tag %d, want none", id, tag)
	}
	b.setID(1)
	b.inbox(2)
	if st := send(t, out, 1, []byte{1}); st != rapidio.Done {
		t.Errorf("message after coming back: %v, want done", st)
	}
}
