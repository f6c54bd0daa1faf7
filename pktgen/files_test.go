package pktgen

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/procfs"
	"golang.org/x/sys/unix"
)

type fileNode = procfs.File

func TestControlFile(t *testing.T) {
	b, _ := oneDevice(t)
	if got, want := b.read("pgctrl"), "Packet Generator for packet performance testing. Version: 2.75\n"; got != want {
		t.Errorf("pgctrl = %q, want %q", got, want)
	}
	for _, c := range []struct {
		text string
		want unix.Errno
	}{
		{"", unix.EINVAL}, {"\n", unix.EINVAL}, {"stop", 0}, {"stop\n", 0}, {"stop\x00", 0}, {"stop\n\n", unix.EINVAL},
		{" stop", unix.EINVAL}, {"stop ", unix.EINVAL}, {"STOP", unix.EINVAL}, {"inject", unix.EINVAL},
		{strings.Repeat("0123456789", 13), unix.EINVAL}, {"reset\n", 0}, {"reset", 0}, {"start\x00", 0},
	} {
		if got := b.write("pgctrl", c.text); got != c.want {
			t.Errorf("writing %q = %v, want %v", c.text, got, c.want)
		}
	}
}

func TestFileModes(t *testing.T) {
	b, _ := oneDevice(t)
	names := b.e.Dir().Names()
	if got, want := strings.Join(names, " "), "eth0 kpktgend_0 pgctrl"; got != want {
		t.Errorf("files = %s, want %s", got, want)
	}
	for _, n := range names {
		if m := b.file(n).Mode; m != 0o600 {
			t.Errorf("mode of %s = %o, want 600", n, m)
		}
	}
}

func TestThreadFile(t *testing.T) {
	b := newBench(t, []int{0, 1}, newSink("eth0"), newSink("eth1"))
	for _, c := range []struct {
		file, text string
		errno      unix.Errno
		want       string
	}{
		{"kpktgend_0", "", unix.EINVAL, "Running: \nStopped: \nResult: NA\n"},
		{"kpktgend_0", "forsureawrongcommand", unix.EINVAL, "Running: \nStopped: \nResult: NA\n"},
		{"kpktgend_0", "add_device eth0\n", 0, "Running: \nStopped: eth0 \nResult: OK: add_device=eth0\n"},
		{"kpktgend_0", "add_device eth1@0", 0, "Running: \nStopped: eth1@0 eth0 \nResult: OK: add_device=eth1@0\n"},
		{"kpktgend_1", "add_device eth0", unix.EBUSY, "Running: \nStopped: \nResult: ERROR: can not add device eth0\n"},
		{"kpktgend_1", "  add_device=\teth0@1\r\n", 0, "Running: \nStopped: eth0@1 \nResult: OK: add_device=eth0@1\n"},
		{"kpktgend_1", "add_device nosuch", unix.ENODEV, "Running: \nStopped: eth0@1 \nResult: ERROR: can not add device nosuch\n"},
		{"kpktgend_1", "add_device down0@7", unix.ENETDOWN, "Running: \nStopped: eth0@1 \nResult: ERROR: can not add device down0@7\n"},
		{"kpktgend_1", "add_device eth0@a/b", unix.EINVAL, "Running: \nStopped: eth0@1 \nResult: ERROR: can not add device eth0@a/b\n"},
		{"kpktgend_1", "add_device", unix.ENODEV, "Running: \nStopped: eth0@1 \nResult: ERROR: can not add device \n"},
		{"kpktgend_1", "add_device eth0@5678901234567890123456789012345\x00", 0,
			"Running: \nStopped: eth0@56789012345678901234567890 eth0@1 \nResult: OK: add_device=eth0@56789012345678901234567890\n"},
		{"kpktgend_1", "max_before_softirq 10000", 0,
			"Running: \nStopped: eth0@56789012345678901234567890 eth0@1 \nResult: OK: Note! max_before_softirq is obsoleted -- Do not use\n"},
		{"kpktgend_1", "rem_device_all", 0, "Running: \nStopped: \nResult: OK: rem_device_all\n"},
		{"kpktgend_1", "add_device eth0@1\x00", 0, "Running: \nStopped: eth0@1 \nResult: OK: add_device=eth0@1\n"},
	} {
		if errno := b.write(c.file, c.text); errno != c.errno {
			t.Errorf("writing %q to %s = %v, want %v", c.text, c.file, errno, c.errno)
		}
		if got := b.read(c.file); got != c.want {
			t.Errorf("%s after %q =\n%s want\n%s", c.file, c.text, got, c.want)
		}
	}
	if b.e.Dir().Lookup("eth0@1") == nil || b.e.Dir().Lookup("eth0@56789012345678901234567890") != nil {
		t.Errorf("files = %v", b.e.Dir().Names())
	}
	b.ok("pgctrl", "reset")
	if got, want := strings.Join(b.e.Dir().Names(), " "), "kpktgend_0 kpktgend_1 pgctrl"; got != want {
		t.Errorf("files after reset = %s, want %s", got, want)
	}
}

