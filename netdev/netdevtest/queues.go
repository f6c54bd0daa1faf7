package netdevtest

import (
	"context"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/frame"
	"github.com/ring3dev/ring3/netdev"
)

// flows is how many flows a transmit queue sends.
const flows = 16

// queues sends flows from every transmit queue at once: each flow arrives in order, whole, and
// in one queue of the far end.
func (r *rig) queues(t *testing.T) {
	a, b := r.pair.A, r.pair.B
	txs, rxs := a.Info().TxQueues, b.Info().RxQueues
	if txs == 1 && rxs == 1 {
		t.Skip("one queue")
	}
	const each = 200 // frames a flow
	r.sinkAll(t)
	var wg sync.WaitGroup
	for q := range txs {
		pool, err := a.Tx(q).NewPool(r.ring)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		templates := r.flows(t, q)
		wg.Go(func() {
			for n := range flows * each {
				x := get(t, a.Tx(q), pool)
				f := templates[n%flows]
				x.Data = x.Mem[:len(f)]
				copy(x.Data, f)
				binary.BigEndian.PutUint32(x.Data[len(f)-5:], uint32(n/flows))
				sendAll(t, a.Tx(q), []*dma.Buf{x})
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := a.Tx(q).Drain(ctx); err != nil {
				t.Errorf("Drain of queue %d = %v", q, err)
			}
		})
	}
	where, next := make(map[byte]int), make([]uint32, txs*flows)
	hashes := make(map[byte]uint32)
	receiveAny(t, b, txs*flows*each, func(q int, x *dma.Buf) {
		f := x.Data
		id := f[len(f)-1]
		if int(id) >= len(next) {
			t.Fatalf("a frame of flow %d", id)
		}
		if n := binary.BigEndian.Uint32(f[len(f)-5:]); n != next[id] {
			t.Fatalf("flow %d: frame %d in queue %d, want %d", id, n, q, next[id])
		}
		if next[id]++; next[id] == 1 {
			where[id], hashes[id] = q, x.Meta.Hash
		}
		if where[id] != q || hashes[id] != x.Meta.Hash {
			t.Errorf("flow %d: queue %d, hash %#x, then %d, %#x", id, where[id], hashes[id], q, x.Meta.Hash)
		}
	})
	wg.Wait()
	used := make(map[int]int)
	for id, q := range where {
		used[q]++
		if o, ok := b.(netdev.Offloader); ok {
			if _, on := o.Features(); on&netdev.RxHash != 0 && hashes[id] == 0 {
				t.Errorf("flow %d has no hash", id)
			}
		}
	}
	if len(used) != rxs {
		t.Errorf("flows by queue: %v, want all %d queues used", used, rxs)
	}
	for q := range txs {
		a.Tx(q).Reap()
	}
}

// flows makes a frame of each flow of a transmit queue. The last byte is the flow's number.
func (r *rig) flows(t *testing.T, q int) (templates [flows][]byte) {
	t.Helper()
	for i := range templates {
		s := r.spec(i%4 == 3, 64)
		s.SrcPort = uint16(1000 + q*flows + i)
		f, err := frame.BuildTCP(s, frame.TCP{Flags: frame.ACK})
		if err != nil {
			t.Fatal(err)
		}
		f.Bytes[len(f.Bytes)-1] = byte(q*flows + i)
		templates[i] = f.Bytes
	}
	return templates
}

// sinkAll lets receivers sleep on every queue while few frames come, some for each.
func (r *rig) sinkAll(t *testing.T) {
	t.Helper()
	a, b := r.pair.A, r.pair.B
	sink, err := netdev.NewSink(b)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sink.Close(); err != nil {
			t.Errorf("Sink.Close = %v", err)
		}
	}()
	for i := range 50 {
		s := r.spec(false, 64)
		s.SrcPort = uint16(i)
		f, err := frame.BuildTCP(s, frame.TCP{Flags: frame.ACK})
		if err != nil {
			t.Fatal(err)
		}
		r.send1(t, r.pool, f.Bytes, dma.Meta{})
		for end := time.Now().Add(patience); sink.Frames() <= uint64(i); time.Sleep(50 * time.Microsecond) {
			if time.Now().After(end) {
				t.Fatalf("frame %d was not received within %s", i, patience)
			}
		}
	}
	drain(t, a)
}
