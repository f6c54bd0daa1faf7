package pktgen

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/profile"
)

const unknownFlag = " unknown\nAvailable flags, (prepend ! to un-set flag):\n" +
	"IPV6, IPSRC_RND, IPDST_RND, TXSIZE_RND, UDPSRC_RND, UDPDST_RND, UDPCSUM, NO_TIMESTAMP, MPLS_RND, QUEUE_MAP_RND, " +
	"QUEUE_MAP_CPU, FLOW_SEQ, IPSEC, MACSRC_RND, MACDST_RND, VID_RND, SVID_RND, NODE, SHARED"

// deviceCommands are writes to one device, in order. want "=" means that Result stays.
var deviceCommands = []struct {
	text  string
	errno unix.Errno
	want  string
}{
	{"", unix.EINVAL, "="},
	{" ", unix.EINVAL, `No such parameter ""`},
	{"inject", unix.EINVAL, `No such parameter "inject"`},
	{"forsurewrongcommand 1", unix.EINVAL, `No such parameter "forsurewrongcom"`},
	{"spi 100", 0, "OK: spi=100"},
	{"spi 0", 0, "OK: spi=0"},
	{"COUNT 1", unix.EINVAL, `No such parameter "COUNT"`},

	{"count 100", 0, "OK: count=100"},
	{"count 5x", 0, "OK: count=5"},
	{"count", 0, "OK: count=0"},
	{"count -1", 0, "OK: count=0"},
	{"count 12345678901234", 0, "OK: count=1234567890"},
	{"\"count\" \"7\"\n", 0, "OK: count=7"},
	{"count\x00", 0, "OK: count=0"},
	{"count 9\x00", 0, "OK: count=9"},
	{"count 9 and more text", 0, "OK: count=9"},
	{"min_pkt_size", 0, "OK: min_pkt_size=42"},
	{"min_pkt_size=1001", 0, "OK: min_pkt_size=1001"},
	{"min_pkt_size =2002", 0, "OK: min_pkt_size=2002"},
	{"min_pkt_size= 3003", 0, "OK: min_pkt_size=3003"},
	{"min_pkt_size = 4004", 0, "OK: min_pkt_size=4004"},
	{"max_pkt_size 1", 0, "OK: max_pkt_size=42"},
	{"max_pkt_size 200", 0, "OK: max_pkt_size=200"},
	{"pkt_size 0", 0, "OK: pkt_size=42"},
	{"pkt_size 9999999999", 0, "OK: pkt_size=1410065407"},
	{"pkt_size 1000", 0, "OK: pkt_size=1000"},

	{"pcap", 0, "OK: pcap="},
	{"pcap none", unix.EINVAL, `ERROR: pcap: "none": want an absolute path`},
	{"pcap_speed 2", 0, "OK: pcap_speed=2"},
	{"pcap_speed = 0.25", 0, "OK: pcap_speed=0.25"},
	{"pcap_speed original", 0, "OK: pcap_speed=original"},
	{"pcap_speed", unix.EINVAL, "ERROR: pcap_speed must be original, or a number up to 1000000"},
	{"pcap_speed 0", 0, "OK: pcap_speed=0"},

	{"delay 100", 0, "OK: delay=100"},
	{"delay 2147483647", 0, "OK: delay=18446744073709551615"},
	{"delay 9999999999", 0, "OK: delay=9999999999"},
	{"rate 0", unix.EINVAL, "="},
	{"rate 300M", 0, "OK: rate=300"},
	{"ratep 0", unix.EINVAL, "="},
	{"ratep 200", 0, "OK: rate=200"},
	{"frags 100", 0, "OK: frags=100"},
	{"frags 0", 0, "OK: frags=0"},
	{"debug 1", 0, "OK: debug=1"},
	{"debug 0", 0, "OK: debug=0"},

	{"udp_src_min 1", 0, "OK: udp_src_min=1"},
	{"udp_src_max 65536", 0, "OK: udp_src_max=0"},
	{"udp_dst_min 65535", 0, "OK: udp_dst_min=65535"},
	{"udp_dst_max 4", 0, "OK: udp_dst_max=4"},
	{"src_mac_count 100", 0, "OK: src_mac_count=100"},
	{"dst_mac_count 4294967295", 0, "OK: dst_mac_count=-1"},
	{"dst_mac_count 0", 0, "OK: dst_mac_count=0"},
	{"flows 100", 0, "OK: flows=100"},
	{"flows 100000", 0, "OK: flows=65536"},
	{"flowlen 4", 0, "OK: flowlen=4"},
	{"queue_map_min 1", 0, "OK: queue_map_min=1"},
	{"queue_map_max 123456", 0, "OK: queue_map_max=12345"},
	{"skb_priority 9999999999", 0, "OK: skb_priority=999999999"},
	{"node 0", 0, "OK: node=0"},
	{"node 100000", 0, "ERROR: node not possible"},

	{"dst 10.0.0.1", 0, "OK: dst_min=10.0.0.1"},
	{"dst_min  10.0.0.2\n", 0, "OK: dst_min=10.0.0.2"},
	{"dst_max nonsense", 0, "OK: dst_max=nonsense"},
	{"src_min 123456789012345678901234567890123", 0, "OK: src_min=1234567890123456789012345678901"},
	{"src_max", 0, "OK: src_max="},
	{"dst6 2001:db38:1234:0000:0000:0000:0000:0000", 0, "OK: dst6=2001:db38:1234::"},
	{"dst6 1.2.3.4", 0, "OK: dst6=2001:db38:1234::"},
	{"dst6_min FEC0::1", 0, "OK: dst6_min=fec0::1"},
	{"dst6_max fec0::0:ffff:1.2.3.4", 0, "OK: dst6_max=fec0::ffff:102:304"},
	{"src6 ::ffff:1.2.3.4", 0, "OK: src6=::ffff:1.2.3.4"},
	{"flag IPV6", 0, "Flag -:IPV6:-" + unknownFlag},
	{"flag !IPV6", 0, "OK: flags=0x40000"},
	{"dst_mac 01:02:03:04:05:06", 0, "OK: dstmac 01:02:03:04:05:06"},
	{"dst_mac  00:1B:21:3c:9d:F8 and more", 0, "OK: dstmac 00:1b:21:3c:9d:f8"},
	{"dst_mac 1:2:3:4:5:6", unix.EINVAL, "="},
	{"dst_mac 01-02-03-04-05-06", unix.EINVAL, "="},
	{"src_mac 01:02:03:04:05", unix.EINVAL, "="},
	{"src_mac 0g:02:03:04:05:06", unix.EINVAL, "="},
	{"src_mac 11:12:13:14:15:16", 0, "OK: srcmac 11:12:13:14:15:16"},

	{"flag UDPCSUM", 0, "OK: flags=0x40040"},
	{"flag !UDPCSUM", 0, "OK: flags=0x40000"},
	{"flag IPSRC_RND", 0, "OK: flags=0x40002"},
	{"flag IPDST_RND", 0, "OK: flags=0x40006"},
	{"flag TXSIZE_RND", 0, "OK: flags=0x4000e"},
	{"flag UDPSRC_RND", 0, "OK: flags=0x4001e"},
	{"flag UDPDST_RND", 0, "OK: flags=0x4003e"},
	{"flag MACSRC_RND", 0, "OK: flags=0x4203e"},
	{"flag MACDST_RND", 0, "OK: flags=0x4603e"},
	{"flag FLOW_SEQ", 0, "OK: flags=0x4683e"},
	{"flag FLOW_RND", 0, "OK: flags=0x4603e"},
	{"flag !FLOW_RND", 0, "OK: flags=0x4683e"},
	{"flag nonsense", 0, "Flag -:nonsense:-" + unknownFlag},
	{"flag IPSEC", 0, "OK: flags=0x4783e"},
	{"flag !IPSEC", 0, "OK: flags=0x4683e"},
	{"flag", 0, "Flag -::-" + unknownFlag},

	{"clone_skb 10", 0, "OK: clone_skb=10"},
	{"flag !SHARED", unix.EINVAL, "="},
	{"imix_weights 100,1", unix.EINVAL, "="},
	{"xmit_mode netif_receive", unix.EOPNOTSUPP, "="},
	{"clone_skb 0", 0, "OK: clone_skb=0"},
	{"burst 0", 0, "OK: burst=1"},
	{"burst 8", 0, "OK: burst=8"},
	{"flag !SHARED", unix.EINVAL, "="},
	{"burst 1", 0, "OK: burst=1"},
	{"flag !SHARED", 0, "OK: flags=0x683e"},
	{"burst 2", unix.EINVAL, "="},
	{"clone_skb 1", unix.EINVAL, "="},
	{"flag SHARED", 0, "OK: flags=0x4683e"},
	{"xmit_mode queue_xmit", 0, "OK: xmit_mode=queue_xmit"},
	{"burst 2", unix.EOPNOTSUPP, "="},
	{"xmit_mode netif_receive", 0, "OK: xmit_mode=netif_receive"},
	{"clone_skb 1", unix.EOPNOTSUPP, "="},
	{"burst 1024", 0, "OK: burst=1024"},
	{"xmit_mode nonsense", 0, "xmit_mode -:nonsense:- unknown\nAvailable modes: start_xmit, netif_receive\n"},
	{"xmit_mode start_xmit", 0, "OK: xmit_mode=start_xmit"},

	{"imix_weights 0,7 576,4 1500,1", 0, "="},
	{"clone_skb 1", unix.EINVAL, "="},
	{"imix_weights 101,1 102,2 103,3 104,4 105,5 106,6 107,7 108,8 109,9 110,10 111,11 112,12 113,13 114,14 115,15 116,16 117,17 118,18 119,19 120,20", 0, "="},
	{"imix_weights 1,1 2,1 3,1 4,1 5,1 6,1 7,1 8,1 9,1 10,1 11,1 12,1 13,1 14,1 15,1 16,1 17,1 18,1 19,1 20,1 21,1", unix.E2BIG, "="},
	{"imix_weights", unix.EINVAL, "="},
	{"imix_weights 100", unix.EINVAL, "="},
	{"imix_weights 100,", unix.EINVAL, "="},
	{"imix_weights 100,0", unix.EINVAL, "="},

	{"vlan_p 1", 0, "ERROR: vlan_p must be 0-7"},
	{"svlan_id 1", 0, "="},
	{"vlan_id 1", 0, "OK: vlan_id=1"},
	{"vlan_p 7", 0, "OK: vlan_p=7"},
	{"vlan_p 8", 0, "ERROR: vlan_p must be 0-7"},
	{"vlan_p 18", 0, "OK: vlan_p=1"},
	{"vlan_cfi 1", 0, "OK: vlan_cfi=1"},
	{"vlan_cfi 2", 0, "ERROR: vlan_cfi must be 0-1"},
	{"svlan_p 1", 0, "ERROR: svlan_p must be 0-7"},
	{"svlan_cfi 1", 0, "ERROR: svlan_cfi must be 0-1"},
	{"svlan_id 12345", 0, "OK: svlan_id=1234"},
	{"svlan_p 1", 0, "OK: svlan_p=1"},
	{"svlan_cfi 1", 0, "OK: svlan_cfi=1"},
	{"svlan_id 4096", 0, "="},
	{"vlan_p 1", 0, "ERROR: vlan_p must be 0-7"},
	{"vlan_id 4095", 0, "OK: vlan_id=4095"},
	{"mpls 00000001", 0, "OK: mpls=00000001"},
	{"vlan_p 1", 0, "ERROR: vlan_p must be 0-7"},
	{"mpls 1,f2\n", 0, "OK: mpls=00000001,000000f2"},
	{"mpls 00000f00,00000f01,00000f02,00000f03,00000f04,00000f05,00000f06,00000f07,00000f08,00000f09,00000f0a,00000f0b,00000f0c,00000f0d,00000f0e,00000f0f,00000f10", unix.E2BIG, "="},
	{"mpls 1,", unix.EINVAL, "="},
	{"mpls", unix.EINVAL, "="},
	{"mpls 0", 0, "OK: mpls="},
	{"mpls x", 0, "OK: mpls="},
	{"flag !MPLS_RND", 0, "OK: flags=0x4683e"},
	{"mpls 00010100", 0, "OK: mpls=00010100"},
	{"flag !MPLS_RND", 0, "OK: flags=0x4683e"},

	{"tos 0", 0, "ERROR: tos must be 00-ff"},
	{"tos 0f", 0, "OK: tos=0x0f"},
	{"tos 0ff", 0, "OK: tos=0x0f"},
	{"traffic_class f0", 0, "OK: traffic_class=0xf0"},
	{"traffic_class g0", 0, "ERROR: traffic_class must be 00-ff"},
	{"clear_counters", 0, "OK: Clearing counters.\n"},
}

