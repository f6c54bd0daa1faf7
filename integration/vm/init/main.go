//go:build linux

// Init is the first program in the VM. It mounts, loads modules, and hands over to a worker,
// itself again, that does what the host asks. Called as modprobe it loads a module.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/integration/vm/wire"
)

func main() {
	var err error
	switch {
	case filepath.Base(os.Args[0]) == "modprobe":
		if err := modprobeMain(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "modprobe:", err)
			os.Exit(1)
		}
		return
	case filepath.Base(os.Args[0]) == "nobody":
		fmt.Fprintln(os.Stderr, "nobody:", asNobody(os.Args[1:]))
		os.Exit(127)
	case len(os.Args) > 1 && os.Args[1] == "worker":
		if err := work(); err != nil {
			fmt.Fprintln(os.Stderr, "init:", err)
			os.Exit(1)
		}
		return
	case os.Getpid() != 1:
		fmt.Fprintln(os.Stderr, "init: this is the first program of a VM; see package vm")
		os.Exit(2)
	}
	if err = boot(); err == nil {
		err = reap()
	}
	if err != nil {
		fmt.Println("init:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// mounts of an ordinary system.
var mounts = []struct {
	dir, kind, data string
	flags           uintptr
	must            bool
}{
	{"/proc", "proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, true},
	{"/sys", "sysfs", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, true},
	{"/dev", "devtmpfs", "mode=755", unix.MS_NOSUID, true},
	{"/dev/pts", "devpts", "mode=620,ptmxmode=666", unix.MS_NOSUID | unix.MS_NOEXEC, false},
	{"/dev/shm", "tmpfs", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV, true},
	{"/run", "tmpfs", "mode=755", unix.MS_NOSUID | unix.MS_NODEV, true},
	{"/tmp", "tmpfs", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV, true},
	{"/sys/kernel/debug", "debugfs", "", 0, false},
	{"/sys/fs/cgroup", "cgroup2", "", 0, false},
}

// home is nobody's folder, where HOME and XDG_RUNTIME_DIR point.
const home = "/run/user/65534"

func boot() error {
	unix.Umask(0) // for the modes of what is mounted
	for _, m := range mounts {
		if err := os.MkdirAll(m.dir, 0o755); err != nil && m.must {
			return err
		}
		err := unix.Mount(m.kind, m.dir, m.kind, m.flags, m.data)
		if err != nil && m.must {
			return fmt.Errorf("mounting %s: %w", m.dir, err)
		}
	}
	unix.Umask(0o022)
	for link, to := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2",
		"/etc/mtab": "/proc/self/mounts"} { // fusermount3 reads it
		_ = os.Symlink(to, link)
	}
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	for _, err := range []error{os.Chmod(home, 0o700), os.Chown(home, wire.Nobody, wire.Nobody), os.Chdir("/")} {
		if err != nil {
			return err
		}
	}
	_ = unix.Sethostname([]byte("ring3vm"))
	if err := loopback(); err != nil {
		return err
	}
	for _, list := range []string{wire.Early, wire.BootList} {
		b, err := os.ReadFile(list)
		if err != nil {
			return err
		}
		for _, name := range strings.Fields(string(b)) {
			if err := modprobe(name, nil); err != nil {
				return err
			}
		}
	}
	// As udev does it everywhere.
	for _, node := range []string{"/dev/fuse", "/dev/net/tun"} {
		if err := os.Chmod(node, 0o666); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// kernelArgs are what follows a prefix in the kernel's arguments.
func kernelArgs(prefix string) []string {
	b, _ := os.ReadFile("/proc/cmdline")
	var all []string
	for _, arg := range strings.Fields(string(b)) {
		if v, ok := strings.CutPrefix(arg, prefix); ok {
			all = append(all, v)
		}
	}
	return all
}

// loopback sets lo up.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	return nil
}

// reap starts the worker and then only collects what ended, as the first process must. It
// returns when the worker ended.
func reap() error {
	worker := exec.Command("/init", "worker")
	worker.Stdin, worker.Stdout, worker.Stderr = os.Stdin, os.Stdout, os.Stderr
	shell := kernelArgs(wire.ShellArg)
	if len(shell) > 0 {
		tty, err := terminal()
		if err != nil {
			return err
		}
		worker = exec.Command(shell[0])
		worker.Dir = "/root"
		worker.Stdin, worker.Stdout, worker.Stderr = tty, tty, tty
		worker.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	}
	worker.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/root", "TERM=linux", "LC_ALL=C"}
	if err := worker.Start(); err != nil {
		return fmt.Errorf("starting the worker: %w", err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("waiting: %w", err)
		}
		if pid == worker.Process.Pid && len(shell) > 0 {
			return nil
		}
		if pid == worker.Process.Pid {
			return fmt.Errorf("the worker ended: %s", ended(status))
		}
	}
}

// terminal opens the console as a terminal that can have a foreground process.
func terminal() (*os.File, error) {
	b, err := os.ReadFile("/sys/class/tty/console/active")
	if err != nil {
		return nil, err
	}
	names := strings.Fields(string(b))
	if len(names) == 0 {
		return nil, errors.New("there is no console")
	}
	fd, err := unix.Open("/dev/"+names[len(names)-1], unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the console: %w", err)
	}
	for _, s := range kernelArgs(wire.SizeArg) {
		var size unix.Winsize
		if _, err := fmt.Sscanf(s, "%dx%d", &size.Row, &size.Col); err == nil {
			_ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &size)
		}
	}
	return os.NewFile(uintptr(fd), "console"), nil
}

// asNobody is the program nobody: it becomes one without privileges.
func asNobody(argv []string) error {
	c, err := command(&wire.Command{Argv: argv})
	if err != nil {
		return err
	}
	if c.Err != nil {
		return c.Err
	}
	for _, err := range []error{unix.Setgroups(nil), unix.Setresgid(wire.Nobody, wire.Nobody, wire.Nobody), unix.Setresuid(wire.Nobody, wire.Nobody, wire.Nobody), os.Chdir(home)} {
		if err != nil {
			return err
		}
	}
	return unix.Exec(c.Path, c.Args, c.Env)
}

func ended(s unix.WaitStatus) string {
	if s.Signaled() {
		return s.Signal().String()
	}
	return fmt.Sprintf("exit status %d", s.ExitStatus())
}

// openPort opens the port to the host, once the kernel found it.
func openPort() (*os.File, error) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		ports, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, p := range ports {
			b, _ := os.ReadFile(p)
			dev := filepath.Join("/dev", filepath.Base(filepath.Dir(p)))
			if strings.TrimSpace(string(b)) != wire.Port {
				continue
			}
			// Blocking: this driver's poll says "hung up" before the host is there.
			fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("opening %s: %w", dev, err)
			}
			return os.NewFile(uintptr(fd), dev), nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no virtio port %q after 30s; there are %q", wire.Port, ports)
		}
	}
}
