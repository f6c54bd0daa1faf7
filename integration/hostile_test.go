package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

// TestHostile puts programs in the worker's place that try everything that its rights allow (integration/hostile). Each gets nothing, the group beside it goes on, the
// supervisor neither dies nor grows, and the real driver is back at the user's word.
func TestHostile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	hostile := filepath.Join(dir, "hostile")
	build := exec.Command("go", "build", "-trimpath", "-o", hostile, "./hostile")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the hostile worker: %v\n%s", err, out)
	}
	run := filepath.Join(dir, "run")
	env := append(os.Environ(), "RING3_RUNTIME_DIR="+run, "HOME="+dir, "XDG_STATE_HOME="+filepath.Join(dir, "state"))
	ask := func(args ...string) (string, error) {
		cmd := exec.Command(ring3, args...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	said := &safeBuffer{}
	cmd := exec.Command(ring3, "up", "--no-mount", "eth0=sim:e1000e", "eth1=sim:e1000e", "eth2=sim:e1000e", "--wire", "eth0-eth1", "--pcap", "eth1="+filepath.Join(dir, "eth1.pcap"))
	cmd.Env, cmd.Stderr = env, said
	out := &safeBuffer{}
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			t.Error("the supervisor does not end")
		}
	}()
	eventually(t, "ring3 up", func() bool { return strings.Contains(out.String(), "is ready") })
	must := func(args ...string) string {
		t.Helper()
		s, err := ask(args...)
		if err != nil {
			t.Fatalf("ring3 %s: %v: %s; the supervisor said %s", strings.Join(args, " "), err, s, last(said.String(), 2000))
		}
		return s
	}
	for _, w := range [][2]string{{"kpktgend_0", "add_device eth0"}, {"eth0", "count 0"}, {"eth0", "delay 1000000"}, {"eth0", "dst_mac ff:ff:ff:ff:ff:ff"}} {
		must("set", "/proc/net/pktgen/"+w[0], w[1])
	}
	sender := exec.Command(ring3, "set", "/proc/net/pktgen/pgctrl", "start")
	sender.Env = env
	if err := sender.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sender.Process.Kill(); _ = sender.Wait() }()
	received := func() uint64 {
		s := must("get", "/sys/class/net/eth1/statistics/rx_packets")
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("rx_packets of eth1: %v", err)
		}
		return n
	}
	goesOn := func() {
		t.Helper()
		before := received()
		eventually(t, "traffic of the group beside it", func() bool { return received() > before })
	}
	goesOn()
	fds, rss := costs(t, cmd.Process.Pid)
	const died, done = "eth2: ", "hostile: done"
	for _, c := range []struct{ what, want string }{
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
		{"mute", done},
	} {
		ok := t.Run(c.what, func(t *testing.T) {
			if c.what == "half" && os.Getenv("RING3_LONG") == "" {
				t.Skip("RING3_LONG is not set: like mute, it takes the 10 s that a worker has to end")
			}
			program := filepath.Join(dir, "hostile-"+c.what)
			if err := os.Link(hostile, program); err != nil {
				t.Fatal(err)
			}
			from := len(said.String())
			s, err := ask("reload", "eth2", program)
			if err != nil && strings.HasPrefix(c.want, done) {
				t.Errorf("reload: %v: %s", err, s)
			}
			if c.want == "" { // paced, or ended: nobody is hurt
				time.Sleep(time.Second)
			} else {
				eventually(t, fmt.Sprintf("%q in what the supervisor says", c.want), func() bool {
					select {
					case <-ended:
						t.Fatalf("the supervisor ended and said %s", last(said.String(), 4000))
					default:
					}
					return strings.Contains(said.String()[from:], c.want)
				})
			}
			goesOn()
			now := said.String()[from:]
			if i := strings.Index(now, "hostile: got"); i >= 0 {
				t.Errorf("it %.300s", now[i:])
			}
			if strings.ContainsAny(now, "\x1b\r") {
				t.Errorf("its text steers the terminal: %q", last(now, 300))
			}
			if c.what == "claim" {
				if ls := must("ls", "-json"); strings.Contains(ls, "mine") || strings.Contains(ls, `\u001b`) {
					t.Errorf("ls shows what it claims: %s", ls)
				}
			}
			within(t, 90*time.Second, "reload of the real driver", func() bool {
				if s, err = ask("reload", "eth2", ring3); err != nil {
					t.Log(s)
				}
				return err == nil
			})
			eventually(t, "eth2 in service", func() bool {
				s, err := ask("get", "/sys/class/net/eth2/address")
				return err == nil && strings.Count(s, ":") == 5
			})
		})
		if !ok && t.Failed() {
			select {
			case <-ended:
				t.Fatalf("the supervisor ended and said %s", last(said.String(), 4000))
			default:
			}
		}
	}
	eventually(t, "descriptors as before", func() bool {
		now, _ := costs(t, cmd.Process.Pid)
		return now <= fds+4
	})
	if _, now := costs(t, cmd.Process.Pid); now > rss+256<<20 {
		t.Errorf("the supervisor has %d MiB, %d before: it grew", now>>20, rss>>20)
	}
	goesOn()
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
