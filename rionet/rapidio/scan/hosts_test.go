package scan

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// pair is two switches with two nodes each; the links may have a delay, in a topology's words.
func pair(more string) string {
	return fmt.Sprintf(`switches: [{name: sw0, ports: 4}, {name: sw1, ports: 4}]
endpoints: [{name: pe0}, {name: pe1}, {name: pe2}, {name: pe3}]
links:
- {ends: [pe0, "sw0:0"] %[1]s}
- {ends: [pe1, "sw0:1"] %[1]s}
- {ends: ["sw0:3", "sw1:3"] %[1]s}
- {ends: [pe2, "sw1:0"] %[1]s}
- {ends: [pe3, "sw1:1"] %[1]s}
`, more)
}

// isHost tells whether a node's endpoint is a host's.
func isHost(t testing.TB, p *peer) bool {
	t.Helper()
	v, err := p.m.LocalRead32(context.Background(), 0x100+rapidio.PHYGenControl)
	if err != nil {
		t.Fatal(err)
	}
	return v&rapidio.GenHost != 0
}

// TestRace lets two hosts enumerate at once, from both ends of a fabric. One wins, the other one discovers.
func TestRace(t *testing.T) {
	for _, c := range []struct {
		more   string
		rounds int
	}{{"", 12}, {", delay: 20us", 1}} {
		for _, low := range []int{0, 7} {
			t.Run(fmt.Sprint(c.more, low), func(t *testing.T) {
				won := map[bool]int{}
				for range c.rounds {
					won[race(t, c.more, low, 9-low)]++
				}
				t.Logf("pe0 won %d times, pe3 %d times", won[true], won[false])
			})
		}
	}
}

// race is one round; it tells whether pe0 won.
func race(t *testing.T, more string, ids ...int) bool {
	f := newFabric(t, pair(more))
	a, b := join(t, f, "pe0", ids[0], quick), join(t, f, "pe3", ids[1], quick)
	agents := []*peer{join(t, f, "pe1", -1, quick), join(t, f, "pe2", -1, quick)}
	peers := append([]*peer{a, b}, agents...)
	var wg sync.WaitGroup
	for _, p := range peers {
		wg.Go(func() {
			if err := p.tryScan(); err != nil {
				t.Errorf("Scan: %v\n%s", err, p.log)
			}
		})
	}
	wg.Wait()
	for _, p := range peers {
		defer p.close()
		eventually(t, "devices that a node knows", func() string { return fmt.Sprint(len(p.bus.Devices())) }, "5")
	}
	until(t, "one host", func() bool { return isHost(t, a) != isHost(t, b) })
	unlocked(t, a)
	connected(t, peers...)
	loser := a
	if isHost(t, a) {
		loser = b
	}
	if !strings.Contains(loser.log.String(), "RIO: master port 0 device has lost enumeration to a remote host") {
		t.Errorf("the loser's log:\n%s", loser.log)
	}
	return loser == b
}

// TestSecondHost is a host that comes to a fabric that has one: it discovers. Then the first one goes, and it takes over.
func TestSecondHost(t *testing.T) {
	f := newFabric(t, pair(""))
	o := quick
	o.Check = 20 * time.Millisecond
	first, agent := join(t, f, "pe0", 3, quick), join(t, f, "pe2", -1, o)
	first.mustScan()
	agent.mustScan()
	// The first host gives the newcomer an ID, which may happen before or after that one looks: either may win, but only one does.
	second := join(t, f, "pe3", 1, o)
	second.mustScan()
	eventually(t, "devices that the second host knows", func() string { return fmt.Sprint(len(second.bus.Devices())) }, "4")
	until(t, "one host", func() bool { return isHost(t, first) != isHost(t, second) })
	connected(t, first, agent, second)
	if isHost(t, second) {
		t.Fatal("a host with a lower ID won over one that was there")
	}

	first.close()
	until(t, "the second host taking over", func() bool { return isHost(t, second) })
	eventually(t, "devices that the second host knows", func() string { return fmt.Sprint(len(second.bus.Devices())) }, "3")
	connected(t, agent, second)
	unlocked(t, second)
	eventually(t, "devices that the agent knows", func() string { return fmt.Sprint(len(agent.bus.Devices())) }, "3")

	// Back again, the first one finds that it is not needed, or wins: one does.
	again := join(t, f, "pe0", 3, o)
	again.mustScan()
	for _, p := range []*peer{again, second, agent} {
		eventually(t, "devices that a node knows", func() string { return fmt.Sprint(len(p.bus.Devices())) }, "4")
	}
	until(t, "one host", func() bool { return isHost(t, again) != isHost(t, second) })
	connected(t, again, second, agent)
}

