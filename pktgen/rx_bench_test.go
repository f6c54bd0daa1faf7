package pktgen

import (
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/frame"
)

// BenchmarkTake is what a frame costs in bursts of 64 that are in the cache.
func BenchmarkTake(b *testing.B) {
	six, vlan := spec(), spec()
	six.SrcIP, six.DstIP = addr("fd00::1"), addr("fd00::2")
	vlan.VLANs = []uint16{1, 2}
	for _, c := range []struct {
		name  string
		spec  frame.Spec
		flows int
		runs  uint32 // at a time
		spoil bool
		loss  uint32 // one of so many
	}{
		{name: "IPv4", spec: spec(), flows: 1, runs: 1},
		{name: "IPv6", spec: six, flows: 1, runs: 1},
		{name: "VLANs", spec: vlan, flows: 1, runs: 1},
		{name: "flows=64", spec: spec(), flows: 64, runs: 1},
		{name: "flows=4096", spec: spec(), flows: 4096, runs: 1},
		{name: "flows=65536", spec: spec(), flows: 65536, runs: 1},
		{name: "senders=2", spec: spec(), flows: 1, runs: 2},
		{name: "loss=1%", spec: spec(), flows: 1, runs: 1, loss: 100},
		{name: "others", spec: spec(), flows: 1, runs: 1, spoil: true},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newRx(&Engine{prof: profile612(b)}, "eth0")
			bufs := make([]*dma.Buf, 64)
			f := packet(b, c.spec, 1, uint64(time.Now().UnixMicro()), 18)
			at := len(f) - 18
			if c.spoil {
				f[at]++
			}
			for i := range bufs {
				bufs[i] = &dma.Buf{Data: append(make([]byte, 0, 128), f...)}
			}
			seq, n := uint32(0), 0
			for b.Loop() {
				for _, x := range bufs {
					seq++
					if c.loss != 0 && seq%c.loss == 0 {
						seq++
					}
					binary.BigEndian.PutUint32(x.Data[at+4:], seq/c.runs+seq%c.runs*100)
					if c.flows > 1 {
						n++
						binary.BigEndian.PutUint16(x.Data[at-8:], uint16(n%c.flows))
					}
				}
				r.Take(bufs)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/frame")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkTakeParallel is several queues at a time, each with some work of its own.
func BenchmarkTakeParallel(b *testing.B) {
	r := newRx(&Engine{prof: profile612(b)}, "eth0")
	var queues atomic.Uint32
	b.RunParallel(func(pb *testing.PB) {
		s := spec()
		s.SrcPort = uint16(queues.Add(1))
		bufs := make([]*dma.Buf, 64)
		for i := range bufs {
			bufs[i] = &dma.Buf{Data: packet(b, s, 1, uint64(time.Now().UnixMicro()), 18)}
		}
		seq := uint32(0)
		for pb.Next() {
			for _, x := range bufs {
				seq++
				binary.BigEndian.PutUint32(x.Data[46:], seq)
			}
			r.Take(bufs)
		}
	})
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/frame")
	b.ReportMetric(0, "ns/op")
}
