package pktgen

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/frame"
	"github.com/ring3dev/ring3/netdev"
)

// stack receives what xmit_mode netif_receive hands up.
type stack struct {
	mu     sync.Mutex
	frames [][]byte
	bursts []int
	drop   int // every frame of that number is dropped; 0: none
	seen   int
}

func (s *stack) Receive(frames []*dma.Buf) (taken int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bursts = append(s.bursts, len(frames))
	for _, b := range frames {
		if s.seen++; s.drop == 0 || s.seen%s.drop != 0 {
			taken++
		}
		s.frames = append(s.frames, bytes.Clone(b.Data))
		b.Free()
	}
	return taken
}

// above is eth0 on kpktgend_0, with somebody who receives from it.
func above(t *testing.T, profile string, up netdev.Receiver, cmds ...string) (*bench, *sink) {
	t.Helper()
	s := newSink("eth0")
	s.queues[0].keep = -1
	b := newBenchOf(t, Config{Profile: profile, CPUs: []int{0}, Receiver: func(string) netdev.Receiver { return up }}, s)
	b.ok("kpktgend_0", "add_device eth0")
	b.ok("eth0", cmds...)
	return b, s
}

// seqs are the sequence numbers of frames, in order.
func seqs(t *testing.T, frames [][]byte) string {
	t.Helper()
	var out []string
	for i, f := range frames {
		p, err := frame.Decode(f)
		if err != nil || !p.IPChecksumOK {
			t.Fatalf("frame %d: %v, checksum ok %v\n%x", i, err, p.IPChecksumOK, f)
		}
		out = append(out, fmt.Sprint(p.Seq))
	}
	return strings.Join(out, " ")
}

// counts are pkts-sofar and errors.
func (b *bench) counts(name string) (sofar, errors uint64) {
	d := b.dev(name)
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sofar, d.errors
}

func TestNetifReceive(t *testing.T) {
	for _, c := range []struct {
		profile, cmds, seqs, bursts string
		drop                        int
		sofar, errors               uint64
	}{
		{"", "count 3", "1 2 3", "1 1 1", 0, 3, 0},
		{"", "count 7,burst 3", "1 2 3 4 5 6 7", "3 3 1", 0, 7, 0},
		{"", "count 7,burst 3", "1 2 3 4 5 6 7", "3 3 1", 2, 7, 3}, // who drops is not asked again
		{"", "count 2,burst 8,flag !SHARED,burst 1,flag !SHARED", "1 2", "1 1", 0, 2, 0},
		// Copies of one packet, in whole bursts.
		{"6.1", "count 7,burst 3", "1 1 1 4 4 4 7 7 7", "3 3 3", 0, 9, 0},
		{"6.1", "count 7,burst 3", "1 1 1 4 4 4 7 7 7", "3 3 3", 3, 9, 3},
	} {
		up := &stack{drop: c.drop}
		b, s := above(t, c.profile, up)
		for _, cmd := range strings.Split("xmit_mode netif_receive,"+c.cmds, ",") {
			b.write("eth0", cmd) // SHARED cannot be cleared with a burst
		}
		b.run()
		sofar, errors := b.counts("eth0")
		if got := seqs(t, up.frames); got != c.seqs || sofar != c.sofar || errors != c.errors {
			t.Errorf("%s under %q: sequence numbers %s, %d sent, %d errors, want %s, %d, %d", c.cmds, c.profile, got, sofar, errors, c.seqs, c.sofar, c.errors)
		}
		if got := strings.Trim(fmt.Sprint(up.bursts), "[]"); got != c.bursts {
			t.Errorf("%s under %q: bursts of %s, want %s", c.cmds, c.profile, got, c.bursts)
		}
		if n := s.queues[0].n.Load(); n != 0 {
			t.Errorf("%s: the device got %d frames, want none", c.cmds, n)
		}
		if want := fmt.Sprintf(" errors: %d", c.errors); !strings.HasPrefix(b.result("eth0"), "OK: ") || !strings.HasSuffix(b.result("eth0"), want) {
			t.Errorf("%s: Result %q, want OK and%s", c.cmds, b.result("eth0"), want)
		}
	}
}

