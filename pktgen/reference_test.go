package pktgen

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What the reference says and no other test does: deviceCommands, TestControlFile and TestThreadFile have the rest.

// flagsLine is the flags that the file shows.
func (b *bench) flagsLine() string {
	b.t.Helper()
	_, rest, _ := strings.Cut(b.read("eth0"), "\n     Flags: ")
	line, _, _ := strings.Cut(rest, "\n")
	return line
}

// Each flag has its bit in the result of the command, and its name in the file, with two blanks behind.
func TestEveryFlag(t *testing.T) {
	for _, c := range []struct {
		name string
		bit  uint32
	}{
		{"IPSRC_RND", 0x2}, {"IPDST_RND", 0x4}, {"TXSIZE_RND", 0x8}, {"UDPSRC_RND", 0x10}, {"UDPDST_RND", 0x20}, {"UDPCSUM", 0x40},
		{"NO_TIMESTAMP", 0x80}, {"MPLS_RND", 0x100}, {"QUEUE_MAP_RND", 0x200}, {"QUEUE_MAP_CPU", 0x400}, {"MACSRC_RND", 0x2000},
		{"MACDST_RND", 0x4000}, {"VID_RND", 0x8000}, {"SVID_RND", 0x10000}, {"NODE", 0x20000},
	} {
		b, _ := oneDevice(t)
		for _, w := range []struct{ text, result, line string }{
			{"flag " + c.name, fmt.Sprintf("OK: flags=0x%x", 0x40000|c.bit), c.name + "  SHARED  "},
			{"flag " + c.name + " more\n", fmt.Sprintf("OK: flags=0x%x", 0x40000|c.bit), c.name + "  SHARED  "},
			{"flag !SHARED\x00", fmt.Sprintf("OK: flags=0x%x", c.bit), c.name + "  "},
			{"flag " + strings.ToLower(c.name), "Flag -:" + strings.ToLower(c.name) + ":-" + unknownFlag, c.name + "  "},
			{"flag !" + c.name, "OK: flags=0x0", ""},
			{"flag SHARED", "OK: flags=0x40000", "SHARED  "},
		} {
			b.ok("eth0", w.text)
			if got, line := b.result("eth0"), b.flagsLine(); got != w.result || line != w.line {
				t.Errorf("%q: Result %q, Flags %q, want %q, %q", w.text, got, line, w.result, w.line)
			}
		}
	}
}

// FLOW_SEQ is shown where there are flows, or else its opposite. IPV6 is set by an address, and only cleared by the flag.
func TestFlowAndIPv6Flags(t *testing.T) {
	b, _ := oneDevice(t)
	for _, w := range []struct{ text, result, line string }{
		{"flag FLOW_SEQ", "OK: flags=0x40800", "SHARED  "},
		{"flows 2", "OK: flows=2", "FLOW_SEQ  SHARED  "},
		{"flag FLOW_RND", "OK: flags=0x40000", "FLOW_RND  SHARED  "},
		{"flag !FLOW_RND", "OK: flags=0x40800", "FLOW_SEQ  SHARED  "},
		{"flag !FLOW_SEQ", "OK: flags=0x40000", "FLOW_RND  SHARED  "},
		{"flows 0", "OK: flows=0", "SHARED  "},
		{"src6 ::1", "OK: src6=::1", "IPV6  SHARED  "},
		{"flag IPV6", "Flag -:IPV6:-" + unknownFlag, "IPV6  SHARED  "},
		{"flag !IPV6", "OK: flags=0x40000", "SHARED  "},
		{"flag NODE_ALLOC", "Flag -:NODE_ALLOC:-" + unknownFlag, "SHARED  "},
		{"flag !", "Flag -:!:-" + unknownFlag, "SHARED  "},
		{"flag !!UDPCSUM", "Flag -:!!UDPCSUM:-" + unknownFlag, "SHARED  "},
	} {
		b.ok("eth0", w.text)
		if got, line := b.result("eth0"), b.flagsLine(); got != w.result || line != w.line {
			t.Errorf("%q: Result %q, Flags %q, want %q, %q", w.text, got, line, w.result, w.line)
		}
	}
}

