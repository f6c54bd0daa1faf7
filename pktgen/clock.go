package pktgen

import (
	"math"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/cpuset"
	"github.com/ring3dev/ring3/internal/osthread"
)

// clockBase ties the runtime's clock, which costs no system call, to CLOCK_MONOTONIC.
var clockBase, clockAt = func() (int64, time.Time) {
	var ts unix.Timespec
	at := time.Now()
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, at
	}
	return ts.Nano(), at
}()

// mono is CLOCK_MONOTONIC in nanoseconds.
func mono() int64 { return clockBase + int64(time.Since(clockAt)) }

// wallOffset is what to add to mono for the time of day. Whoever needs it asks every wallTime; a clock that is set meanwhile
// shows up to twice that much later. The two clocks are read one after the other, and a thread may lose its CPU
// between: so the offset is the same for all, senders and receivers, until a measurement says that it is another.
func wallOffset() int64 {
	offset.mu.Lock()
	defer offset.mu.Unlock()
	now := mono()
	if offset.at != 0 && now-offset.at < wallTime {
		return offset.ns
	}
	ns, within := measureOffset()
	if off := ns - offset.ns; offset.at == 0 || off > within || off < -within {
		offset.ns = ns
	}
	offset.at = now
	return offset.ns
}

// offset is what wallOffset found.
var offset struct {
	mu     sync.Mutex
	ns, at int64
}

// measureOffset reads the time of day between two readings of the other clock, several times if that took
// long, and says how far off the result may be.
func measureOffset() (ns, within int64) {
	within = math.MaxInt64
	for i := 0; i < 5 && within > 1000; i++ {
		a := mono()
		wall := time.Now().UnixNano()
		b := mono()
		if half := (b - a) / 2; half < within {
			ns, within = wall-a-half, half
		}
	}
	return ns, within
}

const wallTime = 10_000_000 // ns

// pin ties the calling thread, which is the goroutine's own, to one CPU and names it. A CPU
// that is not to be had costs the pinning, not the thread.
func pin(cpu int, name string) error {
	osthread.Name(name)
	// Timers of this thread fire when they are due, not 50 us later.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	var set unix.CPUSet
	set.Set(cpu)
	return unix.SchedSetaffinity(0, &set)
}

// nap sleeps on the thread itself, which wakes more precisely than a goroutine.
func nap(ns int64) {
	ts := unix.NsecToTimespec(ns)
	_ = unix.Nanosleep(&ts, nil)
}

// allowedCPUs lists the CPUs that this process may use.
func allowedCPUs() []int {
	var set unix.CPUSet
	var cpus []int
	if err := unix.SchedGetaffinity(0, &set); err == nil {
		for i := range 64 * len(set) {
			if set.IsSet(i) {
				cpus = append(cpus, i)
			}
		}
	}
	if len(cpus) == 0 {
		for i := range runtime.NumCPU() {
			cpus = append(cpus, i)
		}
	}
	return cpus
}

// nodePossible tells whether a NUMA node of that number can exist.
func nodePossible(n uint64) bool {
	nodes := cpuset.Nodes()
	if nodes == "" {
		return n == 0
	}
	for _, r := range strings.Split(nodes, ",") {
		lo, hi, isRange := strings.Cut(r, "-")
		if !isRange {
			hi = lo
		}
		l, err1 := strconv.ParseUint(lo, 10, 32)
		h, err2 := strconv.ParseUint(hi, 10, 32)
		if err1 == nil && err2 == nil && l <= n && n <= h {
			return true
		}
	}
	return false
}
