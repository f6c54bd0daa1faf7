package pktgen

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sinks are devices eth0 to eth(n-1).
func sinks(n int) (list []*sink) {
	for i := range n {
		list = append(list, newSink(fmt.Sprint("eth", i)))
	}
	return list
}

// ended fails where the run of a device did not end with so many packets sent.
func (b *bench) ended(name string, sent uint64) {
	b.t.Helper()
	sofar, _ := b.counts(name)
	if r := b.result(name); sofar != sent || !strings.HasPrefix(r, "OK: ") || !strings.Contains(r, fmt.Sprintf(" usec, %d (", sent)) {
		b.t.Errorf("%s sent %d, Result %q, want OK and %d", name, sofar, r, sent)
	}
}

// runs tells whether a device runs.
func (b *bench) runs(name string) bool { return b.dev(name).running.Load() }

// The paper's machine: two quad cards and two more NICs, on two threads. Each sends its own number of packets, whatever
// the others do.
func TestTenDevices(t *testing.T) {
	for _, profile := range []string{"", "6.1"} {
		devs := sinks(10)
		b := newBenchOf(t, Config{Profile: profile, CPUs: []int{0, 1}}, devs...)
		for i, s := range devs {
			s.queues[0].hold = i%3 == 0
			b.ok(fmt.Sprint("kpktgend_", i%2), "add_device "+s.name)
			b.ok(s.name, fmt.Sprint("count ", 1000*(i+1)), "pkt_size 60", fmt.Sprint("clone_skb ", i%4), "burst 10")
		}
		if got, want := b.read("kpktgend_1"), "Running: \nStopped: eth9 eth7 eth5 eth3 eth1 \nResult: OK: add_device=eth9\n"; got != want {
			t.Errorf("kpktgend_1 = %q, want %q", got, want)
		}
		b.run()
		for i, s := range devs {
			b.ended(s.name, uint64(1000*(i+1)))
			if n := s.queues[0].n.Load(); n != uint64(1000*(i+1)) {
				t.Errorf("profile %q: %s was given %d packets, want %d", profile, s.name, n, 1000*(i+1))
			}
		}
		b.checkPools()
	}
}

// 64 devices, of as many network devices and then all of one.
func TestSixtyFourDevices(t *testing.T) {
	devs := sinks(64)
	one := newSink("one")
	for range 3 {
		one.queues = append(one.queues, &sinkQueue{dev: one, hold: true})
	}
	b := newBench(t, []int{0, 1, 2, 3}, append(devs, one)...)
	for _, name := range []string{"eth%d", "one@%d"} {
		for i := range 64 {
			dev := fmt.Sprintf(name, i)
			b.ok(fmt.Sprint("kpktgend_", i%4), "add_device "+dev)
			b.ok(dev, "count 200", "burst 16", fmt.Sprint("queue_map_min ", i%4), fmt.Sprint("queue_map_max ", i%4))
		}
		b.run()
		for i := range 64 {
			b.ended(fmt.Sprintf(name, i), 200)
		}
		b.checkPools()
		b.ok("pgctrl", "reset")
		if got, want := strings.Join(b.e.Dir().Names(), " "), "kpktgend_0 kpktgend_1 kpktgend_2 kpktgend_3 pgctrl"; got != want {
			t.Errorf("files after reset = %s, want %s", got, want)
		}
	}
	for i, q := range one.queues {
		if n := q.n.Load(); n != 16*200 {
			t.Errorf("queue %d: %d packets, want %d", i, n, 16*200)
		}
	}
}

// Threads that share a network device: each on the queue of its CPU, and all of them on all queues.
func TestThreadsShareADevice(t *testing.T) {
	s := newSink("eth0")
	s.queues[0].hold = true
	for range 2 {
		s.queues = append(s.queues, &sinkQueue{dev: s, hold: true})
	}
	b := newBench(t, []int{0, 1, 2}, s)
	want := func(what string, each uint64) {
		t.Helper()
		for i, q := range s.queues {
			if n := q.n.Swap(0); n != each {
				t.Errorf("%s: %d packets on queue %d, want %d", what, n, i, each)
			}
		}
		b.checkPools()
	}
	for i := range 3 {
		b.ok(fmt.Sprint("kpktgend_", i), fmt.Sprint("add_device eth0@", i))
		b.ok(fmt.Sprint("eth0@", i), "count 3000", "burst 8", "flag QUEUE_MAP_CPU")
	}
	b.run()
	want("a queue for each CPU", 3000)
	for i := range 3 {
		b.ok(fmt.Sprint("eth0@", i), "flag !QUEUE_MAP_CPU", "queue_map_max 2", "burst 1")
	}
	b.run()
	want("all queues in turn", 3000)
}

