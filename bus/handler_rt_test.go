package bus_test

import (
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/internal/cpuset"
	"github.com/ring3dev/ring3/internal/rt/rttest"
)

// thread is what a handler's function sees of the thread it runs on.
type thread struct {
	tid  int
	attr *unix.SchedAttr
	cpus unix.CPUSet
	comm string
	n    uint64
}

func look(t *testing.T, n uint64) thread {
	th := thread{tid: unix.Gettid(), n: n}
	var err error
	if th.attr, err = unix.SchedGetAttr(0, 0); err != nil {
		t.Error(err)
	}
	if err := unix.SchedGetaffinity(0, &th.cpus); err != nil {
		t.Error(err)
	}
	b, _ := os.ReadFile("/proc/thread-self/comm")
	th.comm = strings.TrimSpace(string(b))
	return th
}

// A handler under a policy has one thread, a real-time one, pinned to one CPU, from the beginning.
func TestHandlerRealTime(t *testing.T) {
	bustest.NoLeaks(t)
	p := rttest.Policy(t, 3)
	q := newIRQ(t)
	q.SetPolicy(p)
	var observed atomic.Uint64
	q.Observe(func(n uint64) { observed.Add(n) })
	saw := make(chan thread, 1)
	h := bus.Handle(q, "eth0-rx-0", func(n uint64) { saw <- look(t, n) })
	set := h.Affinity()
	if set == nil || set.Count() != 1 {
		t.Fatalf("Affinity = %v, want one CPU", set)
	}
	first := 0
	for i := range 20 {
		if i%2 == 0 {
			time.Sleep(time.Millisecond) // it waits in the kernel
		}
		q.Signal()
		th := <-saw
		if i == 0 {
			first = th.tid
		}
		if th.tid != first || th.attr.Policy != unix.SCHED_FIFO || th.attr.Priority != 3 || th.cpus != *set || th.comm != "irq/eth0-rx-0" || th.n != 1 {
			t.Fatalf("the function ran on %+v (policy %+v), want thread %d, SCHED_FIFO 3, CPU %s", th, th.attr, first, cpuset.FormatList(*set, cpuset.Limit))
		}
	}
	if n := observed.Load(); n != 20 {
		t.Errorf("observed %d interrupts, want 20", n)
	}
	if got := sum(h.Counts()); got != 20 {
		t.Errorf("Counts = %d in all, want 20", got)
	}
	// Moving it keeps thread and policy.
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &may); err != nil {
		t.Fatal(err)
	}
	for cpu := range cpuset.Limit {
		if !may.IsSet(cpu) {
			continue
		}
		to := cpuset.Of(cpu)
		if err := h.SetAffinity(&to); err != nil {
			t.Fatal(err)
		}
		q.Signal()
		if th := <-saw; th.tid != first || th.attr.Policy != unix.SCHED_FIFO || th.cpus != to {
			t.Errorf("after SetAffinity(%d) the function ran on %+v, want thread %d, SCHED_FIFO, that CPU", cpu, th, first)
		}
	}
	if err := h.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	q.Signal()
	for deadline := time.Now().Add(20 * time.Second); unix.Tgkill(os.Getpid(), first, 0) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the thread is still there after Close")
		}
	}
}

// Interrupts that come while the function runs are counted, none is lost, and Close joins wherever the thread is.
func TestHandlerRealTimeCounts(t *testing.T) {
	bustest.NoLeaks(t)
	p := rttest.Policy(t, 3)
	const total = 5000
	q := newIRQ(t)
	q.SetPolicy(p)
	var seen atomic.Uint64
	all := make(chan struct{})
	h := bus.Handle(q, "x", func(n uint64) {
		if seen.Add(n) == total {
			close(all)
		}
	})
	for range total {
		q.Signal()
	}
	<-all
	if err := h.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	for range 100 {
		q := newIRQ(t)
		q.SetPolicy(p)
		in := make(chan struct{}, 1)
		h := bus.Handle(q, "x", func(uint64) {
			select {
			case in <- struct{}{}:
			default:
			}
		})
		q.Signal()
		<-in
		q.Signal()
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// The backend's end of it, and a vector that was closed before.
	q = newIRQ(t)
	q.SetPolicy(p)
	h = bus.Handle(q, "x", func(uint64) {})
	if err := errors.Join(q.Close(), h.Close()); err != nil {
		t.Errorf("Close after the vector's = %v, want nil", err)
	}
	h = bus.Handle(q, "x", func(uint64) { t.Error("a closed vector fired") })
	if err := h.Close(); err != nil {
		t.Errorf("Close of a handler of a closed vector = %v, want nil", err)
	}
}