// TestRestart ends the host's process and starts it again: nobody else is disturbed.
func TestRestart(t *testing.T) {
	f := newFabric(t, ring(3).String())
	peers := all(t, f, 3)
	names, tables := peers[0].seen(), routes(f, "sw1")
	known := peers[1].bus.Devices()
	peers[0].close()
	host := join(t, f, "pe0", 0, quick)
	host.mustScan()
	if got := host.seen(); got != names {
		t.Errorf("devices of the restarted host = %s, want %s", got, names)
	}
	eventually(t, "routes of sw1", func() string { return routes(f, "sw1") }, tables)
	peers[1].mustScan()
	for i, d := range peers[1].bus.Devices() {
		if d != known[i] {
			t.Errorf("for another node %s is another device", d.Name())
		}
	}
	connected(t, host, peers[1], peers[2])
}

// TestRestartOther restarts a host whose agents have other IDs than they would get now.
func TestRestartOther(t *testing.T) {
	f := newFabric(t, star(6, "standard").String())
	host, late := join(t, f, "pe0", 0, quick), join(t, f, "pe5", -1, quick)
	host.mustScan()
	early := join(t, f, "pe1", -1, quick)
	eventually(t, "IDs that the host knows", host.endpoints, "1 2")
	host.close()
	between := join(t, f, "pe3", -1, quick)
	host = join(t, f, "pe0", 0, quick)
	host.mustScan()
	eventually(t, "routes of sw0", func() string { return routes(f, "sw0") }, "0>0 1>5 2>1 3>3")
	for _, p := range []*peer{late, early, between} {
		p.mustScan()
	}
	connected(t, host, late, early, between)
}

// TestStaleLocks has a host that dies in the middle of an enumeration, with its locks held.
func TestStaleLocks(t *testing.T) {
	for _, c := range []struct {
		dead, next int
		node       string
	}{{0, 0, "pe0"}, {0, 5, "pe3"}, {5, 0, "pe3"}, {0, 5, "pe0"}} {
		t.Run(fmt.Sprintf("%d then %d at %s", c.dead, c.next, c.node), func(t *testing.T) {
			f := newFabric(t, pair(""))
			for k := 5; k < 220; k += 43 {
				inner, err := f.Mport("pe0")
				if err != nil {
					t.Fatal(err)
				}
				ops := &faulty{Mport: inner}
				// At access k the process ends: nothing that it would do then comes to pass.
				ops.set(func(n int) error {
					if n >= k {
						inner.Close()
					}
					return nil
				})
				dead := joinOps(t, inner, ops, c.dead, quick)
				if err := dead.tryScan(); err == nil && ops.count() > k {
					t.Errorf("access %d: Scan of a dead port = nil", k)
				}
				dead.close()

				o := quick
				o.LockTimeout, o.DiscoverTimeout = 5*time.Millisecond, 20*time.Millisecond
				host := join(t, f, c.node, c.next, o)
				if err := host.tryScan(); err != nil {
					t.Fatalf("after access %d: Scan = %v\n%s", k, err, host.log)
				}
				if got, want := len(host.bus.Devices()), 2; got != want {
					t.Fatalf("after access %d: %d devices, want %d: %s\n%s", k, got, want, host.seen(), host.log)
				}
				unlocked(t, host)
				host.close()
			}
		})
	}
}

