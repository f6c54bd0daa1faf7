//go:build vm

package guest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cgroups is where the kernel's cgroups of version 2 are.
const cgroups = "/sys/fs/cgroup"

// delegated is a cgroup that nobody may have children in, as systemd's Delegate=yes makes one.
func delegated(t *testing.T) *os.File {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(cgroups, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		t.Fatalf("%s has type %#x, %v; want cgroups of version 2", cgroups, fs.Type, err)
	}
	dir := filepath.Join(cgroups, "ring3.scope")
	err := os.WriteFile(filepath.Join(cgroups, "cgroup.subtree_control"), []byte("+memory +pids +cpu"), 0)
	if err == nil {
		err = os.Mkdir(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Below it is what ring3 up moved itself to, which is empty by now.
		_ = os.Remove(filepath.Join(dir, "ring3"))
		if err := os.Remove(dir); err != nil {
			t.Errorf("removing the cgroup, which is to be as it was: %v", err)
		}
	})
	if err := unix.Setxattr(dir, "user.delegate", []byte("1"), 0); err != nil {
		t.Fatalf("marking %s as delegated: %v", dir, err)
	}
	for _, name := range []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
		if err := os.Chown(filepath.Join(dir, name), 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestRootContainCgroup runs ring3 up in a cgroup that was delegated to its user: each worker has a cgroup of its own, with limits, which goes when it dies.
func TestRootContainCgroup(t *testing.T) {
	leaveNothing(t)
	f := delegated(t)
	cmd := AsNobody(exec.Command(ring3, "up", "eth0=sim:e1000e", "eth1=sim:e1000e", "--wire", "eth0-eth1"))
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(f.Fd())
	in := start(t, cmd)
	seen := map[string]bool{}
	for round := range 2 {
		s := workers(t)["eth0"]
		at := cgroupOf(t, s.Worker)
		if !strings.HasPrefix(at, "/ring3.scope/worker-") || seen[at] {
			t.Fatalf("the worker %d is in cgroup %q, want one of its own below /ring3.scope; %s", s.Worker, at, in.stderr())
		}
		seen[at] = true
		for _, name := range []string{"memory.max", "pids.max", "cpu.max"} {
			b, err := os.ReadFile(filepath.Join(cgroups, at, name))
			if first, _, _ := strings.Cut(strings.TrimSpace(string(b)), " "); err != nil || first == "max" || first == "" {
				t.Errorf("%s of the worker is %q, %v, want a limit", name, b, err)
			}
		}
		if own := cgroupOf(t, in.cmd.Process.Pid); own != "/ring3.scope/ring3" {
			t.Errorf("ring3 up is in cgroup %q, want beside its workers", own)
		}
		if round > 0 {
			break
		}
		// The kernel kills what needs more than the limit: so does whoever writes the file.
		if err := os.WriteFile(filepath.Join(cgroups, at, "cgroup.kill"), []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
		waitWorker(t, in, "eth0", "up again", func(s supervised) bool { return s.Restarts == 1 && s.State == "up" })
		for end := time.Now().Add(upWait); ; time.Sleep(20 * time.Millisecond) {
			if _, err := os.Stat(filepath.Join(cgroups, at)); os.IsNotExist(err) {
				break
			} else if time.Now().After(end) {
				t.Fatalf("the dead worker's cgroup is still there: %v", err)
			}
		}
	}
	if code := in.end(syscall.SIGINT); code != 0 {
		t.Errorf("ring3 up ends with %d: %s", code, in.stderr())
	}
	if left, _ := filepath.Glob(filepath.Join(cgroups, "ring3.scope/worker-*")); len(left) != 0 {
		t.Errorf("cgroups left behind: %v", left)
	}
}

// cgroupOf is the cgroup of version 2 of a process.
func cgroupOf(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	for line := range strings.Lines(string(b)) {
		if at, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return at
		}
	}
	t.Fatal(fmt.Errorf("process %d has no cgroup of version 2: %q, %w", pid, b, err))
	return ""
}
