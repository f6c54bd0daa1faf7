package mport

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// directRig is two ports with a direct link in use: what the first sends, and what the second receives.
func directRig(t *testing.T, w way, entries int) (r *rig, out rapidio.Outbox, in *inbox) {
	t.Helper()
	r = newRig(t, trusting, w)
	box, err := r.p[1].OpenInbox(0, entries)
	must(t, err)
	out, err = r.p[0].OpenOutbox(0, 64)
	must(t, err)
	eventually(t, "the direct link in use", func() bool { _, ok := r.p[0].node.Direct[0].Dest(); return ok })
	return r, out, box.(*inbox)
}

// A direct link loses no wake-up: bursts of any length, some of them to a receiver that sleeps, and some while it is about to, all arrive though
// nobody looks without a signal.
func TestDirectWakes(t *testing.T) {
	for _, w := range ways[:2] {
		t.Run(w.name, func(t *testing.T) {
			bustest.NoLeaks(t)
			_, out, in := directRig(t, w, 32)
			in.every = time.Hour
			n := uint32(5000)
			if testing.Short() || raceEnabled {
				n = 2000
			}
			turn := make(chan uint32, 1) // the number after the last one that came
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				sendBursts(t, out, n, turn)
			}()
			for next := uint32(0); next < n; next++ {
				m := receive(t, in, 1)[0]
				if got := binary.LittleEndian.Uint32(m.Data); got != next {
					t.Fatalf("message %d, want %d", got, next)
				}
				select {
				case <-turn:
				default:
				}
				turn <- next + 1
			}
			<-ended
		})
	}
}

// sendBursts sends n messages. After some bursts it waits until all were received, and for a moment that is about what the receiver takes to
// fall asleep.
func sendBursts(t *testing.T, out rapidio.Outbox, n uint32, turn <-chan uint32) {
	rnd := rand.New(rand.NewPCG(1, 2))
	st := make([]rapidio.Status, 1)
	for next := uint32(0); next < n; {
		for k := 1 + rnd.IntN(40); k > 0 && next < n; k-- {
			m := rapidio.Message{Peer: 2, Data: binary.LittleEndian.AppendUint32(nil, next)}
			if out.Add([]rapidio.Message{m}) != 1 || out.Results(st) != 1 {
				t.Errorf("message %d has no result", next)
				return
			}
			if st[0] == rapidio.Done {
				next++
			}
		}
		if rnd.IntN(2) == 0 {
			continue
		}
		for end := time.Now().Add(patience); <-turn != next; {
			if time.Now().After(end) {
				return // the receiver says what is wrong
			}
		}
		for begin, d := time.Now(), time.Duration(rnd.IntN(100))*time.Microsecond; time.Since(begin) < d; {
			yield()
		}
	}
}

// A signal that was lost, as of a peer that ended before it gave it, costs the receiver a moment.
func TestSignalLost(t *testing.T) {
	for _, w := range ways[:2] {
		t.Run(w.name, func(t *testing.T) {
			bustest.NoLeaks(t)
			r, _, in := directRig(t, w, 1024)
			ctx, cancel := context.WithCancel(t.Context())
			var got atomic.Int32
			var wg sync.WaitGroup
			wg.Go(func() {
				room := rooms(1, 8)
				for in.Wait(ctx) == nil {
					got.Add(int32(in.Get(room)))
				}
			})
			sent := int32(0)
			eventually(t, "the receiver sleeps", func() bool {
				p := r.p[0]
				p.txMu.Lock()
				defer p.txMu.Unlock()
				box := p.node.Direct[0].Out[0]
				if box.Limit() == 0 || !box.Put(&shm.Header{Kind: shm.KindMessage}, []byte{1}) {
					return false
				}
				sent++
				return box.Publish() // it wants a signal, and gets none
			})
			eventually(t, "all messages there", func() bool { return got.Load() == sent })
			cancel()
			wg.Wait()
		})
	}
}
