package pktgen

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/rt/rttest"
)

// Generator threads under a policy: they are real-time threads on their CPUs, run every kind of
// wait, stop when told, and end.
func TestRealTime(t *testing.T) {
	p := rttest.Policy(t, 5)
	s := newSink("eth0")
	cpus := allowedCPUs()[:1]
	b := newBenchOf(t, Config{CPUs: cpus, RT: p}, s)
	name := b.e.threads[0].name
	rttest.Wait(t, 5, name)
	b.ok(name, "add_device eth0")
	for _, c := range []struct {
		delay, count string
		least        time.Duration
	}{
		{"0", "2000", 0}, {"2000", "2000", 1999 * 2 * time.Microsecond}, {"50000", "100", 99 * 50 * time.Microsecond},
		{"500000", "20", 9 * time.Millisecond}, {"20000000", "3", 40 * time.Millisecond},
	} {
		b.ok("eth0", "count "+c.count, "delay "+c.delay)
		begin := time.Now()
		b.ok("pgctrl", "start")
		if took := time.Since(begin); took < c.least {
			t.Errorf("delay %s: %s packets took %v, want %v at least", c.delay, c.count, took, c.least)
		}
		if got := b.result("eth0"); !strings.Contains(got, "usec, "+c.count+" (") {
			t.Errorf("delay %s: Result = %q, want %s packets", c.delay, got, c.count)
		}
	}
	// A thread that sleeps long stops soon all the same, and one that never does anything else than send.
	for _, delay := range []string{"1000000000", "0"} {
		b.ok("eth0", "count 0", "delay "+delay)
		wait := b.background(t.Context())
		time.Sleep(20 * time.Millisecond)
		begin := time.Now()
		b.ok("pgctrl", "stop")
		wait()
		if took := time.Since(begin); took > time.Second {
			t.Errorf("delay %s: stop took %v", delay, took)
		}
	}
	b.e.Close()
	rttest.Wait(t, 5)
	if errno := b.write(name, "add_device eth0"); errno != unix.ENODEV {
		t.Errorf("add_device after Close = %v, want ENODEV", errno)
	}
}
