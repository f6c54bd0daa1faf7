package rionet

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// picky is a port whose doorbells a test may hold up, refuse or lose.
type picky struct {
	wrapped
	ring func(info uint16) (lost bool, err error)
}

func (p picky) Doorbell(ctx context.Context, dest rapidio.DestID, info uint16) error {
	if lost, err := p.ring(info); lost || err != nil {
		return err
	}
	return p.Ops.Doorbell(ctx, dest, info)
}

// pickyPair are two devices that know of each other; the second one's port asks ring, the first one's first, if there is one.
func pickyPair(t *testing.T, first, ring func(info uint16) (bool, error), o Options) (a, b *Device) {
	w := newWorld(t, direct)
	var nodes [2]*node
	for i, r := range []func(uint16) (bool, error){first, ring} {
		w.wrap = nil
		if r != nil {
			w.wrap = func(ops rapidio.Ops) rapidio.Ops { return picky{wrapped{ops}, r} }
		}
		nodes[i] = w.node(i)
	}
	nodes[0].find(2)
	nodes[1].find(1)
	b = nodes[1].open(Options{})
	return nodes[0].open(o), b
}

// Frames to a peer whose JOIN came, and that was not told yet that we keep lengths, wait until it was: the first one arrives as it was sent.
func TestHeldUntilTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := make(chan struct{})
		a, b := pickyPair(t, nil, func(info uint16) (bool, error) {
			if info == doorbellExact {
				<-told
			}
			return false, nil
		}, Options{})
		synctest.Wait()
		if got := state(b, 1) + ", " + state(a, 2); got != "active exact, inactive" {
			t.Fatalf("b takes a for, and a takes b for: %s; want active exact, inactive", got)
		}
		s := newSender(t, b, 4)
		s.send(addr(1), 1, 60)
		s.send(broadcast[:], 2, 61)
		time.Sleep(holdFor / 2)
		silence(t, a)
		close(told)
		n := 60
		eventually(t, "both frames came", func() bool { // unlike receive it sleeps: no time passes here otherwise
			for _, f := range a.takeSome() {
				if len(f.Data) != n {
					t.Errorf("a frame of %d bytes came with %d", n, len(f.Data))
				}
				f.Free()
				n++
			}
			return n == 62
		})
		s.drain()
		if _, rx, _ := a.counters(); rx.classic != 0 {
			t.Errorf("%d frames came with 4096 bytes, want 0", rx.classic)
		}
	})
}

// A peer that never says that it knows gets frames all the same, late; and at once the next time, if it does not say it then.
func TestHeldNotForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dumb atomic.Bool
		dumb.Store(true)
		a, b := pickyPair(t, func(info uint16) (bool, error) { return info == doorbellAlive && dumb.Load(), nil },
			func(uint16) (bool, error) { return false, nil }, Options{})
		allKnow(t, []*Device{a, b}, "active exact")
		s := newSender(t, b, 4)
		arrived := func() int {
			bufs := a.takeSome()
			for _, f := range bufs {
				f.Free()
			}
			return len(bufs)
		}
		s.send(addr(1), 1, 60)
		if n := arrived(); n != 0 {
			t.Errorf("%d frames came at once, want 0", n)
		}
		time.Sleep(holdFor + 10*tickEvery)
		if n := arrived(); n != 1 {
			t.Errorf("%d frames came after %s, want 1", n, holdFor)
		}
		again := func() {
			b.doorbell(1, doorbellLeave)
			b.doorbell(1, doorbellExact)
			b.doorbell(1, doorbellJoin)
		}
		again()
		s.send(addr(1), 2, 60)
		if n := arrived(); n != 1 {
			t.Errorf("%d frames came at once from who waited in vain before, want 1", n)
		}
		s.drain()
		dumb.Store(false)
		again() // b answers, and a says ALIVE to that
		eventually(t, "a is trusted again", func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return !b.all[0].mute
		})
	})
}

// A classic peer refuses EXACT for ever: frames go to it once it took JOIN.
func TestHeldForClassic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pickyPair(t, nil, func(uint16) (bool, error) { return false, nil }, Options{Classic: true})
		begin := time.Now()
		eventually(t, "a classic peer is sent to", func() bool {
			p := b.peers.get(1)
			return p.active.Load() && p.held.Load() == nil
		})
		if took := time.Since(begin); took >= joinFirst {
			t.Errorf("a classic peer was not sent to for %s", took)
		}
		allKnow(t, []*Device{a, b}, "active")
	})
}

