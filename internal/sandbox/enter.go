package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/ioctl"
)

// envName is the environment variable by which Start tells Enter what to do.
const envName = "RING3_SANDBOX"

// order is what Start tells Enter.
type order struct {
	Talk   int         // descriptor of the socket that takes the report
	Spaces bool        // there is a mount namespace of its own, and the rights to arrange it
	User   bool        // a user namespace
	Nobody bool        // it is root's, without a user namespace: it becomes nobody
	Limits []limitPair // rlimits
	// Descriptors is RLIMIT_NOFILE, 0: as it is. It is lowered last: nobody passes a descriptor, as the report does, while those of its user that nobody has received yet are more
	// than that, which another worker may see to.
	Descriptors uint64
	Memory      int64
	Listener    bool // the supervisor hears of calls
	Probe       bool // exit after Enter
	Bare        bool // it keeps its rights
}

type limitPair struct {
	Resource int
	Name     string
	Value    uint64
}

// report is what Enter tells Start.
type report struct {
	Refused []string // one line for each thing that the system refused
	Failed  string   // Enter failed
}

// nobody is whom root's workers become.
const nobody = 65534

// ErrNotStarted says that the program was not started by Start.
var ErrNotStarted = errors.New("not started in a sandbox")

// Enter gives up all rights but those that package sandbox describes. It is called first thing in main, before other goroutines are started, by a program that
// [Start] started; in any other it fails with ErrNotStarted. What the system refuses is reported to Start's log and is no error. After an error the program should exit.
func Enter() error {
	s, ok := os.LookupEnv(envName)
	if !ok {
		return ErrNotStarted
	}
	var o order
	if err := json.Unmarshal([]byte(s), &o); err != nil || o.Talk < 3 {
		return fmt.Errorf("sandbox: reading %s: %q: %w", envName, s, errors.Join(err, unix.EINVAL))
	}
	os.Unsetenv(envName)
	unix.CloseOnExec(o.Talk)
	e := entering{order: o, listener: -1}
	err := e.all()
	if err != nil {
		e.Failed = err.Error()
	}
	e.tell()
	if err == nil && e.Descriptors > 0 {
		err = lower(unix.RLIMIT_NOFILE, e.Descriptors)
	}
	if err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	if o.Probe {
		os.Exit(0)
	}
	return nil
}

type entering struct {
	order
	report
	listener int
}

// refused notes what the system does not give.
func (e *entering) refused(format string, args ...any) {
	e.Refused = append(e.Refused, fmt.Sprintf(format, args...))
}

func (e *entering) all() error {
	_ = time.Now().Local().String() // reads /etc/localtime, while there is one
	if e.Spaces {
		if err := emptyRoot(); err != nil {
			e.refused("an empty root: %v: its file system is the supervisor's, but it cannot open anything there", err)
		}
	}
	for _, l := range e.Limits {
		if err := lower(l.Resource, l.Value); err != nil {
			e.refused("limit %s=%d: %v", l.Name, l.Value, err)
		}
	}
	if e.Memory > 0 {
		debug.SetMemoryLimit(e.Memory / 10 * 8) // the collector works harder before the limit ends it
	}
	if e.Bare {
		return nil
	}
	if e.Nobody {
		if err := becomeNobody(); err != nil {
			e.refused("another user than root: becoming nobody (%d): %v", nobody, err)
		}
	}
	switch err := ioctl.DropCapabilities(); {
	case errors.Is(err, unix.ENOTSUP):
		e.refused("dropping capabilities on all threads: this program uses cgo: build with CGO_ENABLED=0")
	case err != nil:
		return fmt.Errorf("dropping capabilities: %w", err)
	}
	return e.filter()
}

// emptyRoot makes an empty file system that cannot be written the root, and leaves nothing else mounted.
func emptyRoot() error {
	const at = "/proc" // is there
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("ring3", at, "tmpfs", flags, "mode=555,size=4k,nr_inodes=1"); err != nil {
		return fmt.Errorf("mounting a tmpfs: %w", err)
	}
	if err := unix.Chdir(at); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err == nil {
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmounting the old root: %w", err)
		}
	} else { // the old root is the kernel's first
		if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("pivoting: %w", err)
		}
		if err := unix.Chroot("."); err != nil {
			return fmt.Errorf("changing the root: %w", err)
		}
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, ""); err != nil {
		return fmt.Errorf("making it read-only: %w", err)
	}
	return nil
}

// lower lowers a limit, for good.
func lower(resource int, v uint64) error {
	var had unix.Rlimit
	if err := unix.Getrlimit(resource, &had); err != nil {
		return err
	}
	v = min(v, had.Max)
	return unix.Setrlimit(resource, &unix.Rlimit{Cur: v, Max: v})
}

