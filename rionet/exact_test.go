package rionet

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// shy is a port to whose EXACT doorbells the peer says no for a while: as one does that is just opening, and takes the JOIN behind it.
type shy struct {
	wrapped
	left  *atomic.Int32 // EXACTs that are refused yet
	joins *atomic.Int32 // JOINs that were taken
}

func (s shy) Doorbell(ctx context.Context, dest rapidio.DestID, info uint16) error {
	if info == doorbellExact && s.left.Add(-1) >= 0 {
		return rapidio.ErrResponse
	}
	err := s.Ops.Doorbell(ctx, dest, info)
	if info == doorbellJoin && err == nil {
		s.joins.Add(1)
	}
	return err
}

// refusing are two devices that know each other, whose EXACT is refused so many times, by both.
func refusing(t *testing.T, times int32) (devs [2]*Device, ports [2]shy) {
	w := newWorld(t, direct)
	var nodes [2]*node
	for i := range nodes {
		w.wrap = func(ops rapidio.Ops) rapidio.Ops {
			ports[i] = shy{wrapped{ops}, new(atomic.Int32), new(atomic.Int32)}
			ports[i].left.Store(times)
			return ports[i]
		}
		nodes[i] = w.node(i)
	}
	nodes[0].find(2)
	nodes[1].find(1)
	for i, n := range nodes {
		devs[i] = n.open(Options{})
	}
	return devs, ports
}

// EXACT is refused and the JOIN behind it taken: both ends come to know all the same that the other one keeps lengths.
func TestExactRefusedAtFirst(t *testing.T) {
	devs, _ := refusing(t, 3)
	allKnow(t, devs[:], "active exact")
	if l := devs[0].leaves.Load() + devs[1].leaves.Load(); l != 0 {
		t.Errorf("%d times a peer left, want 0", l)
	}
}

// A peer that never takes EXACT gets a few JOINs, and is let alone.
func TestExactRefusedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		devs, ports := refusing(t, 1<<30)
		allKnow(t, devs[:], "active")
		for i, d := range devs {
			p := d.peers.get(rapidio.DestID(2 - i))
			eventually(t, "EXACT is given up", func() bool {
				d.mu.Lock()
				defer d.mu.Unlock()
				return p.tries == exactTries-1 && !p.owed
			})
			if n := ports[i].joins.Load(); n > 2*exactTries {
				t.Errorf("%d JOINs sent, want at most %d", n, 2*exactTries)
			}
		}
	})
}

// ALIVE is ours alone: who sends it keeps lengths. A JOIN without EXACT says that it does not, any more.
func TestAliveIsExact(t *testing.T) {
	devs, _ := refusing(t, 1<<30)
	allKnow(t, devs[:], "active")
	a := devs[0]
	a.doorbell(2, doorbellAlive)
	if got := state(a, 2); got != "active exact" {
		t.Errorf("after ALIVE the peer is %s, want active exact", got)
	}
	a.doorbell(2, doorbellJoin)
	if got := state(a, 2); got != "active" {
		t.Errorf("after JOIN alone the peer is %s, want active", got)
	}
	a.doorbell(2, doorbellExact)
	if got := state(a, 2); got != "active exact" {
		t.Errorf("after EXACT the peer is %s, want active exact", got)
	}
}

// A link that fails is down at once, not at the keeper's next look, and up at once.
func TestLinkAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, direct)
		n, m := w.node(0), w.node(1)
		n.find(m.id)
		m.find(n.id)
		a, b := n.open(Options{}), m.open(Options{})
		allKnow(t, []*Device{a, b}, "active exact")
		for i := range 4 {
			up := i%2 != 0
			if err := w.f.SetLink("pe0", "pe1", up); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // no time passes
			if a.Link().Up != up || b.Link().Up != up {
				t.Errorf("the link is up: %t; the devices say %t and %t", up, a.Link().Up, b.Link().Up)
			}
		}
	})
}
