package integration

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRealTimeUsage: a priority that is none is wrong usage.
func TestRealTimeUsage(t *testing.T) {
	for _, prio := range []string{"0", "100", "-1", "high"} {
		cmd := exec.Command(ring3, "up", "--no-mount", "--rt="+prio, "eth0=sim:e1000e")
		cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if want := fmt.Sprintf("ring3: --rt %q: want a priority of SCHED_FIFO, 1 to 99\n", prio); cmd.ProcessState.ExitCode() != 2 || string(out) != want {
			t.Errorf("--rt %s: %v, %q, want exit status 2, %q", prio, err, out, want)
		}
	}
}

// TestRealTimeRefused: an ordinary user is told in one line what is missing, before any device starts.
func TestRealTimeRefused(t *testing.T) {
	dir, err := os.MkdirTemp("", "ring3-rt-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	argv := []string{"prlimit", "--rtprio=0:0", "--memlock=8388608:8388608"}
	if os.Geteuid() == 0 {
		argv = append(argv, "setpriv", "--reuid="+nobody, "--regid="+nobody, "--clear-groups")
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	// A QEMU that was started would say so.
	argv = append(argv, "env", "-i", "PATH=/nowhere", "TMPDIR="+dir, ring3, "up", "--no-mount", "--rt", "50", "eth0=qemu:e1000e")
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err == nil {
		t.Fatalf("ring3 up --rt 50 as uid %s came up:\n%s", nobody, out)
	}
	for _, want := range []string{"ring3: --rt 50: real-time priority 50: the limit (ulimit -r) is 0, and there is no CAP_SYS_NICE: ",
		"sudo prlimit --pid $$ --rtprio=50 --memlock=unlimited", "/etc/security/limits.conf: USER - rtprio 50, USER - memlock unlimited"} {
		if !strings.Contains(string(out), want) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("ring3 up --rt 50 as uid %s printed %q, want one line with %q", nobody, out, want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "ring3-"+nobody, "*")); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

// TestRealTime: what serves devices runs on real-time threads, each on one CPU, and nothing else does; frames
// flow, and all memory is locked.
func TestRealTime(t *testing.T) {
	dir := t.TempDir()
	env := append(os.Environ(), "XDG_RUNTIME_DIR="+dir)
	up := exec.Command(ring3, "up", "--no-mount", "--rt", "30", "eth0=qemu:e1000e", "eth1=qemu:e1000e", "--wire", "eth0-eth1")
	up.Env = env
	var stderr bytes.Buffer
	up.Stderr = &stderr
	stdout, err := up.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	ready := false
	for !ready && lines.Scan() {
		ready = strings.Contains(lines.Text(), "is ready")
	}
	if !ready {
		err := up.Wait()
		if os.Geteuid() != 0 && strings.Contains(stderr.String(), "and there is no CAP_") {
			t.Skipf("real-time threads are to be had by root, or with the limits raised: %s", &stderr)
		}
		t.Fatalf("ring3 up: %v\n%s", err, &stderr)
	}
	defer func() {
		_ = up.Process.Signal(syscall.SIGTERM)
		if err := up.Wait(); err != nil {
			t.Errorf("ring3 up: %v\n%s", err, &stderr)
		}
	}()
	var want []string
	for _, d := range []string{"eth0", "eth1"} {
		want = append(want, "irq/"+d, "irq/"+d+"-rx-0", "irq/"+d+"-tx-0", "napi/"+d+"-0")
	}
	for _, cpu := range cpus(t) {
		want = append(want, "kpktgend_"+strconv.Itoa(cpu))
	}
	slices.Sort(want)
	// A thread becomes what it is a moment after it was started.
	realTime, ordinary := threads(t, up.Process.Pid)
	for end := time.Now().Add(20 * time.Second); !slices.Equal(realTime, want) && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		realTime, ordinary = threads(t, up.Process.Pid)
	}
	if !slices.Equal(realTime, want) || len(ordinary) == 0 {
		t.Errorf("threads under SCHED_FIFO 30 on one CPU: %q, want %q; the others: %q", realTime, want, ordinary)
	}
	for _, c := range [][]string{{"kpktgend_0", "add_device eth0"}, {"eth0", "count 20000"}, {"eth0", "burst 32"}, {"eth0", "dst_mac 52:54:00:12:34:57"}, {"pgctrl", "start"}} {
		cmd := exec.Command(ring3, "set", "/proc/net/pktgen/"+c[0], c[1])
		cmd.Env = env
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("ring3 set %q: %v\n%s", c, err, out)
		}
	}
	get := exec.Command(ring3, "get", "/proc/net/pktgen/eth0")
	get.Env = env
	if out, err := get.CombinedOutput(); err != nil || !strings.Contains(string(out), " usec, 20000 (58byte,0frags)") {
		t.Errorf("Result: %v\n%s want 20000 packets", err, out)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", up.Process.Pid))
	if m := regexp.MustCompile(`VmLck:\s+(\d+) kB`).FindSubmatch(status); err != nil || m == nil || string(m[1]) == "0" {
		t.Errorf("VmLck of ring3 = %q, %v, want what is mapped", m, err)
	}
	// QEMU is another process: it is ordinary.
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", up.Process.Pid, up.Process.Pid))
	if err == nil {
		for _, pid := range strings.Fields(string(children)) {
			n, _ := strconv.Atoi(pid)
			if rt, _ := threads(t, n); len(rt) > 0 {
				t.Errorf("child %s has real-time threads %q", pid, rt)
			}
		}
	}
}

// threads are the names of a process's threads: those under SCHED_FIFO 30, pinned to one CPU, and the others.
func threads(t *testing.T, pid int) (realTime, ordinary []string) {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, _ := strconv.Atoi(task.Name())
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/comm", pid, tid))
		name := strings.TrimSpace(string(comm))
		a, err := unix.SchedGetAttr(tid, 0)
		if err != nil {
			continue // ended meanwhile
		}
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(tid, &set); err != nil {
			continue
		}
		switch {
		case a.Policy == unix.SCHED_FIFO && a.Priority == 30 && set.Count() == 1:
			realTime = append(realTime, name)
		case a.Policy == unix.SCHED_NORMAL:
			ordinary = append(ordinary, name)
		default:
			t.Errorf("thread %s of %d: policy %+v on %d CPUs, want SCHED_FIFO 30 on one, or an ordinary one", name, pid, a, set.Count())
		}
	}
	slices.Sort(realTime)
	return realTime, ordinary
}

// cpus are those that this process may use.
func cpus(t *testing.T) (out []int) {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &set); err != nil {
		t.Fatal(err)
	}
	for i := range 1024 {
		if set.IsSet(i) {
			out = append(out, i)
		}
	}
	return out
}