// TestJoinLeave has nodes that come and go; everybody learns of it, and nobody else becomes another device.
func TestJoinLeave(t *testing.T) {
	for _, kind := range []string{"standard", "tsi500"} {
		t.Run(kind, func(t *testing.T) {
			f := newFabric(t, star(4, kind).String())
			host, a := join(t, f, "pe0", 0, quick), join(t, f, "pe1", -1, quick)
			host.mustScan()
			a.mustScan()
			keep := byName(host, "00:e:0003")
			for i := range 5 {
				b, c := join(t, f, "pe2", -1, quick), join(t, f, "pe3", -1, quick)
				eventually(t, "IDs that the host knows", host.endpoints, "1 2 3")
				eventually(t, "IDs that pe1 knows", a.endpoints, "0 2 3")
				b.mustScan()
				c.mustScan()
				eventually(t, "IDs that pe2 knows", b.endpoints, ids(t, host, a, c))
				connected(t, host, a, b, c)
				b.close()
				eventually(t, "number of devices that the host knows", func() string { return fmt.Sprint(len(host.bus.Devices())) }, "3")
				eventually(t, "number of devices that pe1 knows", func() string { return fmt.Sprint(len(a.bus.Devices())) }, "3")
				c.close()
				eventually(t, "IDs that the host knows", host.endpoints, "1")
				eventually(t, "IDs that pe1 knows", a.endpoints, "0")
				eventually(t, fmt.Sprintf("round %d: routes of sw0", i), func() string { return routes(f, "sw0") }, "0>0 1>1")
			}
			if byName(host, "00:e:0003") != keep {
				t.Errorf("pe1 became another device")
			}
			unlocked(t, host)
		})
	}
}

