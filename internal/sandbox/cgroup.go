package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cgroup is a worker's own, below one that was delegated to this process's user. Nil: there is none.
type cgroup struct {
	dir string
	f   *os.File
}

var errNotDelegated = errors.New("none of version 2 was delegated (systemd-run --user --scope -p Delegate=yes ring3 ..., or Delegate=yes in the unit): memory and CPU time are limited by rlimits alone")

// cgroupBase finds, once, the delegated cgroup of this process, and makes it one that can have children with limits.
var cgroupBase = sync.OnceValues(func() (string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		return prepareCgroup(filepath.Join("/sys/fs/cgroup", path))
	}
	return "", errNotDelegated
})

// prepareCgroup gives the children of dir their controllers. A cgroup that has children with controllers has no processes of its own, so this
// process moves into a child, if it is alone there; whether it may is what the mark of a delegation says.
func prepareCgroup(dir string) (string, error) {
	mark := func(name string) bool {
		b := make([]byte, 1)
		n, err := unix.Getxattr(dir, name, b)
		return err == nil && n == 1 && b[0] == '1'
	}
	if !mark("user.delegate") && !mark("trusted.delegate") {
		return "", errNotDelegated
	}
	enable := func() error {
		return os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory +pids +cpu"), 0)
	}
	err := enable()
	if errors.Is(err, unix.EBUSY) {
		own, e := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if e != nil {
			return "", e
		}
		if strings.TrimSpace(string(own)) != strconv.Itoa(os.Getpid()) {
			return "", fmt.Errorf("%s has other processes beside this one: %w", dir, err)
		}
		leaf := filepath.Join(dir, "ring3")
		if e := os.Mkdir(leaf, 0o755); e != nil && !errors.Is(e, os.ErrExist) {
			return "", e
		}
		if e := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0); e != nil {
			return "", e
		}
		err = enable()
	}
	if err != nil {
		return "", fmt.Errorf("enabling controllers: %w", err)
	}
	return dir, nil
}

// Settle moves this process into a cgroup of its own below one that was delegated to its user, which makes room for those of workers. It is called before this process
// has children, which would be in the way. Where none was delegated it does nothing.
func Settle() { _, _ = cgroupBase() }

var cgroupCount atomic.Uint64

// newCgroup makes one with the limits of o.
func newCgroup(o *Options) (_ *cgroup, err error) {
	base, err := cgroupBase()
	if err != nil {
		return nil, err
	}
	c := &cgroup{dir: filepath.Join(base, fmt.Sprintf("worker-%d-%d", os.Getpid(), cgroupCount.Add(1)))}
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.remove()
		}
	}()
	limits := [][2]string{
		// What the kernel holds for it comes on top of its own memory, and what is mapped of devices' RAM that it touched first.
		{"memory.max", strconv.FormatInt(2*o.Memory, 10)},
		{"pids.max", strconv.Itoa(o.Threads)},
	}
	if o.CPUs > 0 {
		limits = append(limits, [2]string{"cpu.max", fmt.Sprintf("%d 100000", int(o.CPUs*100000))})
	}
	for _, l := range limits {
		if err := os.WriteFile(filepath.Join(c.dir, l[0]), []byte(l[1]), 0); err != nil {
			return nil, fmt.Errorf("setting %s to %s: %w", l[0], l[1], err)
		}
	}
	_ = os.WriteFile(filepath.Join(c.dir, "memory.swap.max"), []byte("0"), 0) // where there is swap
	if c.f, err = os.Open(c.dir); err != nil {
		return nil, err
	}
	return c, nil
}

// enter makes a child start in it.
func (c *cgroup) enter(a *syscall.SysProcAttr) {
	if c != nil {
		a.UseCgroupFD, a.CgroupFD = true, int(c.f.Fd())
	}
}

// remove removes it, once the kernel lets go of the last process.
func (c *cgroup) remove() {
	if c == nil {
		return
	}
	if c.f != nil {
		c.f.Close()
	}
	for range 50 {
		if err := os.Remove(c.dir); !errors.Is(err, unix.EBUSY) {
			return
		}
		_ = os.WriteFile(filepath.Join(c.dir, "cgroup.kill"), []byte("1"), 0)
		time.Sleep(2 * time.Millisecond)
	}
}
