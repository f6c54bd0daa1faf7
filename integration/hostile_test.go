package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// safeBuffer is a bytes.Buffer that is read while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// hostileCase is one attack, and what the supervisor is to say of it; "": nothing, and nobody is hurt.
type hostileCase struct{ what, want string }

// Beginnings of what it says: of the death of eth2's worker, and of one that has tried all and got nothing.
const (
	hostileDied = "eth2: "
	hostileDone = "hostile: done"
)

// hostileRig is an instance of which eth2's worker is hostile, and in which eth0 sends to eth1 in another group.
type hostileRig struct {
	t       *testing.T
	dir     string
	program string // integration/hostile
	env     []string
	cmd     *exec.Cmd
	out     *safeBuffer
	said    *safeBuffer // stderr
	ended   chan struct{}
}

// newHostileRig starts one.
func newHostileRig(t *testing.T, args ...string) *hostileRig {
	t.Helper()
	return newHostileRigBy(t, nil, args...)
}

// newHostileRigBy has a program start it, in a network namespace of its own say.
func newHostileRigBy(t *testing.T, by []string, args ...string) *hostileRig {
	t.Helper()
	r := &hostileRig{t: t, dir: t.TempDir(), out: &safeBuffer{}, said: &safeBuffer{}, ended: make(chan struct{})}
	if err := os.Chmod(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.program = filepath.Join(r.dir, "hostile")
	build := exec.Command("go", "build", "-trimpath", "-o", r.program, "./hostile")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the hostile worker: %v\n%s", err, out)
	}
	r.env = append(os.Environ(), "RING3_RUNTIME_DIR="+filepath.Join(r.dir, "run"), "HOME="+r.dir, "XDG_STATE_HOME="+filepath.Join(r.dir, "state"))
	argv := slices.Concat(by, []string{ring3, "up", "--no-mount"}, args, []string{"--wire", "eth0-eth1", "--pcap", "eth1=" + filepath.Join(r.dir, "eth1.pcap")})
	r.cmd = exec.Command(argv[0], argv[1:]...)
	r.cmd.Env, r.cmd.Stdout, r.cmd.Stderr = r.env, r.out, r.said
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = r.cmd.Wait(); close(r.ended) }()
	t.Cleanup(func() {
		_ = r.cmd.Process.Signal(os.Interrupt)
		select {
		case <-r.ended:
		case <-time.After(time.Minute):
			_ = r.cmd.Process.Kill()
			t.Error("the supervisor does not end")
		}
	})
	eventually(t, "ring3 up", func() bool {
		r.lives(t)
		return strings.Contains(r.out.String(), "is ready")
	})
	for _, w := range [][2]string{{"kpktgend_0", "add_device eth0"}, {"eth0", "count 0"}, {"eth0", "delay 1000000"}, {"eth0", "dst_mac ff:ff:ff:ff:ff:ff"}} {
		r.must("set", "/proc/net/pktgen/"+w[0], w[1])
	}
	sender := exec.Command(ring3, "set", "/proc/net/pktgen/pgctrl", "start")
	sender.Env = r.env
	if err := sender.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sender.Process.Kill(); _ = sender.Wait() })
	r.goesOn(t)
	return r
}

func (r *hostileRig) ask(args ...string) (string, error) {
	cmd := exec.Command(ring3, args...)
	cmd.Env = r.env
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (r *hostileRig) must(args ...string) string {
	r.t.Helper()
	s, err := r.ask(args...)
	if err != nil {
		r.t.Fatalf("ring3 %s: %v: %s; the supervisor said %s", strings.Join(args, " "), err, s, last(r.said.String(), 2000))
	}
	return s
}

// lives ends the test where the supervisor has ended.
func (r *hostileRig) lives(t *testing.T) {
	t.Helper()
	select {
	case <-r.ended:
		t.Fatalf("the supervisor ended and said %s", last(r.said.String(), 4000))
	default:
	}
}

// goesOn waits for frames in the group beside.
func (r *hostileRig) goesOn(t *testing.T) {
	t.Helper()
	received := func() uint64 {
		s := r.must("get", "/sys/class/net/eth1/statistics/rx_packets")
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("rx_packets of eth1: %v", err)
		}
		return n
	}
	before := received()
	eventually(t, "traffic of the group beside it", func() bool { return received() > before })
}

