package e1000

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
)

// startQEMU brings one device up on a machine of its own, on a hub without peer.
func startQEMU(tb testing.TB, model, ring string) *nic {
	tb.Helper()
	m, err := qemu.Start(context.Background(), qemu.Config{Devices: []qemu.DeviceSpec{{Name: "eth0", Model: model}}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := m.Close(); err != nil {
			tb.Error(err)
		}
	})
	dev, err := m.Device("eth0")
	if err != nil {
		tb.Fatal(err)
	}
	inst, err := Driver.Probe(context.Background(), dev, pci.Env{Name: "eth0", Options: map[string]string{"ring": ring}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := inst.Close(); err != nil {
			tb.Error(err)
		}
	})
	return inst.(*nic)
}

// testHeader is from eth0 to nobody.
const testHeader = "\x52\x54\x00\x00\x00\x99\x52\x54\x00\x12\x34\x56\x88\xb5"

// driven sends total frames through the queue, writing a sequence number into each. Few
// buffers go round, so that they stay in the caches.
func driven(tb testing.TB, n *nic, burst, total int) (pps float64) {
	pool, err := n.tx[0].NewPoolOf(min(n.ring, max(512, 2*burst)), 60)
	if err != nil {
		tb.Fatal(err)
	}
	defer pool.Close()
	bufs := make([]*dma.Buf, burst)
	seq, have := uint32(0), 0
	t0 := time.Now()
	for sent := 0; sent < total; {
		for ; have < burst; have++ {
			b := pool.Get()
			if b == nil {
				break
			}
			b.Data = b.Mem[:60]
			if b.Tag == 0 {
				copy(b.Data, testHeader)
				b.Tag = 1
			}
			seq++
			b.Data[20], b.Data[21], b.Data[22], b.Data[23] = byte(seq>>24), byte(seq>>16), byte(seq>>8), byte(seq)
			bufs[have] = b
		}
		if have < burst {
			n.tx[0].Reap()
			continue
		}
		k := n.tx[0].Burst(bufs)
		sent += k
		have = copy(bufs, bufs[k:])
	}
	if err := n.tx[0].Drain(context.Background()); err != nil {
		tb.Fatal(err)
	}
	d := time.Since(t0)
	for _, b := range bufs[:have] {
		b.Free()
	}
	return float64(total) / d.Seconds()
}

// BenchmarkQEMU compares the queue with the bare loop, in one machine, in turns.
func BenchmarkQEMU(b *testing.B) {
	for _, model := range []string{"e1000e", "e1000"} {
		for _, ring := range []string{"256", "4096"} {
			for _, burst := range []int{1, 32, 256, 1024} {
				b.Run(fmt.Sprintf("%s/ring=%s/burst=%d", model, ring, burst), func(b *testing.B) {
					n := startQEMU(b, model, ring)
					if burst >= n.ring {
						b.Skip("does not fit the ring")
					}
					total := max(64<<10, burst<<10)
					if burst == 1 {
						total = 16 << 10
					}
					frame := make([]byte, 60)
					copy(frame, testHeader)
					var limit, got float64
					for range b.N {
						pps, err := BareTransmit(context.Background(), n, frame, burst, 50*time.Millisecond)
						if err != nil {
							b.Fatal(err)
						}
						limit = max(limit, pps)
						got = max(got, driven(b, n, burst, total))
					}
					b.ReportMetric(0, "ns/op")
					b.ReportMetric(limit/1e6, "bare-Mpps")
					b.ReportMetric(got/1e6, "Mpps")
					b.ReportMetric(got/limit, "ratio")
				})
			}
		}
	}
}
