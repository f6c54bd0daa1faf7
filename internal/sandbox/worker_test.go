package sandbox

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// usesCgo tells whether this test was built with cgo.
func usesCgo() bool {
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0)
	return e == unix.ENOTSUP
}

// attempts are calls that nobody makes twice, by the call's name and what is wanted of it.
var attempts = map[string]func() error{
	"socket":           func() error { _, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },
	"socket inet":      func() error { _, err := net.Dial("udp", "127.0.0.1:9"); return err },
	"socketpair":       func() error { _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },
	"execve":           func() error { return unix.Exec("/proc/self/exe", []string{"x"}, nil) },
	"execveat":         raw(unix.SYS_EXECVEAT, 0, 0, 0),
	"clone":            raw(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0),
	"ptrace":           raw(unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1, 0),
	"process_vm_readv": raw(unix.SYS_PROCESS_VM_READV, 1, 0, 0),
	"bpf":              raw(unix.SYS_BPF, 0, 0, 0),
	"io_uring_setup":   raw(unix.SYS_IO_URING_SETUP, 8, 0, 0),
	"userfaultfd":      raw(unix.SYS_USERFAULTFD, 0, 0, 0),
	"perf_event_open":  raw(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0),
	"keyctl":           raw(unix.SYS_KEYCTL, 0, 0, 0),
	"mount":            func() error { return unix.Mount("x", "/", "tmpfs", 0, "") },
	"unshare":          raw(unix.SYS_UNSHARE, unix.CLONE_NEWUSER, 0, 0),
	"setns":            raw(unix.SYS_SETNS, 0, 0, 0),
	"chroot":           func() error { return unix.Chroot("/") },
	"kill":             func() error { return unix.Kill(os.Getppid(), unix.SIGTERM) },
	"kill all":         func() error { return unix.Kill(-1, unix.SIGKILL) },
	"tgkill":           func() error { return unix.Tgkill(7, 7, unix.SIGTERM) },
	"pidfd_open":       raw(unix.SYS_PIDFD_OPEN, 1, 0, 0),
	"pidfd_getfd":      raw(unix.SYS_PIDFD_GETFD, 1, 0, 0),
	"memfd_create":     func() error { _, err := unix.MemfdCreate("x", 0); return err },
	"ftruncate":        func() error { return unix.Ftruncate(3, 1<<40) },
	"mmap exec": func() error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_EXEC|unix.PROT_READ, unix.MAP_ANON|unix.MAP_PRIVATE)
		return err
	},
	"mprotect exec":     raw(unix.SYS_MPROTECT, 0, 4096, unix.PROT_EXEC),
	"prctl":             raw(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0),
	"prctl ptracer":     raw(unix.SYS_PRCTL, unix.PR_SET_PTRACER, 1, 0),
	"fcntl seals":       func() error { _, err := unix.FcntlInt(3, unix.F_ADD_SEALS, unix.F_SEAL_WRITE); return err },
	"fcntl owner":       func() error { _, err := unix.FcntlInt(3, unix.F_SETOWN, 1); return err },
	"ioctl tun":         func() error { return unix.IoctlSetInt(3, unix.TUNSETPERSIST, 1) },
	"ioctl tty":         func() error { return unix.IoctlSetInt(3, unix.TIOCSTI, 1) },
	"ioctl container":   func() error { return unix.IoctlSetInt(3, ';'<<8|113, 0) }, // VFIO_IOMMU_MAP_DMA
	"setuid":            raw(unix.SYS_SETUID, 0, 0, 0),
	"capset":            raw(unix.SYS_CAPSET, 0, 0, 0),
	"name_to_handle_at": raw(unix.SYS_NAME_TO_HANDLE_AT, 0, 0, 0),
	"open_by_handle_at": raw(unix.SYS_OPEN_BY_HANDLE_AT, 0, 0, 0),
	"setsockopt":        func() error { return unix.SetsockoptInt(3, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) },
	"seccomp":           raw(unix.SYS_SECCOMP, 0, 0, 0),
	"add_key":           raw(unix.SYS_ADD_KEY, 0, 0, 0),
	"inotify_init1":     raw(unix.SYS_INOTIFY_INIT1, 0, 0, 0),
	"reboot":            raw(unix.SYS_REBOOT, 0, 0, 0),
	"init_module":       raw(unix.SYS_INIT_MODULE, 0, 0, 0),
}

