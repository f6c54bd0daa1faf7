package pktgen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/netdev"
)

func TestNewRefuses(t *testing.T) {
	find := func(string) (netdev.Device, error) { return nil, errors.New("none") }
	for name, c := range map[string]Config{"no lookup": {}, "no CPUs": {Lookup: find, CPUs: []int{}}, "negative": {Lookup: find, CPUs: []int{-1}}} {
		if e, err := New(c); err == nil {
			e.Close()
			t.Errorf("%s: New succeeded", name)
		}
	}
	e, err := New(Config{Lookup: find})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if len(e.threads) != len(allowedCPUs()) {
		t.Errorf("%d threads for CPUs %v", len(e.threads), allowedCPUs())
	}
}

func TestThreadsAreNamed(t *testing.T) {
	newBench(t, []int{0}, newSink("eth0"))
	deadline := time.Now().Add(5 * time.Second)
	for {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Skip("no /proc: ", err)
		}
		for _, k := range tasks {
			comm, _ := os.ReadFile("/proc/self/task/" + k.Name() + "/comm")
			if strings.TrimSpace(string(comm)) == "kpktgend_0" {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("no thread is named kpktgend_0")
		}
		time.Sleep(time.Millisecond)
	}
}

// background starts everything and returns a function that waits for the end.
func (b *bench) background(ctx context.Context) func() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = b.file("pgctrl").Write(ctx, []byte("start\n"))
	}()
	return func() {
		b.t.Helper()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			b.t.Fatal("start did not return")
		}
	}
}

// until waits for cond.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: not within 10 s", what)
		}
	}
}

func TestStopWhileStartBlocks(t *testing.T) {
	b, s := oneDevice(t)
	s.queues[0].keep = 0
	b.ok("eth0", "count 0", "burst 4")
	wait := b.background(t.Context())
	until(t, "packets", func() bool { return s.queues[0].n.Load() > 100 })
	b.ok("pgctrl", "stop")
	wait()
	if d := b.dev("eth0"); d.sofar != s.queues[0].n.Load() || d.seq != uint32(d.sofar)+1 {
		t.Errorf("sofar %d, seq_num %d, the device saw %d", d.sofar, d.seq, s.queues[0].n.Load())
	}
}

func TestCountAcrossFullRing(t *testing.T) {
	for _, cmds := range []string{"burst 1", "burst 32", "burst 300", "burst 32,clone_skb 1", "burst 7,clone_skb 5", "burst 64,delay 20000", "burst 64,dst_min 10.0.0.1,dst_max 10.0.0.9"} {
		for _, limit := range []int{0, 1, 5} {
			b, s := oneDevice(t)
			s.ring = 64
			s.queues[0].hold, s.queues[0].limit, s.queues[0].keep = true, limit, 3000
			b.ok("eth0", append(strings.Split(cmds, ","), "count 3000", "flag UDPCSUM")...)
			b.run()
			ps := s.queues[0].got(t)
			if n := s.queues[0].n.Load(); n != 3000 || len(ps) != 3000 {
				t.Errorf("%s, %d a burst: %d packets, want 3000", cmds, limit, n)
			}
			for i, p := range ps {
				if !strings.Contains(cmds, "clone") && p.Seq != uint32(i+1) || !p.UDPChecksumOK || !p.IPChecksumOK {
					t.Fatalf("%s, %d a burst: packet %d has seq %d, checksums %v %v", cmds, limit, i, p.Seq, p.UDPChecksumOK, p.IPChecksumOK)
				}
			}
			b.checkPools()
		}
	}
}

// checkPools fails if a buffer is lost.
func (b *bench) checkPools() {
	b.t.Helper()
	b.e.portMu.Lock()
	defer b.e.portMu.Unlock()
	for key, p := range b.e.ports {
		p.mu.Lock()
		for _, pool := range p.pools {
			if pool != nil && pool.Free() != pool.Len() {
				b.t.Errorf("%s queue %d: %d of %d buffers are free after the run", key.name, key.queue, pool.Free(), pool.Len())
			}
		}
		p.mu.Unlock()
	}
}

func TestStuckQueue(t *testing.T) {
	b, s := oneDevice(t)
	s.queues[0].stuck.Store(true)
	b.ok("eth0", "count 10", "burst 4")
	wait := b.background(t.Context())
	until(t, "the device to run", func() bool { return b.dev("eth0").running.Load() })
	time.Sleep(20 * time.Millisecond)
	if got := b.read("eth0"); !strings.Contains(got, "pkts-sofar: 0  errors: 0\n") {
		t.Errorf("a full queue counts:\n%s", got)
	}
	b.ok("pgctrl", "stop")
	wait()
	if d := b.dev("eth0"); d.idle == 0 {
		t.Error("waiting for room is not idle time")
	}
	s.queues[0].stuck.Store(false)
	b.run()
	if n := s.queues[0].n.Load(); n != 10 {
		t.Errorf("%d packets after the queue moved again, want 10", n)
	}
	b.checkPools()
}

