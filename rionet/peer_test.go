package rionet

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// A peer that opens late refuses JOIN until it is there; it leaves and comes back.
func TestJoinLeave(t *testing.T) {
	bustest.NoLeaks(t)
	w := newWorld(t, direct)
	n, m := w.node(0), w.node(1)
	n.find(m.id)
	m.find(n.id)
	a := n.open(Options{})
	if got := state(a, m.id); got != "inactive" {
		t.Errorf("before it is there: the peer is %s, want inactive", got)
	}
	for range 2 {
		b := m.open(Options{})
		knows(t, a, m.id, "active exact")
		knows(t, b, n.id, "active exact")
		if err := b.Close(); err != nil {
			t.Errorf("Close = %v, want nil", err)
		}
		knows(t, a, m.id, "inactive")
		a.mu.Lock()
		if got := a.all[0].wait; got != joinSlowest {
			t.Errorf("the next JOIN comes after %s, want %s: it said LEAVE", got, joinSlowest)
		}
		a.mu.Unlock()
	}
	if j, l := a.joins.Load(), a.leaves.Load(); j != 2 || l != 2 {
		t.Errorf("%d joins, %d leaves counted, want 2, 2", j, l)
	}
}

// A JOIN from an endpoint that the scan has not found yet is answered once it has.
func TestJoinBeforeFound(t *testing.T) {
	w := newWorld(t, direct)
	n, m := w.node(0), w.node(1)
	a, b := n.open(Options{}), m.open(Options{})
	m.find(n.id) // b says JOIN to a, which has not found it
	eventually(t, "the JOIN is remembered", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		s := a.strays[m.id]
		return s.joined && s.announced
	})
	if got := state(b, n.id); got != "inactive" {
		t.Errorf("b takes a for %s, want inactive: nobody answered", got)
	}
	n.find(m.id)
	knows(t, a, m.id, "active exact")
	knows(t, b, n.id, "active exact")
}

// Strangers do not fill the memory.
func TestStraysBounded(t *testing.T) {
	w := newWorld(t, "ids: 16\n"+direct)
	a := w.node(0).open(Options{})
	for i := range 3 * maxStrays {
		a.doorbell(rapidio.DestID(i), doorbellExact)
		a.doorbell(rapidio.DestID(i), doorbellJoin)
	}
	if n := len(a.strays); n != maxStrays {
		t.Errorf("%d strangers remembered, want %d", n, maxStrays)
	}
	for i := range 3 * maxStrays {
		a.doorbell(rapidio.DestID(i), doorbellLeave)
	}
	if n := len(a.strays); n != 0 {
		t.Errorf("%d strangers remembered after LEAVE, want 0", n)
	}
}

// A node that ends without a word is missed, comes back, and is known again.
func TestKilled(t *testing.T) {
	w := newWorld(t, star(3, ""))
	var nodes [3]*node
	for i := range nodes {
		nodes[i] = w.node(i)
	}
	nodes[0].route(3)
	for _, a := range nodes {
		for _, b := range nodes {
			if a != b {
				a.find(b.id)
			}
		}
	}
	a, b, c := nodes[0].open(Options{}), nodes[1].open(Options{}), nodes[2].open(Options{})
	for _, d := range []*Device{a, c} {
		knows(t, d, 2, "active exact")
	}
	_ = nodes[1].ops.Close()
	eventually(t, "b is gone", b.dead)
	if err := b.Err(); !errors.Is(err, bus.ErrClosed) && !errors.Is(err, bus.ErrGone) {
		t.Errorf("Err of the killed = %v, want %v or %v", err, bus.ErrGone, bus.ErrClosed)
	}
	for _, d := range []*Device{a, c} {
		knows(t, d, 2, "inactive")
		if got := state(d, 4-rapidio.DestID(d.MAC()[5])); got != "active exact" {
			t.Errorf("%s takes the other one for %s, want active exact", d.name, got)
		}
	}
	again := w.node(1)
	again.find(1)
	again.find(3)
	b2 := again.open(Options{})
	for _, d := range []*Device{a, c} {
		knows(t, d, 2, "active exact")
	}
	knows(t, b2, 1, "active exact")
	knows(t, b2, 3, "active exact")
}

// A node that began anew before anybody missed it is answered though it is active.
func TestBegunAnew(t *testing.T) {
	w := newWorld(t, direct)
	n, m := w.node(0), w.node(1)
	n.find(m.id)
	m.find(n.id)
	a, b := n.open(Options{}), m.open(Options{})
	knows(t, a, m.id, "active exact")
	knows(t, b, n.id, "active exact")
	m.kill()
	m = w.node(1)
	m.find(n.id)
	b = m.open(Options{Classic: true})
	knows(t, b, n.id, "active")
	knows(t, a, m.id, "active")
}

