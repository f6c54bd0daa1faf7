package e1000

import (
	"fmt"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
)

// instant is a region whose transmitter is done at once with all that asks for a report,
// and whose receiver never does anything: it leaves only the driver's own cost.
type instant struct {
	bus.Region
	q  *txQueue
	at uint64
}

func (r *instant) Read32(bus.Off) uint32 { return 0 }

func (r *instant) Write32(o bus.Off, _ uint32) {
	if o != regTDT(0) {
		return
	}
	for ; r.at != r.q.c.tail; r.at++ {
		d := r.q.ring[uint64(r.q.c.at(r.at))*descSize:][:descSize]
		if d[11]&uint8(txRS>>24) != 0 {
			d[12] = 1
		}
	}
}

// BenchmarkBurst is the driver's own cost of a frame, from Get to Free.
func BenchmarkBurst(b *testing.B) {
	for _, burst := range []int{1, 32, 256} {
		b.Run(fmt.Sprint(burst), func(b *testing.B) {
			n := probeModel(b, newModel(device82574), map[string]string{"ring": "1024"})
			regs := n.regs
			n.regs = &instant{q: &n.tx[0]}
			defer func() { n.regs = regs }()
			pool, err := n.tx[0].NewPool(2 * burst)
			if err != nil {
				b.Fatal(err)
			}
			bufs := make([]*dma.Buf, burst)
			b.ReportAllocs()
			for i := 0; i < b.N; i += burst {
				for j := range bufs {
					x := pool.Get()
					x.Data = x.Mem[:60]
					bufs[j] = x
				}
				if k := n.tx[0].Burst(bufs); k != burst {
					b.Fatalf("Burst = %d, want %d", k, burst)
				}
				n.tx[0].Reap()
			}
			pool.Close()
		})
	}
}
