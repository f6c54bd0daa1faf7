package pktgen

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// profiles are the devices of one engine each: eth0 on kpktgend_0, as the kernels 6.1 and 6.12 have it.
func profiles(t *testing.T) map[string]*bench {
	t.Helper()
	m := map[string]*bench{}
	for _, name := range []string{"6.1", "6.12"} {
		s := newSink("eth0")
		s.queues[0].keep = -1
		m[name] = newBenchOf(t, Config{Profile: name, CPUs: []int{0}}, s)
		m[name].ok("kpktgend_0", "add_device eth0")
	}
	return m
}

const unknownFlag61 = " unknown\nAvailable flags, (prepend ! to un-set flag):\n" +
	"IPSRC_RND, IPDST_RND, UDPSRC_RND, UDPDST_RND, MACSRC_RND, MACDST_RND, TXSIZE_RND, IPV6, MPLS_RND, VID_RND, SVID_RND, " +
	"FLOW_SEQ, QUEUE_MAP_RND, QUEUE_MAP_CPU, UDPCSUM, NO_TIMESTAMP, IPSEC, NODE_ALLOC\n"

// answer is what came of a write: how many bytes were taken, or an errno, and Result.
type answer struct {
	n      int
	errno  unix.Errno
	result string
}

// Each row is a write to a device, in order, and what comes of it under both profiles. n 0 means all of it.
func TestDeviceProfiles(t *testing.T) {
	b := profiles(t)
	const sharedOff = "OK: flags=0x40000"
	for _, c := range []struct {
		text      string
		old, late answer
	}{
		{"count 7\n", answer{result: "OK: count=7"}, answer{result: "OK: count=7"}},
		{"count=5\n", answer{errno: unix.EINVAL, result: `No such parameter "count=5"`}, answer{result: "OK: count=5"}},
		{"count= 5\n", answer{errno: unix.EINVAL, result: `No such parameter "count="`}, answer{result: "OK: count=5"}},
		{"count =6\n", answer{result: "OK: count=6"}, answer{result: "OK: count=6"}},
		{"count = 7\n", answer{result: "OK: count=7"}, answer{result: "OK: count=7"}},
		{"dst_min 10.0.0.1=2\n", answer{result: "OK: dst_min=10.0.0.1=2"}, answer{result: "OK: dst_min=10.0.0.1"}},

		{"flag UDPSRC_RND\n", answer{result: "OK: flags=0x10"}, answer{result: "OK: flags=0x40010"}},
		{"flag !UDPSRC_RND\n", answer{result: "OK: flags=0x0"}, answer{result: sharedOff}},
		{"flag FLOW_SEQ\n", answer{result: "OK: flags=0x800"}, answer{result: "OK: flags=0x40800"}},
		{"flag FLOW_RND\n", answer{result: "OK: flags=0x0"}, answer{result: sharedOff}},
		{"flag NOPE\n", answer{result: "Flag -:NOPE:-" + unknownFlag61}, answer{result: "Flag -:NOPE:-" + unknownFlag}},
		{"flag !SHARED\n", answer{result: "Flag -:!SHARED:-" + unknownFlag61}, answer{result: "OK: flags=0x0"}},
		{"clone_skb 1\n", answer{result: "OK: clone_skb=1"}, answer{errno: unix.EINVAL, result: "OK: flags=0x0"}},
		{"burst 2\n", answer{result: "OK: burst=2"}, answer{errno: unix.EINVAL, result: "OK: flags=0x0"}},
		{"flag SHARED\n", answer{result: "Flag -:SHARED:-" + unknownFlag61}, answer{result: sharedOff}},
		{"clone_skb 0\n", answer{result: "OK: clone_skb=0"}, answer{result: "OK: clone_skb=0"}},

		{"rate 0\n", answer{n: 1, result: "OK: clone_skb=0"}, answer{errno: unix.EINVAL, result: "OK: clone_skb=0"}},
		{"ratep 000x\n", answer{n: 3, result: "OK: clone_skb=0"}, answer{errno: unix.EINVAL, result: "OK: clone_skb=0"}},
		{"rate\n", answer{errno: unix.EINVAL, result: "OK: clone_skb=0"}, answer{errno: unix.EINVAL, result: "OK: clone_skb=0"}},
		{"rate 30M\n", answer{result: "OK: rate=30"}, answer{result: "OK: rate=30"}},

		{"mpls 00010000,00020000\n", answer{result: "OK: mpls=00010000,00020000"}, answer{result: "OK: mpls=00010000,00020000"}},
		{"mpls 1,20\n", answer{result: "OK: mpls=00000010,00000200"}, answer{result: "OK: mpls=00000001,00000020"}},
		{"mpls 0\n", answer{result: "OK: mpls=00000000"}, answer{result: "OK: mpls="}},
		{"mpls x\n", answer{result: "OK: mpls="}, answer{result: "OK: mpls="}},
		{"mpls\n", answer{result: "OK: mpls="}, answer{errno: unix.EINVAL, result: "OK: mpls="}},
		{"mpls " + strings.Repeat("00010000,", 15) + "00010000\n",
			answer{result: "OK: mpls=" + strings.Repeat("00010000,", 15) + "00010000"},
			answer{result: "OK: mpls=" + strings.Repeat("00010000,", 15) + "00010000"}},
		{"mpls 0\n", answer{result: "OK: mpls=00000000"}, answer{result: "OK: mpls="}},
		{"tos 1\n", answer{result: "ERROR: tos must be 00-ff"}, answer{result: "ERROR: tos must be 00-ff"}},
		{"tos 1f\n", answer{result: "OK: tos=0x1f"}, answer{result: "OK: tos=0x1f"}},
	} {
		for name, want := range map[string]answer{"6.1": c.old, "6.12": c.late} {
			if want.n == 0 && want.errno == 0 {
				want.n = len(c.text)
			}
			n, err := b[name].file("eth0").Write(t.Context(), []byte(c.text))
			errno, _ := err.(unix.Errno)
			if got := (answer{n, errno, b[name].result("eth0")}); got != want {
				t.Errorf("%s: writing %q = %+v, want %+v", name, c.text, got, want)
			}
		}
	}
	if got, want := b["6.1"].read("eth0"), "\n     Flags: \nCurrent:\n"; !strings.Contains(got, want) {
		t.Errorf("6.1: the file shows\n%s want no flag", got)
	}
	if got, want := b["6.12"].read("eth0"), "\n     Flags: SHARED  \nCurrent:\n"; !strings.Contains(got, want) {
		t.Errorf("6.12: the file shows\n%s want the flag SHARED", got)
	}
}