func TestDelay(t *testing.T) {
	for _, c := range []struct{ delay, count int64 }{{20_000, 100}, {300_000, 20}, {3_000_000, 4}} {
		b, _, ps := send(t, fmt.Sprintf("delay %d", c.delay), fmt.Sprintf("count %d", c.count))
		d := b.dev("eth0")
		took, least := d.stopped-d.started, (c.count-1)*c.delay
		if took < least || took > least+5_000_000_000 {
			t.Errorf("%d packets with %d ns between took %d ns, want at least %d", len(ps), c.delay, took, least)
		}
		if d.idle <= 0 || d.idle > took {
			t.Errorf("delay %d: idle %d of %d ns", c.delay, d.idle, took)
		}
	}
}

func TestNeverTransmit(t *testing.T) {
	b, s := oneDevice(t)
	b.ok("eth0", "delay 2147483647", "count 1")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	b.background(ctx)()
	if n := s.queues[0].n.Load(); n != 0 {
		t.Errorf("%d packets, want none", n)
	}
	if r := b.result("eth0"); !strings.Contains(r, "usec, 0 (58byte,-1frags)\n  0pps 0Mb/sec (0bps) errors: 0") {
		t.Errorf("Result = %q", r)
	}
}

func TestChangesWhileRunning(t *testing.T) {
	b, s := oneDevice(t)
	s.queues[0].keep = 0
	b.ok("eth0", "count 0", "burst 8")
	wait := b.background(t.Context())
	for i := range 200 {
		b.ok("eth0", fmt.Sprintf("udp_dst_max %d", i), fmt.Sprintf("burst %d", 1+i%40), fmt.Sprintf("clone_skb %d", i%3),
			fmt.Sprintf("pkt_size %d", 60+i), "flag UDPCSUM", fmt.Sprintf("flows %d", i%5), "clear_counters")
		b.read("eth0")
		b.read("kpktgend_0")
	}
	b.ok("eth0", "pkt_size 5000")
	wait()
	if r := b.result("eth0"); !strings.HasPrefix(r, "ERROR: packets of 5000 bytes do not fit eth0") {
		t.Errorf("Result = %q", r)
	}
	b.checkPools()
}

func TestTwoDevicesOnAThread(t *testing.T) {
	a, c := newSink("eth0"), newSink("eth1")
	b := newBench(t, []int{0}, a, c)
	b.ok("kpktgend_0", "add_device eth0", "add_device eth1")
	b.ok("eth0", "count 0", "burst 4")
	b.ok("eth1", "count 5000")
	wait := b.background(t.Context())
	until(t, "eth1 to end beside eth0", func() bool { return !b.dev("eth1").running.Load() && c.queues[0].n.Load() == 5000 })
	if got := b.read("kpktgend_0"); !strings.Contains(got, "Running: eth0 \nStopped: eth1 \n") {
		t.Errorf("kpktgend_0 = %q", got)
	}
	b.ok("kpktgend_0", "rem_device_all")
	wait()
	if b.e.Dir().Lookup("eth0") != nil || a.queues[0].n.Load() == 0 {
		t.Errorf("after rem_device_all: files %v, eth0 sent %d", b.e.Dir().Names(), a.queues[0].n.Load())
	}
}

func TestOneQueueTwoThreads(t *testing.T) {
	s := newSink("eth0")
	s.queues[0].hold = true
	b := newBench(t, []int{0, 1}, s)
	b.ok("kpktgend_0", "add_device eth0@0")
	b.ok("kpktgend_1", "add_device eth0@1")
	b.ok("eth0@0", "count 20000", "burst 16")
	b.ok("eth0@1", "count 20000", "burst 5", "clone_skb 2")
	b.run()
	if n := s.queues[0].n.Load(); n != 40000 {
		t.Errorf("%d packets, want 40000", n)
	}
	b.checkPools()
}