// The scan takes an endpoint away and finds it anew.
func TestRemoved(t *testing.T) {
	w := newWorld(t, direct)
	n, m := w.node(0), w.node(1)
	n.find(m.id)
	m.find(n.id)
	a, b := n.open(Options{}), m.open(Options{})
	knows(t, a, m.id, "active exact")
	knows(t, b, n.id, "active exact")
	n.net.RemoveDevice(n.found[m.id])
	if got := state(a, m.id); got != "none" {
		t.Errorf("after its removal the peer is %s, want none", got)
	}
	n.find(m.id)
	knows(t, a, m.id, "active exact")
	knows(t, b, n.id, "active exact")
}

// A link that fails takes the peers away, and brings them back.
func TestLinkFails(t *testing.T) {
	w := newWorld(t, direct)
	n, m := w.node(0), w.node(1)
	n.find(m.id)
	m.find(n.id)
	a, b := n.open(Options{}), m.open(Options{})
	knows(t, a, m.id, "active exact")
	if l := a.Link(); !l.Up || !l.FullDuplex || l.Speed <= 0 {
		t.Errorf("Link = %+v, want up, with a speed", l)
	}
	for range 2 {
		if err := w.f.SetLink("pe0", "pe1", false); err != nil {
			t.Fatal(err)
		}
		eventually(t, "both links are down", func() bool { return !a.Link().Up && !b.Link().Up })
		knows(t, a, m.id, "inactive")
		knows(t, b, n.id, "inactive")
		if err := w.f.SetLink("pe0", "pe1", true); err != nil {
			t.Fatal(err)
		}
		eventually(t, "both links are up", func() bool { return a.Link().Up && b.Link().Up })
		knows(t, a, m.id, "active exact")
		knows(t, b, n.id, "active exact")
	}
}

// Without a device ID there is no link; with another one there is another address.
func TestNumbered(t *testing.T) {
	w := newWorld(t, direct)
	n, m := w.node(0), w.node(1)
	id := m.id
	m.id = m.port.IDs().Any()
	m.number()
	b := m.open(Options{})
	if b.Link().Up {
		t.Error("the link is up without a device ID")
	}
	m.id = id
	m.number()
	m.find(n.id) // as a scan does, which tells the keeper
	eventually(t, "the link is up", func() bool { return b.Link().Up })
	if got, want := b.MAC().String(), "00:01:00:01:00:02"; got != want {
		t.Errorf("MAC = %s, want %s", got, want)
	}
	a := n.open(Options{})
	n.find(id)
	knows(t, a, id, "active exact")
	m.id = 9
	m.number()
	eventually(t, "b has another address", func() bool { return b.MAC().String() == "00:01:00:01:00:09" })
	knows(t, a, id, "inactive")
	n.find(9)
	knows(t, a, 9, "active exact")
	knows(t, b, n.id, "active exact")
}

// Peers join over a link that loses one in twenty, and stay.
func TestLossy(t *testing.T) {
	nodes := stars(t, 2, "loss: 0.05")
	a, b := nodes[0].open(Options{}), nodes[1].open(Options{})
	knows(t, a, 2, "active exact")
	knows(t, b, 1, "active exact")
	before := a.leaves.Load() + b.leaves.Load()
	if testing.Short() {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*aliveEvery)
	defer cancel()
	<-ctx.Done() // some rounds of the keepers
	if got := a.leaves.Load() + b.leaves.Load() - before; got > 1 {
		t.Errorf("%d times a peer was taken to be gone, want 0: it takes 3 losses in a row", got)
	}
}

func TestNewRefuses(t *testing.T) {
	w := newWorld(t, "endpoints: [{name: pe0}, {name: pe1, mailboxes: false}]\nlinks: [[pe0, pe1]]\n")
	n, m := w.node(0), w.node(1)
	for _, ring := range []int{-1, 1, 3, 2048} {
		if _, err := n.tryOpen(Options{Ring: ring}); !errors.Is(err, rapidio.ErrRange) {
			t.Errorf("New with a ring of %d = %v, want %v", ring, err, rapidio.ErrRange)
		}
	}
	if _, err := m.tryOpen(Options{}); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("New without mailboxes = %v, want %v", err, bus.ErrNotSupported)
	}
	a := n.open(Options{})
	if _, err := n.tryOpen(Options{}); !errors.Is(err, rapidio.ErrClaimed) {
		t.Errorf("New of a port that has one = %v, want %v", err, rapidio.ErrClaimed)
	}
	n.find(m.id)
	if got := state(a, m.id); got != "none" {
		t.Errorf("an endpoint without mailboxes is %s, want none: it is no peer", got)
	}
	if err := a.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	n.open(Options{}) // all was given back
}

// A message comes at a time that nobody chose: two nodes that say JOIN to each other end.
func TestJoinEnds(t *testing.T) {
	nodes := stars(t, 2, "delay: 20ms")
	a, b := nodes[0].open(Options{}), nodes[1].open(Options{})
	knows(t, a, 2, "active exact")
	knows(t, b, 1, "active exact")
	owed := func(d *Device) bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.all[0].owed
	}
	quiet := 0
	eventually(t, "neither owes the other an answer", func() bool {
		if quiet++; owed(a) || owed(b) {
			quiet = 0
		}
		return quiet > 200 // milliseconds, several round trips
	})
	if time.Since(a.all[0].joined) > patience {
		t.Error("a never said JOIN")
	}
}