// The whole file of a device that nobody changed: 6.1 has no flag SHARED.
func TestFilesOf61(t *testing.T) {
	b := profiles(t)["6.1"]
	if got, want := b.read("eth0"), strings.Replace(fresh, "Flags: SHARED  ", "Flags: ", 1); got != want {
		t.Errorf("the file shows\n%s want\n%s", got, want)
	}
	if got, want := b.read("pgctrl"), "Packet Generator for packet performance testing. Version: 2.75\n"; got != want {
		t.Errorf("pgctrl = %q, want %q", got, want)
	}
}

// Under 6.1 the packets of a burst are copies of one, and bursts are whole. Each row is a run: how many
// packets there are then, and how many different ones.
func TestBursts(t *testing.T) {
	for name, b := range profiles(t) {
		for _, c := range []struct {
			cmds      []string
			old, late [2]int
		}{
			{[]string{"count 10", "burst 1", "clone_skb 0"}, [2]int{10, 10}, [2]int{10, 10}},
			{[]string{"count 10", "burst 1", "clone_skb 3"}, [2]int{10, 4}, [2]int{10, 4}},
			{[]string{"count 10", "burst 5", "clone_skb 0"}, [2]int{10, 2}, [2]int{10, 10}},
			{[]string{"count 10", "burst 4", "clone_skb 0"}, [2]int{12, 3}, [2]int{10, 10}},
			{[]string{"count 10", "burst 4", "clone_skb 1"}, [2]int{12, 3}, [2]int{10, 3}},
			{[]string{"count 17", "burst 4", "clone_skb 2"}, [2]int{20, 3}, [2]int{17, 3}},
			{[]string{"count 1", "burst 32", "clone_skb 0"}, [2]int{32, 1}, [2]int{1, 1}},
			{[]string{"count 1000", "burst 32", "clone_skb 0"}, [2]int{1024, 32}, [2]int{1000, 1000}},
			{[]string{"count 9", "burst 4", "udp_dst_min 1", "udp_dst_max 100"}, [2]int{12, 3}, [2]int{9, 9}},
		} {
			want := c.late
			if name == "6.1" {
				want = c.old
			}
			q := b.s["eth0"].queues[0]
			q.frames = nil
			for _, cmd := range c.cmds {
				b.ok("eth0", cmd+"\n")
			}
			b.ok("pgctrl", "start\n")
			different := map[string]bool{}
			for _, f := range q.frames {
				different[string(f)] = true
			}
			if got := [2]int{len(q.frames), len(different)}; got != want {
				t.Errorf("%s: %q: %d packets, %d different ones, want %v", name, c.cmds, got[0], got[1], want)
			}
			if d := b.dev("eth0"); d.sofar != uint64(want[0]) || d.seq != uint32(want[0])+1 || len(d.pending) > 0 || d.master != nil {
				t.Errorf("%s: %q: sofar %d, seq_num %d, %d left over, want %d and none", name, c.cmds, d.sofar, d.seq, len(d.pending), want[0])
			}
		}
	}
}

