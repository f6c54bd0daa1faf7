package rt

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/cpuset"
)

const refused = "RING3_TEST_REFUSED" // the test's second life: as somebody who may nothing

func TestMain(m *testing.M) {
	if os.Getenv(refused) == "granted" { // root, who becomes nobody
		Grant(50)
		if err := errors.Join(syscall.Setgid(65534), syscall.Setuid(65534)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	if os.Getenv(refused) != "" {
		p, err := New(Config{Priority: 50})
		fmt.Printf("%v|%v\n", p != nil, err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// policy makes one, where this process may.
func policy(t *testing.T, c Config) *Policy {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Skipf("real-time threads are to be had by root, or with the limits raised: %v", err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// fifoThreads are the names and priorities of this process's threads under SCHED_FIFO.
func fifoThreads(t *testing.T) map[string]uint32 {
	t.Helper()
	got := map[string]uint32{}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		attr, err := unix.SchedGetAttr(tid, 0)
		if err == nil && attr.Policy == unix.SCHED_FIFO {
			comm, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/comm")
			got[strings.TrimSpace(string(comm))] = attr.Priority
		}
	}
	return got
}

func TestThreads(t *testing.T) {
	p := policy(t, Config{Priority: 7})
	procs := runtime.GOMAXPROCS(0)
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &all); err != nil {
		t.Fatal(err)
	}
	type seen struct {
		attr *unix.SchedAttr
		cpus unix.CPUSet
		err  error
	}
	const n = 3
	saw, end, ended := make(chan seen), make(chan struct{}), make(chan struct{})
	for i := range n {
		p.Go(fmt.Sprintf("rt-%d", i), func() {
			var s seen
			if s.attr, s.err = unix.SchedGetAttr(0, 0); s.err == nil {
				s.err = unix.SchedGetaffinity(0, &s.cpus)
			}
			saw <- s
			<-end
			ended <- struct{}{}
		})
	}
	used := map[unix.CPUSet]int{}
	for range n {
		s := <-saw
		if s.err != nil || s.attr.Policy != unix.SCHED_FIFO || s.attr.Priority != 7 || s.attr.Flags&unix.SCHED_FLAG_RESET_ON_FORK == 0 {
			t.Errorf("thread's policy = %+v, %v, want SCHED_FIFO 7, reset on fork", s.attr, s.err)
		}
		if s.cpus.Count() != 1 || !all.IsSet(cpuset.Min(s.cpus)) {
			t.Errorf("thread's CPUs = %s, want one of %s", cpuset.FormatList(s.cpus, cpuset.Limit), cpuset.FormatList(all, cpuset.Limit))
		}
		used[s.cpus]++
	}
	if want := min(n, all.Count()); len(used) != want {
		t.Errorf("the threads are on %d CPUs, want %d", len(used), want)
	}
	// Every other thread of the process is an ordinary one.
	if got := fifoThreads(t); fmt.Sprint(got) != "map[rt-0:7 rt-1:7 rt-2:7]" {
		t.Errorf("threads under SCHED_FIFO = %v, want rt-0 to rt-2", got)
	}
	if got := runtime.GOMAXPROCS(0); got != procs+n {
		t.Errorf("GOMAXPROCS = %d with %d threads, want %d", got, n, procs+n)
	}
	close(end)
	for range n {
		<-ended
	}
	for deadline := time.Now().Add(20 * time.Second); len(fifoThreads(t)) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after their end: threads %v, want none", fifoThreads(t))
		}
	}
	p.Go("rt-next", func() { ended <- struct{}{} })
	<-ended
	if got := runtime.GOMAXPROCS(0); got != procs+n {
		t.Errorf("GOMAXPROCS = %d with one more thread, want %d: those of the ended are there", got, procs+n)
	}
	if err := p.Close(); err != nil || runtime.GOMAXPROCS(0) != procs {
		t.Errorf("Close = %v, GOMAXPROCS %d, want %d as before", err, runtime.GOMAXPROCS(0), procs)
	}
}

// What a real-time thread starts is ordinary: processes, and Go's threads.
func TestNothingInherits(t *testing.T) {
	p := policy(t, Config{Priority: 7})
	out := make(chan string)
	p.Go("rt-parent", func() {
		b, err := exec.Command("cat", "/proc/self/stat").Output()
		out <- fmt.Sprint(string(b), err)
	})
	got := <-out
	_, rest, _ := strings.Cut(got, ") ")
	// policy is field 41 of proc(5), and the state, after the name, is field 3.
	if f := strings.Fields(rest); len(f) < 39 || f[38] != strconv.Itoa(unix.SCHED_NORMAL) {
		t.Errorf("a child's stat = %s, want policy 0 in field 41", got)
	}
}

func TestMemoryIsLocked(t *testing.T) {
	locked := func() string {
		b, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), "VmLck:")
		line, _, _ := strings.Cut(rest, "\n")
		return strings.TrimSpace(line)
	}
	p := policy(t, Config{Priority: 1})
	if got := locked(); got == "0 kB" {
		t.Errorf("VmLck = %s, want what is mapped", got)
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if got := locked(); got != "0 kB" {
		t.Errorf("VmLck after Close = %s, want 0 kB", got)
	}
}

func TestConfig(t *testing.T) {
	for _, n := range []int{-1, 0, 100} {
		if p, err := New(Config{Priority: n}); p != nil || err == nil || !strings.Contains(err.Error(), "want 1 to 99") {
			t.Errorf("New with priority %d = %v, %v, want an error", n, p, err)
		}
	}
	if p, err := New(Config{Priority: 1, CPUs: []int{}}); p != nil || err == nil {
		t.Errorf("New without a CPU = %v, %v, want an error", p, err)
	}
	p := policy(t, Config{Priority: 99, CPUs: []int{0}})
	for range 2 {
		if got := p.Next(); got != 0 {
			t.Errorf("Next = %d, want the one CPU, 0", got)
		}
	}
	if got := p.Priority(); got != 99 {
		t.Errorf("Priority = %d, want 99", got)
	}
}

func TestNoPolicy(t *testing.T) {
	var p *Policy
	done := make(chan bool)
	p.Go("x", func() { done <- true })
	<-done
	p.Enter("x")()
	if err := p.Close(); err != nil || p.Priority() != 0 {
		t.Errorf("Close, Priority of no policy = %v, %d", err, p.Priority())
	}
}

// Who has neither capability nor limits is told in one line what is missing and what to do.
func TestRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody who may less")
	}
	dir, err := os.MkdirTemp("", "ring3-rt-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	// The test binary's own folder is nobody else's to read.
	self := filepath.Join(dir, "test")
	if err := copyFile(self, os.Args[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		caps            string // capabilities that are left
		rtprio, memlock string // limits, soft and hard; raising one takes CAP_SYS_RESOURCE
		want            []string
	}{
		{"-all", "0:0", "8388608:8388608", []string{"real-time priority 50: the limit (ulimit -r) is 0", "no CAP_SYS_NICE", "sudo prlimit --pid $$ --rtprio=50 --memlock=unlimited", "limits.conf", "operation not permitted"}},
		{"+sys_nice", "0:0", "8388608:8388608", []string{"locking memory: the limit (ulimit -l) is 8192 KiB", "no CAP_IPC_LOCK", "sudo prlimit --pid $$ --rtprio=50 --memlock=unlimited"}},
		{"+sys_nice", "0:0", "0:0", []string{"the limit (ulimit -l) is 0 KiB"}},
		{"+sys_nice,+ipc_lock", "0:0", "8388608:8388608", nil},
		{"-all", "49:49", "unlimited", []string{"the limit (ulimit -r) is 49"}},
		{"-all", "50:50", "8388608:8388608", []string{"locking memory: the limit (ulimit -l) is 8192 KiB"}},
		{"-all", "0:50", "0:unlimited", nil}, // what it may raise itself, it does
		{"-all", "60:60", "unlimited", nil},
	} {
		who := fmt.Sprintf("capabilities %s, rtprio %s, memlock %s", c.caps, c.rtprio, c.memlock)
		limits := []string{"--rtprio=" + c.rtprio, "--memlock=" + c.memlock}
		if b, err := exec.Command("prlimit", append(limits, "true")...).CombinedOutput(); err != nil {
			t.Logf("%s: left out: root lacks CAP_SYS_RESOURCE here: %s", who, b)
			continue
		}
		cmd := exec.Command("prlimit", append(limits, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
			"--bounding-set=-all,"+c.caps, "--inh-caps=-all,"+c.caps, "--ambient-caps=-all,"+c.caps, self)...)
		cmd.Env = append(os.Environ(), refused+"=1")
		b, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, b)
		}
		out := string(b)
		if c.want == nil {
			if out != "true|<nil>\n" {
				t.Errorf("%s: %swant real-time threads", who, out)
			}
			continue
		}
		for _, want := range append(c.want, "false|") {
			if !strings.Contains(out, want) || strings.Count(out, "\n") != 1 {
				t.Errorf("%s: %swant %q in one line", who, out, want)
			}
		}
	}
}

// Root leaves the limits to whom it becomes.
func TestGrant(t *testing.T) {
	if b, err := exec.Command("prlimit", "--rtprio=50:50", "--memlock=unlimited", "true").CombinedOutput(); err != nil {
		t.Skipf("raising limits takes CAP_SYS_RESOURCE: %s", b)
	}
	cmd := exec.Command("prlimit", "--rtprio=0:0", "--memlock=8388608:8388608", os.Args[0])
	cmd.Env = append(os.Environ(), refused+"=granted")
	if b, err := cmd.CombinedOutput(); err != nil || string(b) != "true|<nil>\n" {
		t.Errorf("after Grant: %v, %s want real-time threads", err, b)
	}
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}