// TestNetifReceiveLong: a burst longer than the ring and the pool, fields that vary, and a mode that
// changes between runs.
func TestNetifReceiveLong(t *testing.T) {
	up := &stack{}
	b, s := above(t, "", up, "xmit_mode netif_receive", "burst 5000", "count 12000", "flag UDPSRC_RND", "udp_src_min 1000", "udp_src_max 1100", "flag UDPCSUM")
	b.run()
	if sofar, errors := b.counts("eth0"); sofar != 12000 || errors != 0 || len(up.frames) != 12000 {
		t.Fatalf("%d sent, %d errors, %d received, want 12000, 0, 12000", sofar, errors, len(up.frames))
	}
	ports := map[uint16]bool{}
	for i, f := range up.frames {
		p, err := frame.Decode(f)
		if err != nil || p.Seq != uint32(i+1) || !p.UDPChecksumOK {
			t.Fatalf("frame %d: %v %v", i, p, err)
		}
		ports[p.SrcPort] = true
	}
	if len(ports) != 100 {
		t.Errorf("%d source ports, want 100", len(ports))
	}
	b.ok("eth0", "xmit_mode start_xmit", "count 10")
	b.run()
	if n := s.queues[0].n.Load(); n != 10 || len(up.frames) != 12000 {
		t.Errorf("then start_xmit: the device got %d, and %d were handed up, want 10 and none", n, len(up.frames)-12000)
	}
}

func TestNetifReceiveByNobody(t *testing.T) {
	b, s, _ := send(t, "xmit_mode netif_receive", "count 5", "burst 2")
	if sofar, errors := b.counts("eth0"); sofar != 5 || errors != 5 || s.queues[0].n.Load() != 0 {
		t.Errorf("%d sent, %d errors, %d on the device, want 5, 5, 0", sofar, errors, s.queues[0].n.Load())
	}
}

// TestQueueXmit: the queue discipline holds what the ring has no room for; what it refuses is an error, and is
// sent later: all arrive, in order.
func TestQueueXmit(t *testing.T) {
	for _, profile := range []string{"6.12", "6.1"} {
		b, s := above(t, profile, nil, "xmit_mode queue_xmit", "count 3000")
		q := s.queues[0]
		q.stuck.Store(true)
		wait := b.background(t.Context())
		until(t, "refused frames", func() bool { _, errors := b.counts("eth0"); return errors > 3 })
		if sofar, _ := b.counts("eth0"); sofar != netdev.TxQueueLen {
			t.Errorf("%s: %d were queued, want %d", profile, sofar, netdev.TxQueueLen)
		}
		q.stuck.Store(false)
		wait()
		sofar, errors := b.counts("eth0")
		if sofar != 3000 || errors == 0 || q.n.Load() != 3000 {
			t.Errorf("%s: %d sent, %d errors, %d on the device, want 3000, some, 3000", profile, sofar, errors, q.n.Load())
		}
		for i, p := range q.got(t) {
			if p.Seq != uint32(i+1) {
				t.Fatalf("%s: frame %d has sequence number %d", profile, i, p.Seq)
			}
		}
	}
}

// TestQueueXmitRing: a ring smaller than the queue discipline, which takes some at a time, and two devices that share both.
func TestQueueXmitRing(t *testing.T) {
	s := newSink("eth0")
	q := s.queues[0]
	s.ring, q.hold, q.limit, q.keep = 32, true, 5, -1
	b := newBench(t, []int{0, 1}, s)
	b.ok("kpktgend_0", "add_device eth0@0")
	b.ok("kpktgend_1", "add_device eth0@1")
	for i, name := range []string{"eth0@0", "eth0@1"} {
		b.ok(name, "xmit_mode queue_xmit", "count 4000", fmt.Sprintf("udp_src_min %d", i), fmt.Sprintf("udp_src_max %d", i))
	}
	b.run()
	if q.n.Load() != 8000 || !strings.HasPrefix(b.result("eth0@0"), "OK: ") || !strings.HasPrefix(b.result("eth0@1"), "OK: ") {
		t.Errorf("%d on the device, want 8000; results %q, %q", q.n.Load(), b.result("eth0@0"), b.result("eth0@1"))
	}
	next := map[uint16]uint32{}
	for _, p := range q.got(t) {
		if next[p.SrcPort]++; p.Seq != next[p.SrcPort] {
			t.Fatalf("device %d: sequence number %d, want %d", p.SrcPort, p.Seq, next[p.SrcPort])
		}
	}
}

// TestQueueXmitStopped: what waits when a run is stopped goes out before the next; without a link it is dropped.
func TestQueueXmitStopped(t *testing.T) {
	for _, down := range []bool{false, true} {
		b, s := above(t, "", nil, "xmit_mode queue_xmit", "count 0")
		q := s.queues[0]
		q.stuck.Store(true)
		wait := b.background(t.Context())
		until(t, "a full queue", func() bool { _, errors := b.counts("eth0"); return errors > 0 })
		s.down.Store(down)
		b.ok("pgctrl", "stop")
		wait()
		q.stuck.Store(false)
		s.down.Store(false)
		b.ok("eth0", "count 5")
		b.run()
		want := uint64(netdev.TxQueueLen + 5)
		if down {
			want = 5
		}
		if q.n.Load() != want {
			t.Errorf("link down %v: %d on the device, want %d", down, q.n.Load(), want)
		}
		if down {
			continue
		}
		// The memory comes back with frames in the queue discipline, too.
		q.stuck.Store(true)
		b.ok("eth0", "count 0")
		wait = b.background(t.Context())
		until(t, "a full queue", func() bool { _, errors := b.counts("eth0"); return errors > 0 })
		b.e.Close()
		wait()
		if len(b.e.ports) != 0 {
			t.Errorf("%d ports are left", len(b.e.ports))
		}
	}
}