// Devices come and go while another runs, on its own thread and on others, and it does not notice.
func TestAddAndRemoveWhileRunning(t *testing.T) {
	devs := sinks(3)
	b := newBench(t, []int{0, 1}, devs...)
	b.ok("kpktgend_0", "add_device eth0")
	b.ok("eth0", "count 0", "burst 4")
	wait := b.background(t.Context())
	until(t, "packets", func() bool { return devs[0].queues[0].n.Load() > 0 })
	for i := range 20 {
		b.ok("kpktgend_0", fmt.Sprint("add_device eth1@", i))
		b.ok("kpktgend_1", fmt.Sprint("add_device eth2@", i))
		b.ok(fmt.Sprint("eth1@", i), "count 1")
		if b.runs(fmt.Sprint("eth1@", i)) || b.runs(fmt.Sprint("eth2@", i)) {
			t.Error("a device that was added while others run has started")
		}
		b.ok("kpktgend_1", "rem_device_all")
		b.e.RemoveDevice("eth1")
		if !b.runs("eth0") {
			t.Fatalf("eth0 stopped: %s", b.result("eth0"))
		}
	}
	if got, want := strings.Join(b.e.Dir().Names(), " "), "eth0 kpktgend_0 kpktgend_1 pgctrl"; got != want {
		t.Errorf("files = %s, want %s", got, want)
	}
	// What is added can be started beside it; that starts its counters again, too.
	b.ok("kpktgend_1", "add_device eth2")
	again := b.background(t.Context())
	until(t, "eth2 to end", func() bool { return devs[2].queues[0].n.Load() == 1000 && !b.runs("eth2") })
	if !b.runs("eth0") {
		t.Errorf("eth0 stopped: %s", b.result("eth0"))
	}
	b.ok("kpktgend_0", "rem_device_all")
	wait()
	again()
	b.ended("eth2", 1000)
	b.checkPools()
}

// Of eight devices one loses its link, one vanishes, one is stuck where that is not to hold up the others, one is removed and one has packets that do not fit.
// Their runs end with a result, and that of the stuck one goes on when it can; the others send what they shall.
func TestOneOfMany(t *testing.T) {
	for _, profile := range []string{"", "6.1"} {
		devs := sinks(8)
		b := newBenchOf(t, Config{Profile: profile, CPUs: []int{0, 1}}, devs...)
		for i, s := range devs {
			b.ok(fmt.Sprint("kpktgend_", i%2), "add_device "+s.name)
			// With a delay all have their turns in every profile.
			b.ok(s.name, "count 0", "burst 2", "delay 1000")
			s.queues[0].hold = true
		}
		b.ok("eth4", "pkt_size 2000")
		devs[2].queues[0].stuck.Store(profile == "") // in a kernel the others of its thread would wait for it
		wait := b.background(t.Context())
		moves := func(names ...int) {
			t.Helper()
			for _, i := range names {
				before := devs[i].queues[0].n.Load()
				until(t, fmt.Sprintf("eth%d to go on", i), func() bool { return devs[i].queues[0].n.Load() > before+10 })
			}
		}
		moves(0, 1, 3, 5, 6, 7)
		if r := b.result("eth4"); b.runs("eth4") || !strings.HasPrefix(r, "ERROR: packets of 2000 bytes") {
			t.Errorf("eth4 with packets too large: %q", r)
		}
		devs[0].down.Store(true)
		until(t, "eth0 without its link to end", func() bool { return !b.runs("eth0") })
		moves(1, 3, 5, 6, 7)
		close(devs[1].done)
		until(t, "eth1 that vanished to end", func() bool { return !b.runs("eth1") })
		b.ended("eth0", devs[0].queues[0].n.Load())
		b.ended("eth1", devs[1].queues[0].n.Load())
		b.e.RemoveDevice("eth1")
		b.e.RemoveDevice("eth3")
		moves(5, 6, 7)
		for _, name := range []string{"eth1", "eth3"} {
			if b.e.Dir().Lookup(name) != nil {
				t.Errorf("%s is still there", name)
			}
		}
		if got, want := b.read("kpktgend_0"), "Running: eth6 eth2 \nStopped: eth4 eth0 \n"; !strings.HasPrefix(got, want) {
			t.Errorf("kpktgend_0 = %q, want %q", got, want)
		}
		if got, want := b.read("kpktgend_1"), "Running: eth7 eth5 \nStopped: \n"; !strings.HasPrefix(got, want) {
			t.Errorf("kpktgend_1 = %q, want %q", got, want)
		}
		devs[2].queues[0].stuck.Store(false)
		moves(2)
		b.ok("pgctrl", "stop\n")
		wait()
		for _, i := range []int{2, 5, 6, 7} {
			b.ended(fmt.Sprint("eth", i), devs[i].queues[0].n.Load())
		}
	}
}

