package kernfs

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// interrupt is that of a request: the kernel sends one at the first signal to the client's thread that it does not ignore, whatever that is for. A kernel's own files mostly
// do not mind, and where they do, the call begins anew after a signal that is for something else (SA_RESTART), which FUSE cannot say: so it is not told of such a signal here.
// Both channels are for a select, after which heed says whether this one counts.
type interrupt struct {
	cancel <-chan struct{}
	again  <-chan time.Time
	tid    uint32 // the client's thread; 0: the kernel cannot name it here
}

// lookAgain is how often a client is looked at that was interrupted by what does not count: the kernel tells of no second signal.
const lookAgain = 50 * time.Millisecond

// asides are signals that are not meant to end what a thread does: a child's end, Go's runtime that wants to switch goroutines, a window's size, a profiler's ticks.
const asides = 1<<(unix.SIGCHLD-1) | 1<<(unix.SIGCONT-1) | 1<<(unix.SIGURG-1) | 1<<(unix.SIGVTALRM-1) | 1<<(unix.SIGPROF-1) | 1<<(unix.SIGWINCH-1)

// heed says whether the call is to end, once; if not, again fires later.
func (i *interrupt) heed() bool {
	i.cancel, i.again = nil, nil
	if pending, err := pendingSignals(i.tid); err != nil || pending&^asides != 0 {
		return true // who cannot be looked at has a reason
	}
	i.again = time.After(lookAgain)
	return false
}

// pendingSignals are those that wait for a thread, and that it does not block. One that kills it is SIGKILL here, whatever was sent.
func pendingSignals(tid uint32) (set uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid)) // none for 0
	if err != nil {
		return 0, err
	}
	var blocked uint64
	found := 0
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		name, value, _ := bytes.Cut(sc.Bytes(), []byte(":"))
		to := &set
		switch string(name) {
		case "SigPnd", "ShdPnd":
		case "SigBlk":
			to = &blocked
		default:
			continue
		}
		v, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/status: %w", tid, err)
		}
		*to |= v
		found++
	}
	if found != 3 {
		return 0, fmt.Errorf("/proc/%d/status tells of no signals", tid)
	}
	return set &^ blocked, nil
}
