package pktgen

import (
	"encoding/binary"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/internal/frame"
)

// fields are those of a packet that a configuration may choose at random.
func fields(p frame.Packet, n int) map[string][]byte {
	f := map[string][]byte{
		"dst MAC": p.Dst[:], "src MAC": p.Src[:],
		"src": p.SrcIP.AsSlice(), "dst": p.DstIP.AsSlice(),
		"sport": binary.BigEndian.AppendUint16(nil, p.SrcPort), "dport": binary.BigEndian.AppendUint16(nil, p.DstPort),
		"length": binary.BigEndian.AppendUint16(nil, uint16(n)), "UDP length": binary.BigEndian.AppendUint16(nil, uint16(p.UDPLen)),
	}
	for i, v := range p.VLANs {
		f[fmt.Sprint("tag ", i)] = binary.BigEndian.AppendUint16(nil, v)
	}
	for i, v := range p.MPLS {
		f[fmt.Sprint("label ", i)] = binary.BigEndian.AppendUint32(nil, v)
	}
	if p.UDPChecksum == 0 {
		f["checksum"] = []byte("none")
	} else {
		f["checksum"] = fmt.Append(nil, "right ", p.UDPChecksumOK)
	}
	return f
}

// few is how many values of a field are told one by one.
const few = 8

// coverage is what values each field had: all of them where they are few, otherwise which bits were always
// set, and which ever. Two generators that choose among the same values at random have the same coverage.
func coverage(t *testing.T, frames [][]byte) string {
	t.Helper()
	seen := map[string]map[string]int{}
	for i, b := range frames {
		p, err := frame.Decode(b)
		if err != nil || !p.IPChecksumOK && p.SrcIP.Is4() || !p.Pktgen || p.Seq != uint32(i+1) {
			t.Fatalf("frame %d: %v: %v, IP checksum ok %v\n%x", i, err, p, p.IPChecksumOK, b)
		}
		for name, v := range fields(p, len(b)) {
			if seen[name] == nil {
				seen[name] = map[string]int{}
			}
			seen[name][string(v)]++
		}
	}
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		values := slices.Sorted(maps.Keys(seen[name]))
		if len(values) <= few {
			fmt.Fprintf(&text, "%s: %x\n", name, values)
			continue
		}
		always, ever := []byte(values[0]), []byte(values[0])
		for _, v := range values {
			for i := range always {
				always[i] &= v[i]
				ever[i] |= v[i]
			}
		}
		fmt.Fprintf(&text, "%s: many, always %x, ever %x\n", name, always, ever)
	}
	return text.String()
}

// TestGoldenRandom: where fields are random, they have the values that the kernel's had, and no others.
func TestGoldenRandom(t *testing.T) {
	cases := kernelCases(t, "pktgen_random.txt", "testdata/kernel-6.1/random")
	files, err := filepath.Glob("testdata/kernel-6.1/random/*")
	if err != nil || len(files) != len(cases) || len(cases) < 30 {
		t.Errorf("%d captures for %d cases, want one for each of at least 30: %v", len(files), len(cases), err)
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			want := coverage(t, c.frames[0])
			for _, profile := range []string{"6.1", ""} {
				if got := coverage(t, c.play(t, profile)[0]); got != want {
					t.Errorf("profile %q: the packets have\n%s\nwant the kernel's\n%s", profile, got, want)
				}
			}
		})
	}
}