func TestQueueMap(t *testing.T) {
	s := newSink("eth0")
	s.queues = append(s.queues, &sinkQueue{dev: s}, &sinkQueue{dev: s})
	b := newBench(t, []int{0}, s)
	b.ok("kpktgend_0", "add_device eth0")
	sent := func(cmds ...string) (n [3]uint64) {
		b.ok("eth0", append(cmds, "count 300")...)
		for _, q := range s.queues {
			q.n.Store(0)
		}
		b.run()
		for i, q := range s.queues {
			n[i] = q.n.Load()
		}
		return n
	}
	if got, want := sent("burst 8"), [3]uint64{300, 0, 0}; got != want {
		t.Errorf("by default %v, want %v", got, want)
	}
	if got, want := sent("queue_map_min 1", "queue_map_max 2"), [3]uint64{0, 150, 150}; got != want {
		t.Errorf("queues 1 to 2: %v, want %v", got, want)
	}
	if got, want := sent("clone_skb 30"), [3]uint64{0, 150, 150}; got != want {
		t.Errorf("queues 1 to 2 with clones: %v, want %v", got, want)
	}
	if got := sent("clone_skb 0", "flag QUEUE_MAP_RND"); got[0] != 0 || got[1] < 80 || got[2] < 80 {
		t.Errorf("random queues 1 to 2: %v", got)
	}
	if got, want := sent("flag QUEUE_MAP_CPU"), [3]uint64{300, 0, 0}; got != want {
		t.Errorf("queue of CPU 0: %v, want %v", got, want)
	}
	if got, want := sent("flag !QUEUE_MAP_CPU", "flag !QUEUE_MAP_RND", "queue_map_min 7", "queue_map_max 9"), [3]uint64{0, 0, 300}; got != want {
		t.Errorf("queues 7 to 9 of 3: %v, want %v", got, want)
	}
	if got := b.read("eth0"); !strings.Contains(got, "queue_map_min: 2  queue_map_max: 2\n") {
		t.Errorf("queue_map is not clamped:\n%s", got)
	}
}

func TestLinkLoss(t *testing.T) {
	a, c := newSink("eth0"), newSink("eth1")
	b := newBench(t, []int{0}, a, c)
	b.ok("kpktgend_0", "add_device eth0", "add_device eth1")
	b.ok("eth0", "count 0")
	b.ok("eth1", "count 0", "delay 2147483647")
	wait := b.background(t.Context())
	until(t, "packets", func() bool { return a.queues[0].n.Load() > 0 })
	a.down.Store(true)
	until(t, "eth0 to stop", func() bool { return !b.dev("eth0").running.Load() })
	if r := b.result("eth0"); !strings.HasPrefix(r, "OK: ") || !b.dev("eth1").running.Load() {
		t.Errorf("Result = %q, eth1 running %v", r, b.dev("eth1").running.Load())
	}
	close(c.done)
	wait()
}

func TestRemoveDevice(t *testing.T) {
	a, c := newSink("eth0"), newSink("eth1")
	b := newBench(t, []int{0, 1}, a, c)
	b.ok("kpktgend_0", "add_device eth0", "add_device eth0@x")
	b.ok("kpktgend_1", "add_device eth1")
	b.ok("eth0", "count 0")
	b.ok("eth1", "count 0")
	wait := b.background(t.Context())
	until(t, "packets", func() bool { return a.queues[0].n.Load() > 0 && c.queues[0].n.Load() > 0 })
	close(a.done)
	b.e.RemoveDevice("eth0")
	if got, want := strings.Join(b.e.Dir().Names(), " "), "eth1 kpktgend_0 kpktgend_1 pgctrl"; got != want {
		t.Errorf("files = %s, want %s", got, want)
	}
	if !b.dev("eth1").running.Load() {
		t.Error("eth1 stopped too")
	}
	if len(b.e.ports) != 1 {
		t.Errorf("%d ports left, want that of eth1", len(b.e.ports))
	}
	b.ok("pgctrl", "reset")
	wait()
	if errno := b.write("kpktgend_0", "add_device eth0"); errno == 0 {
		t.Error("add_device of a device that is gone succeeded")
	}
	b.s["eth0"] = newSink("eth0")
	b.ok("kpktgend_0", "add_device eth0")
	b.run()
	if n := b.s["eth0"].queues[0].n.Load(); n != 1000 {
		t.Errorf("its successor sent %d packets, want 1000", n)
	}
}

func TestCloseWhileRunning(t *testing.T) {
	s := newSink("eth0")
	b := newBench(t, []int{0, 1}, s)
	b.ok("kpktgend_1", "add_device eth0")
	b.ok("eth0", "count 0")
	wait := b.background(context.Background())
	until(t, "packets", func() bool { return s.queues[0].n.Load() > 0 })
	b.e.Close()
	wait()
	b.e.Close()
	if errno := b.write("kpktgend_0", "add_device eth0"); errno == 0 {
		t.Error("add_device after Close succeeded")
	}
	b.ok("pgctrl", "start", "stop", "reset")
	b.ok("kpktgend_0", "rem_device_all")
	b.e.RemoveDevice("eth0")
}

