package scan

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// all joins so many nodes pe0 to pe(n-1), of which pe0 is the host, and scans.
func all(t testing.TB, f *fabric.Fabric, n int) []*peer {
	t.Helper()
	var peers []*peer
	for i := range n {
		peers = append(peers, join(t, f, fmt.Sprintf("pe%d", i), -min(i, 1), quick))
	}
	for _, p := range peers {
		p.mustScan()
	}
	return peers
}

// TestTree has switches without endpoints between.
func TestTree(t *testing.T) {
	for _, ids := range []int{8, 16} {
		t.Run(fmt.Sprint(ids), func(t *testing.T) {
			y := &topology{ids: ids}
			y.sw("sw0", 4, "standard")
			y.sw("sw1", 4, "standard")
			y.sw("sw2", 3, "standard")
			y.sw("sw3", 3, "standard") // without endpoints
			y.pe("pe0", "pe1", "pe2", "pe3", "pe4")
			y.link("pe0", "sw0:2")
			y.link("sw0:0", "sw1:3")
			y.link("sw0:1", "sw2:0")
			y.link("sw0:3", "sw3:1")
			y.link("pe1", "sw1:0")
			y.link("pe2", "sw1:2")
			y.link("pe3", "sw2:1")
			y.link("pe4", "sw2:2")
			f := newFabric(t, y.String())
			peers := all(t, f, 5)
			if got, want := peers[0].seen(), "00:s:0002 00:s:0003 00:e:0004=1 00:e:0005=2 00:s:0006 00:e:0007=3 00:e:0008=4 00:s:0009"; got != want {
				t.Errorf("the host's devices = %s, want %s", got, want)
			}
			reserved := 254
			if ids == 16 {
				reserved = 256
			}
			for name, want := range map[string]string{
				"sw0": fmt.Sprintf("0>2 1>0 2>0 3>1 4>1 %d>3", reserved), "sw1": fmt.Sprintf("0>3 1>0 2>2 3>3 4>3 %d>3", reserved),
				"sw2": fmt.Sprintf("0>0 1>0 2>0 3>1 4>2 %d>0", reserved), "sw3": "0>1 1>1 2>1 3>1 4>1",
			} {
				eventually(t, "routes of "+name, func() string { return routes(f, name) }, want)
			}
			for _, d := range peers[0].bus.Devices() {
				if v, err := d.Read32(context.Background(), rapidio.RegComponentTag); err != nil || v != d.Tag {
					t.Errorf("component tag of %s = %#x, %v", d.Name(), v, err)
				}
			}
			if got := fmt.Sprint(peers[0].bus.Devices()[5].Prev, peers[0].bus.Devices()[1].Prev); got != "00:s:0006 00:s:0002" {
				t.Errorf("switches before 00:e:0007 and 00:s:0003 = %s", got)
			}
			unlocked(t, peers[0])
			connected(t, peers...)
			for i, p := range peers {
				if got, want := len(p.bus.Devices()), 8; got != want {
					t.Errorf("devices that pe%d knows: %d, want %d: %s\n%s", i, got, want, p.seen(), p.log)
				}
			}
		})
	}
}

// ring makes so many switches in a circle, with one endpoint each, at port 2.
func ring(n int) *topology {
	y := &topology{}
	for i := range n {
		y.sw(fmt.Sprintf("sw%d", i), 3, "standard")
		y.pe(fmt.Sprintf("pe%d", i))
		y.link(fmt.Sprintf("pe%d", i), fmt.Sprintf("sw%d:2", i))
		y.link(fmt.Sprintf("sw%d:0", i), fmt.Sprintf("sw%d:1", (i+1)%n))
	}
	return y
}

func byName(p *peer, name string) *rapidio.Device {
	for _, d := range p.bus.Devices() {
		if d.Name() == name {
			return d
		}
	}
	return nil
}