// TestRandomIsEven: what is chosen at random of few values is chosen evenly, or by its weight: of 4000 packets each value
// has its part within 30 %, which is more than eight standard deviations.
func TestRandomIsEven(t *testing.T) {
	even := func(n int) []float64 { return slices.Repeat([]float64{1 / float64(n)}, n) }
	for _, c := range []struct {
		cmds, field string
		want        []float64 // parts, in the order of the values
	}{
		{"udp_src_min 1000; udp_src_max 1004; flag UDPSRC_RND", "sport", even(4)},
		{"udp_dst_min 65531; udp_dst_max 65535; flag UDPDST_RND", "dport", even(4)},
		{"src_min 10.0.0.254; src_max 10.0.1.2; flag IPSRC_RND", "src", even(4)},
		{"dst_min 10.0.0.254; dst_max 10.0.1.2; flag IPDST_RND", "dst", even(4)},
		{"dst_min 223.255.255.253; dst_max 224.0.0.5; flag IPDST_RND", "dst", even(3)},
		{"min_pkt_size 60; max_pkt_size 64; flag TXSIZE_RND", "length", even(4)},
		{"src_mac 02:00:00:00:00:fe; src_mac_count 4; flag MACSRC_RND", "src MAC", even(4)},
		{"dst_mac 02:00:00:00:00:fe; dst_mac_count 3; flag MACDST_RND", "dst MAC", even(3)},
		{"dst6_min fc00::10; dst6_max fc00::13", "dst", even(4)},
		{"imix_weights 60,5 70,3 80,2", "length", []float64{0.5, 0.3, 0.2}},
		{"dst_min 10.0.0.1; dst_max 10.0.0.5; flag IPDST_RND; flows 50; flowlen 2", "dst", even(4)},
	} {
		const n = 4000
		_, s, _ := send(t, append(strings.Split(c.cmds, "; "), fmt.Sprint("count ", n), "burst 32")...)
		got := map[string]int{}
		for i, b := range s.queues[0].frames {
			p, err := frame.Decode(b)
			if err != nil {
				t.Fatalf("%s: frame %d: %v", c.cmds, i, err)
			}
			got[string(fields(p, len(b))[c.field])]++
		}
		values := slices.Sorted(maps.Keys(got))
		if len(values) != len(c.want) {
			t.Errorf("%s: %d values of %s: %x, want %d", c.cmds, len(values), c.field, values, len(c.want))
			continue
		}
		for i, part := range c.want {
			if k := float64(got[values[i]]); k < 0.7*part*n || k > 1.3*part*n {
				t.Errorf("%s: %s is %x in %.0f of %d packets, want about %.0f", c.cmds, c.field, values[i], k, n, part*n)
			}
		}
	}
}

// TestRandomQueues: a queue chosen at random may be the last of the range, too.
func TestRandomQueues(t *testing.T) {
	s := newSink("eth0")
	for range 4 {
		s.queues = append(s.queues, &sinkQueue{dev: s})
	}
	b := newBench(t, []int{0}, s)
	b.ok("kpktgend_0", "add_device eth0")
	b.ok("eth0", "count 3000", "queue_map_min 1", "queue_map_max 3", "flag QUEUE_MAP_RND")
	b.run()
	for i, q := range s.queues {
		if n := q.n.Load(); (n != 0) != (i >= 1 && i <= 3) || n != 0 && (n < 700 || n > 1300) {
			t.Errorf("queue %d: %d packets of 3000, want them evenly on 1 to 3", i, n)
		}
	}
}

// TestRandomFlows: without FLOW_SEQ a flow is chosen at random, keeps its destination, and gets flowlen + 1 packets
// before another takes its place, as in the kernel. Two of 500 may have the same destination by chance.
func TestRandomFlows(t *testing.T) {
	const flows, flowlen, twins = 5, 7, 3
	b, _, ps := send(t, "dst_min 1.0.0.0", "dst_max 120.0.0.0", "flag IPDST_RND", fmt.Sprint("flows ", flows), fmt.Sprint("flowlen ", flowlen), "count 4000")
	n := map[string]int{}
	for _, p := range ps {
		n[p.DstIP.String()]++
	}
	short, long := 0, 0
	for _, k := range n {
		if k < flowlen+1 {
			short++
		}
		if k > flowlen+1 {
			long++
		}
	}
	if short > flows || long > twins {
		t.Errorf("%d destinations have less than %d packets, %d more, want only those of the %d flows of the end to have less", short, flowlen+1, long, flows)
	}
	if d := b.dev("eth0"); int(d.nflows) < len(n) || int(d.nflows) > len(n)+twins {
		t.Errorf("the file tells %d flows, there were %d", d.nflows, len(n))
	}
}
