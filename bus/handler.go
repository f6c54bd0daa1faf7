package bus

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/cpuset"
	"github.com/ring3dev/ring3/internal/crash"
	"github.com/ring3dev/ring3/internal/osthread"
)

// Handler is the one goroutine that serves one interrupt vector: it waits, calls the
// driver's function, counts by CPU. The function acknowledges and signals; it does
// not do the work.
//
// The goroutine takes no thread while it waits, until somebody pins it with
// SetAffinity. Under a real-time policy (IRQ.SetPolicy) it has a thread of its own from the beginning, which waits in
// the kernel, pinned to one CPU.
type Handler struct {
	irq  *IRQ
	name atomic.Pointer[string]
	fn   func(n uint64)
	wait func() (uint64, error)
	done chan struct{}

	counts []atomic.Uint64 // by CPU
	turns  atomic.Uint64   // goes up when fn is called and when it returns, so it is odd in between

	mu       sync.Mutex
	affinity *unix.CPUSet // nil: any
	moved    atomic.Bool
	pinned   bool // the loop's own: it has a thread of its own
}

// Handle starts serving q. Name is what /proc/interrupts shows ("eth0-rx-0"). n is how
// often the vector fired since the last call, at least 1.
func Handle(q *IRQ, name string, fn func(n uint64)) *Handler {
	cpus := 1
	if online, err := cpuset.Online(); err == nil {
		cpus = cpuset.Max(online) + 1
	}
	h := &Handler{irq: q, fn: fn, done: make(chan struct{}), counts: make([]atomic.Uint64, cpus)}
	h.name.Store(&name)
	h.wait = func() (uint64, error) { return q.Wait(context.Background()) }
	if q.policy == nil {
		go h.loop(0)
		return h
	}
	if w, err := newThreadWait(q); err == nil {
		h.wait = w.wait // otherwise it is closed, and Wait says so
	}
	cpu := q.policy.Next()
	set := cpuset.Of(cpu)
	h.affinity, h.pinned = &set, true
	q.policy.GoOn(cpu, "irq/"+name, func() { h.loop(0) })
	return h
}

// Name is the name given to Handle, or to Rename since.
func (h *Handler) Name() string { return *h.name.Load() }

// Rename is for a vector that several share, of whom some come and go: "PCIe PME, aerdrv, pciehp".
func (h *Handler) Rename(name string) { h.name.Store(&name) }

// IRQ is the vector served.
func (h *Handler) IRQ() *IRQ { return h.irq }

// Counts is how often the vector was served on each CPU.
func (h *Handler) Counts() []uint64 {
	c := make([]uint64, len(h.counts))
	for i := range c {
		c[i] = h.counts[i].Load()
	}
	return c
}

// Turn is a number that goes up with each interrupt, and whether the driver's function is at work on one: for who watches over drivers.
func (h *Handler) Turn() (n uint64, inside bool) {
	n = h.turns.Load()
	return n, n&1 != 0
}

// Affinity is the set of CPUs that the handler runs on, nil for all.
func (h *Handler) Affinity() *unix.CPUSet {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.affinity == nil {
		return nil
	}
	s := *h.affinity
	return &s
}

// SetAffinity moves the handler to these CPUs, from its next interrupt on. The set
// must hold a CPU that this process may use: otherwise EINVAL, and nothing changes.
func (h *Handler) SetAffinity(set *unix.CPUSet) error {
	err := error(unix.EINVAL)
	if set != nil {
		err = tryAffinity(set)
	}
	if err != nil {
		return fmt.Errorf("setting the affinity of %s: no usable CPU in the set: %w", h.Name(), err)
	}
	s := *set
	h.mu.Lock()
	h.affinity = &s
	h.mu.Unlock()
	h.moved.Store(true)
	return nil
}

// tryAffinity asks the kernel whether a thread may have this set: it alone knows the CPUs
// that a cgroup leaves to this process.
func tryAffinity(set *unix.CPUSet) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var old unix.CPUSet
	if err := unix.SchedGetaffinity(0, &old); err != nil {
		return err
	}
	if err := unix.SchedSetaffinity(0, set); err != nil {
		return err
	}
	return unix.SchedSetaffinity(0, &old)
}

// Close closes the vector and waits until the function has returned for the last
// time. It must not be called from the function.
func (h *Handler) Close() error {
	err := h.irq.Close()
	<-h.done
	return err
}

// loop serves the vector until it is closed. n is how often it fired already.
func (h *Handler) loop(n uint64) {
	defer crash.Report()
	for {
		if n == 0 {
			var err error
			if n, err = h.wait(); err != nil {
				close(h.done)
				return
			}
		}
		if h.moved.Load() && !h.pinned {
			// From now on on a thread of its own, which carries the affinity.
			h.pinned = true
			osthread.Go(func() { h.loop(n) })
			return
		}
		if h.moved.Swap(false) {
			_ = unix.SchedSetaffinity(0, h.Affinity())
		}
		cpu, ok := currentCPU()
		if !ok || cpu >= len(h.counts) {
			cpu = 0
		}
		h.counts[cpu].Add(n)
		h.turns.Add(1)
		h.fn(n)
		h.turns.Add(1)
		n = 0
	}
}
