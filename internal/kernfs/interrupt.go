package kernfs

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// interrupt is that of a request: the kernel sends one at the first signal to the client's thread that it does not ignore, whatever that is for. A kernel's own files mostly
// do not mind, and where they do, the call begins anew after a signal that is for something else (SA_RESTART), which FUSE cannot say: so it is not told of such a signal here.
// Both channels are for a select, after which heed says whether this one counts.
type interrupt struct {
	cancel <-chan struct{}
	again  <-chan time.Time
	by     cause
}

// interruptOf is that of a request of a client's thread.
func interruptOf(cancel <-chan struct{}, in *fuse.InHeader) interrupt {
	return interrupt{cancel: cancel, by: cause{tid: in.Pid}}
}

// heed says whether the call is to end, once; if not, again fires later.
func (i *interrupt) heed() bool {
	i.cancel, i.again = nil, nil
	if i.by.counts() {
		return true
	}
	i.again = time.After(lookAgain)
	return false
}

// lookAgain is how often a client is looked at that was interrupted by what does not count: the kernel tells of no second signal.
const lookAgain = 50 * time.Millisecond

// asides are signals that are not meant to end what a thread does: a child's end, Go's runtime that wants to switch goroutines, a window's size, a profiler's ticks.
const asides = 1<<(unix.SIGCHLD-1) | 1<<(unix.SIGCONT-1) | 1<<(unix.SIGURG-1) | 1<<(unix.SIGVTALRM-1) | 1<<(unix.SIGPROF-1) | 1<<(unix.SIGWINCH-1)

// cause is what a client's thread was interrupted by.
type cause struct {
	tid    uint32 // 0: the kernel cannot name it here
	looked bool
}

// counts looks. A thread that cannot be looked at has a reason. So has one that is interrupted without a signal of its own: its process is being stopped, which another thread
// has the signal of, or frozen.
func (c *cause) counts() bool {
	first := !c.looked
	c.looked = true
	if c.tid == 0 || !ownProc() {
		return true
	}
	t, err := threadOf(c.tid)
	return err != nil || t.pending&^asides != 0 || first && t.pending == 0 || !first && stopped(t.process)
}

// ownProc says whether /proc is of the process ids that this process has: in a container it may be another one's, where a number is somebody else.
var ownProc = sync.OnceValue(func() bool {
	self, err := os.Readlink("/proc/self")
	return err == nil && self == strconv.Itoa(os.Getpid())
})

// stopped says whether a thread of a process has stopped: the others are to.
func stopped(process uint64) bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", process))
	return slices.ContainsFunc(tasks, isStoppedAt)
}

// thread is what /proc tells of one.
type thread struct {
	process uint64
	pending uint64 // signals that wait for it, and that it does not block. One that kills it is SIGKILL here, whatever was sent
}

// threadOf reads it.
func threadOf(tid uint32) (t thread, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return t, err
	}
	var blocked uint64
	found := 0
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		name, value, _ := bytes.Cut(sc.Bytes(), []byte(":"))
		to, base := &t.pending, 16
		switch string(name) {
		case "Tgid":
			to, base = &t.process, 10
		case "SigPnd", "ShdPnd":
		case "SigBlk":
			to = &blocked
		default:
			continue
		}
		v, err := strconv.ParseUint(string(bytes.TrimSpace(value)), base, 64)
		if err != nil {
			return t, fmt.Errorf("/proc/%d/status: %w", tid, err)
		}
		*to |= v
		found++
	}
	if found != 4 {
		return t, fmt.Errorf("/proc/%d/status tells of no signals", tid)
	}
	t.pending &^= blocked
	return t, nil
}