// becomeNobody changes the user on all threads.
func becomeNobody() error {
	if err := syscall.Setgroups(nil); err != nil {
		return err
	}
	if err := syscall.Setgid(nobody); err != nil {
		return err
	}
	return syscall.Setuid(nobody)
}

// filter installs the filter on all threads, with a listener where there can be one.
func (e *entering) filter() error {
	runtime.LockOSThread() // a thread that gave up new privileges may install one
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil { // the filter carries it to all threads
		return fmt.Errorf("giving up new privileges: %w", err)
	}
	const all = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW // this program runs its own code: no price for speculation
	if e.Listener {
		f, err := program(unix.SECCOMP_RET_USER_NOTIF)
		if err != nil {
			return err
		}
		if e.listener, err = ioctl.SeccompFilter(all|unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH, f); err == nil {
			return nil
		}
		e.listener = -1
		e.refused("a listener of system calls: %v: a worker that makes one that it must not is killed, but nobody knows which it was", err)
	}
	f, err := program(unix.SECCOMP_RET_KILL_PROCESS)
	if err != nil {
		return err
	}
	switch _, err = ioctl.SeccompFilter(all, f); {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL): // not in this kernel
		e.refused("a filter of system calls: %v: it may make all that its user may", err)
	case err != nil:
		return fmt.Errorf("installing the filter of system calls: %w", err)
	}
	return nil
}

// tellTime is how long a report waits while too many descriptors of its user are on their way.
const tellTime = 2 * time.Second

// tell sends the report, with the listener, and forgets both.
func (e *entering) tell() {
	b, _ := json.Marshal(e.report)
	var oob []byte
	if e.listener >= 0 {
		oob = unix.UnixRights(e.listener)
	}
	err := unix.Sendmsg(e.Talk, b, oob, nil, 0)
	for end := time.Now().Add(tellTime); err == unix.ETOOMANYREFS && time.Now().Before(end); err = unix.Sendmsg(e.Talk, b, oob, nil, 0) {
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil && e.listener >= 0 { // without a listener the kernel refuses what it would have told of
		e.refused("passing the listener of system calls: %v: a worker that makes one that it must not gets an error, and is not killed", err)
		b, _ = json.Marshal(e.report)
		_ = unix.Sendmsg(e.Talk, b, nil, nil, 0)
	}
	if e.listener >= 0 {
		unix.Close(e.listener)
	}
	unix.Close(e.Talk)
}

// descriptors is RLIMIT_NOFILE of a worker; 0: as it is.
func (o *Options) descriptors() uint64 {
	if o.Bare {
		return 0
	}
	return uint64(o.Descriptors)
}

// limits are the other rlimits of a worker.
func (o *Options) limits(ownUser bool) []limitPair {
	if o.Bare {
		return []limitPair{{unix.RLIMIT_DATA, "DATA", uint64(o.Memory)}, {unix.RLIMIT_CORE, "CORE", 0}}
	}
	l := []limitPair{
		{unix.RLIMIT_DATA, "DATA", uint64(o.Memory)},
		{unix.RLIMIT_CORE, "CORE", 0},
		{unix.RLIMIT_FSIZE, "FSIZE", uint64(o.FileSize)},
		{unix.RLIMIT_MEMLOCK, "MEMLOCK", uint64(o.Locked)},
		{unix.RLIMIT_STACK, "STACK", 8 << 20},
		{unix.RLIMIT_MSGQUEUE, "MSGQUEUE", 0},
		{unix.RLIMIT_SIGPENDING, "SIGPENDING", 256},
	}
	if !o.RealTime {
		l = append(l, limitPair{unix.RLIMIT_RTPRIO, "RTPRIO", 0}, limitPair{unix.RLIMIT_NICE, "NICE", 0})
	}
	// Before 5.14 the kernel counts all of the user's threads on the machine, which would be no limit of the worker's.
	if ownUser && countsApart() {
		l = append(l, limitPair{unix.RLIMIT_NPROC, "NPROC", uint64(o.Threads)})
	}
	return l
}

// countsApart tells whether the kernel counts threads for each user namespace (Linux 5.14).
func countsApart() bool {
	_, err := os.Stat("/proc/sys/user/max_user_namespaces")
	if err != nil {
		return false
	}
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > 5 || major == 5 && minor >= 14
}

// talkFD is the number of the descriptor after n files.
func talkFD(n int) int { return 3 + n }

// mapped tells whether a user of this number exists in this process's user namespace, by one of its id maps.
func mapped(file string, id uint64) bool {
	b, err := os.ReadFile(filepath.Join("/proc/self", file))
	if err != nil {
		return false
	}
	f := fields(b)
	for i := 0; i+2 < len(f); i += 3 {
		first, err1 := strconv.ParseUint(f[i], 10, 64)
		n, err2 := strconv.ParseUint(f[i+2], 10, 64)
		if err1 == nil && err2 == nil && id >= first && id-first < min(n, math.MaxUint32) {
			return true
		}
	}
	return false
}
