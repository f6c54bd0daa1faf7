package pktgen

import (
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/profile"
	"golang.org/x/sys/unix"
)

func profile612(t testing.TB) *profile.Pktgen {
	p, err := profile.Find(profile.Default)
	if err != nil {
		t.Fatal(err)
	}
	return &p.Pktgen
}

const freshRx = `Params: active: 1  verify: 128
     ifname: eth1
Current:
     received: 0  bytes: 0  other: 0
     lost: 0  duplicated: 0  reordered: 0  clones: 0
     corrupted: 0  checksum: 0  header: 0  length: 0  payload: 0
     no_timestamp: 0  bad_timestamp: 0
     started: 0us  stopped: 0us  pps: 0
     runs: 0  flows: 0
Latency:
     samples: 0
Result: Idle
`

const fullRx = `Params: active: 1  verify: 60
     ifname: eth1
Current:
     received: 9  bytes: 540  other: 1
     lost: 1  duplicated: 1  reordered: 1  clones: 0
     corrupted: 1  checksum: 1  header: 0  length: 0  payload: 0
     no_timestamp: 0  bad_timestamp: 0
     started: #us  stopped: #us  pps: #
     runs: 1  flows: 2
Latency:
     samples: 9  min_us: #  mean_us: #  max_us: #
     p50_us: #  p90_us: #  p99_us: #  p99.9_us: #
     bucket_us: #  frames: 9
Runs:
     seq: 9  received: 9  lost: 1  duplicated: 1  reordered: 1  clones: 0  started: #us  stopped: #us
Flows:
     src: 10.0.0.1:9  dst: 10.0.0.2:9  received: 8  bytes: 480  lost: -  duplicated: 1  reordered: 1  min_us: #  mean_us: #  max_us: #
     src: 10.0.0.1:9  dst: 10.0.0.2:10  received: 1  bytes: 60  lost: -  duplicated: 0  reordered: 0  min_us: #  mean_us: #  max_us: #
Result: OK: verify=60
`

func TestReceiverFile(t *testing.T) {
	b := newRxBench(t)
	if got := b.read("eth1.rx"); got != freshRx {
		t.Errorf("eth1.rx =\n%s want\n%s", got, freshRx)
	}
	b.ok("eth1.rx", "verify 60")
	s := spec()
	b.base -= 2e6 // 3 s old: one power of two
	b.send(s, 1, 2, 4, 3, 5, 5, 6)
	bad := packet(t, s, 7, b.stamp(7), 18)
	bad[24]++
	b.feed(bad, make([]byte, 60))
	b.send(s, 8)
	s.DstPort = 10
	b.send(s, 9)
	got := regexp.MustCompile(`(us: |pps: |started: |stopped: )[0-9.]+`).ReplaceAllString(b.read("eth1.rx"), "${1}#")
	if got != fullRx {
		t.Errorf("eth1.rx =\n%s want\n%s", got, fullRx)
	}
}

func TestReceiverCommands(t *testing.T) {
	b := newRxBench(t)
	for _, c := range []struct {
		text  string
		errno unix.Errno
		want  string
	}{
		{"clear_counters\n", 0, "OK: Clearing counters."},
		{"verify 9000", 0, "OK: verify=9000"},
		{"verify=0", 0, "OK: verify=0"},
		{"verify 4294967295", 0, "OK: verify=65536"},
		{"active 0\x00", 0, "OK: active=0"},
		{"active 7", 0, "OK: active=1"},
		{"", unix.EINVAL, "OK: active=1"},
		{"count 5", unix.EINVAL, `No such parameter "count"`},
		{"clear_counters_of_all", unix.EINVAL, `No such parameter "clear_counters_"`},
	} {
		if errno := b.write("eth1.rx", c.text); errno != c.errno {
			t.Errorf("writing %q = %v, want %v", c.text, errno, c.errno)
		}
		if got := b.read("eth1.rx"); !strings.HasSuffix(got, "\nResult: "+c.want+"\n") {
			t.Errorf("after %q: want Result: %s in\n%s", c.text, c.want, got)
		}
	}
	b.ok("eth1.rx", "active 0")
	b.send(spec(), 1, 2)
	b.ok("eth1.rx", "active 1")
	b.send(spec(), 3, 4)
	b.wants("switched off meanwhile", "received 2 active 1")
}

func TestReceiverFiles(t *testing.T) {
	b := newBench(t, []int{0, 1}, newSink("eth0"), newSink("eth1"), newSink("eth2.rx"))
	names := func(want string) {
		t.Helper()
		if got := strings.Join(b.e.Dir().Names(), " "); got != want {
			t.Errorf("files = %s, want %s", got, want)
		}
	}
	b.ok("kpktgend_0", "add_device eth0@1", "add_device eth1")
	if _, err := b.e.AddRx("eth0"); err != nil {
		t.Fatal(err)
	}
	names("eth0.rx eth0@1 eth0@1.rx eth1 kpktgend_0 kpktgend_1 pgctrl")
	for _, bad := range []string{"eth0", "", "a/b", "a\x00b"} {
		if r, err := b.e.AddRx(bad); err == nil || r != nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("AddRx(%q) = %v, %v, want an error of one line", bad, r, err)
		}
	}
	b.ok("kpktgend_1", "add_device eth0", "add_device eth0@2")
	names("eth0 eth0.rx eth0@1 eth0@1.rx eth0@2 eth0@2.rx eth1 kpktgend_0 kpktgend_1 pgctrl")
	if b.file("eth0@2.rx") != b.file("eth0.rx") || b.file("eth0.rx").Mode != 0o600 {
		t.Errorf("the files of one receiver differ, or have mode %o", b.file("eth0.rx").Mode)
	}
	for _, name := range []string{"eth0@9.rx", "eth0@.rx", "eth2.rx"} {
		if errno := b.write("kpktgend_0", "add_device "+name); errno != unix.EINVAL {
			t.Errorf("add_device %s = %v, want EINVAL", name, errno)
		}
	}
	b.ok("kpktgend_1", "rem_device_all")
	names("eth0.rx eth0@1 eth0@1.rx eth1 kpktgend_0 kpktgend_1 pgctrl")
	b.e.RemoveDevice("eth0")
	names("eth1 kpktgend_0 kpktgend_1 pgctrl")
	if _, err := b.e.AddRx("eth0"); err != nil {
		t.Error("after the device came back:", err)
	}
	b.ok("pgctrl", "reset")
	names("eth0.rx kpktgend_0 kpktgend_1 pgctrl")
	b.e.Close()
	if _, err := b.e.AddRx("eth1"); err == nil {
		t.Error("AddRx succeeded after Close")
	}
}

// Several queues, readers and writers at a time.
func TestReceiverConcurrently(t *testing.T) {
	b := newRxBench(t)
	var wg sync.WaitGroup
	const bursts = 300
	for q := range 2 {
		wg.Go(func() {
			bufs := make([]*dma.Buf, 32)
			for i := range bursts {
				for j := range bufs {
					s := spec()
					s.SrcPort = uint16(q)
					seq := uint32(i*len(bufs) + j + 1)
					bufs[j] = &dma.Buf{Data: packet(t, s, seq, b.stamp(seq), 18)}
				}
				b.r.Take(bufs)
			}
		})
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			b.read("eth1.rx")
			b.ok("eth1.rx", "verify 1500")
		}
	})
	wg.Wait()
	close(stop)
	readers.Wait()
	b.wants("two queues", "received 19200 lost 0 duplicated 0 reordered 0 runs 2 flows 2")
	b.r.checkSums(t, 2*bursts*32)
}