// src_mac_count walks from the interface's address where no other was given; kernels keep its first byte only.
func TestSourceMACs(t *testing.T) {
	for name, want := range map[string][]string{
		"6.12": {"52:54:00:12:34:56", "52:54:00:12:34:57", "52:54:00:12:34:56"},
		"6.1":  {"52:00:00:00:00:00", "52:00:00:00:00:01", "52:00:00:00:00:00"},
	} {
		b := profiles(t)[name]
		b.ok("eth0", "count 3\n", "src_mac_count 2\n")
		b.ok("pgctrl", "start\n")
		for i, p := range b.s["eth0"].queues[0].got(t) {
			if got := fmtMAC(p.Src); got != want[i] {
				t.Errorf("%s: packet %d has the source %s, want %s", name, i, got, want[i])
			}
		}
	}
}

// Two devices on one thread: kernels serve the one whose packet is due first, the last one added first. Each row
// is the sizes of packets in the order in which they were sent, in a first run and in the second.
func TestOrder(t *testing.T) {
	for name, b := range profiles(t) {
		if name != "6.1" {
			continue // they take turns, in bursts whose length is our business
		}
		b.ok("kpktgend_0", "add_device eth0@1\n")
		b.ok("eth0", "count 3\n", "pkt_size 60\n")
		b.ok("eth0@1", "count 2\n", "pkt_size 70\n")
		for _, c := range []struct{ delay, want string }{
			{"0", "70 70 60 60 60 "}, {"0", "70 70 60 60 60 "}, {"20000000", "70 60 70 60 60 "}, {"2147483647", ""},
		} {
			b.ok("eth0", "delay "+c.delay+"\n")
			b.ok("eth0@1", "delay "+c.delay+"\n")
			if got := b.order(c.want == ""); got != c.want {
				t.Errorf("%s: delay %s: %q, want %q", name, c.delay, got, c.want)
			}
		}
		// New devices do not count their first packet. One that never sends does not hold up the other.
		b.ok("kpktgend_0", "rem_device_all\n", "add_device eth0\n", "add_device eth0@1\n")
		b.ok("eth0", "count 3\n", "pkt_size 60\n", "delay 20000000\n")
		b.ok("eth0@1", "count 3\n", "pkt_size 70\n", "delay 20000000\n")
		if got, want := b.order(false), "70 70 60 60 70 60 "; got != want {
			t.Errorf("new devices with delay: %q, want %q", got, want)
		}
		b.ok("eth0@1", "delay 2147483647\n")
		b.ok("eth0", "delay 0\n")
		if got, want := b.order(true), "60 60 60 "; got != want {
			t.Errorf("beside a device that never sends: %q, want %q", got, want)
		}
	}
}

// order runs eth0 and tells the sizes of its packets. Where a device never ends it is stopped.
func (b *bench) order(stop bool) string {
	q := b.s["eth0"].queues[0]
	q.frames = nil
	limit := 10 * time.Second
	if stop {
		limit = 100 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), limit)
	defer cancel()
	if _, err := b.file("pgctrl").Write(ctx, []byte("start\n")); err != nil || stop != (ctx.Err() != nil) {
		b.t.Errorf("start = %v, stopped: %v", err, ctx.Err())
	}
	var sizes strings.Builder
	for _, f := range q.frames {
		fmt.Fprintf(&sizes, "%d ", len(f))
	}
	return sizes.String()
}

// imix_weights and mpls that fail leave what was read until then, in kernels.
func TestHalfRead(t *testing.T) {
	b := profiles(t)
	weights := strings.Repeat("60,1 ", 20)
	labels := strings.Repeat("00010000,", 16)
	for _, c := range []struct {
		text      string
		errno     unix.Errno
		old, late string
	}{
		{"imix_weights 60,7 576,4\n", 0, "     imix_weights: 60,7 576,4 \n", "     imix_weights: 60,7 576,4 \n"},
		{"imix_weights 100,1 7\n", unix.EINVAL, "     imix_weights: 100,1 \n", "     imix_weights: 60,7 576,4 \n"},
		{"imix_weights 7\n", unix.EINVAL, "", "     imix_weights: 60,7 576,4 \n"},
		{"imix_weights " + weights + "61,1\n", unix.E2BIG, "     imix_weights: " + weights + "\n", "     imix_weights: 60,7 576,4 \n"},
		{"mpls 00010000\n", 0, "     mpls: 00010000\n", "     mpls: 00010000\n"},
		{"mpls " + labels + "00020000\n", unix.E2BIG, "", "     mpls: 00010000\n"},
	} {
		for name, want := range map[string]string{"6.1": c.old, "6.12": c.late} {
			if errno := b[name].write("eth0", c.text); errno != c.errno {
				t.Errorf("%s: writing %q = %v, want %v", name, c.text, errno, c.errno)
			}
			key, _, _ := strings.Cut(c.text, " ")
			var got string
			for line := range strings.Lines(b[name].read("eth0")) {
				if strings.HasPrefix(line, "     "+key+":") {
					got += line
				}
			}
			if got != want {
				t.Errorf("%s: after %q the file shows %q, want %q", name, c.text, got, want)
			}
		}
	}
}