const fresh = `Params: count 1000  min_pkt_size: 0  max_pkt_size: 0
     frags: 0  delay: 0  clone_skb: 0  ifname: eth0
     flows: 0 flowlen: 0
     queue_map_min: 0  queue_map_max: 0
     dst_min:   dst_max: 
     src_min:   src_max: 
     src_mac: 52:54:00:12:34:56 dst_mac: 00:00:00:00:00:00
     udp_src_min: 9  udp_src_max: 9  udp_dst_min: 9  udp_dst_max: 9
     src_mac_count: 0  dst_mac_count: 0
     Flags: SHARED  
Current:
     pkts-sofar: 0  errors: 0
     started: 0us  stopped: 0us idle: 0us
     seq_num: 0  cur_dst_mac_offset: 0  cur_src_mac_offset: 0
     cur_saddr: 0.0.0.0  cur_daddr: 0.0.0.0
     cur_udp_dst: 0  cur_udp_src: 0
     cur_queue_map: 0
     flows: 0
Result: Idle
`

const full4 = `Params: count 0  min_pkt_size: 60  max_pkt_size: 1000
     imix_weights: 42,7 576,4 1500,1 
     frags: 2  delay: 18446744073709551615  clone_skb: 0  ifname: eth0
     flows: 8192 flowlen: 4
     queue_map_min: 1  queue_map_max: 2
     skb_priority: 7
     dst_min: 10.0.0.1  dst_max: 10.0.0.9
     src_min: 10.1.0.1  src_max: 10.1.0.9
     src_mac: 90:e2:ba:0a:56:b4 dst_mac: 00:1b:21:3c:9d:f8
     udp_src_min: 1  udp_src_max: 2  udp_dst_min: 3  udp_dst_max: 4
     src_mac_count: 5  dst_mac_count: 6
     vlan_id: 77  vlan_p: 3  vlan_cfi: 1
     svlan_id: 22  vlan_p: 2  vlan_cfi: 0
     tos: 0x28
     traffic_class: 0xb8
     burst: 8
     node: 0
     xmit_mode: netif_receive
     Flags: UDPSRC_RND  NO_TIMESTAMP  FLOW_RND  SHARED  
Current:
     pkts-sofar: 0  errors: 0
     imix_size_counts: 42,0 576,0 1500,0 
     started: 0us  stopped: 0us idle: 0us
     seq_num: 1  cur_dst_mac_offset: 0  cur_src_mac_offset: 0
     cur_saddr: 10.1.0.9  cur_daddr: 10.0.0.9
     cur_udp_dst: 4  cur_udp_src: 2
     cur_queue_map: 0
     flows: 0
Result: OK: Clearing counters.

`

const full6 = `Params: count 1000  min_pkt_size: 0  max_pkt_size: 0
     frags: 0  delay: 0  clone_skb: 0  ifname: eth0
     flows: 1 flowlen: 0
     queue_map_min: 0  queue_map_max: 0
     saddr: fd00::1  min_saddr: ::  max_saddr: ::
     daddr: fd00::2  min_daddr: fd00::3  max_daddr: fd00::ffff:ffff
     src_mac: 52:54:00:12:34:56 dst_mac: 00:00:00:00:00:00
     udp_src_min: 9  udp_src_max: 9  udp_dst_min: 9  udp_dst_max: 9
     src_mac_count: 0  dst_mac_count: 0
     mpls: 00010000, 00020000
     xmit_mode: xmit_queue
     Flags: IPV6  FLOW_SEQ  SHARED  
Current:
     pkts-sofar: 0  errors: 0
     started: 0us  stopped: 0us idle: 0us
     seq_num: 0  cur_dst_mac_offset: 0  cur_src_mac_offset: 0
     cur_saddr: fd00::1  cur_daddr: fd00::3
     cur_udp_dst: 0  cur_udp_src: 0
     cur_queue_map: 0
     flows: 0
Result: OK: xmit_mode=queue_xmit
`