// beside are what ls says of the group beside, and of its worker.
func (r *hostileRig) beside(t *testing.T) (all []string) {
	t.Helper()
	var list []struct {
		Name, State      string
		Worker, Restarts int
	}
	if err := json.Unmarshal([]byte(r.must("ls", "-json")), &list); err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		if d.Name == "eth0" || d.Name == "eth1" {
			all = append(all, fmt.Sprintf("%+v", d))
		}
	}
	return all
}

// attack has a hostile worker try one thing in eth2's place, and eth2's real driver back afterwards.
func (r *hostileRig) attack(t *testing.T, c hostileCase) {
	program := filepath.Join(r.dir, "hostile-"+c.what)
	if err := os.Link(r.program, program); err != nil {
		t.Fatal(err)
	}
	from := len(r.said.String())
	defer func() {
		if t.Failed() {
			t.Logf("the supervisor said %s", last(r.said.String()[from:], 4000))
		}
	}()
	s, err := r.ask("reload", "eth2", program)
	if err != nil && strings.HasPrefix(c.want, hostileDone) {
		t.Errorf("reload: %v: %s", err, s)
	}
	if strings.ContainsAny(s, "\x1b\r") {
		t.Errorf("what reload prints steers the terminal: %q", s)
	}
	if c.want == "" { // paced, or ended: nobody is hurt
		time.Sleep(time.Second)
	} else {
		eventually(t, fmt.Sprintf("%q in what the supervisor says", c.want), func() bool {
			r.lives(t)
			return strings.Contains(r.said.String()[from:], c.want)
		})
	}
	r.goesOn(t)
	if c.what == "claim" {
		if ls := r.must("ls", "-json"); strings.Contains(ls, "mine") || strings.Contains(ls, `\u001b`) {
			t.Errorf("ls shows what it claims: %s", ls)
		}
	}
	within(t, 90*time.Second, "reload of the real driver", func() bool {
		r.lives(t)
		if s, err = r.ask("reload", "eth2", ring3); err != nil {
			t.Log(s)
		}
		return err == nil
	})
	eventually(t, "eth2 in service", func() bool {
		s, err := r.ask("get", "/sys/class/net/eth2/address")
		return err == nil && strings.Count(s, ":") == 5
	})
	now := r.said.String()[from:]
	for _, bad := range []string{"hostile: got", "hostile: cannot"} { // what it should not, or what it needs to try
		if i := strings.Index(now, bad); i >= 0 {
			t.Errorf("it says %.300s", now[i:])
		}
	}
	if strings.ContainsAny(now, "\x1b\r") {
		t.Errorf("its text steers the terminal: %q", last(now, 300))
	}
	if n := strings.Count(now, "\n"); n > 3000 {
		t.Errorf("it has the supervisor say %d lines: %s", n, last(now, 1000))
	}
	if i := strings.Index(now, "\nforged"); i >= 0 {
		t.Errorf("it forges lines: %q", now[i:min(len(now), i+300)])
	}
}

// try makes all attacks. The supervisor, and the group beside, are as they were.
func (r *hostileRig) try(t *testing.T, cases []hostileCase) {
	fds, rss := costs(t, r.cmd.Process.Pid)
	beside := r.beside(t)
	for _, c := range cases {
		t.Run(strings.TrimPrefix(c.what, "qemu-"), func(t *testing.T) {
			if c.what == "half" && os.Getenv("RING3_LONG") == "" {
				t.Skip("RING3_LONG is not set: like mute, it takes the 10 s that a worker has to end")
			}
			r.attack(t, c)
		})
		r.lives(t)
		if now := r.beside(t); !slices.Equal(now, beside) {
			t.Errorf("after %s the group beside is %v, want %v", c.what, now, beside)
		}
	}
	eventually(t, "descriptors as before", func() bool {
		now, _ := costs(t, r.cmd.Process.Pid)
		return now <= fds+4
	})
	if _, now := costs(t, r.cmd.Process.Pid); now > rss+256<<20 {
		t.Errorf("the supervisor has %d MiB, %d before: it grew", now>>20, rss>>20)
	}
	r.goesOn(t)
}