// TestRing checks that both ways round are known, and the shorter one is used; then that a link may fail and come back, and nobody who
// is still there becomes another device.
func TestRing(t *testing.T) {
	f := newFabric(t, ring(6).String())
	peers := all(t, f, 6)
	host := peers[0]
	// Depth first through port 0: sw0 sw1 ... sw5, each with its endpoint after what is beyond; sw5 closes the circle.
	if got, want := host.seen(), "00:s:0002 00:s:0003 00:s:0004 00:s:0005 00:s:0006 00:s:0007 00:e:0008=1 00:e:0009=2 00:e:000a=3 00:e:000b=4 00:e:000c=5"; got != want {
		t.Errorf("the host's devices = %s, want %s", got, want)
	}
	// IDs as they were met: pe5 is the deepest.
	eventually(t, "routes of sw0", func() string { return routes(f, "sw0") }, "0>2 1>1 2>1 3>0 4>0 5>0")
	if sw0 := host.bus.Devices()[0]; fmt.Sprint(sw0.Next(0), sw0.Next(1), sw0.Next(2)) != "00:s:0003 00:s:0007 <nil>" {
		t.Errorf("neighbours of sw0 = %v %v %v", sw0.Next(0), sw0.Next(1), sw0.Next(2))
	}
	connected(t, peers...)
	unlocked(t, host)
	before := host.bus.Devices()

	if err := f.SetLink("sw0", "sw5", false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "routes of sw0", func() string { return routes(f, "sw0") }, "0>2 1>0 2>0 3>0 4>0 5>0")
	until(t, "the end of the round", func() bool { return byName(host, "00:s:0002").Next(1) == nil })
	connected(t, peers...)
	for i, d := range host.bus.Devices() {
		if d != before[i] {
			t.Errorf("after a link failed, %s is another device", d.Name())
		}
	}
	if d := byName(host, "00:s:0007"); d.Prev != byName(host, "00:s:0006") {
		t.Errorf("the switch before sw5 = %v, want sw4", d.Prev)
	}
	for _, d := range host.bus.Devices() {
		if v, err := d.Read32(context.Background(), rapidio.RegComponentTag); err != nil || v != d.Tag {
			t.Errorf("component tag of %s = %#x, %v", d.Name(), v, err)
		}
	}

	if err := f.SetLink("sw0", "sw5", true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "routes of sw0", func() string { return routes(f, "sw0") }, "0>2 1>1 2>1 3>0 4>0 5>0")
	until(t, "the end of the round", func() bool { return byName(host, "00:s:0002").Next(1) != nil })
	connected(t, peers...)
	unlocked(t, host)
	for i, d := range host.bus.Devices() {
		if d != before[i] {
			t.Errorf("after a link came back, %s is another device", d.Name())
		}
	}
	for i, p := range peers {
		eventually(t, fmt.Sprintf("number of devices that pe%d knows", i), func() string { return fmt.Sprint(len(p.bus.Devices())) }, "11")
	}
}

// TestMesh has every switch linked to every other one, to some twice.
func TestMesh(t *testing.T) {
	const n = 5
	y := &topology{}
	next := make([]int, n)
	port := func(i int) string { next[i]++; return fmt.Sprintf("sw%d:%d", i, next[i]-1) }
	for i := range n {
		y.sw(fmt.Sprintf("sw%d", i), 12, "standard")
		y.pe(fmt.Sprintf("pe%d", i))
	}
	for i := range n {
		for j := range i {
			y.link(port(i), port(j))
			if (i+j)%2 == 0 {
				y.link(port(i), port(j))
			}
		}
	}
	for i := range n {
		y.link(fmt.Sprintf("pe%d", i), port(i))
	}
	f := newFabric(t, y.String())
	peers := all(t, f, n)
	connected(t, peers...)
	unlocked(t, peers[0])
	before := peers[0].bus.Devices()
	links := 0
	for _, sw := range before {
		if sw.IsSwitch() {
			if sw.Hop > 1 {
				t.Errorf("hops to %s = %d, though it is next to the host's", sw.Name(), sw.Hop)
			}
			for p := range sw.Ports() {
				if sw.Next(p) != nil {
					links++
				}
			}
		}
	}
	// 10 pairs, 4 of them twice; 2 ends each; less the way back of 4 switches; and 4 endpoints.
	if want := 2*14 - 4 + 4; links != want {
		t.Errorf("neighbours at all ports = %d, want %d", links, want)
	}
	// Every link but those of a tree fails, one after the other; all stay connected.
	for _, l := range f.Links() {
		if l.Ends[0][0] == 'p' || l.Ends[1][:4] == "sw0:" {
			continue
		}
		if err := f.SetLink(l.Ends[0], l.Ends[1], false); err != nil {
			t.Fatal(err)
		}
	}
	peers[0].mustScan()
	connected(t, peers...)
	for i, d := range peers[0].bus.Devices() {
		if d != before[i] {
			t.Errorf("%s is another device", d.Name())
		}
	}
}

// TestDirect is two endpoints without a switch.
func TestDirect(t *testing.T) {
	y := &topology{}
	y.pe("pe0", "pe1")
	y.link("pe0", "pe1")
	f := newFabric(t, y.String())
	peers := all(t, f, 2)
	if got, want := peers[0].seen(), "00:e:0002=1"; got != want {
		t.Errorf("the host's devices = %s, want %s", got, want)
	}
	if got, want := peers[1].seen(), "00:e:0001=0"; got != want {
		t.Errorf("the other's devices = %s, want %s", got, want)
	}
	connected(t, peers...)
}

