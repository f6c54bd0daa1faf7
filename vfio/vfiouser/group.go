package vfiouser

import (
	"slices"
	"sync"

	"github.com/ring3dev/ring3/bus/dma"
)

// Group is servers whose devices reach each other. The zero value is ready.
//
// A driver that knows what a neighbour's driver did relies on its device knowing, too: a frame is sent once the
// other end has a descriptor for it. So what is written by shared memory, to any of them, is done by one goroutine
// at a time, the earliest first.
type Group struct {
	mu  sync.Mutex // held while writes are made; guards the sessions' bells as well
	all []*bells
}

func (g *Group) join(b *bells) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all = append(g.all, b)
}

func (g *Group) leave(b *bells) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all = slices.DeleteFunc(g.all, func(x *bells) bool { return x == b })
}

// drain makes the writes that there are, those of own in any case. What is wrong with one ends its own session.
// Called with mu held.
func (g *Group) drain(own *bells) {
	due := own.fresh()
	if len(g.all) > 1 {
		// A client that writes on and on, or says that it was always the first, is not waited for.
		for left := len(g.all) * queueEntries; left > 0; left-- {
			b := g.first()
			if b == nil {
				break
			}
			if b.take(); b == own {
				due--
			}
		}
	}
	for ; due > 0 && own.pending() > 0; due-- {
		own.take()
	}
	g.drainRings()
}

// first is the one whose client wrote first, of those that have a write to take. nil: none has.
func (g *Group) first() (best *bells) {
	for range len(g.all) + 1 { // not for ever: the times are the clients' to change
		last := best
		for _, b := range g.all {
			if b != best && (b.pending() > 0 || b.fresh() > 0) && (best == nil || b.queue.when() < best.queue.when()) {
				best = b
			}
		}
		// What came before the best is there once that is: then it was seen, if not in this turn in the
		// next one.
		if best == last {
			break
		}
	}
	return best
}

// fresh sees what a session's client put in, and returns how many writes there are: 0 where no more of it
// are made.
func (b *bells) fresh() int {
	if b.queue != nil && b.failed == nil && !b.ending {
		b.failed = b.queue.look()
	}
	return b.pending()
}

// pending is how many of those that were seen there are.
func (b *bells) pending() int {
	if b.queue == nil || b.failed != nil || b.ending {
		return 0
	}
	return b.queue.count()
}

// take makes the first write, of at least one.
func (b *bells) take() {
	b.failed = b.queue.take(b.x.apply)
}

// drainRings makes what was rung. Doorbells do not say when they were. So all are looked at again until none
// is found, since an earlier one is there once a later one is; and then they are made in the order of the
// drivers' tables, in which NICs' doorbells for receiving come first.
func (g *Group) drainRings() {
	most, found := 0, false
	for again := true; again; {
		again = false
		for _, b := range g.all {
			if b.failed != nil || b.ending {
				continue
			}
			for i := range b.rings {
				if r := &b.rings[i]; !r.rung && drainEventfd(r.kick) {
					r.rung, again, found = true, true, true
				}
			}
			most = max(most, len(b.rings))
		}
	}
	for i := 0; found && i < most; i++ {
		for _, b := range g.all {
			if i < len(b.rings) && b.rings[i].rung {
				b.makeRing(&b.rings[i])
			}
		}
	}
}

// makeRing makes a doorbell's write.
func (b *bells) makeRing(r *ring) {
	r.rung = false
	b.rungs++
	v := uint64(dma.Load32(b.values, r.at))
	if r.width == 8 {
		v = dma.Load64(b.values, r.at)
	}
	b.x.writeOne(r.region, r.off, r.width, v)
}
