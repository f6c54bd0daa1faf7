package e1000

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
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

// bare rings the doorbell for total frames, burst at a time, without ever waiting or
// looking: the model's own limit. Each burst's last descriptor reports, as the
// driver's must.
func bare(tb testing.TB, n *nic, burst, total int) (pps float64) {
	q := &n.tx
	pool, err := q.NewPool(1)
	if err != nil {
		tb.Fatal(err)
	}
	defer pool.Close()
	b := pool.Get()
	b.Data = b.Mem[:60]
	testFrame(b)
	for i := range q.slots {
		cmd := txEOP | txIFCS | 60
		if (i+1)%min(burst, reportEvery) == 0 {
			cmd |= txRS
		}
		putTx(q.ring, uint32(i), b.Addr, cmd)
	}
	at := q.c.tail
	t0 := time.Now()
	for sent := 0; sent < total; sent += burst {
		at += uint64(burst)
		n.regs.Write32(regTDT, q.c.at(at))
	}
	n.regs.Read32(regTDH)
	d := time.Since(t0)
	q.c.head, q.c.tail = at, at
	return float64(total) / d.Seconds()
}

func testFrame(b *dma.Buf) {
	copy(b.Data, "\x52\x54\x00\x00\x00\x99\x52\x54\x00\x12\x34\x56\x88\xb5")
}

// driven sends total frames through the queue, writing a sequence number into each.
func driven(tb testing.TB, n *nic, burst, total int) (pps float64) {
	pool, err := n.tx.NewPool(n.ring + burst)
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
			if b.Tag == 0 {
				b.Data = b.Mem[:60]
				testFrame(b)
				b.Tag = 1
			}
			b.Data = b.Mem[:60]
			seq++
			b.Data[20], b.Data[21], b.Data[22], b.Data[23] = byte(seq>>24), byte(seq>>16), byte(seq>>8), byte(seq)
			bufs[have] = b
		}
		k := n.tx.Burst(bufs)
		sent += k
		have = copy(bufs, bufs[k:])
	}
	if err := n.tx.Drain(context.Background()); err != nil {
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
					var limit, got float64
					for range b.N {
						limit = max(limit, bare(b, n, burst, total))
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

var _ bus.Device = (*model)(nil)
