package integration

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// rionetPair is two processes in two network namespaces, with nothing between them but a fabric.
func rionetPair(t *testing.T) {
	f := startFabric(t, oneSwitch)
	a := f.node(t, 0, ",host=0")
	b := f.node(t, 1, "")
	if am, bm := a.mac(), b.mac(); am != "00:01:00:01:00:00" || bm != "00:01:00:01:00:01" {
		t.Errorf("the interfaces' addresses are %s and %s, want 00:01:00:01:00:00 and ...:01", am, bm)
	}
	a.ping(t, b)
	b.ping(t, a)
	a.mtu(t, b)
	a.knows(t, b)
	b.knows(t, a)
	multicast(t, a, b)
	multicast(t, b, a)
	size := int64(1 << 30)
	if os.Getenv(asUser) != "" {
		size = 64 << 20
	}
	a.send(t, b, size)
	b.send(t, a, 64<<20)
	for _, n := range []*node{a, b} {
		for _, c := range []string{"rx_classic", "rx_length_errors", "rx_cut", "tx_invalid", "tx_foreign_address"} {
			if v := n.counter(t, c); v != 0 {
				t.Errorf("%s of %s = %d, want 0", c, n.name, v)
			}
		}
	}
	b.up.stop(t)
	if b.link() != nil {
		t.Error("rio0 is still there after its ring3 has ended")
	}
	a.peers(t, 0)
	a.up.stop(t)
	f.up.stop(t)
}

// mtu pings with a packet as long as the interface has it, not to be fragmented, and with one that is longer by one byte.
func (n *node) mtu(t *testing.T, to *node) {
	t.Helper()
	if l := n.link(); l.Attrs().MTU != 4082 {
		t.Errorf("the MTU of %s is %d, want 4082", n.name, l.Attrs().MTU)
	}
	if !havePing() {
		t.Log("there is no ping here")
		return
	}
	for _, c := range []struct {
		to      string
		headers int
	}{{to.ip, 28}, {to.ip6, 48}} {
		if c.to == to.ip6 && !haveIPv6() {
			continue
		}
		for _, size := range []int{4082, 4083} {
			var out []byte
			var err error
			n.space.Do(func() {
				out, err = exec.Command("ping", "-n", "-M", "do", "-c", "1", "-w", "20", "-s", fmt.Sprint(size-c.headers), c.to).CombinedOutput()
			})
			if bytes.Contains(out, []byte("ermitted")) {
				t.Logf("ping may not: %s", out)
				return
			}
			if size == 4082 && err != nil {
				t.Errorf("a packet of %d bytes to %s: %v\n%s", size, c.to, err, out)
			}
			if size == 4083 && (err == nil || !bytes.Contains(out, []byte("message too long, mtu"))) {
				t.Errorf("a packet of %d bytes to %s: %v\n%swant that it is too long", size, c.to, err, out)
			}
		}
	}
}

// knows looks for another in a node's table of neighbours, where its address came by ARP, and by neighbour discovery.
func (n *node) knows(t *testing.T, other *node) {
	t.Helper()
	want := map[string]bool{other.ip: true, other.ip6: haveIPv6()}
	mac := other.mac()
	n.space.Do(func() {
		l, err := netlink.LinkByName("rio0")
		if err != nil {
			t.Error(err)
			return
		}
		list, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
		if err != nil {
			t.Errorf("neighbours of %s: %v", n.name, err)
		}
		for _, e := range list {
			if want[e.IP.String()] && e.HardwareAddr.String() == mac && strings.HasPrefix(mac, "00:01:00:01:") {
				want[e.IP.String()] = false
			}
		}
		for ip, missing := range want {
			if missing && havePing() {
				t.Errorf("%s does not know %s as %s: %v", n.name, ip, mac, list)
			}
		}
	})
}

// multicast sends a datagram to a group that all others have joined, until each of them has it: nobody repeats one that was
// sent before a peer was active.
func multicast(t *testing.T, from *node, to ...*node) {
	t.Helper()
	group := &net.UDPAddr{IP: net.IPv4(239, 9, 9, 9), Port: 9999}
	text := []byte("to all, from " + from.name)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got := make(chan error, len(to))
	for _, n := range to {
		var c *net.UDPConn
		var err error
		n.space.Do(func() {
			var rio *net.Interface
			if rio, err = net.InterfaceByName("rio0"); err == nil {
				c, err = net.ListenMulticastUDP("udp4", rio, group)
			}
		})
		if err != nil {
			t.Fatalf("%s: joining %v: %v", n.name, group, err)
		}
		defer c.Close()
		stop := context.AfterFunc(ctx, func() { c.Close() })
		defer stop()
		go func() {
			b := make([]byte, 100)
			k, src, err := c.ReadFromUDP(b)
			if err == nil && (!bytes.Equal(b[:k], text) || src.IP.String() != from.ip) {
				err = fmt.Errorf("%q from %v, want %q from %s", b[:k], src, text, from.ip)
			}
			if err != nil {
				err = fmt.Errorf("%s received: %w", n.name, err)
			}
			got <- err
		}()
	}
	var c *net.UDPConn
	var err error
	from.space.Do(func() { c, err = net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from.ip)}, group) })
	if err != nil {
		t.Fatalf("%s: sending to %v: %v", from.name, group, err)
	}
	defer c.Close()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for left := len(to); left > 0; {
		if _, err := c.Write(text); err != nil {
			t.Fatalf("%s: sending to %v: %v", from.name, group, err)
		}
		select {
		case err := <-got:
			if err != nil {
				t.Errorf("multicast: %v", err)
			}
			left--
		case <-tick.C:
		}
	}
}
