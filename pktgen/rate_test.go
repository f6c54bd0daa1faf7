package pktgen

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// A rate is exact over time, though the time between two packets is none of whole nanoseconds; the kernel's is not.
func TestRateIsExact(t *testing.T) {
	for _, c := range []struct {
		cmd string
		pps float64
	}{{"ratep 7000000", 7e6}, {"ratep 3", 3}, {"ratep 999999999", 999999999}, {"ratep 600000001", 600000001}, {"rate 777", 777e6 / (60 * 8)}, {"rate 9999", 9999e6 / (60 * 8)}} {
		b, _ := oneDevice(t)
		b.ok("eth0", "pkt_size 60", c.cmd)
		d := b.dev("eth0")
		const n = 10_000_000
		sum := uint64(0)
		for range n {
			sum += d.interval()
		}
		if want := n / c.pps * 1e9; math.Abs(float64(sum)-want) > 1.5 {
			t.Errorf("%s: %d packets take %d ns, want %.1f", c.cmd, n, sum, want)
		}
		b.ok("eth0", "delay 100")
		if d.interval() != 100 {
			t.Errorf("delay after %s: %d ns", c.cmd, d.interval())
		}
	}
}

// Over a run the rate is kept, whatever the sleeps in between took: a packet that is late is not the
// next one's delay. The bounds are wide, since a busy machine may take the CPU away at the end.
func TestRateIsKept(t *testing.T) {
	for _, pps := range []int{500, 5_000, 50_000} {
		b, s := oneDevice(t)
		s.queues[0].keep = 0
		count := pps / 2
		b.ok("eth0", fmt.Sprintf("ratep %d", pps), fmt.Sprintf("count %d", count))
		begin := time.Now()
		b.run()
		took := time.Since(begin)
		least := time.Duration(count-1) * time.Second / time.Duration(pps)
		if took < least || took > least+2*time.Second {
			t.Errorf("%d packets at %d a second took %v, want %v", count, pps, took, least)
		}
		late, text := b.dev("eth0").pace.late, b.read("eth0")
		if want := fmt.Sprintf("     late: %d bursts  min_us: %s  mean_us: ", count, us(late.min)); late.n != uint64(count) || !strings.Contains(text, want) || !strings.Contains(text, "     p50_us: ") {
			t.Errorf("%d bursts were late by %d to %d ns, want %d bursts; the file says\n%s", late.n, late.min, late.max, count, text)
		}
		b.ok("eth0", "delay 0")
		b.run()
		if text := b.read("eth0"); strings.Contains(text, "late:") {
			t.Errorf("without a rate the file says\n%s", text)
		}
	}
}

// A rate that is set while a device runs counts from then on: nothing is sent at once for the time before.
func TestRateBegins(t *testing.T) {
	for _, before := range []string{"delay 2147483647", "delay 3600000000000"} {
		b, s := oneDevice(t)
		s.queues[0].keep = 0
		b.ok("eth0", "count 0", "ratep 1", before)
		wait := b.background(t.Context())
		until(t, "the run", func() bool { return b.dev("eth0").running.Load() })
		time.Sleep(200 * time.Millisecond) // worth 20,000 packets
		n, begin := s.queues[0].n.Load(), time.Now()
		b.ok("eth0", "ratep 100000")
		b.ok("pgctrl", "stop")
		wait()
		if got, most := s.queues[0].n.Load()-n, uint64(time.Since(begin).Microseconds()/10)+2; got > most {
			t.Errorf("%s, then ratep 100000: %d packets at once, want %d at most", before, got, most)
		}
	}
}
