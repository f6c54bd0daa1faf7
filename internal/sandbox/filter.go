package sandbox

import (
	"fmt"
	"os"
	"runtime"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// allowed are the calls that are made whatever their arguments. The kernel keeps their numbers in a bitmap, so they cost nothing; all of the data path is here.
var allowed = []string{
	// Descriptors that it has.
	"read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "lseek", "close", "fstat", "fstatfs", "dup", "dup3", "fsync", "fdatasync",
	"recvfrom", "recvmsg", "recvmmsg", "sendto", "sendmsg", "sendmmsg", "shutdown", "getsockname", "getpeername", "getsockopt",
	// Waiting. eventfd2 and epoll_create1 make descriptors, which RLIMIT_NOFILE bounds, and nothing behind them.
	"epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "eventfd2", "poll", "ppoll", "pselect6", "select", "nanosleep", "clock_nanosleep", "restart_syscall",
	// Memory. What may be executed is asked below.
	"munmap", "madvise", "mincore", "mremap", "brk", "mlock", "mlock2", "munlock", "mlockall", "munlockall",
	// Threads and their places. Priorities are bound by RLIMIT_RTPRIO and RLIMIT_NICE.
	"futex", "set_robust_list", "set_tid_address", "rseq", "membarrier", "arch_prctl", "exit", "exit_group", "sched_yield", "getcpu",
	"sched_getaffinity", "sched_setaffinity", "sched_getattr", "sched_setattr", "sched_getparam", "sched_getscheduler", "sched_setscheduler", "sched_get_priority_max", "sched_get_priority_min",
	// Signals, its own.
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigtimedwait", "rt_sigsuspend", "sigaltstack", "timer_create", "timer_settime", "timer_delete", "setitimer",
	// Who and when it is.
	"getpid", "getppid", "gettid", "getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getrandom", "uname", "sysinfo", "getrusage", "getrlimit", "times",
	"clock_gettime", "clock_getres", "gettimeofday", "time",
}

// lookups look a name up: in an empty root there is none.
var lookups = []string{
	"open", "openat", "openat2", "creat", "stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "readlink", "readlinkat", "getcwd",
	"statfs", "chdir", "mkdir", "mkdirat", "unlink", "unlinkat", "rename", "renameat", "renameat2", "mknod", "mknodat", "symlink", "symlinkat", "link", "linkat",
}

// newer are calls that libraries try before older ones, or do without.
var newer = []string{"clone3", "copy_file_range", "splice", "sendfile", "close_range"}

// Some constants that no package has.
const (
	prSetVMA      = 0x53564d41 // PR_SET_VMA: the runtime names its memory
	vfioDeviceCmd = ';'<<8 | 100
	cloneSpaces   = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_PTRACE
)

// condition is what is wanted of an argument: its bits of mask are want's.
type condition struct {
	arg        uint32
	mask, want uint64
}

func is(arg uint32, v uint64) condition    { return condition{arg, ^uint64(0), v} }
func no(arg uint32, bits uint64) condition { return condition{arg, bits, 0} }
func set(arg uint32, bit uint64) condition { return condition{arg, bit, bit} }

// way is one way in which a call may be made: all of its conditions hold.
type way []condition

// asked are the calls that depend on their arguments. What comes in none of its ways is as a call that is in no list.
func asked() map[string][]way {
	self := uint64(os.Getpid())
	m := map[string][]way{
		"mmap":       {{no(2, unix.PROT_EXEC)}},
		"mprotect":   {{no(2, unix.PROT_EXEC)}},
		"clone":      {{set(0, unix.CLONE_THREAD), no(0, cloneSpaces)}},
		"tgkill":     {{is(0, self)}},
		"kill":       {{is(0, self)}},
		"prlimit64":  {{is(0, 0)}}, // its own, which it can only lower
		"setsockopt": {{is(1, unix.SOL_SOCKET)}},
		"prctl":      {{is(0, unix.PR_SET_NAME)}, {is(0, unix.PR_GET_NAME)}, {is(0, unix.PR_SET_TIMERSLACK)}, {is(0, prSetVMA)}},
	}
	// No locks, leases, seals, sizes of pipes, nor signals to others.
	for _, cmd := range []uint64{unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_DUPFD, unix.F_DUPFD_CLOEXEC, unix.F_GET_SEALS} {
		m["fcntl"] = append(m["fcntl"], way{is(1, cmd)})
	}
	// Of VFIO what concerns a device, and only where it was given one: information, regions, interrupts, reset. Groups, containers and their maps are the supervisor's.
	// Nothing of /dev/net/tun: its descriptors are read and written here, and set up by the supervisor.
	for _, n := range []uint64{7, 8, 9, 10, 11} {
		m["ioctl"] = append(m["ioctl"], way{is(1, vfioDeviceCmd+n)})
	}
	return m
}

// Offsets in struct seccomp_data. Both architectures are little-endian.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// program is the filter; last is what it answers for what is in no list. It is one comparison after the other: the kernel asks it only for calls that are not in its bitmap.
func program(last uint32) ([]unix.SockFilter, error) {
	here, err := arch.GetInfo(runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	const (
		allow = unix.SECCOMP_RET_ALLOW
		errno = unix.SECCOMP_RET_ERRNO
	)
	load := func(off uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: off, Size: 4} }
	ret := func(v uint32) bpf.Instruction { return bpf.RetConstant{Val: v} }
	p := []bpf.Instruction{
		load(offArch),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(here.ID), SkipTrue: 1},
		ret(last), // another architecture's numbers
		load(offNr),
	}
	each := func(names []string, v uint32) {
		for _, n := range names {
			if nr, ok := here.SyscallNames[n]; ok { // older calls are not on every architecture
				p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(nr), SkipFalse: 1}, ret(v))
			}
		}
	}
	each(allowed, allow)
	each(lookups, errno|uint32(unix.ENOENT))
	each(newer, errno|uint32(unix.ENOSYS))
	for name, ways := range asked() {
		nr, ok := here.SyscallNames[name]
		if !ok {
			continue
		}
		var block []bpf.Instruction
		for _, w := range ways {
			block = append(block, w.instructions(ret(allow))...)
		}
		block = append(block, ret(last))
		if len(block) > 255 {
			return nil, fmt.Errorf("assembling the filter: %s takes %d instructions, want at most 255", name, len(block))
		}
		p = append(append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(nr), SkipFalse: uint8(len(block))}), block...)
	}
	p = append(p, ret(last)) // the 32-bit calls of amd64 (x32), too, whose numbers are above all others
	raw, err := bpf.Assemble(p)
	if err != nil {
		return nil, fmt.Errorf("assembling the filter: %w", err)
	}
	f := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		f[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return f, nil
}

// instructions answer yes where all conditions hold, and go on behind otherwise.
func (w way) instructions(yes bpf.Instruction) (p []bpf.Instruction) {
	for _, c := range w {
		for half := range uint32(2) {
			mask, want := uint32(c.mask>>(32*half)), uint32(c.want>>(32*half))
			if mask != 0 {
				p = append(p, bpf.LoadAbsolute{Off: offArgs + 8*c.arg + 4*half, Size: 4}, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: want})
			}
		}
	}
	p = append(p, yes)
	for i, in := range p {
		if j, ok := in.(bpf.JumpIf); ok {
			j.SkipFalse = uint8(len(p) - 1 - i)
			p[i] = j
		}
	}
	return p
}

// callName is the name of a call of this architecture.
func callName(nr int32) string {
	if here, err := arch.GetInfo(runtime.GOARCH); err == nil {
		if s := here.SyscallNumbers[int(nr)]; s != "" {
			return s
		}
	}
	return fmt.Sprintf("system call %d", nr)
}