func TestDeviceCommands(t *testing.T) {
	b, _ := oneDevice(t)
	last := ""
	for _, c := range deviceCommands {
		want := c.want
		if want == "=" {
			want = last
		}
		errno := b.write("eth0", c.text)
		if got := b.result("eth0"); errno != c.errno || got != want {
			t.Errorf("writing %q: %v, Result %q, want %v, %q", c.text, errno, got, c.errno, want)
		}
		last = want
	}
}

func TestEveryCommandIsTried(t *testing.T) {
	tried := map[string]bool{}
	for _, c := range deviceCommands {
		s := scanner{p: []byte(c.text), prof: &profile.Pktgen{Assign: true}}
		s.skip()
		tried[s.word(nameLen)] = true
	}
	for name := range commands {
		if !tried[name] {
			t.Errorf("no test writes %s", name)
		}
		if len(name) > nameLen {
			t.Errorf("command %s is longer than the %d bytes that are looked at", name, nameLen)
		}
	}
}

func TestSizesAndRate(t *testing.T) {
	b, _ := oneDevice(t)
	d := b.dev("eth0")
	b.ok("eth0", "rate 100")
	if d.delay != 0 {
		t.Errorf("delay of rate 100 without a size = %d, want 0", d.delay)
	}
	b.ok("eth0", "pkt_size 60", "max_pkt_size 100", "pkt_size 60")
	if d.minSize != 60 || d.maxSize != 100 {
		t.Errorf("sizes = %d, %d; pkt_size of the same minimum leaves the maximum (60, 100)", d.minSize, d.maxSize)
	}
	for cmd, want := range map[string]uint64{"rate 100": 60 * 8 * 1000 / 100, "ratep 3": 333333333} {
		if b.ok("eth0", cmd); d.delay != want {
			t.Errorf("delay after %q = %d, want %d", cmd, d.delay, want)
		}
	}
}

