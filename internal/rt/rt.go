// Package rt runs what serves devices on real-time threads: each on a thread of its own, under SCHED_FIFO, pinned to
// a CPU, in memory that is never paged out.
//
// A [Policy] is handed to whoever starts such threads (bus.Handler, netdev.Sink, netdev/tap, pktgen). A nil
// Policy is an ordinary one: its Go is a go statement.
//
// # What it is good for, and what not
//
// A thread under SCHED_FIFO runs as soon as there is something to do, whatever ordinary programs do, and
// until it waits. For that chain to hold, it must wait in the kernel, not in Go's scheduler, where an ordinary
// thread would have to pass the wake-up on: bus.IRQ.WaitThread and bus.Waker do.
// The rest of the program stays ordinary: Go's own threads, the FUSE server, the log. The collector still stops every
// goroutine for moments (tens of microseconds), also these; the data path allocates nothing, so it seldom runs.
//
// # Starving the machine
//
// A real-time thread that never waits takes its CPU from everything else. The kernel's brake is
// sched_rt_runtime_us (95% of each second for all real-time threads; kernels from 6.12 on keep 5% for
// ordinary ones in another way); New warns where it is off. Threads wait when they have nothing to do, but a
// generator without delay on a fast device has always something to do.
//
// # Memory
//
// Locking is MCL_ONFAULT: a page is locked once it was touched. Go's runtime maps far more than it uses: a
// program of 2 MiB maps 1.2 GiB, of which mlockall without that flag makes 42 MiB resident, all of a device's RAM besides, and
// what the collector gives back comes straight back, page by page, while it waits. What serves a device touches its rings
// and buffers at bring-up, before traffic. All that is mapped counts against RLIMIT_MEMLOCK all the same, so it must be unlimited.
package rt

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/cpuset"
	"github.com/ring3dev/ring3/internal/crash"
	"github.com/ring3dev/ring3/internal/osthread"
)

// Priorities of SCHED_FIFO.
const (
	MinPriority = 1
	MaxPriority = 99
)

// Policy is how threads that serve devices run. It is safe for concurrent use.
type Policy struct {
	priority int
	cpus     []int
	log      *slog.Logger
	next     atomic.Uint32 // counts Next
	once     sync.Once

	mu      sync.Mutex
	threads int // that run
	procs   int // what GOMAXPROCS was raised by
}

// Config says what is wanted.
type Config struct {
	Priority int   // 1 to 99
	CPUs     []int // that the threads are dealt out to; nil: those that this process may use
	Log      *slog.Logger
}

// New makes sure that this process may have such threads, and locks its memory, which is undone by
// Close. The error says what is missing and how to get it.
func New(c Config) (*Policy, error) {
	if c.Priority < MinPriority || c.Priority > MaxPriority {
		return nil, fmt.Errorf("real-time priority %d: want %d to %d", c.Priority, MinPriority, MaxPriority)
	}
	p := &Policy{priority: c.Priority, cpus: slices.Clone(c.CPUs), log: c.Log}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if p.cpus == nil {
		var may unix.CPUSet
		if err := unix.SchedGetaffinity(os.Getpid(), &may); err != nil {
			return nil, fmt.Errorf("real-time threads: reading the CPUs there are: %w", err)
		}
		for cpu := range cpuset.Limit {
			if may.IsSet(cpu) {
				p.cpus = append(p.cpus, cpu)
			}
		}
	}
	if len(p.cpus) == 0 {
		return nil, fmt.Errorf("real-time threads: no CPU to run on")
	}
	if err := p.tryOut(); err != nil {
		return nil, err
	}
	if err := p.lockMemory(); err != nil {
		return nil, err
	}
	if b, err := os.ReadFile(throttle); err == nil && strings.HasPrefix(string(b), "-") {
		p.log.Warn("rt: the kernel does not throttle real-time threads (kernel.sched_rt_runtime_us is -1): one that never waits stops its CPU for all others")
	}
	return p, nil
}

// throttle is how much of a period all real-time threads get; -1: no limit.
const throttle = "/proc/sys/kernel/sched_rt_runtime_us"

// Close unlocks the memory and gives back what the threads needed. They should have ended.
func (p *Policy) Close() error {
	if p == nil {
		return nil
	}
	var err error
	p.once.Do(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.procs > 0 {
			runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)-p.procs))
			p.procs = 0
		}
		if err = unix.Munlockall(); err != nil {
			err = fmt.Errorf("real-time threads: unlocking memory: %w", err)
		}
	})
	return err
}

// Priority is the priority of the threads; 0 for the ordinary one.
func (p *Policy) Priority() int {
	if p == nil {
		return 0
	}
	return p.priority
}

// Next is the CPU of the next thread, in turn.
func (p *Policy) Next() int {
	return p.cpus[int(p.next.Add(1)-1)%len(p.cpus)]
}

// Go runs f on a thread of its own under the policy, on the next CPU. The thread is called name (at most
// 15 bytes). Without a policy f runs in an ordinary goroutine.
func (p *Policy) Go(name string, f func()) {
	if p == nil {
		go f()
		return
	}
	p.GoOn(p.Next(), name, f)
}

