package rionet

import (
	"context"
	"encoding/binary"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// takesOrdered sends frames to a peer as fast as they go, which takes a few at a time, and checks that those that come are in order. It
// returns how many came.
func takesOrdered(t *testing.T, from, to *Device, id rapidio.DestID, frames int) (came int) {
	t.Helper()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		s := newSender(t, from, 256)
		for i := range frames {
			s.send(addr(id), i, 60)
		}
		s.drain()
	}()
	next, bad := uint32(0), 0
	take := func() bool {
		f := to.takeSome()
		for _, b := range f {
			if got := binary.BigEndian.Uint32(b.Data[headerLen:]); got < next {
				if bad++; bad < 10 {
					t.Errorf("frame %d after %d", got, next-1)
				}
			} else {
				next = got + 1
			}
			b.Free()
		}
		came += len(f)
		return len(f) > 0
	}
	eventually(t, "all is sent", func() bool { // which sleeps a millisecond each time
		for range 3 {
			take()
		}
		select {
		case <-sent:
			return true
		default:
			return false
		}
	})
	for take() {
	}
	return came
}

// A peer that has no room most of the time has all frames in order: with a fabric that answers at once, with one that takes its time, and
// with one that loses some.
func TestSlowPeer(t *testing.T) {
	for _, c := range []struct {
		name, options string
		loses         bool
	}{{"ideal", "", false}, {"delay", "delay: 300us", false}, {"lossy", "delay: 100us, loss: 0.01", true}} {
		t.Run(c.name, func(t *testing.T) {
			nodes := stars(t, 2, c.options)
			a, b := nodes[0].open(Options{}), nodes[1].open(Options{Ring: 8})
			allKnow(t, []*Device{a, b}, "active exact")
			const frames = 2000
			came := takesOrdered(t, a, b, 2, frames)
			tx, _, _ := a.counters()
			lost := int(tx.dropped + tx.errors)
			if !c.loses && lost == 0 && came != frames || came+lost < frames || came > frames || !c.loses && tx.errors > 0 {
				t.Errorf("%d of %d came, %+v", came, frames, tx)
			}
			t.Logf("%d of %d came, %d sent again, %d dropped, %d lost", came, frames, tx.retries, tx.dropped, tx.errors)
		})
	}
}

// The same through the daemon's shared memory, and over a direct link. There the mailbox is larger, and so is the number of frames.
func TestSlowPeerShared(t *testing.T) {
	for _, trust := range []bool{false, true} {
		devs := shared(t, trust)
		came := takesOrdered(t, devs[0], devs[1], 2, 5000)
		tx, _, _ := devs[0].counters()
		if came+int(tx.dropped) != 5000 || tx.errors > 0 {
			t.Errorf("trust=%t: %d of 5000 came, %+v", trust, came, tx)
		}
		t.Logf("trust=%t: %d came, %d sent again, %d dropped", trust, came, tx.retries, tx.dropped)
	}
}

// hooked is a port of the fabric that calls somebody before it takes messages.
type hooked struct {
	wrapped
	add *atomic.Pointer[func()]
}

func (h hooked) OpenOutbox(mbox, entries int) (rapidio.Outbox, error) {
	b, err := h.Ops.OpenOutbox(mbox, entries)
	return hookedBox{b, h.add}, err
}

type hookedBox struct {
	rapidio.Outbox
	add *atomic.Pointer[func()]
}

func (b hookedBox) Add(msgs []rapidio.Message) int {
	if f := b.add.Swap(nil); f != nil {
		(*f)()
	}
	return b.Outbox.Add(msgs)
}

// Frames to a peer wait for its word. It comes while all that waits is looked at, between two frames to that peer: the second does not overtake the first.
func TestHoldEndsAmid(t *testing.T) {
	var add atomic.Pointer[func()]
	w := newWorld(t, star(3, ""))
	w.wrap = func(ops rapidio.Ops) rapidio.Ops { return hooked{wrapped{ops}, &add} }
	nodes := []*node{w.node(0)}
	w.wrap = nil
	nodes = append(nodes, w.node(1), w.node(2))
	meet(nodes)
	devs := make([]*Device, len(nodes))
	for i, n := range nodes {
		devs[i] = n.open(Options{Ring: 256})
	}
	allKnow(t, devs, "active exact")
	held, other := devs[0].peers.get(2), devs[0].peers.get(3)
	eventually(t, "nothing is held", func() bool { return held.held.Load() == nil && other.held.Load() == nil })
	s := newSender(t, devs[0], 128)
	next := 0
	for tries, amid := 0, false; !amid; tries++ {
		if tries == 10 {
			t.Fatal("peers say ALIVE of themselves each time")
		}
		late := time.Now().Add(time.Hour)
		held.held.Store(&late)
		other.held.Store(&late)
		s.send(addr(2), next, 60)
		for i := range batch { // the box is given these before the next is looked at
			s.send(addr(3), i, 60)
		}
		s.send(addr(2), next+1, 60)
		ends := func() { amid = held.held.CompareAndSwap(&late, nil) }
		add.Store(&ends)
		other.held.Store(nil)
		receive(t, devs[1], 2, func(f []byte) {
			if got := int(binary.BigEndian.Uint32(f[headerLen:])); got != next {
				t.Errorf("frame %d came, want %d", got, next)
			}
			next++
		})
		receive(t, devs[2], batch, func([]byte) {})
		s.drain()
		add.Store(nil)
	}
}

// joinLog looks at a device when it logs that a peer joined.
type joinLog struct {
	slog.Handler
	joined func()
}

func (l joinLog) Enabled(context.Context, slog.Level) bool { return true }

func (l joinLog) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "peer joined" {
		l.joined()
	}
	return l.Handler.Handle(ctx, r)
}

// A peer that joins is active only once its frames are held: it has to know first that we keep lengths.
func TestHeldBeforeActive(t *testing.T) {
	w := newWorld(t, direct)
	nodes := []*node{w.node(0), w.node(1)}
	var a *Device
	held := make(chan bool, 100)
	a, err := New(nodes[0].port, Options{Name: "rio0", Driver: nodes[0].driver, Log: slog.New(joinLog{slog.DiscardHandler, func() {
		held <- a.peers.get(2).held.Load() != nil
	}})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	b := nodes[1].open(Options{})
	nodes[0].find(2)
	nodes[1].find(1)
	allKnow(t, []*Device{a, b}, "active exact")
	select {
	case was := <-held:
		if !was {
			t.Error("a peer was active before its frames were held")
		}
	default:
		t.Error("nothing was logged of the peer")
	}
}