// TestHostile puts programs in the worker's place that try everything that its rights allow (integration/hostile). Each gets nothing, the group beside it goes on, the
// supervisor neither dies nor grows, and the real driver is back at the user's word.
func TestHostile(t *testing.T) {
	t.Parallel()
	const died, done = hostileDied, hostileDone
	newHostileRig(t, "eth0=sim:e1000e", "eth1=sim:e1000e", "eth2=sim:e1000e").try(t, []hostileCase{
		{"files", done},
		{"devices", done},
		{"calls", done},
		{"open", done},
		{"claim", done},
		{"half", ""},
		{"cpu", done},
		{"logs", "messages of its worker's are left out"},
		{"suspects", done},
		{"uevents", done},
		{"flood", ""},
		{"files-passed", died},
		{"nodes", died},
		{"memory", died + "fatal error: "},
		{"event", died},
		{"tree-event", died},
		{"state", died},
		{"report", died},
		{"hello", died},
		{"random", died},
		{"huge", died},
		{"panic", died + "panic: hostile"},
		{"exit", died + "exit status 77"},
		{"hang", died + "it hangs"},
		{"socket", died + "killed for the system call socket(0x1, 0x1, 0x0)"},
		{"kill", died + "killed for the system call kill("},
		{"fork", died + "killed for the system call clone("},
		{"truncate", died + "killed for the system call ftruncate("},
		{"ptrace", died + "killed for the system call ptrace("},
		{"ioctl", died + "killed for the system call ioctl("},
		{"ledger", died + "exit status 77"},
		{"ledger-lies", died + "exit status 77"},
		{"lost", done},
		{"stop-exit", done},
		{"stop-lies", done},
		{"stop-bomb", done},
		{"mute", done},
	})
}

// TestHostileTAP is TestHostile where eth2 is a kernel's interface, too, of which the worker has the queues' descriptors.
func TestHostileTAP(t *testing.T) {
	t.Parallel()
	own, err := netspaceWithTAP()
	if err != nil {
		t.Skip(err)
	}
	const died, done = hostileDied, hostileDone
	newHostileRigBy(t, own, "eth0=sim:e1000e", "eth1=sim:e1000e", "eth2=sim:e1000e", "--tap", "eth2=ht2,up=on").try(t, []hostileCase{
		{"tap-words", done},
		{"tap-again", done},
		{"tap-frames", done},
		{"tap-ioctl", died + "killed for the system call ioctl("},
		{"files-passed", died},
		{"truncate", died + "killed for the system call ftruncate("},
	})
}

// TestHostileQEMU is TestHostile where the group has a QEMU of its own, whose descriptors the worker has: RAM, qtest socket, eventfds. What it can do with them ends at that
// QEMU, which is another one afterwards if need be; the QEMU beside it has traffic all the time.
func TestHostileQEMU(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip(err)
	}
	const died, done = hostileDied, hostileDone
	newHostileRig(t, "eth0=qemu:e1000e", "eth1=qemu:e1000e", "eth2=qemu:e1000e").try(t, []hostileCase{
		{"qemu-names", done},
		{"qemu-monitor", done},
		{"qemu-chatter", done},
		{"qemu-assert", done},
		{"qemu-partial", done},
		{"qemu-line", done},
		{"qemu-memory", "failed to allocate"},
		{"qemu-flood", done},
		{"qemu-shut", done},
		{"qemu-power", done},
		{"qemu-bells", done},
		{"qemu-pass", died + "exit status 77"},
		{"qemu-ram", died + "killed for the system call fcntl("},
		{"truncate", died + "killed for the system call ftruncate("},
		{"stop-exit", done},
		{"ledger-lies", died + "exit status 77"},
	})
}

// last is the end of a text.
func last(s string, n int) string { return s[max(0, len(s)-n):] }

// costs are a process's descriptors and bytes in RAM.
func costs(t *testing.T, pid int) (fds int, rss int64) {
	t.Helper()
	l, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	var pages, resident int64
	if _, err := fmt.Sscan(string(b), &pages, &resident); err != nil {
		t.Fatal(err)
	}
	return len(l), resident * int64(os.Getpagesize())
}
