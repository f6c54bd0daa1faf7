package integration

import (
	"net"
	"slices"
	"syscall"
	"testing"
)

// rionetChurn is a third node that comes and goes while the first two talk.
func rionetChurn(t *testing.T) {
	f := startFabric(t, oneSwitch)
	a := f.node(t, 0, ",host=0")
	b := f.node(t, 1, "")
	a.peers(t, 1)
	b.peers(t, 1)
	s := startStream(t, a, b)
	c := f.newNode(t, 2, "")
	for round := range 2 {
		s.moves(t)
		c.start(t)
		if m := c.mac(); m != "00:01:00:01:00:02" {
			t.Errorf("the address of the third node is %s in round %d, want 00:01:00:01:00:02", m, round)
		}
		for _, n := range []*node{a, b, c} {
			n.peers(t, 2)
		}
		a.ping(t, c)
		b.ping(t, c)
		c.ping(t, a, b)
		multicast(t, a, b, c)
		s.moves(t)
		before := a.others(t)
		c.stop(t)
		a.peers(t, 1)
		b.peers(t, 1)
		if now := a.others(t); !slices.Contains(before, now[0]) {
			t.Errorf("when the third node has gone the first one has %q, which was not among %q", now, before)
		}
		s.moves(t)
	}
	s.end(t)
	f.stop(t)
}

// rionetStalled has a node's process stopped while the others send to it, which costs them nothing, and go on later.
func rionetStalled(t *testing.T) {
	f := startFabric(t, oneSwitch)
	a := f.node(t, 0, ",host=0")
	b := f.node(t, 1, "")
	c := f.node(t, 2, "")
	for _, n := range []*node{a, b, c} {
		n.peers(t, 2)
	}
	a.ping(t, c) // its address is known
	f.mayComplain()
	s := startStream(t, a, b)
	s.moves(t)
	if err := c.up.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var u net.Conn
	var err error
	a.space.Do(func() { u, err = net.Dial("udp", c.ip+":9") })
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	frame := make([]byte, 4000)
	for range 5 {
		for range 2000 { // more than all rings on the way have room for
			_, _ = u.Write(frame) // that what is there cannot be sent is its own business
		}
		s.moves(t)
	}
	if err := c.up.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.moves(t)
	s.end(t)
	for _, n := range []*node{a, b, c} {
		n.peers(t, 2)
	}
	a.ping(t, b, c)
	c.send(t, a, 4<<20)
	f.stop(t)
}

// rionetKills has processes killed, of a node, of the host, of the fabric.
func rionetKills(t *testing.T) {
	f := startFabric(t, oneSwitch)
	a := f.node(t, 0, ",host=0")
	b := f.node(t, 1, "")
	c := f.node(t, 2, "")
	all := []*node{a, b, c}
	for _, n := range all {
		n.peers(t, 2)
	}
	f.mayComplain()
	macs := func() (m []string) {
		for _, n := range all {
			m = append(m, n.mac())
		}
		return m
	}
	before := macs()

	// A node, and then the host. The connection of the other two goes on.
	for i, victim := range []*node{b, a} {
		others := [][]*node{{a, c}, {b, c}}[i]
		s := startStream(t, others[0], others[1])
		s.moves(t)
		kill(t, victim.up)
		for _, n := range others {
			n.peers(t, 1)
		}
		s.moves(t)
		victim.start(t)
		f.mayComplain()
		for _, n := range all {
			n.peers(t, 2)
		}
		s.moves(t)
		s.end(t)
		if now := macs(); !slices.Equal(now, before) {
			t.Errorf("the addresses are %q after %s was killed and came back, %q before", now, victim.name, before)
		}
		victim.ping(t, others...)
		others[0].ping(t, victim)
	}

	// The fabric. The interfaces stay, with their addresses.
	indices := func() (is []int) {
		for _, n := range all {
			if l := n.link(); l != nil {
				is = append(is, l.Attrs().Index)
			}
		}
		return is
	}
	were := indices()
	kill(t, f.up)
	for _, n := range all {
		n := n
		eventually(t, n.name+" misses its fabric", func() bool { return n.get(t, "/sys/class/net/rio0/carrier") == "0" })
	}
	f.start(t)
	f.mayComplain()
	for _, n := range all {
		n.peers(t, 2)
	}
	if now := macs(); !slices.Equal(now, before) {
		t.Errorf("the addresses are %q after the fabric was killed and came back, %q before", now, before)
	}
	if now := indices(); !slices.Equal(now, were) {
		t.Errorf("the interfaces are %v after the fabric was killed and came back, %v before: want the same", now, were)
	}
	a.ping(t, b, c)
	b.ping(t, c)
	a.send(t, b, 16<<20)
	f.stop(t)
}
