package integration

import (
	"context"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ring3dev/ring3/internal/netspace"
	"github.com/ring3dev/ring3/rionet/fabricd"
)

// sent counts the packets that an endpoint has sent into the fabric.
func (f *fabricUp) sent(t *testing.T, name string) uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := fabricd.Dial(ctx, f.socket)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Stats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range s.Nodes {
		if n.Name == name {
			return n.Counts.TxPackets
		}
	}
	t.Fatalf("the fabric counts nothing of %s: %+v", name, s.Nodes)
	return 0
}

// rionetTrust is two nodes that share memory: what they send each other does not go through the fabric, what a third one gets does.
func rionetTrust(t *testing.T) {
	f := startFabric(t, oneSwitch[:len(oneSwitch)-2]+", {ends: [pe0, pe1], trust: true}]\n")
	a := f.node(t, 0, ",host=0")
	b := f.node(t, 1, "")
	c := f.node(t, 2, "")
	a.ping(t, b, c)
	b.ping(t, a, c)
	multicast(t, a, b, c)
	const few = 2000
	before := f.sent(t, "pe0")
	a.send(t, b, 64<<20)
	b.send(t, a, 64<<20)
	if n := f.sent(t, "pe0") - before; n > few {
		t.Errorf("pe0 sent %d packets into the fabric, want that they went to pe1 directly", n)
	}
	before = f.sent(t, "pe0")
	a.send(t, c, 16<<20)
	if n := f.sent(t, "pe0") - before; n < few {
		t.Errorf("pe0 sent %d packets into the fabric, want that what went to pe2 went there", n)
	}

	// Who goes and comes back is found again.
	f.mayComplain()
	kill(t, b.up)
	a.peers(t, 1)
	a.ping(t, c)
	b.start(t)
	a.peers(t, 2)
	a.ping(t, b)
	before = f.sent(t, "pe0")
	a.send(t, b, 64<<20)
	if n := f.sent(t, "pe0") - before; n > few {
		t.Errorf("pe0 sent %d packets into the fabric after pe1 came back, want that they went to it directly", n)
	}
	f.stop(t)
}

// rionetLossy is TCP over links with a delay, a rate and loss, through two switches.
func rionetLossy(t *testing.T) {
	f := startFabric(t, `
ids: 16
switches: [{name: sw0, ports: 4}, {name: sw1, ports: 4}]
endpoints: [{name: pe0}, {name: pe1}]
links:
- {ends: [pe0, "sw0:0"], delay: 100us}
- {ends: ["sw0:1", "sw1:1"], rate: 10G, width: 4}
- {ends: [pe1, "sw1:0"], loss: 0.001}
`)
	f.mayComplain()
	a := f.node(t, 0, ",host=7")
	b := f.node(t, 1, "")
	f.mayComplain()
	if m := a.mac(); m != "00:01:00:01:00:07" {
		t.Errorf("the address of a node with the ID 7 is %s", m)
	}
	a.ping(t, b)
	a.send(t, b, 8<<20)
	b.send(t, a, 8<<20)
	f.stop(t)
}

// rionetClassic is a node that has messages of the kernel's driver's length, and one that has those of its frames.
func rionetClassic(t *testing.T) {
	f := startFabric(t, oneSwitch)
	a := f.node(t, 0, ",host=0")
	b := f.node(t, 1, ",exact=off")
	f.mayComplain() // the kernel's does of a doorbell that it does not know
	a.ping(t, b)
	b.ping(t, a)
	a.mtu(t, b)
	multicast(t, a, b)
	multicast(t, b, a)
	a.send(t, b, 16<<20)
	b.send(t, a, 16<<20)
	for _, n := range []*node{a, b} {
		if v := n.counter(t, "rx_classic"); v == 0 {
			t.Errorf("rx_classic of %s = 0, want what it received", n.name)
		}
	}
	f.stop(t)
}

// rionetRouting is a node that reaches a host behind an Ethernet device of another node, whose kernel forwards.
func rionetRouting(t *testing.T) {
	device := "sim:e1000e"
	if _, err := exec.LookPath("qemu-system-x86_64"); err == nil {
		device = "qemu:e1000e"
	}
	there, err := netspace.New()
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(there.Close)
	f := startFabric(t, oneSwitch)
	a := f.node(t, 0, ",host=0")
	b := f.node(t, 1, "", "eth0="+device, "eth1="+device, "--wire", "eth0-eth1", "--tap", "eth0", "--tap", "eth1")
	forwards := true
	b.space.Do(func() {
		forwards = setting(t, "/proc/sys/net/ipv4/ip_forward")
		address(t, "eth0", "10.8.0.1/24", "fd08::1/64")
		l, err := netlink.LinkByName("eth1")
		if err == nil {
			err = netlink.LinkSetNsFd(l, there.FD())
		}
		if err != nil {
			t.Errorf("moving eth1: %v", err)
		}
		if haveIPv6() {
			setting(t, "/proc/sys/net/ipv6/conf/all/forwarding")
		}
	})
	if !forwards {
		t.Skip("this kernel's settings cannot be written here")
	}
	there.Do(func() {
		address(t, "eth1", "10.8.0.2/24", "fd08::2/64")
		route(t, "eth1", "10.9.0.0/24", "10.8.0.1")
		route(t, "eth1", "fd09::/64", "fd08::1")
	})
	// Larger ones would first be told that they are too large.
	ethernet := []string{"56", "1400"}
	a.space.Do(func() {
		route(t, "rio0", "10.8.0.0/24", b.ip)
		route(t, "rio0", "fd08::/64", b.ip6)
		pingSizes(t, "10.8.0.2", ethernet...)
		if haveIPv6() {
			pingSizes(t, "fd08::2", ethernet...)
		}
	})
	there.Do(func() { pingSizes(t, a.ip, ethernet...) })
	for _, c := range []struct {
		from, to *netspace.Space
		addr     string
	}{{a.space, there, "10.8.0.2:0"}, {there, a.space, a.ip + ":0"}, {a.space, there, "[fd08::2]:0"}} {
		if c.addr[0] == '[' && !haveIPv6() {
			continue
		}
		const size = 16 << 20
		took, err := netspace.Send(c.from, c.to, c.addr, size)
		if err != nil {
			t.Errorf("TCP to %s: %v", c.addr, err)
		}
		t.Logf("TCP to %s through the other node: %.0f MiB/s", c.addr, float64(size>>20)/took.Seconds())
	}
	b.up.stop(t)
	a.peers(t, 0)
	a.up.stop(t)
	f.up.stop(t)
}

// setting switches one of the kernel's on, in the thread's namespace, and says whether that may be done.
func setting(t *testing.T, path string) bool {
	t.Helper()
	if err := os.WriteFile(path, []byte("1\n"), 0o644); err != nil {
		t.Logf("setting %s: %v", path, err)
		return false
	}
	return true
}

// route adds a route to the thread's namespace.
func route(t *testing.T, name, to, via string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("interface %s: %v", name, err)
	}
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		t.Fatal(err)
	}
	if dst.IP.To4() == nil && !haveIPv6() {
		return
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Gw: net.ParseIP(via)}); err != nil {
		t.Fatalf("route to %s via %s: %v", to, via, err)
	}
}