// A device that has no link any more, and frames in its ring that it can never send, does not hold up the others of its thread.
func TestNoLinkHoldsNobodyUp(t *testing.T) {
	devs := sinks(2)
	b := newBench(t, []int{0}, devs...)
	for _, s := range devs {
		b.ok("kpktgend_0", "add_device "+s.name)
		b.ok(s.name, "count 0", "burst 8")
	}
	devs[0].queues[0].hold = true
	wait := b.background(t.Context())
	until(t, "packets", func() bool { return devs[0].queues[0].n.Load() > 0 && devs[1].queues[0].n.Load() > 0 })
	devs[0].queues[0].stuck.Store(true)
	devs[0].down.Store(true)
	until(t, "eth0 to end", func() bool { return !b.runs("eth0") })
	if p := time.Duration(devs[0].queues[0].patience.Load()); p > noLinkTime {
		t.Errorf("the end of eth0's run may have taken %v of its thread's time, want %v at most", p, noLinkTime)
	}
	devs[0].queues[0].stuck.Store(false)
	b.ok("pgctrl", "stop")
	wait()
	devs[0].down.Store(false)
	b.ok("eth0", "count 10")
	b.ok("eth1", "count 10")
	b.run()
	b.ended("eth0", 10)
	b.checkPools()
}

// A start that is stopped before its threads noticed it is stopped all the same, and has a result: by Ctrl-C, and by
// another shell.
func TestStoppedAtOnce(t *testing.T) {
	b, _ := oneDevice(t)
	b.s["eth0"].queues[0].keep = 0
	b.ok("eth0", "count 0")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 300 {
		if i%2 == 0 {
			b.background(gone)()
		} else {
			started := b.e.served(ctlRun)
			stopped := b.e.served(ctlStop)
			until(t, "the thread", func() bool { return started() && stopped() })
		}
		if r := b.result("eth0"); b.runs("eth0") || !strings.HasPrefix(r, "OK: ") || !strings.Contains(r, " usec, ") {
			t.Fatalf("stopped at once, %d: running %v, Result %q", i, b.runs("eth0"), r)
		}
	}
	// The other way round it runs.
	b.e.served(ctlStop)
	wait := b.background(t.Context())
	until(t, "eth0 to run", func() bool { return b.runs("eth0") })
	b.ok("pgctrl", "stop")
	wait()
}

// Devices that are added in one shell and removed in another: whatever has a file is there, and a name is free when
// its file is gone.
func TestAddAndRemoveAtOnce(t *testing.T) {
	b := newBench(t, []int{0, 1}, newSink("eth0"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 300 {
			b.ok("pgctrl", "reset")
		}
	}()
	for adding := true; adding; {
		for i := range 4 {
			if errno := b.write(fmt.Sprintf("kpktgend_%d", i%2), fmt.Sprintf("add_device eth0@%d", i)); errno != 0 && errno != unix.EBUSY {
				t.Fatalf("add_device: %v", errno)
			}
		}
		select {
		case <-done:
			adding = false
		default:
		}
	}
	b.ok("pgctrl", "reset")
	for i := range 4 {
		name := fmt.Sprintf("eth0@%d", i)
		if b.e.Dir().Lookup(name) != nil || b.e.Dir().Lookup(name+".rx") != nil {
			t.Errorf("%s has left a file", name)
		}
		b.ok("kpktgend_0", "add_device "+name)
	}
}