func TestWritersAtOnce(t *testing.T) {
	s := newSink("eth0")
	b := newBench(t, []int{0, 1}, s)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			th := fmt.Sprintf("kpktgend_%d", i%2)
			name := fmt.Sprintf("eth0@%d", i)
			for range 30 {
				_, _ = b.file(th).Write(t.Context(), []byte("add_device "+name))
				if f, isFile := b.e.Dir().Lookup(name).(*fileNode); isFile {
					_, _ = f.Write(t.Context(), []byte("count 50"))
					_, _ = f.ReadAll()
				}
				_, _ = b.file("pgctrl").Write(t.Context(), []byte("start"))
				_, _ = b.file(th).ReadAll()
				_, _ = b.file(th).Write(t.Context(), []byte("rem_device_all"))
			}
		}()
	}
	wg.Wait()
	b.ok("pgctrl", "reset")
	b.checkPools()
}

// A buffer keeps its template from one use to the next, and takes another's when it must.
func TestSharedPool(t *testing.T) {
	s := newSink("eth0")
	s.queues[0].keep = -1
	b := newBench(t, []int{0}, s)
	b.ok("kpktgend_0", "add_device eth0@a", "add_device eth0@b")
	b.ok("eth0@a", "count 500", "dst 10.0.0.1", "pkt_size 100")
	b.ok("eth0@b", "count 500", "dst 10.0.0.2", "pkt_size 60", "flag UDPCSUM", "burst 3")
	b.run()
	n := map[string]int{}
	for i, p := range s.queues[0].got(t) {
		n[fmt.Sprint(p.DstIP, " ", p.Len)]++
		if !p.IPChecksumOK || p.Len == 60 && !p.UDPChecksumOK {
			t.Errorf("packet %d: checksums %v %v", i, p.IPChecksumOK, p.UDPChecksumOK)
		}
	}
	if n["10.0.0.1 100"] != 500 || n["10.0.0.2 60"] != 500 || len(n) != 2 {
		t.Errorf("packets = %v", n)
	}
}

func TestNothingAllocates(t *testing.T) {
	for _, cmds := range []string{"burst 32", "burst 1", "burst 32,clone_skb 3", "burst 32,flag UDPCSUM,dst_min 10.0.0.1,dst_max 10.0.0.9", "burst 32,dst6 fd00::1"} {
		d, p := quiet(t, strings.Split(cmds, ",")...)
		if n := testing.AllocsPerRun(200, func() { d.send(p) }); n != 0 {
			t.Errorf("%s: %v allocations a turn", cmds, n)
		}
	}
}

// quiet is a device in a run that no thread drives.
func quiet(t testing.TB, cmds ...string) (*device, *port) {
	t.Helper()
	s := newSink("eth0")
	s.ring = 4096
	b := newBench(t, []int{0}, s)
	d := newDevice("eth0", "eth0", s, b.e.threads[0])
	for _, c := range append(cmds, "count 0") {
		if _, err := d.store(t.Context(), []byte(c)); err != nil {
			t.Fatalf("%q: %v", c, err)
		}
	}
	d.begin()
	if err := d.compile(); err != nil {
		t.Fatal(err)
	}
	p, err := d.port(0)
	if err != nil {
		t.Fatal(err)
	}
	if d.pool, err = d.buffers(p); err != nil {
		t.Fatal(err)
	}
	return d, p
}

// BenchmarkSend is the cost of a packet without a device: one Burst that swallows at once.
func BenchmarkSend(b *testing.B) {
	for _, c := range []struct{ name, cmds string }{
		{"burst=1", "burst 1"}, {"burst=32", "burst 32"}, {"burst=256", "burst 256"},
		{"burst=32/udpcsum", "burst 32,flag UDPCSUM"}, {"burst=32/ipv6", "burst 32,dst6 fd00::1"},
		{"burst=32/dst_range", "burst 32,dst_min 10.0.0.1,dst_max 10.0.1.9"},
		{"burst=32/random", "burst 32,flag IPDST_RND,dst_min 10.0.0.1,dst_max 10.0.1.9,flag UDPSRC_RND,udp_src_min 1,udp_src_max 999"},
		{"burst=32/clone_skb=8", "burst 32,clone_skb 8"},
	} {
		b.Run(c.name, func(b *testing.B) {
			d, p := quiet(b, strings.Split(c.cmds, ",")...)
			b.ReportAllocs()
			b.ResetTimer()
			for d.sofar < uint64(b.N) {
				d.send(p)
			}
			b.ReportMetric(0, "B/op")
		})
	}
}
