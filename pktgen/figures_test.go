package pktgen

import (
	"fmt"
	"strings"
	"testing"
)

// TestFigures: the figures of a device are those of its file, before, while and after it runs.
func TestFigures(t *testing.T) {
	b, _ := oneDevice(t)
	if f := b.e.Figures(); len(f) != 1 || f[0].Name != "eth0" || f[0].NetDev != "eth0" || f[0].Thread != "kpktgend_0" || f[0].Running || f[0].Started != 0 ||
		f[0].Count != 1000 || f[0].Result != "Idle" {
		t.Errorf("figures of a device that was added: %+v", f)
	}
	b.ok("kpktgend_0", "add_device eth0@1")
	if f := b.e.Figures(); len(f) != 2 || f[0].Name != "eth0" || f[1].Name != "eth0@1" || f[1].NetDev != "eth0" {
		t.Errorf("figures of two devices: %+v, want them in the order in which they were added", f)
	}
	b.ok("eth0@1", "count 7", "pkt_size 100")
	b.ok("eth0", "count 50", "pkt_size 60")
	b.run()
	f := b.e.Figures()
	for i, want := range []struct{ packets, bytes uint64 }{{50, 50 * 60}, {7, 7 * 100}} {
		g := f[i]
		if g.Packets != want.packets || g.Bytes != want.bytes || g.Running || g.Started == 0 || g.Stopped < g.Started || g.Errors != 0 {
			t.Errorf("figures after the run: %+v, want %d packets of %d bytes", g, want.packets, want.bytes)
		}
		if file := b.read(g.Name); !strings.Contains(file, "Result: "+g.Result) {
			t.Errorf("result of %s is %q; its file has another: %s", g.Name, g.Result, file)
		}
	}
	b.ok("eth0", "imix_weights 60,1 100,3", "count 100", "clone_skb 0")
	b.run()
	if g := b.e.Figures()[0]; g.Packets != 100 || g.Bytes <= 100*60 || g.Bytes >= 100*100 || g.Bytes == g.Packets*uint64(g.SizeLast) {
		t.Errorf("figures of a mix of 60 and thrice 100: %+v", g)
	}
}

// TestFiguresOfMix: bytes are of the run alone, though the file goes on counting.
func TestFiguresOfMix(t *testing.T) {
	b, _ := oneDevice(t)
	b.ok("eth0", "imix_weights 60,1", "count 100", "clone_skb 0")
	wants := func(what string, packets, bytes uint64) {
		t.Helper()
		if g := b.e.Figures()[0]; g.Packets != packets || g.Bytes != bytes {
			t.Errorf("%s: %d packets, %d bytes, want %d and %d", what, g.Packets, g.Bytes, packets, bytes)
		}
	}
	for _, run := range []string{"first run", "second run"} {
		b.run()
		wants(run, 100, 100*60)
	}
	if file := b.read("eth0"); !strings.Contains(file, "imix_size_counts: 60,200 ") {
		t.Errorf("the file of two runs: %s, want 60,200", file)
	}
	b.ok("eth0", "imix_weights 1000,1 50,1") // other sizes at the same places, larger and smaller
	wants("a new mix", 100, 100*1000)
	b.ok("eth0", "clear_counters")
	wants("clear_counters", 0, 0)
	b.ok("eth0", "imix_weights 50,1", "count 7")
	wants("a smaller size", 0, 0)
	b.run()
	wants("third run", 7, 7*50)
}

func TestFiguresWhileRunning(t *testing.T) {
	b, _ := oneDevice(t)
	b.ok("eth0", "count 0")
	stop := b.background(t.Context())
	until(t, "it runs", func() bool { f := b.e.Figures()[0]; return f.Running && f.Packets > 0 })
	one := b.e.Figures()[0]
	until(t, "it goes on", func() bool { return b.e.Figures()[0].Packets > one.Packets })
	two := b.e.Figures()[0]
	if two.Stopped <= one.Stopped || two.Started != one.Started || one.Stopped < one.Started {
		t.Errorf("times of two snapshots of a run: %d to %d and %d to %d", one.Started, one.Stopped, two.Started, two.Stopped)
	}
	b.ok("pgctrl", "stop")
	stop()
}

// TestReceiverFigures: the figures of a receiver are those of its file.
func TestReceiverFigures(t *testing.T) {
	b := newRxBench(t)
	if f := b.r.Figures(); f.Name != "eth1" || f.Received != 0 || f.Latency.Buckets != nil || f.Latency.Mean() != 0 {
		t.Errorf("figures of nothing: %+v", f)
	}
	for _, text := range []string{"1-500 502-600 600 501", "700-800 800x2", "9x4 100-200"} {
		b.send(spec(), numbers(t, text)...)
		other := packet(t, spec(), 1, 0, 18)
		other[14+20+8]++
		b.feed(other)
		f := b.r.Figures()
		l := &f.Latency
		want := fmt.Sprintf("received %d bytes %d other %d lost %d duplicated %d reordered %d clones %d corrupted %d checksum %d runs %d flows %d samples %d",
			f.Received, f.Bytes, f.Other, f.Lost, f.Duplicated, f.Reordered, f.Clones, f.Corrupted(), f.BadChecksum, f.Runs, f.Flows, l.Samples)
		b.wants("figures after "+text, want)
		b.wants("latencies", fmt.Sprintf("min_us %s mean_us %s max_us %s p50_us %s p99_us %s p99.9_us %s", us(l.Min), us(l.Mean()), us(l.Max), us(l.P50), us(l.P99), us(l.P999)))
		n := uint64(0)
		for _, x := range l.Buckets {
			n += x.N
		}
		if n != l.Samples {
			t.Errorf("%d frames in all buckets, want %d", n, l.Samples)
		}
	}
	b.ok("eth1.rx", "clear_counters")
	if f := b.r.Figures(); f.Received != 0 || f.Lost != 0 || f.Latency.Samples != 0 || f.Latency.Buckets != nil {
		t.Errorf("figures after clear_counters: %+v", f)
	}
}

// TestLatencyBuckets: every latency is in its bucket, and there are four of them between two powers of two.
func TestLatencyBuckets(t *testing.T) {
	for _, ns := range []uint64{0, 1, 3, 4, 5, 7, 8, 15, 16, 31, 32, 33, 63, 64, 1000, 1023, 1024, 1279, 1280, 1e6, 1e9, maxLatency - 1} {
		var h histogram
		var s span
		h.add(ns)
		s.add(ns)
		l := latency(&h, &s)
		if len(l.Buckets) != 1 || l.Buckets[0].From > ns || l.Buckets[0].To <= ns || l.Buckets[0].N != 1 || l.Min != ns || l.P50 != ns {
			t.Errorf("latency of %d ns: %+v", ns, l)
			continue
		}
		if b := l.Buckets[0]; b.From >= 4 && (b.To-b.From)*4 > b.From || b.From%(b.To-b.From) != 0 {
			t.Errorf("the bucket of %d ns is %d to %d", ns, b.From, b.To)
		}
	}
	var h histogram
	var s span
	for ns := range uint64(1 << 12) {
		h.add(ns)
		s.add(ns)
	}
	l, next := latency(&h, &s), uint64(0)
	for _, b := range l.Buckets {
		if b.From != next || b.N != b.To-b.From {
			t.Errorf("bucket %+v of all latencies up to 4096, want it to begin at %d, and one frame for each", b, next)
		}
		next = b.To
	}
	if len(l.Buckets) != 4+10*4 {
		t.Errorf("%d buckets up to 4096, want 44", len(l.Buckets))
	}
}
