package rionet

import (
	"context"
	"fmt"
	"testing"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
)

// BenchmarkFrames sends bursts of 32 frames from one device to another one on a fabric in this process, which receives them.
func BenchmarkFrames(b *testing.B) {
	for _, size := range []int{64, 256, 1024, 4096} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			w := newWorld(b, direct)
			n, m := w.node(0), w.node(1)
			n.find(m.id)
			m.find(n.id)
			from, to := n.open(Options{}), m.open(Options{})
			knows(b, from, m.id, "active exact")
			knows(b, to, n.id, "active exact")
			s := newSender(b, from, 64)
			var out [32]*dma.Buf
			var in [netdev.Budget]*dma.Buf
			b.SetBytes(int64(size * len(out)))
			b.ReportAllocs()
			for b.Loop() {
				for i := range out {
					x := s.pool.Get()
					x.Data = x.Mem[:size]
					copy(x.Data, addr(2))
					out[i] = x
				}
				for k := 0; k < len(out); {
					k += from.Tx(0).Burst(out[k:])
				}
				for k := 0; k < len(out); {
					got := to.Rx(0).Burst(in[:])
					for _, x := range in[:got] {
						x.Free()
					}
					k += got
				}
			}
			if err := from.Tx(0).Drain(context.Background()); err != nil {
				b.Error(err)
			}
		})
	}
}
