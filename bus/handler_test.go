package bus_test

import (
	"errors"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/internal/cpuset"
	"github.com/ring3dev/ring3/internal/ioctl"
)

func sum(counts []uint64) (n uint64) {
	for _, c := range counts {
		n += c
	}
	return n
}

func TestHandler(t *testing.T) {
	bustest.NoLeaks(t)
	q := newIRQ(t)
	const total = 1000
	var seen uint64
	all := make(chan struct{})
	h := bus.Handle(q, "eth0-rx-0", func(n uint64) {
		if n == 0 {
			t.Error("the function was called for nothing")
		}
		if seen += n; seen == total {
			close(all)
		}
	})
	if h.Name() != "eth0-rx-0" || h.IRQ() != q || h.Affinity() != nil {
		t.Errorf("Name, IRQ, Affinity = %s, %v, %v", h.Name(), h.IRQ(), h.Affinity())
	}
	for range total {
		q.Signal()
	}
	<-all
	if got := sum(h.Counts()); got != total {
		t.Errorf("Counts = %d in all, want %d", got, total)
	}
	online, err := cpuset.Online()
	if err != nil || len(h.Counts()) < cpuset.Max(online)+1 {
		t.Errorf("Counts has %d CPUs, want all up to %d (%v)", len(h.Counts()), cpuset.Max(online), err)
	}
	for range 2 {
		if err := h.Close(); err != nil {
			t.Errorf("Close = %v, want nil", err)
		}
	}
	q.Signal()
	if got := sum(h.Counts()); got != total {
		t.Errorf("Counts after Close = %d, want %d as before", got, total)
	}
}

// Close returns when the function does, and not before.
func TestHandlerCloseJoins(t *testing.T) {
	bustest.NoLeaks(t)
	for range 50 {
		q := newIRQ(t)
		var in atomic.Bool
		started := make(chan struct{}, 1)
		h := bus.Handle(q, "x", func(uint64) {
			in.Store(true)
			select {
			case started <- struct{}{}:
			default:
			}
			in.Store(false)
		})
		q.Signal()
		<-started
		q.Signal()
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		if in.Load() {
			t.Fatal("Close returned while the function runs")
		}
	}
}

// The backend closing the vector ends the handler too.
func TestHandlerEndsWithIRQ(t *testing.T) {
	bustest.NoLeaks(t)
	q := newIRQ(t)
	h := bus.Handle(q, "x", func(uint64) {})
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Errorf("Close after the vector's = %v, want nil", err)
	}
}

func TestHandlerAffinity(t *testing.T) {
	bustest.NoLeaks(t)
	q := newIRQ(t)
	on := make(chan int, 1)
	h := bus.Handle(q, "eth0", func(uint64) {
		cpu, err := ioctl.Getcpu()
		if err != nil {
			t.Error(err)
		}
		on <- cpu
	})
	defer h.Close()
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for cpu := range cpuset.Limit {
			if !may.IsSet(cpu) {
				continue
			}
			set := cpuset.Of(cpu)
			if err := h.SetAffinity(&set); err != nil {
				t.Fatalf("SetAffinity(%d) = %v", cpu, err)
			}
			set.Zero() // the handler has its own copy
			for range 5 {
				before := h.Counts()[cpu]
				q.Signal()
				if got := <-on; got != cpu {
					t.Errorf("the function ran on CPU %d, want %d", got, cpu)
				}
				if got := h.Counts()[cpu]; got != before+1 {
					t.Errorf("count of CPU %d = %d, want %d", cpu, got, before+1)
				}
			}
			if got := h.Affinity(); got == nil || *got != cpuset.Of(cpu) {
				t.Errorf("Affinity = %v, want CPU %d alone", got, cpu)
			}
		}
	}
	was := *h.Affinity()
	unusable := cpuset.Of(cpuset.Limit - 1)
	for _, set := range []*unix.CPUSet{nil, {}, &unusable} {
		if set == &unusable && may.IsSet(cpuset.Limit-1) {
			continue
		}
		if err := h.SetAffinity(set); !errors.Is(err, unix.EINVAL) {
			t.Errorf("SetAffinity of no usable CPU = %v, want EINVAL", err)
		}
	}
	if got := *h.Affinity(); got != was {
		t.Error("a refused SetAffinity changed the set")
	}
	// The other goroutines' threads keep all CPUs.
	var now unix.CPUSet
	if err := unix.SchedGetaffinity(0, &now); err != nil || now != may {
		t.Errorf("this thread's CPUs = %s, want %s", cpuset.FormatList(now, cpuset.Limit), cpuset.FormatList(may, cpuset.Limit))
	}
}