// ids lists nodes' own IDs, sorted.
func ids(t testing.TB, peers ...*peer) string {
	t.Helper()
	var has [256]bool
	for _, p := range peers {
		id, err := p.m.DestID(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		has[id] = true
	}
	s := ""
	for id, is := range has {
		if is {
			s += fmt.Sprintf("%d ", id)
		}
	}
	return strings.TrimSpace(s)
}

// TestRejoin replaces a node so fast that its link may be up again when the host looks.
func TestRejoin(t *testing.T) {
	f := newFabric(t, star(3, "standard").String())
	host, b := join(t, f, "pe0", 0, quick), join(t, f, "pe2", -1, quick)
	a := join(t, f, "pe1", -1, quick)
	host.mustScan()
	for range 20 {
		old := byID(host, 1)
		a.close()
		a = join(t, f, "pe1", -1, quick)
		until(t, "the host knowing the new device", func() bool { d := byID(host, 1); return d != nil && d != old })
		a.mustScan()
		connected(t, host, a, b)
	}
}

func byID(p *peer, id rapidio.DestID) *rapidio.Device {
	for _, d := range p.bus.Devices() {
		if !d.IsSwitch() && d.DestID == id {
			return d
		}
	}
	return nil
}

// TestOwnLink lets the links of the host and of an agent fail and come back.
func TestOwnLink(t *testing.T) {
	f := newFabric(t, star(3, "standard").String())
	peers := all(t, f, 3)
	for i, p := range peers[:2] {
		if err := f.SetLink(fmt.Sprintf("pe%d", i), "sw0", false); err != nil {
			t.Fatal(err)
		}
		eventually(t, "devices without a link", p.seen, "")
		if err := f.SetLink(fmt.Sprintf("pe%d", i), "sw0", true); err != nil {
			t.Fatal(err)
		}
		for _, q := range peers {
			eventually(t, "number of devices with a link", func() string { return fmt.Sprint(len(q.bus.Devices())) }, "3")
		}
		connected(t, peers...)
	}
}

// TestLinkInactive scans without a link.
func TestLinkInactive(t *testing.T) {
	f := newFabric(t, star(2, "standard").String())
	if err := f.SetLink("pe0", "sw0", false); err != nil {
		t.Fatal(err)
	}
	host := join(t, f, "pe0", 0, quick)
	if err := host.tryScan(); err == nil || !strings.Contains(err.Error(), "link inactive") {
		t.Errorf("Scan = %v, want link inactive", err)
	}
	if !strings.Contains(host.log.String(), "RIO: master port 0 link inactive") {
		t.Errorf("log:\n%s", host.log)
	}
	if err := f.SetLink("pe0", "sw0", true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "devices once there is a link", host.seen, "00:s:0002")
}

// TestLockedOut checks that ports without a link are shut, and opened when one comes.
func TestLockedOut(t *testing.T) {
	f := newFabric(t, star(2, "standard").String())
	host := join(t, f, "pe0", 0, quick)
	host.mustScan()
	sw := host.bus.Devices()[0]
	shut := func() string {
		v, err := sw.Read32(context.Background(), portReg(sw, rapidio.PHYPortControl, 1))
		return fmt.Sprint(v&rapidio.PortLockout != 0, err)
	}
	if got := shut(); got != "true <nil>" {
		t.Errorf("port without a link is shut = %s, want true", got)
	}
	join(t, f, "pe1", -1, quick)
	eventually(t, "port with a link is shut", shut, "false <nil>")
	eventually(t, "IDs that the host knows", host.endpoints, "1")
}

// TestLostPortWrite has an event that no port-write told of: the next check finds it.
func TestLostPortWrite(t *testing.T) {
	f := newFabric(t, star(3, "standard").String())
	inner, err := f.Mport("pe0")
	if err != nil {
		t.Fatal(err)
	}
	o := quick
	o.Check = 10 * time.Millisecond
	host := joinOps(t, inner, &deaf{Mport: inner}, 0, o)
	host.mustScan()
	a := join(t, f, "pe1", -1, quick)
	eventually(t, "IDs that the host knows", host.endpoints, "1")
	a.close()
	eventually(t, "IDs that the host knows", host.endpoints, "")
}

// deaf is a port that hears no port-writes.
type deaf struct{ *fabric.Mport }

func (d *deaf) Start(e rapidio.Events) { d.Mport.Start(deafEvents{e}) }

type deafEvents struct{ rapidio.Events }

func (deafEvents) PortWrite([]byte) {}

// TestLossy enumerates over links that lose packets.
func TestLossy(t *testing.T) {
	f := newFabric(t, pair(", delay: 10us, loss: 0.02"))
	o := quick
	o.Check = 100 * time.Millisecond
	var peers []*peer
	for i := range 4 {
		peers = append(peers, join(t, f, fmt.Sprintf("pe%d", i), -min(i, 1), o))
	}
	for _, p := range peers {
		if err := p.tryScan(); err != nil {
			t.Logf("Scan: %v", err)
		}
	}
	for _, p := range peers {
		eventually(t, "devices that a node knows", func() string { return fmt.Sprint(len(p.bus.Devices())) }, "5")
	}
}

// TestNobody waits for a host that there is not.
func TestNobody(t *testing.T) {
	f := newFabric(t, star(2, "standard").String())
	o := quick
	o.DiscoverTimeout = 30 * time.Millisecond
	p := join(t, f, "pe1", -1, o)
	if err := p.tryScan(); err == nil || !strings.Contains(err.Error(), "not enumerated by any host") {
		t.Errorf("Scan = %v, want that no host has enumerated", err)
	}
	host := join(t, f, "pe0", 0, quick)
	host.mustScan()
	eventually(t, "devices once there is a host", p.seen, "00:s:0002 00:e:0001=0")
}