// Each row is a write to a device, in order: its errno, its result ("=": as before), and a line of the file afterwards
// ("!": one that it has not).
func TestReference(t *testing.T) {
	b, _ := oneDevice(t)
	last := ""
	for _, c := range []struct {
		text  string
		errno unix.Errno
		want  string
		line  string
	}{
		{" \t\r\n =count 3", 0, "OK: count=3", "Params: count 3  min_pkt_size: 0  max_pkt_size: 0"},
		{"count 0x10", 0, "OK: count=0", ""},
		{"count +5", 0, "OK: count=0", ""},
		{"count 4294967296", 0, "OK: count=4294967296", "Params: count 4294967296  min_pkt_size: 0  max_pkt_size: 0"},
		{"count", 0, "OK: count=0", ""},
		{"delay 2147483646", 0, "OK: delay=2147483646", "     frags: 0  delay: 2147483646  clone_skb: 0  ifname: eth0"},
		{"delay", 0, "OK: delay=0", ""},
		{"pkt_size 100", 0, "OK: pkt_size=100", "Params: count 0  min_pkt_size: 100  max_pkt_size: 100"},
		{"rate 1", 0, "OK: rate=1", "     frags: 0  delay: 800000  clone_skb: 0  ifname: eth0"},
		{"min_pkt_size 60", 0, "OK: min_pkt_size=60", "     frags: 0  delay: 800000  clone_skb: 0  ifname: eth0"},
		{"ratep 1000000001", 0, "OK: rate=1000000001", "     frags: 0  delay: 0  clone_skb: 0  ifname: eth0"},
		{"rate", unix.EINVAL, "=", ""},
		{"ratep", unix.EINVAL, "=", ""},
		{"rate x", unix.EINVAL, "=", ""},
		{"min_pkt_size 41", 0, "OK: min_pkt_size=42", ""},
		{"max_pkt_size 42", 0, "OK: max_pkt_size=42", "Params: count 0  min_pkt_size: 42  max_pkt_size: 42"},
		{"udp_src_min 65535", 0, "OK: udp_src_min=65535", ""},
		{"udp_src_max 65537", 0, "OK: udp_src_max=1", "     udp_src_min: 65535  udp_src_max: 1  udp_dst_min: 9  udp_dst_max: 9"},
		{"udp_dst_min", 0, "OK: udp_dst_min=0", ""},
		{"flows 65536", 0, "OK: flows=65536", "     flows: 65536 flowlen: 0"},
		{"flows 65537", 0, "OK: flows=65536", ""},
		{"flowlen 4294967295", 0, "OK: flowlen=4294967295", "     flows: 65536 flowlen: 4294967295"},
		{"flows 0", 0, "OK: flows=0", ""},
		{"queue_map_min 65535", 0, "OK: queue_map_min=65535", ""},
		{"queue_map_max 65536", 0, "OK: queue_map_max=0", "     queue_map_min: 65535  queue_map_max: 0"},
		{"skb_priority 7", 0, "OK: skb_priority=7", "     skb_priority: 7"},
		{"skb_priority 0", 0, "OK: skb_priority=0", "!     skb_priority: "},
		{"burst 2", 0, "OK: burst=2", "     burst: 2"},
		{"burst", 0, "OK: burst=1", "!     burst: "},
		{"node", 0, "OK: node=0", "     node: 0"},
		{"src_mac", unix.EINVAL, "=", ""},
		{"dst_mac 01:02:03:04:05:06:07", 0, "OK: dstmac 01:02:03:04:05:06", "     src_mac: 52:54:00:12:34:56 dst_mac: 01:02:03:04:05:06"},
		{"dst 1.2.3.4\x00", 0, "OK: dst_min=1.2.3.4", "     dst_min: 1.2.3.4  dst_max: "},
		{"dst", 0, "OK: dst_min=", "     dst_min:   dst_max: "},
		{"vlan_id 4096", 0, "=", "!     vlan_id: "},
		{"vlan_id 0", 0, "OK: vlan_id=0", "     vlan_id: 0  vlan_p: 0  vlan_cfi: 0"},
		{"svlan_id 4095", 0, "OK: svlan_id=4095", "     svlan_id: 4095  vlan_p: 0  vlan_cfi: 0"},
		{"svlan_p 8", 0, "ERROR: svlan_p must be 0-7", ""},
		{"svlan_cfi 2", 0, "ERROR: svlan_cfi must be 0-1", ""},
		{"vlan_id 40960", 0, "=", "!     svlan_id: "},
		{"vlan_p 0", 0, "ERROR: vlan_p must be 0-7", ""},
		{"vlan_cfi 0", 0, "ERROR: vlan_cfi must be 0-1", ""},
		{"mpls 00010100", 0, "OK: mpls=00010100", "     Flags: MPLS_RND  SHARED  "},
		{"vlan_id 7", 0, "OK: vlan_id=7", "!     mpls: "},
		{"mpls 00010000," + strings.Repeat("00000020,", 14) + "00000030", 0, "OK: mpls=00010000," + strings.Repeat("00000020,", 14) + "00000030", "!     vlan_id: "},
		{"mpls " + strings.Repeat("00000020,", 16) + "00000030", unix.E2BIG, "=", ""},
		{"mpls 0", 0, "OK: mpls=", "!     mpls: "},
		{"tos", 0, "ERROR: tos must be 00-ff", ""},
		{"tos ff", 0, "OK: tos=0xff", "     tos: 0xff"},
		{"tos 00", 0, "OK: tos=0x00", "!     tos: "},
		{"traffic_class", 0, "ERROR: traffic_class must be 00-ff", ""},
		{"imix_weights " + strings.TrimSuffix(strings.Repeat("60,1 ", 20), " "), 0, "=", "     imix_size_counts: " + strings.Repeat("60,0 ", 20)},
		{"imix_weights 41,1", 0, "=", "     imix_weights: 42,1 "},
		{"xmit_mode", 0, "xmit_mode -::- unknown\nAvailable modes: start_xmit, netif_receive\n", "!     xmit_mode: "},
		{"clear_counters 5", 0, "OK: Clearing counters.\n", "     seq_num: 1  cur_dst_mac_offset: 0  cur_src_mac_offset: 0"},
		{"a_name_of_15_ch", unix.EINVAL, `No such parameter "a_name_of_15_ch"`, ""},
		{"a_name_of_16_cha", unix.EINVAL, `No such parameter "a_name_of_16_ch"`, ""},
		{"countx 5", unix.EINVAL, `No such parameter "countx"`, ""},
	} {
		want := c.want
		if want == "=" {
			want = last
		}
		errno := b.write("eth0", c.text)
		if got := b.result("eth0"); errno != c.errno || got != want {
			t.Errorf("writing %q: %v, Result %q, want %v, %q", c.text, errno, got, c.errno, want)
		}
		last = want
		line, not := strings.CutPrefix(c.line, "!")
		if text := "\n" + b.read("eth0"); line != "" && strings.Contains(text, "\n"+line) == not {
			t.Errorf("after %q the file shows%s\nwant %q: %v", c.text, text, line, !not)
		}
	}
}