func TestImixSlots(t *testing.T) {
	b, _ := oneDevice(t)
	b.ok("eth0", "imix_weights 40,7 576,4 1500,1")
	n := [3]int{}
	for _, s := range b.dev("eth0").imixSlot {
		n[s]++
	}
	if want := [3]int{58, 33, 9}; n != want {
		t.Errorf("slots = %v, want %v", n, want)
	}
}

func TestAddresses(t *testing.T) {
	for s, want := range map[string]uint32{"10.0.0.1": 0x0a000001, "": 0, "10": 0x0a000000, "1.2.3.4.5": 0x01020304, "300.1.1.1": 0x2c010101, "1..2": 0x01000200} {
		if got := aton(s); got != want {
			t.Errorf("aton(%q) = %#x, want %#x", s, got, want)
		}
	}
	for in, want := range map[string]string{
		"::": "::", "::1": "::1", "1::": "1::", "1:0:0:2:0:0:0:3": "1:0:0:2::3", "1:0:2:0:3:0:4:0": "1:0:2:0:3:0:4:0",
		"0:0:1:0:0:1:0:0": "::1:0:0:1:0:0", "::ffff:10.0.0.1": "::ffff:10.0.0.1", "fe80::5efe:a00:1": "fe80::5efe:10.0.0.1",
		"fe80::200:5efe:a00:1": "fe80::200:5efe:10.0.0.1", "0:1:2:3:4:5:6:7": "0:1:2:3:4:5:6:7", "1:2:3:4:5:6:7:0": "1:2:3:4:5:6:7:0",
	} {
		a, valid := pton6(in)
		if got := ntop6(a); !valid || got != want {
			t.Errorf("ntop6(pton6(%q)) = %q, %v, want %q", in, got, valid, want)
		}
	}
	for _, s := range []string{"", "x", "1.2.3.4", "fe80::1%eth0", "1::2::3"} {
		if a, valid := pton6(s); valid {
			t.Errorf("pton6(%q) = %x, want nothing", s, a)
		}
	}
}
