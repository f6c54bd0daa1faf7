package fault

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// strike does to this process what was planned for an access. It may not return.
func (d *Device) strike(t ticket) {
	for i := range t.todo {
		f := &t.todo[i]
		if !f.Kind.ToProcess() || !d.plan.Process {
			continue
		}
		switch f.Kind {
		case Panic:
			panic(fmt.Sprintf("%s: fault %s", d.Address(), f))
		case Hang:
			select {}
		case Lock:
			d.mu.Lock()
			select {}
		case Spin:
			for i := 0; ; i++ {
				runtime.KeepAlive(i)
			}
		case LeakMemory:
			leakMemory(f.arg())
		case LeakRoutine:
			for range f.arg() {
				go func() { select {} }()
			}
		case LeakFile:
			leakFiles(f.arg())
		case Kill:
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			unix.Exit(128 + int(unix.SIGKILL)) // the first process of a PID namespace, as a worker is, cannot kill itself
		case Stop:
			_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
		case Exit:
			os.Exit(f.arg())
		case NoFiles:
			lower(unix.RLIMIT_NOFILE)
		case NoMemory:
			lower(unix.RLIMIT_AS)
		case Violate:
			if d.plan.Violate != nil {
				d.plan.Violate()
			}
		}
	}
}

var leaked [][]byte // memory that nobody frees

// leakMemory takes memory, and touches it.
func leakMemory(megabytes int) {
	for range megabytes {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += os.Getpagesize() {
			b[i] = 1
		}
		leaked = append(leaked, b)
		runtime.Gosched() // so that the heartbeat is heard, and it is the memory that is noticed
	}
}

// leakFiles opens descriptors until no more can be had.
func leakFiles(n int) {
	for range n {
		if _, err := unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
			return
		}
	}
}

// lower sets a limit to nothing: what there is stays, and every further call fails.
func lower(resource int) {
	var l unix.Rlimit
	if unix.Getrlimit(resource, &l) == nil {
		l.Cur = 0
		_ = unix.Setrlimit(resource, &l)
	}
}