// TestLoopback: lo receives what it is sent, in every mode, and takes no packet twice.
func TestLoopback(t *testing.T) {
	lo := netdev.NewLoopback("lo")
	var frames [][]byte
	lo.Sink().SetTap(func(f []byte) { frames = append(frames, bytes.Clone(f)) })
	b := newBenchOf(t, Config{CPUs: []int{0}, Receiver: func(string) netdev.Receiver { return lo.Sink() }}, newSink("eth0"))
	inner := b.e.lookup
	b.e.lookup = func(name string) (netdev.Device, error) {
		if name == "lo" {
			return lo, nil
		}
		return inner(name)
	}
	b.ok("kpktgend_0", "add_device lo")
	for _, c := range []struct {
		cmd   string
		errno unix.Errno
	}{
		{"burst 2", unix.EOPNOTSUPP}, {"burst 1", 0}, {"clone_skb 1", unix.EOPNOTSUPP}, {"clone_skb 0", 0},
		{"xmit_mode netif_receive", 0}, {"burst 2", 0}, {"clone_skb 1", unix.EOPNOTSUPP}, {"burst 1", 0},
		{"xmit_mode queue_xmit", 0}, {"burst 2", unix.EOPNOTSUPP}, {"xmit_mode start_xmit", 0},
	} {
		if got := b.write("lo", c.cmd); got != c.errno {
			t.Errorf("%s on lo = %v, want %v", c.cmd, got, c.errno)
		}
	}
	total := 0
	for _, mode := range []string{"start_xmit", "queue_xmit", "netif_receive"} {
		b.ok("lo", "xmit_mode "+mode, "count 3000", "pkt_size 1000")
		b.run()
		total += 3000
		sofar, errors := b.counts("lo")
		if n := lo.Sink().Frames(); n != uint64(total) || sofar != 3000 || errors != 0 {
			t.Errorf("%s: %d received in all, %d sent, %d errors, want %d, 3000, 0", mode, n, sofar, errors, total)
		}
	}
	// As in the kernel, what was only received is not in the device's counters.
	if st := lo.Stats(); st.TxPackets != 6000 || st.RxPackets != 6000 || st.RxBytes != 6000*(1000-14) {
		t.Errorf("counters of lo: %d sent, %d received, %d bytes, want 6000, 6000, 5916000", st.TxPackets, st.RxPackets, st.RxBytes)
	}
	p, err := frame.Decode(frames[0])
	if err != nil || p.Len != 1000 || p.Src != [6]byte{} || p.Seq != 1 || p.SrcIP != addr("127.0.0.1") {
		t.Errorf("the first frame is %v, %v", p, err)
	}
	b.ok("lo", "xmit_mode start_xmit", "count 3", "pkt_size 60000")
	b.run()
	if f := frames[len(frames)-1]; len(f) != 60000 {
		t.Errorf("a frame of %d bytes, want 60000; %s", len(f), b.result("lo"))
	}
}

// TestModesReplay: the frames of a capture take the same ways.
func TestModesReplay(t *testing.T) {
	frames := recorded(20)
	path := captureFile(t, "a.pcap", layers.LinkTypeEthernet, frames, 0)
	size := 0
	for _, f := range frames {
		size += len(f)
	}
	for _, mode := range []string{"netif_receive", "queue_xmit"} {
		up := &stack{}
		b, s := above(t, "", up, "pcap "+path, "xmit_mode "+mode, "count 42")
		b.run()
		got := s.queues[0].took()
		if mode == "netif_receive" {
			got = up.frames
		}
		if want := append(slices.Clone(frames), frames...); !slices.EqualFunc(got, want, slices.Equal) {
			t.Errorf("%s: %d frames, want those %d of the capture, twice", mode, len(got), len(frames))
		}
		if d := b.dev("eth0"); d.replay.bytes != uint64(2*size) {
			t.Errorf("%s: %d bytes are counted, want %d", mode, d.replay.bytes, 2*size)
		}
	}
}

// TestModesAllocateNothing: as start_xmit.
func TestModesAllocateNothing(t *testing.T) {
	lo := netdev.NewLoopback("lo")
	for _, cmds := range []string{"xmit_mode netif_receive", "xmit_mode netif_receive,burst 32", "xmit_mode queue_xmit"} {
		d, p := quiet(t, strings.Split(cmds, ",")...)
		d.up = lo.Sink()
		if n := testing.AllocsPerRun(200, func() { d.transmit(p) }); n != 0 {
			t.Errorf("%s: %v allocations a turn", cmds, n)
		}
	}
}