// IPSEC and spi are there in kernels with CONFIG_XFRM, and change no packet.
func TestIPsec(t *testing.T) {
	for name, b := range profiles(t) {
		t.Run(name, func(t *testing.T) {
			ipsec(t, b, map[string]string{"6.1": "OK: flags=0x1000", "6.12": "OK: flags=0x41000"}[name])
		})
	}
}

func ipsec(t *testing.T, b *bench, want string) {
	b.ok("eth0", "flag IPSEC\n")
	if got := b.result("eth0"); got != want {
		t.Errorf("flag IPSEC: Result = %q, want %q", got, want)
	}
	shared := ""
	if strings.Contains(want, "0x4") {
		shared = "SHARED  "
	}
	b.ok("eth0", "count 1\n", "flag NO_TIMESTAMP\n")
	b.ok("pgctrl", "start\n")
	b.ok("eth0", "spi 4294967295\n")
	if got, want := b.read("eth0"), "     Flags: NO_TIMESTAMP  IPSEC  spi:4294967295  "+shared+"\n"; !strings.Contains(got, want) || b.result("eth0") != "OK: spi=4294967295" {
		t.Errorf("the file shows\n%s want %q", got, want)
	}
	b.ok("eth0", "spi 0\n")
	if got, want := b.read("eth0"), "     Flags: NO_TIMESTAMP  IPSEC  "+shared+"\n"; !strings.Contains(got, want) {
		t.Errorf("the file shows\n%s want %q", got, want)
	}
	if n := len(b.s["eth0"].queues[0].frames); n != 1 {
		t.Errorf("%d packets, want 1", n)
	}
}

func TestControlProfiles(t *testing.T) {
	b := profiles(t)
	for _, c := range []struct {
		text      string
		old, late unix.Errno
	}{
		{"stop\n", 0, 0}, {"stop\x00", 0, 0}, {"stop\n\n", unix.EINVAL, unix.EINVAL}, {"\n", unix.EINVAL, unix.EINVAL},
		{"stop", unix.EINVAL, 0}, {"stop!", 0, unix.EINVAL}, {"s", unix.EINVAL, unix.EINVAL},
		{"stop\x00" + strings.Repeat("x", 200), 0, 0},
	} {
		for name, want := range map[string]unix.Errno{"6.1": c.old, "6.12": c.late} {
			if got := b[name].write("pgctrl", c.text); got != want {
				t.Errorf("%s: writing %q = %v, want %v", name, c.text, got, want)
			}
		}
	}
}

func TestThreadProfiles(t *testing.T) {
	b := profiles(t)
	for _, c := range []struct {
		text      string
		old, late unix.Errno
		dev       string // that there is then under 6.1, and not under 6.12
	}{
		{"rem_device_all\n", 0, 0, ""},
		{"add_device=eth0@1\n", unix.EINVAL, 0, ""},
		{"rem_device_all\n", 0, 0, ""},
		{"add_device eth0@a=b\n", 0, 0, "eth0@a=b"},
	} {
		for name, want := range map[string]unix.Errno{"6.1": c.old, "6.12": c.late} {
			if got := b[name].write("kpktgend_0", c.text); got != want {
				t.Errorf("%s: writing %q = %v, want %v", name, c.text, got, want)
			}
			if c.dev != "" && (b[name].e.Dir().Lookup(c.dev) != nil) != (name == "6.1") {
				t.Errorf("%s: after %q there are %v", name, c.text, b[name].e.Dir().Names())
			}
		}
	}
}

func TestUnknownProfile(t *testing.T) {
	e, err := New(Config{Profile: "2.6", Lookup: newBench(t, []int{0}).e.lookup})
	if want := `starting pktgen: profile "2.6": there are 6.12, 6.1`; e != nil || err == nil || err.Error() != want {
		t.Errorf("New = %v, %v, want %s", e, err, want)
	}
}