// Nodes send as soon as they may, while they get to know each other: nothing arrives with 4096 bytes.
func TestFirstFramesExact(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 10
	}
	for range rounds {
		w := newWorld(t, direct)
		w.wrap = func(ops rapidio.Ops) rapidio.Ops {
			return picky{wrapped{ops}, func(info uint16) (bool, error) {
				if info == doorbellExact {
					time.Sleep(2 * time.Millisecond) // a keeper with much to do
				}
				return false, nil
			}}
		}
		nodes := [...]*node{w.node(0), w.node(1)}
		devs := [...]*Device{nodes[0].open(Options{}), nodes[1].open(Options{})}
		var finding sync.WaitGroup
		for i, n := range nodes {
			dev := n.read(rapidio.DestID(2 - i))
			finding.Go(func() { n.net.AddDevice(dev) })
		}
		var senders [2]*sender
		for i, d := range devs {
			senders[i] = newSender(t, d, 16)
		}
		var got [2]int
		seq := 0
		eventually(t, "both have received some", func() bool {
			for i, d := range devs {
				seq++
				senders[i].send(addr(rapidio.DestID(2-i)), seq, 60)
				for _, b := range d.takeSome() {
					if got[i]++; len(b.Data) != 60 {
						t.Errorf("%s: frame %d has %d bytes, want 60", d.name, got[i], len(b.Data))
					}
					b.Free()
				}
			}
			return got[0] > 10 && got[1] > 10
		})
		finding.Wait()
		for i, d := range devs {
			senders[i].drain()
			if err := d.Close(); err != nil {
				t.Errorf("Close = %v, want nil", err)
			}
			nodes[i].bus.Close()
		}
	}
}

// A JOIN of long ago is not that of who has the device ID now.
func TestStrayExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			after time.Duration
			want  string
		}{{strayFor - time.Second, "active exact"}, {strayFor, "inactive"}} {
			w := newWorld(t, direct)
			n := w.node(0)
			w.node(1)
			a := n.open(Options{})
			a.doorbell(2, doorbellExact)
			a.doorbell(2, doorbellJoin)
			time.Sleep(c.after)
			n.net.AddDevice(n.read(2))
			if got := state(a, 2); got != c.want {
				t.Errorf("found %s after its JOIN: the peer is %s, want %s", c.after, got, c.want)
			}
		}
	})
}

// Strangers of long ago make room.
func TestStraysMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "ids: 16\n"+direct)
		a := w.node(0).open(Options{})
		for i := range maxStrays {
			a.doorbell(rapidio.DestID(i+10), doorbellJoin)
		}
		time.Sleep(strayFor)
		a.doorbell(5000, doorbellJoin)
		if n := len(a.strays); n != 1 || !a.strays[5000].joined {
			t.Errorf("%d strangers remembered, want the last one alone", n)
		}
	})
}

// A peer that comes and goes all the time does not fill the log; once it rests, what it does is told again.
func TestFlappingPeerLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pickyPair(t, nil, func(uint16) (bool, error) { return false, nil }, Options{})
		allKnow(t, []*Device{a, b}, "active exact")
		var text bytes.Buffer
		a.mu.Lock()
		a.log = slog.New(slog.NewTextHandler(&text, nil))
		a.mu.Unlock()
		flap := func() {
			a.doorbell(2, doorbellLeave)
			a.doorbell(2, doorbellExact)
			a.doorbell(2, doorbellJoin)
		}
		for range 1000 {
			flap()
		}
		lines := func() int {
			a.mu.Lock()
			defer a.mu.Unlock()
			return strings.Count(text.String(), "\n")
		}
		if n := lines(); n > sayFirst {
			t.Errorf("%d lines of 1000 rounds, want %d at most", n, sayFirst)
		}
		before := lines()
		time.Sleep(2 * sayEvery)
		flap()
		if n := lines() - before; n != 2 || !strings.Contains(text.String(), "untold=") {
			t.Errorf("%d lines after a rest, want 2, the first of which says how many were not told:\n%s", n, text.String())
		}
	})
}