// large is so many endpoints behind so many switches, which stand below one another four by four.
func large(switches, endpoints int) *topology {
	y := &topology{ids: 16}
	used := make([]int, switches)
	port := func(i int) string { used[i]++; return fmt.Sprintf("sw%d:%d", i, used[i]-1) }
	for i := range switches {
		y.sw(fmt.Sprintf("sw%d", i), 5+(endpoints+switches-1)/switches, "standard")
		if i > 0 {
			y.link(port(i), port((i-1)/4))
		}
	}
	for i := range endpoints {
		y.pe(fmt.Sprintf("pe%d", i))
		y.link(fmt.Sprintf("pe%d", i), port(i%switches))
	}
	return y
}

// attachAll plugs nodes into all endpoints but pe0, that do nothing but be there.
func attachAll(t testing.TB, f *fabric.Fabric) {
	t.Helper()
	for _, n := range f.Nodes() {
		if n.Name != "pe0" {
			m, err := f.Mport(n.Name)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { m.Close() })
		}
	}
}

func TestLarge(t *testing.T) {
	f := newFabric(t, large(64, 1000).String())
	attachAll(t, f)
	host := join(t, f, "pe0", 0, quick)
	begun := time.Now()
	host.mustScan()
	took := time.Since(begun)
	t.Logf("1,000 endpoints behind 64 switches: %v", took)
	if took > patience {
		t.Errorf("enumeration took %v, want far less than %v", took, patience)
	}
	if n, want := len(host.bus.Devices()), 64+999; n != want {
		t.Errorf("devices = %d, want %d\n%s", n, want, host.log)
	}
	ids := map[rapidio.DestID]bool{0: true}
	for _, d := range host.bus.Devices() {
		if d.IsSwitch() {
			continue
		}
		if ids[d.DestID] || d.DestID > 999 {
			t.Errorf("ID of %s = %d", d.Name(), d.DestID)
		}
		ids[d.DestID] = true
		if v, err := d.Read32(context.Background(), rapidio.RegComponentTag); err != nil || v != d.Tag {
			t.Errorf("component tag of ID %d = %#x, %v, want %#x", d.DestID, v, err, d.Tag)
		}
	}
	unlocked(t, host)
	eventually(t, "switches without 1000 routes", func() string {
		s := ""
		for _, sw := range f.Switches() {
			if len(sw.Routes) != 1000 {
				s += fmt.Sprint(sw.Name, ": ", len(sw.Routes), " ")
			}
		}
		return s
	}, "")
	begun = time.Now()
	host.mustScan()
	t.Logf("again: %v", time.Since(begun))
}

// TestHighHost has a host whose ID is far from all others.
func TestHighHost(t *testing.T) {
	y := ring(3)
	y.ids = 16
	y.sw("sw3", 2, "standard") // without endpoints
	y.switches[0] = "- {name: sw0, ports: 4, kind: standard}\n"
	y.link("sw0:3", "sw3:0")
	f := newFabric(t, y.String())
	inner, err := f.Mport("pe0")
	if err != nil {
		t.Fatal(err)
	}
	ops := &faulty{Mport: inner}
	host := joinOps(t, inner, ops, 65000, quick)
	a, b := join(t, f, "pe1", -1, quick), join(t, f, "pe2", -1, quick)
	host.mustScan()
	if n := ops.count(); n > 10000 {
		t.Errorf("enumeration takes %d accesses", n)
	}
	a.mustScan()
	b.mustScan()
	connected(t, host, a, b)
	if got, want := a.endpoints(), "0 65000"; got != want {
		t.Errorf("IDs that pe1 knows = %s, want %s", got, want)
	}
	if got := len(a.bus.Devices()); got != 6 {
		t.Errorf("devices that pe1 knows = %s", a.seen())
	}
	eventually(t, "routes of sw0", func() string { return routes(f, "sw0") }, "0>1 1>0 256>3 65000>2")
	host.close()
	again := join(t, f, "pe0", 7, quick)
	again.mustScan()
	// What is as far from all others as the old host's ID was is not looked for.
	eventually(t, "routes of sw0", func() string { return routes(f, "sw0") }, "0>1 1>0 7>2 256>3 65000>2")
}

func BenchmarkEnumerate(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				f := newFabric(b, large((n+15)/16, n).String())
				attachAll(b, f)
				host := join(b, f, "pe0", 0, quick)
				b.StartTimer()
				host.mustScan()
			}
		})
	}
}
