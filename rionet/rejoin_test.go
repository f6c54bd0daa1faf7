package rionet

import (
	"fmt"
	"io"
	"testing"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/rionet/rejoin"
)

// The fabric dies under both nodes, which go on without a link, and comes back as a new one, without IDs and with closed mailboxes.
func TestFabricReturns(t *testing.T) {
	bustest.NoLeaks(t)
	w := newWorld(t, direct)
	var ports [2]*rejoin.Port
	var ends [2]io.Closer // of the Ops that the ports have
	var nodes [2]*node
	var devs []*Device
	var sinks [2]*netdev.Sink
	for i := range ports {
		ops, err := w.f.Mport(fmt.Sprintf("pe%d", i))
		if err != nil {
			t.Fatal(err)
		}
		ports[i], ends[i] = rejoin.New(ops, nil), ops
		nodes[i] = w.on(i, ports[i])
	}
	t.Cleanup(func() { _, _ = ends[0].Close(), ends[1].Close() })
	nodes[0].find(2)
	nodes[1].find(1)
	for i, n := range nodes {
		d := n.open(Options{})
		devs = append(devs, d)
		s, err := netdev.NewSink(d)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		sinks[i] = s
	}
	send := newSender(t, devs[0], 8)
	for round := range 3 {
		allKnow(t, devs, "active exact")
		before := sinks[1].Frames()
		eventually(t, "frames arrive", func() bool {
			send.send(addr(2), round, 100)
			return sinks[1].Frames() > before
		})
		for i, p := range ports {
			p.Lose()
			_ = ends[i].Close()
		}
		send.send(addr(2), round, 100) // goes nowhere, and holds up nobody
		send.drain()
		for i, d := range devs {
			eventually(t, "the link is down", func() bool { return !d.Link().Up })
			knows(t, d, nodes[1-i].id, "inactive")
			if d.dead() {
				t.Fatalf("%s is out of service: %v", d.name, d.Err())
			}
		}
		w.f = newWorld(t, direct).f
		for i, p := range ports {
			ops, err := w.f.Mport(fmt.Sprintf("pe%d", i))
			if err != nil {
				t.Fatal(err)
			}
			ends[i] = ops
			if err := p.Join(ops); err != nil {
				t.Fatal(err)
			}
			nodes[i].number()
		}
	}
	allKnow(t, devs, "active exact")
}
