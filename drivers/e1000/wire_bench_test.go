package e1000_test

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
)

// BenchmarkWire sends from one device to the other, with credit, and counts what arrives.
func BenchmarkWire(b *testing.B) {
	for _, model := range models {
		for _, ring := range []int{256, 1024, 4096} {
			b.Run(fmt.Sprintf("%s/ring=%d", model, ring), func(b *testing.B) {
				m := machine(b, model, 2)
				o := map[string]string{"ring": strconv.Itoa(ring)}
				from := bind(b, m, "eth0", o, nil).(netdev.Device)
				to := bind(b, m, "eth1", o, nil).(netdev.Device)
				if err := netdev.Wire(from, to); err != nil {
					b.Fatal(err)
				}
				sink, err := netdev.NewSink(to)
				if err != nil {
					b.Fatal(err)
				}
				defer sink.Close()
				pool, err := netdev.NewTxPool(from.Tx(0), 512, 60)
				if err != nil {
					b.Fatal(err)
				}
				send := func(total uint64) {
					want := sink.Frames() + total
					var bufs [32]*dma.Buf
					have := 0
					for total > 0 {
						for ; have < min(len(bufs), int(min(total, 64))); have++ {
							x := pool.Get()
							if x == nil {
								break
							}
							x.Data = x.Mem[:60]
							copy(x.Data, to.MAC())
							copy(x.Data[6:], from.MAC())
							x.Data[12], x.Data[13] = 0x88, 0xb5
							bufs[have] = x
						}
						k := from.Tx(0).Burst(bufs[:have])
						have = copy(bufs[:], bufs[k:have])
						if total -= uint64(k); k == 0 {
							runtime.Gosched()
						}
					}
					for end := time.Now().Add(10 * time.Second); sink.Frames() < want; time.Sleep(50 * time.Microsecond) {
						if time.Now().After(end) {
							b.Fatalf("%d frames lost", want-sink.Frames())
						}
					}
				}
				send(1000) // waits until the receiver listens
				best := 0.0
				const total = 50000
				for range b.N {
					t0 := time.Now()
					send(total)
					best = max(best, total/time.Since(t0).Seconds())
				}
				if err := from.Tx(0).Drain(context.Background()); err != nil {
					b.Fatal(err)
				}
				pool.Close()
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(best/1e3, "kpps")
			})
		}
	}
}
