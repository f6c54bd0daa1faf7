package pktgen

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/internal/frame"
)

// send runs the device once with these settings and returns what came out.
func send(t *testing.T, cmds ...string) (*bench, *sink, []frame.Packet) {
	t.Helper()
	b, s := oneDevice(t)
	b.ok("eth0", cmds...)
	b.run()
	return b, s, s.queues[0].got(t)
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestPlainPackets(t *testing.T) {
	before := time.Now().Add(-time.Microsecond)
	b, s, ps := send(t, "count 100", "pkt_size 60", "dst 10.0.0.2", "src_min 10.0.0.1", "dst_mac 00:1b:21:3c:9d:f8", "tos 28")
	if len(ps) != 100 {
		t.Fatalf("%d packets, want 100", len(ps))
	}
	for i, p := range ps {
		switch {
		case p.Len != 60 || p.IPLen != 46 || p.UDPLen != 26 || len(p.Payload) != 18:
			t.Errorf("packet %d: lengths %d, IP %d, UDP %d", i, p.Len, p.IPLen, p.UDPLen)
		case p.Dst != [6]byte{0, 0x1b, 0x21, 0x3c, 0x9d, 0xf8} || p.Src != [6]byte{0x52, 0x54, 0, 0x12, 0x34, 0x56}:
			t.Errorf("packet %d: %x > %x", i, p.Src, p.Dst)
		case p.SrcIP != addr("10.0.0.1") || p.DstIP != addr("10.0.0.2") || p.TTL != 32 || p.TOS != 0x28 || p.ID != uint16(i):
			t.Errorf("packet %d: %v, ttl %d, tos %#x, id %d", i, p, p.TTL, p.TOS, p.ID)
		case !p.IPChecksumOK || p.UDPChecksum != 0 || p.SrcPort != 9 || p.DstPort != 9:
			t.Errorf("packet %d: IP checksum ok %v, UDP %#x, ports %d %d", i, p.IPChecksumOK, p.UDPChecksum, p.SrcPort, p.DstPort)
		case !p.Pktgen || p.Seq != uint32(i+1) || p.Time().Before(before.Truncate(time.Microsecond)) || p.Time().After(time.Now()):
			t.Errorf("packet %d: pktgen %v, seq %d, time %v", i, p.Pktgen, p.Seq, p.Time())
		}
	}
	d := b.dev("eth0")
	if d.sofar != 100 || d.seq != 101 || d.errors != 0 || d.started == 0 || d.stopped <= d.started || s.queues[0].n.Load() != 100 {
		t.Errorf("sofar %d, seq_num %d, errors %d, %d..%d, device saw %d", d.sofar, d.seq, d.errors, d.started, d.stopped, s.queues[0].n.Load())
	}
	if r := b.result("eth0"); !strings.Contains(r, ") usec, 100 (60byte,0frags)\n  ") {
		t.Errorf("Result = %q", r)
	}
	// The identification goes on in the next run, the sequence number starts again.
	s.queues[0].frames = nil
	b.run()
	if p := s.queues[0].got(t)[0]; p.ID != 100 || p.Seq != 1 {
		t.Errorf("second run starts with id %d, seq %d, want 100, 1", p.ID, p.Seq)
	}
}

func TestLengths(t *testing.T) {
	for _, c := range []struct {
		cmds  []string
		frame int
		size  int32
	}{
		{nil, 58, 58},
		{[]string{"pkt_size 42"}, 58, 42},
		{[]string{"pkt_size 1514"}, 1514, 1514},
		{[]string{"dst6 fd00::2"}, 78, 78},
		{[]string{"vlan_id 1"}, 62, 58},
		{[]string{"vlan_id 1", "svlan_id 2"}, 66, 58},
		{[]string{"mpls 00010000,00020000,00030000"}, 70, 58},
		{[]string{"vlan_id 1", "pkt_size 1518"}, 1518, 1518},
	} {
		b, _, ps := send(t, append(c.cmds, "count 1")...)
		if len(ps) != 1 {
			t.Errorf("%q: %d packets: %s", c.cmds, len(ps), b.result("eth0"))
			continue
		}
		d := b.dev("eth0")
		if ps[0].Len != c.frame || d.minSize != c.size || d.maxSize != c.size {
			t.Errorf("%q: frame of %d bytes, sizes %d %d, want %d, %d", c.cmds, ps[0].Len, d.minSize, d.maxSize, c.frame, c.size)
		}
	}
}

func TestTooLarge(t *testing.T) {
	for _, cmds := range [][]string{
		{"pkt_size 1515"}, {"pkt_size 60", "max_pkt_size 2000"}, {"imix_weights 60,1 9000,1"}, {"pkt_size 2147483647"},
	} {
		b, _, ps := send(t, cmds...)
		if r := b.result("eth0"); len(ps) != 0 || !strings.HasPrefix(r, "ERROR: ") {
			t.Errorf("%q: %d packets, Result %q, want none and an error", cmds, len(ps), r)
		}
	}
	b, s := oneDevice(t)
	s.bufLen, s.mtu = 512, 9000
	b.ok("eth0", "pkt_size 600")
	b.run()
	if r := b.result("eth0"); !strings.Contains(r, "its buffers have 512") {
		t.Errorf("Result for buffers too small = %q", r)
	}
}

func TestIPv6(t *testing.T) {
	_, _, ps := send(t, "count 10", "pkt_size 100", "src6 fd00::1", "dst6 fd00::2", "traffic_class b8", "flag UDPCSUM")
	for i, p := range ps {
		if p.SrcIP != addr("fd00::1") || p.DstIP != addr("fd00::2") || p.TTL != 32 || p.TOS != 0xb8 || p.Len != 100 ||
			!p.UDPChecksumOK || p.Seq != uint32(i+1) || p.IPLen != 86 {
			t.Errorf("packet %d: %v, hop limit %d, class %#x, checksum ok %v", i, p, p.TTL, p.TOS, p.UDPChecksumOK)
		}
	}
	if len(ps) != 10 {
		t.Errorf("%d packets, want 10", len(ps))
	}
	_, _, ps = send(t, "count 200", "dst6_min fec0::1", "dst6_max fec0::ffff:ffff", "flag UDPCSUM")
	seen := map[netip.Addr]bool{}
	for i, p := range ps {
		a := p.DstIP.As16()
		if seen[p.DstIP] = true; a[0] != 0xfe || a[1] != 0xc0 || a[15]&1 == 0 || slices.Max(a[2:12]) != 0 || !p.UDPChecksumOK {
			t.Errorf("packet %d: destination %v, checksum ok %v", i, p.DstIP, p.UDPChecksumOK)
		}
	}
	if len(seen) < 190 {
		t.Errorf("%d different destinations in 200, want nearly all", len(seen))
	}
}

func TestTags(t *testing.T) {
	_, _, ps := send(t, "count 5", "vlan_id 77", "vlan_p 3", "vlan_cfi 1", "svlan_id 22", "svlan_p 1", "flag UDPCSUM")
	for i, p := range ps {
		if want := []uint16{1<<13 | 22, 3<<13 | 1<<12 | 77}; !slices.Equal(p.VLANs, want) || !p.UDPChecksumOK || !p.IPChecksumOK {
			t.Errorf("packet %d: tags %x, want %x", i, p.VLANs, want)
		}
	}
	_, _, ps = send(t, "count 5", "mpls 00010020,00020140", "flag !MPLS_RND")
	for i, p := range ps {
		if want := []uint32{0x00010020, 0x00020140}; !slices.Equal(p.MPLS, want) || !p.IPChecksumOK {
			t.Errorf("packet %d: labels %x, want %x", i, p.MPLS, want)
		}
	}
	_, _, ps = send(t, "count 50", "mpls 00010120,00020020", "dst6 fd00::1", "flag UDPCSUM")
	labels := map[uint32]bool{}
	for i, p := range ps {
		if labels[p.MPLS[0]] = true; p.MPLS[1] != 0x00020120 || p.MPLS[0]&0xfff00100 != 0 || !p.UDPChecksumOK {
			t.Errorf("packet %d: labels %x", i, p.MPLS)
		}
	}
	_, _, ps = send(t, "count 50", "vlan_id 1", "svlan_id 2", "flag VID_RND", "flag SVID_RND")
	ids := map[uint16]bool{}
	for _, p := range ps {
		ids[p.VLANs[0]], ids[p.VLANs[1]] = true, true
	}
	if len(labels) < 40 || len(ids) < 80 {
		t.Errorf("%d random labels of 50, %d random VLAN ids of 100", len(labels), len(ids))
	}
}

// walk is one field of each packet.
func walk(ps []frame.Packet, f func(frame.Packet) string) string {
	v := make([]string, len(ps))
	for i, p := range ps {
		v[i] = f(p)
	}
	return strings.Join(v, " ")
}

func TestSequentialRanges(t *testing.T) {
	for _, c := range []struct {
		cmds, want string
		field      func(frame.Packet) string
	}{
		{"udp_src_min 10,udp_src_max 13", "11 12 10 11 12 10", func(p frame.Packet) string { return fmt.Sprint(p.SrcPort) }},
		{"udp_dst_min 9,udp_dst_max 10", "9 9 9 9 9 9", func(p frame.Packet) string { return fmt.Sprint(p.DstPort) }},
		{"dst_min 10.0.0.254,dst_max 10.0.1.1", "10.0.0.255 10.0.1.0 10.0.1.1 10.0.0.254 10.0.0.255 10.0.1.0", func(p frame.Packet) string { return p.DstIP.String() }},
		{"src_min 10.0.0.1,src_max 10.0.0.2", "10.0.0.2 10.0.0.1 10.0.0.2 10.0.0.1 10.0.0.2 10.0.0.1", func(p frame.Packet) string { return p.SrcIP.String() }},
		{"min_pkt_size 60,max_pkt_size 62", "61 62 60 61 62 60", func(p frame.Packet) string { return fmt.Sprint(p.Len) }},
		{"src_mac 00:00:00:00:ff:fe,src_mac_count 4", "00:00:00:00:ff:fe 00:00:00:00:ff:ff 00:00:00:01:00:00 00:00:00:01:00:01 00:00:00:00:ff:fe 00:00:00:00:ff:ff",
			func(p frame.Packet) string { return fmtMAC(p.Src) }},
		{"dst_mac 01:ff:ff:ff:ff:ff,dst_mac_count 2", "01:ff:ff:ff:ff:ff 01:00:00:00:00:00 01:ff:ff:ff:ff:ff 01:00:00:00:00:00 01:ff:ff:ff:ff:ff 01:00:00:00:00:00",
			func(p frame.Packet) string { return fmtMAC(p.Dst) }},
		{"src_mac_count 2", "52:54:00:12:34:56 52:54:00:12:34:57 52:54:00:12:34:56 52:54:00:12:34:57 52:54:00:12:34:56 52:54:00:12:34:57",
			func(p frame.Packet) string { return fmtMAC(p.Src) }},
		{"dst_min 10.0.0.0,dst_max 10.0.0.9,flows 2,flowlen 2,flag FLOW_SEQ", "10.0.0.1 10.0.0.1 10.0.0.2 10.0.0.2 10.0.0.3 10.0.0.3",
			func(p frame.Packet) string { return p.DstIP.String() }},
	} {
		b, _, ps := send(t, append(strings.Split(c.cmds, ","), "count 6", "flag UDPCSUM")...)
		if got := walk(ps, c.field); got != c.want {
			t.Errorf("%s: %s, want %s", c.cmds, got, c.want)
		}
		for i, p := range ps {
			if !p.IPChecksumOK || !p.UDPChecksumOK || p.Seq != uint32(i+1) {
				t.Errorf("%s: packet %d: checksums %v %v, seq %d", c.cmds, i, p.IPChecksumOK, p.UDPChecksumOK, p.Seq)
			}
		}
		if strings.Contains(c.cmds, "flows") {
			if d := b.dev("eth0"); d.nflows != 3 || d.daddr != 0x0a000003 {
				t.Errorf("%s: flows %d, cur_daddr %s, want 3, 10.0.0.3", c.cmds, d.nflows, ntoa(d.daddr))
			}
		}
	}
}

func TestRandomRanges(t *testing.T) {
	_, _, ps := send(t, "count 2000", "burst 32", "flag UDPCSUM", "flag IPSRC_RND", "flag IPDST_RND", "flag TXSIZE_RND", "flag UDPSRC_RND", "flag UDPDST_RND",
		"flag MACSRC_RND", "flag MACDST_RND", "src_min 10.0.0.1", "src_max 10.0.0.4", "dst_min 0.0.0.0", "dst_max 255.255.255.255",
		"min_pkt_size 60", "max_pkt_size 63", "udp_src_min 1", "udp_src_max 4", "udp_dst_min 5", "udp_dst_max 8",
		"src_mac 00:00:00:00:00:01", "src_mac_count 3", "dst_mac_count 3")
	seen := map[string]int{}
	for i, p := range ps {
		for _, f := range []string{"src " + p.SrcIP.String(), fmt.Sprint("size ", p.Len), fmt.Sprint("sport ", p.SrcPort), fmt.Sprint("dport ", p.DstPort),
			"smac " + fmtMAC(p.Src), "dmac " + fmtMAC(p.Dst)} {
			seen[f]++
		}
		if a := p.DstIP; a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a == addr("255.255.255.255") {
			t.Errorf("packet %d: destination %v", i, a)
		}
		if !p.IPChecksumOK || !p.UDPChecksumOK || p.Seq != uint32(i+1) || p.ID != uint16(i) {
			t.Errorf("packet %d: checksums %v %v, seq %d, id %d", i, p.IPChecksumOK, p.UDPChecksumOK, p.Seq, p.ID)
		}
	}
	// Each of the six fields has three values, its maximum excluded.
	for _, f := range []string{"src 10.0.0.1", "src 10.0.0.3", "size 60", "size 62", "sport 1", "sport 3", "dport 5", "dport 7",
		"smac 00:00:00:00:00:01", "smac 00:00:00:00:00:03", "dmac 00:00:00:00:00:02"} {
		if seen[f] < 500 {
			t.Errorf("%s: %d times in 2000, want about 667", f, seen[f])
		}
	}
	if len(seen) != 18 {
		t.Errorf("values = %v, want 18 of them", seen)
	}
}

func TestImpossibleRandomDestination(t *testing.T) {
	_, _, ps := send(t, "count 2", "flag IPDST_RND", "dst_min 127.0.0.1", "dst_max 127.0.0.9")
	if len(ps) != 2 {
		t.Errorf("%d packets, want 2: the search for a destination must end", len(ps))
	}
}

func TestMix(t *testing.T) {
	b, _, ps := send(t, "count 3000", "burst 16", "imix_weights 64,7 576,4 1500,1")
	n := map[int]uint64{}
	for _, p := range ps {
		n[p.Len]++
	}
	d := b.dev("eth0")
	for i, e := range d.imix {
		if e.count != n[int(e.size)] {
			t.Errorf("imix_size_counts %d = %d, sent %d", e.size, e.count, n[int(e.size)])
		}
		if want := []uint64{1740, 990, 270}[i]; e.count < want*8/10 || e.count > want*12/10 {
			t.Errorf("%d packets of %d bytes, want about %d", e.count, e.size, want)
		}
	}
}

func TestNoTimestamp(t *testing.T) {
	_, _, ps := send(t, "count 3", "flag NO_TIMESTAMP", "flag UDPCSUM")
	for i, p := range ps {
		if p.Sec != 0 || p.Usec != 0 || !p.UDPChecksumOK || p.Seq != uint32(i+1) {
			t.Errorf("packet %d: %v, time %d.%d, checksum ok %v", i, p, p.Sec, p.Usec, p.UDPChecksumOK)
		}
	}
}

func TestUDPChecksumIsNeverZero(t *testing.T) {
	for _, s := range []uint32{0xffff, 0x1fffe, 0} {
		if got := udpCheck(s); got == 0 {
			t.Errorf("udpCheck(%#x) = 0", s)
		}
	}
}

func TestBurstsAndClones(t *testing.T) {
	for _, c := range []struct{ cmds, seqs, bursts string }{
		{"count 7,burst 3", "1 2 3 4 5 6 7", "3 3 1"},
		{"count 3", "1 2 3", "1 1 1"},
		{"count 6,burst 3,clone_skb 1", "1 1 1 4 4 4", "3 3"},
		{"count 6,clone_skb 1", "1 2 3 4 5 6", "1 1 1 1 1 1"},
		{"count 6,clone_skb 2", "1 1 3 3 5 5", "1 1 1 1 1 1"},
		{"count 13,clone_skb 2,burst 3", "1 1 1 1 1 1 7 7 7 7 7 7 13", "3 3 3 3 1"},
		{"count 4,clone_skb 1000000", "1 1 1 1", "1 1 1 1"},
		{"count 600,burst 600", "", "256 256 88"},
		{"count 2,burst 8,flag FLOW_SEQ,burst 1,flag !SHARED", "1 2", "1 1"},
		{"count 2,burst 8,xmit_mode queue_xmit", "1 2", "1 1"},
	} {
		_, s, ps := send(t, strings.Split(c.cmds, ",")...)
		if got := walk(ps, func(p frame.Packet) string { return fmt.Sprint(p.Seq) }); c.seqs != "" && got != c.seqs {
			t.Errorf("%s: sequence numbers %s, want %s", c.cmds, got, c.seqs)
		}
		if got := strings.Trim(fmt.Sprint(s.queues[0].bursts), "[]"); got != c.bursts {
			t.Errorf("%s: bursts of %s, want %s", c.cmds, got, c.bursts)
		}
	}
}

func TestNotSharedShowsNoFrags(t *testing.T) {
	b, _, _ := send(t, "count 3", "flag !SHARED")
	if r := b.result("eth0"); !strings.Contains(r, "usec, 3 (58byte,-1frags)") {
		t.Errorf("Result = %q, want -1frags", r)
	}
}