func TestDeviceFile(t *testing.T) {
	for _, c := range []struct {
		name, want string
		cmds       []string
	}{
		{"fresh", fresh, nil},
		{"IPv4", full4, []string{"count 0", "min_pkt_size 60", "max_pkt_size 1000", "imix_weights 42,7 576,4 1500,1", "frags 2",
			"delay 2147483647", "flows 8192", "flowlen 4", "queue_map_min 1", "queue_map_max 2", "skb_priority 7", "dst_min 10.0.0.1",
			"dst_max 10.0.0.9", "src_min 10.1.0.1", "src_max 10.1.0.9", "src_mac 90:e2:ba:0a:56:b4", "dst_mac 00:1b:21:3C:9d:f8",
			"udp_src_min 1", "udp_src_max 2", "udp_dst_min 3", "udp_dst_max 4", "src_mac_count 5", "dst_mac_count 6", "vlan_id 77",
			"vlan_p 3", "vlan_cfi 1", "svlan_id 22", "svlan_p 2", "tos 28", "traffic_class b8", "burst 8", "node 0",
			"xmit_mode netif_receive", "flag UDPSRC_RND", "flag NO_TIMESTAMP", "clear_counters"}},
		{"IPv6", full6, []string{"flows 1", "flag FLOW_SEQ", "src6 fd00::1", "dst6 fd00::2", "dst6_min fd00::3",
			"dst6_max fd00::FFFF:FFFF", "mpls 00010000,00020000", "xmit_mode queue_xmit"}},
	} {
		b, _ := oneDevice(t)
		b.ok("eth0", c.cmds...)
		if got := b.read("eth0"); got != c.want {
			t.Errorf("%s: the file shows\n%s want\n%s", c.name, got, c.want)
		}
	}
}

func TestResultFormat(t *testing.T) {
	d := &device{params: params{flags: flagSHARED}}
	d.built = true
	d.tmpl.payload = 42
	d.sofar, d.size, d.started, d.stopped, d.idle = 100000, 60, 1_000_000_000, 1_015_430_123, 25_999
	want := "OK: 15430(c15404+d25) usec, 100000 (60byte,0frags)\n  6480829pps 3110Mb/sec (3110797920bps) errors: 0"
	if got := d.summary(); got != want {
		t.Errorf("summary() = %q, want %q", got, want)
	}
	d.frags = 4
	if got := d.heldFrags(); got != 4 {
		t.Errorf("heldFrags() of 60 bytes = %d, want 4", got)
	}
	d.size = 58
	if got := d.heldFrags(); got != 0 {
		t.Errorf("heldFrags() of 58 bytes = %d, want 0", got)
	}
	d.flags = 0
	if got := d.heldFrags(); got != -1 {
		t.Errorf("heldFrags() without SHARED = %d, want -1", got)
	}
	d.flags, d.frags, d.imix = flagSHARED, 0, []imixEntry{{size: 100, count: 10}, {size: 1000, count: 5}}
	d.sofar, d.started, d.stopped, d.idle, d.size = 15, 0, 1_000_000_000, 0, 1000
	want = "OK: 1000000(c1000000+d0) usec, 15 (1000byte,0frags)\n  15pps 0Mb/sec (48000bps) errors: 0"
	if got := d.summary(); got != want {
		t.Errorf("summary() of a mix = %q, want %q", got, want)
	}
	d.imix, d.sofar, d.started, d.stopped = nil, 1<<63, 0, 0
	d.summary() // no time at all: no division by 0
}

func TestRunningIsShown(t *testing.T) {
	b, _ := oneDevice(t)
	b.ok("eth0", "count 0", "delay 1000000")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int)
	go func() {
		n, _ := b.file("pgctrl").Write(ctx, []byte("start"))
		done <- n
	}()
	deadline := time.Now().Add(5 * time.Second)
	for !strings.Contains(b.read("kpktgend_0"), "Running: eth0 \nStopped: \n") {
		if time.Now().After(deadline) {
			t.Fatalf("kpktgend_0 = %q, want eth0 running", b.read("kpktgend_0"))
		}
		time.Sleep(time.Millisecond)
	}
	if got := b.read("eth0"); !strings.HasSuffix(got, "Result: Starting\n") {
		t.Errorf("eth0 while running = %s, want Result: Starting", got)
	}
	first := regexp.MustCompile(`stopped: (\d+)us`).FindString(b.read("eth0"))
	time.Sleep(2 * time.Millisecond)
	if again := regexp.MustCompile(`stopped: (\d+)us`).FindString(b.read("eth0")); again == first {
		t.Errorf("%s stands still while running", first)
	}
	cancel()
	if n := <-done; n != 5 {
		t.Errorf("interrupted start = %d, want 5", n)
	}
	if got := b.read("kpktgend_0"); !strings.Contains(got, "Running: \nStopped: eth0 \n") {
		t.Errorf("kpktgend_0 after the interrupt = %q", got)
	}
	if got := b.result("eth0"); !strings.HasPrefix(got, "OK: ") || !strings.Contains(got, "usec, ") {
		t.Errorf("Result after the interrupt = %q", got)
	}
}
