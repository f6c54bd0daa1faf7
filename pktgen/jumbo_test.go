package pktgen

import (
	"fmt"
	"strings"
	"testing"
)

// Frames of every size that the device takes are sent, from pools that stay small.
func TestJumbo(t *testing.T) {
	s := newSink("eth0")
	s.mtu, s.sized, s.ring = 16110, true, 4096
	b := newBench(t, []int{0}, s)
	b.ok("kpktgend_0", "add_device eth0")
	s.queues[0].keep = -1
	for _, n := range []int{60, 64, 65, 1514, 2048, 2049, 9000, 16124} {
		s.queues[0].frames = nil
		b.ok("eth0", "count 300", "burst 8", fmt.Sprintf("pkt_size %d", n))
		b.ok("pgctrl", "start")
		if r := b.result("eth0"); r[:3] != "OK:" {
			t.Fatalf("pkt_size %d: Result = %q", n, r)
		}
		if got := len(s.queues[0].frames); got != 300 || len(s.queues[0].frames[299]) != n {
			t.Errorf("pkt_size %d: %d frames, the last of %d bytes, want 300 of %d", n, got, len(s.queues[0].frames[299]), n)
		}
	}
	for _, p := range b.e.ports {
		for _, pool := range p.pools {
			if pool != nil && pool.Len()*pool.BufSize() > maxPoolBytes {
				t.Errorf("a pool of %d buffers of %d bytes, want %d bytes at most", pool.Len(), pool.BufSize(), maxPoolBytes)
			}
		}
	}
	b.checkPools()
}

// There are fewer buffers of jumbo frames than descriptors: all of them in flight, and the ring far from full.
func TestJumboBuffersRunOut(t *testing.T) {
	for _, cmd := range []string{"burst 256", "burst 1024", "burst 1", "burst 300,clone_skb 1"} {
		s := newSink("eth0")
		s.mtu, s.sized, s.ring = 16110, true, 4096
		s.queues[0].hold = true
		b := newBench(t, []int{0}, s)
		b.ok("kpktgend_0", "add_device eth0")
		b.ok("eth0", append(strings.Split(cmd, ","), "count 3000", "pkt_size 9000")...)
		b.run()
		if n := s.queues[0].n.Load(); n != 3000 {
			t.Errorf("%s: %d frames, want 3000", cmd, n)
		}
		b.checkPools()
	}
}