// GoOn is Go on a CPU.
func (p *Policy) GoOn(cpu int, name string, f func()) {
	osthread.Go(func() {
		defer crash.Report()
		set := cpuset.Of(cpu)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			p.log.Warn("rt: thread not pinned", "thread", name, "cpu", cpu, "error", err)
		}
		osthread.Name(name)
		leave := p.Enter(name)
		defer leave()
		f()
	})
}

// Enter puts the calling thread, which is the goroutine's own, under the policy. A refusal, which
// New has made unlikely, is logged, and the thread runs on as it was. leave is to be called when the goroutine ends.
func (p *Policy) Enter(name string) (leave func()) {
	if p == nil {
		return func() {}
	}
	if err := setFIFO(p.priority); err != nil {
		p.log.Warn("rt: thread is an ordinary one", "thread", name, "priority", p.priority, "error", err)
		return func() {}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// A thread that comes back from the kernel needs a P of Go's scheduler to go on: there is one for each. A
	// change stops the world, so a thread's end leaves its P to the next.
	if p.threads++; p.threads > p.procs {
		p.procs++
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.threads--
	}
}

// setFIFO puts the calling thread under SCHED_FIFO. Neither threads nor processes that it starts are.
func setFIFO(priority int) error {
	return unix.SchedSetAttr(0, &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Flags: unix.SCHED_FLAG_RESET_ON_FORK, Priority: uint32(priority),
	}, 0)
}

// Yield lets other threads of the same priority on this CPU go first. Without it, one that always has something
// to do would keep them out.
func Yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// Sleep blocks the calling thread, which wakes when it is time and not when Go's scheduler comes to it. A signal
// may end it early.
func Sleep(d time.Duration) {
	ts := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.Nanosleep(&ts, nil)
}

// tryOut makes a thread a real-time one and lets it end.
func (p *Policy) tryOut() error {
	allowed := raise(unix.RLIMIT_RTPRIO)
	tried := make(chan error)
	osthread.Go(func() { tried <- setFIFO(p.priority) })
	err := <-tried
	switch {
	case err == nil:
		return nil
	case err == unix.EPERM && !capable(unix.CAP_SYS_NICE) && allowed < uint64(p.priority):
		return fmt.Errorf("real-time priority %d: the limit (ulimit -r) is %d, and there is no CAP_SYS_NICE: %s: %w", p.priority, allowed, p.remedy(), err)
	case err == unix.EPERM:
		return fmt.Errorf("real-time priority %d: capability or limit would allow it, but the capability is a user namespace's own, or the control group has no real-time time (cpu.rt_runtime_us): start ring3 outside of it: %w", p.priority, err)
	}
	return fmt.Errorf("real-time priority %d: %w", p.priority, err)
}

// lockMemory locks what is mapped, and what will be, once it is touched.
func (p *Policy) lockMemory() error {
	allowed := raise(unix.RLIMIT_MEMLOCK)
	// A limit would end the program later: when there is more mapped than it allows, nothing can
	// be mapped any more.
	err := error(unix.ENOMEM)
	if allowed == unix.RLIM_INFINITY || capable(unix.CAP_IPC_LOCK) {
		err = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	}
	switch {
	case err == nil:
		return nil
	case err == unix.ENOMEM || err == unix.EPERM:
		return fmt.Errorf("locking memory: the limit (ulimit -l) is %s, all that is mapped counts, and there is no CAP_IPC_LOCK: %s: %w", kib(allowed), p.remedy(), err)
	}
	return fmt.Errorf("locking memory: %w", err)
}

// Grant is for root who is about to become another user: it raises the limits to what New will ask for. Where it may not,
// New says what is missing.
func Grant(priority int) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_RTPRIO, &l); err == nil && l.Max < uint64(priority) {
		_ = unix.Setrlimit(unix.RLIMIT_RTPRIO, &unix.Rlimit{Cur: uint64(priority), Max: uint64(priority)})
	}
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
}

// remedy gives a user what is needed.
func (p *Policy) remedy() string {
	n := strconv.Itoa(p.priority)
	return "sudo prlimit --pid $$ --rtprio=" + n + " --memlock=unlimited, or for good in /etc/security/limits.conf: USER - rtprio " + n + ", USER - memlock unlimited"
}

// raise brings a limit up to what this process may set it to, and returns that.
func raise(resource int) uint64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(resource, &l); err != nil {
		return 0
	}
	if l.Cur < l.Max {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: l.Max, Max: l.Max}); err == nil {
			l.Cur = l.Max
		}
	}
	return l.Cur
}

// capable says whether the process has a capability. In a user namespace that may be one which is worth nothing
// outside: then the kernel refuses all the same.
func capable(c int) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[c/32].Effective&(1<<(c%32)) != 0
}

func kib(n uint64) string {
	if n == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return fmt.Sprintf("%d KiB", n/1024)
}