func raw(nr, a, b, c uintptr) func() error {
	return func() error {
		if _, _, e := unix.Syscall(nr, a, b, c); e != 0 {
			return e
		}
		return nil
	}
}

//go:noinline
func attempt(name string, pipe *os.File) {
	err := attempts[name]()
	fmt.Fprintf(pipe, "%s = %v", name, err)
}

var hogged [][]byte // so that the collector keeps it

// worker is the program in the sandbox.
func worker(args []string) {
	if err := Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	pipe := os.NewFile(3, "pipe")
	switch args[0] {
	case "wait":
		var up sync.WaitGroup
		for range 4 { // threads
			up.Add(1)
			go func() { runtime.LockOSThread(); up.Done(); select {} }()
		}
		up.Wait()
		fmt.Fprintln(pipe, "ready")
		time.Sleep(time.Hour) // select would be a deadlock
	case "exit":
	case "attempt":
		attempt(args[1], pipe)
	case "harmless":
		harmless(pipe)
	case "names":
		names(pipe)
	case "panic":
		panic("as asked")
	case "flood":
		b := make([]byte, 1<<20)
		for range 10 {
			_, _ = os.Stderr.Write(b)
		}
		_, _ = os.Stderr.WriteString("the end\n")
		os.Exit(7)
	case "lend":
		if err := unix.Sendmsg(3, []byte{1}, unix.UnixRights(2), nil, 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		_, _ = os.Stderr.WriteString("the end\n")
		os.Exit(7)
	case "hog":
		for {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			hogged = append(hogged, b)
		}
	case "threads":
		for range 1000 {
			go func() { runtime.LockOSThread(); _ = unix.Nanosleep(&unix.Timespec{Sec: 600}, nil) }()
		}
		time.Sleep(time.Minute)
	}
}

// harmless does what Go programs do.
func harmless(pipe *os.File) {
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			runtime.LockOSThread()
			time.Sleep(time.Millisecond)
			runtime.GC()
		})
	}
	wg.Wait()
	if _, err := rand.Read(make([]byte, 16)); err != nil {
		fmt.Fprintln(pipe, err)
	}
	_ = time.Now().Local().String()
	if _, err := os.ReadFile("/etc/passwd"); !errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(pipe, "reading a file:", err)
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGUSR1)
	if err := unix.Kill(os.Getpid(), unix.SIGUSR1); err != nil {
		fmt.Fprintln(pipe, "a signal to itself:", err)
	}
	<-c
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		fmt.Fprintln(pipe, "an eventfd:", err)
	}
	f := os.NewFile(uintptr(fd), "eventfd")
	if _, err := f.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		fmt.Fprintln(pipe, "writing it:", err)
	}
	if _, err := f.Read(make([]byte, 8)); err != nil {
		fmt.Fprintln(pipe, "reading it:", err)
	}
	var set unix.CPUSet
	runtime.LockOSThread()
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		fmt.Fprintln(pipe, "reading the affinity:", err)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		fmt.Fprintln(pipe, "setting the affinity:", err)
	}
	fmt.Fprintln(pipe, "fine")
}

// names tries what looks a name up: nothing is there.
func names(pipe *os.File) {
	for what, f := range map[string]func() error{
		"open":    func() error { _, err := os.Open("/"); return err },
		"openat":  func() error { _, err := unix.Openat(0, "..", unix.O_RDONLY, 0); return err },
		"stat":    func() error { _, err := os.Stat("/"); return err },
		"symlink": func() error { return os.Symlink("/etc", "x") },
		"mkdir":   func() error { return os.Mkdir("x", 0o777) },
		"create":  func() error { _, err := os.Create("x"); return err },
	} {
		if err := f(); !errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintf(pipe, "%s: %v, want ENOENT\n", what, err)
		}
	}
}
