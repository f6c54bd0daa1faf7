package bus

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/cpuset"
)

// Handler is the one goroutine that serves one interrupt vector: it waits, calls the
// driver's function, counts by CPU. The function acknowledges and signals; it does
// not do the work.
//
// The goroutine takes no thread while it waits, until somebody pins it with
// SetAffinity.
type Handler struct {
	irq  *IRQ
	name string
	fn   func(n uint64)
	done chan struct{}

	counts []atomic.Uint64 // by CPU

	mu       sync.Mutex
	affinity *unix.CPUSet // nil: any
	moved    atomic.Bool
}

// Handle starts serving q. Name is what /proc/interrupts shows ("eth0-rx-0"). n is how
// often the vector fired since the last call, at least 1.
func Handle(q *IRQ, name string, fn func(n uint64)) *Handler {
	cpus := 1
	if online, err := cpuset.Online(); err == nil {
		cpus = cpuset.Max(online) + 1
	}
	h := &Handler{irq: q, name: name, fn: fn, done: make(chan struct{}), counts: make([]atomic.Uint64, cpus)}
	go h.loop()
	return h
}

// Name is the name given to Handle.
func (h *Handler) Name() string { return h.name }

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
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(unix.Getpid(), &may); err != nil {
		return fmt.Errorf("reading the CPUs this process may use: %w", err)
	}
	ok := false
	for i := range 64 * len(may) {
		ok = ok || may.IsSet(i) && set.IsSet(i)
	}
	if !ok {
		return fmt.Errorf("setting the affinity of %s: no usable CPU in the set: %w", h.name, unix.EINVAL)
	}
	s := *set
	h.mu.Lock()
	h.affinity = &s
	h.mu.Unlock()
	h.moved.Store(true)
	return nil
}

// Close closes the vector and waits until the function has returned for the last
// time. It must not be called from the function.
func (h *Handler) Close() error {
	err := h.irq.Close()
	<-h.done
	return err
}

func (h *Handler) loop() {
	defer close(h.done)
	for {
		n, err := h.irq.Wait(context.Background())
		if err != nil {
			return
		}
		if h.moved.Swap(false) {
			// Locked for good: the thread carries the affinity, and ends with the goroutine.
			runtime.LockOSThread()
			_ = unix.SchedSetaffinity(0, h.Affinity())
		}
		cpu, ok := currentCPU()
		if !ok || cpu >= len(h.counts) {
			cpu = 0
		}
		h.counts[cpu].Add(n)
		h.fn(n)
	}
}
