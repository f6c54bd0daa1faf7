package rionet

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// stingy is a port of the fabric whose outboxes take fewer messages than they have room for, and hold results back, as one may whose
// memory to the fabric is full.
type stingy struct{ wrapped }

func (s stingy) OpenOutbox(mbox, entries int) (rapidio.Outbox, error) {
	b, err := s.Ops.OpenOutbox(mbox, entries)
	return &stingyBox{b, rand.New(rand.NewPCG(1, 2))}, err
}

type stingyBox struct {
	rapidio.Outbox
	rnd *rand.Rand
}

func (b *stingyBox) Add(msgs []rapidio.Message) int {
	return b.Outbox.Add(msgs[:b.rnd.IntN(len(msgs)+1)])
}

func (b *stingyBox) Results(st []rapidio.Status) int {
	return b.Outbox.Results(st[:b.rnd.IntN(len(st)+1)])
}

// A port that takes messages in small pieces loses none and keeps their order, to one peer and to many. The receivers have room for all.
func TestStingyPort(t *testing.T) {
	w := newWorld(t, star(4, ""))
	w.wrap = func(ops rapidio.Ops) rapidio.Ops { return stingy{wrapped{ops}} }
	nodes := []*node{w.node(0)}
	w.wrap = nil
	for i := range 3 {
		nodes = append(nodes, w.node(i+1))
	}
	meet(nodes)
	devs := make([]*Device, len(nodes))
	for i, n := range nodes {
		ring := 1024
		if i == 0 {
			ring = 16
		}
		devs[i] = n.open(Options{Ring: ring})
	}
	allKnow(t, devs, "active exact")
	const frames = 1500
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s := newSender(t, devs[0], 64)
		for i := range frames {
			switch {
			case i%3 == 0:
				s.send(broadcast[:], i, 60)
			default:
				s.send(addr(rapidio.DestID(2+i%3-1)), i, 60)
			}
		}
		s.drain()
	}()
	next := make([]int, len(devs))
	for left := frames + 2*((frames+2)/3); left > 0; {
		for i, d := range devs[1:] {
			for _, b := range d.takeSome() {
				got := int(binary.BigEndian.Uint32(b.Data[headerLen:]))
				if got < next[i] {
					t.Errorf("%s received frame %d after %d", d.name, got, next[i])
				}
				next[i] = got
				b.Free()
				left--
			}
		}
	}
	<-ended
	for _, d := range devs[1:] {
		silence(t, d)
	}
	if st := devs[0].Stats(); st.TxDropped != 0 || st.TxErrors != 0 {
		t.Errorf("Stats = %+v, want nothing dropped", st)
	}
}
