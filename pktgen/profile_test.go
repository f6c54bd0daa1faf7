package pktgen

import (
	"strings"
	"testing"

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
	"FLOW_SEQ, QUEUE_MAP_RND, QUEUE_MAP_CPU, UDPCSUM, NO_TIMESTAMP, NODE_ALLOC\n"

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

// The whole file of a device that nobody changed, and of one that sent: 6.1 has no flag SHARED, and sends
// copies all the same.
func TestFilesOf61(t *testing.T) {
	b := profiles(t)["6.1"]
	if got, want := b.read("eth0"), strings.Replace(fresh, "Flags: SHARED  ", "Flags: ", 1); got != want {
		t.Errorf("the file shows\n%s want\n%s", got, want)
	}
	if got, want := b.read("pgctrl"), "Packet Generator for packet performance testing. Version: 2.75\n"; got != want {
		t.Errorf("pgctrl = %q, want %q", got, want)
	}
	b.ok("eth0", "count 10\n", "burst 5\n", "clone_skb 1\n")
	b.ok("pgctrl", "start\n")
	if got := b.result("eth0"); !strings.Contains(got, " usec, 10 (58byte,0frags)\n") {
		t.Errorf("Result = %q, want 10 packets, 0frags", got)
	}
	copies := map[string]int{}
	for _, f := range b.s["eth0"].queues[0].frames {
		copies[string(f)]++
	}
	for f, n := range copies {
		if n != 5 {
			t.Errorf("frame %x was sent %d times, want 5", f, n)
		}
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
