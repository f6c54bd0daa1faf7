package sandbox

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what should take milliseconds.
const patience = time.Minute

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		worker(os.Args[2:])
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "flood-descriptors" { // for TestFloodedElsewhere
		fmt.Println(floodDescriptors())
		time.Sleep(10 * patience)
	}
	if len(os.Args) > 1 && os.Args[1] == "supervisor" { // for TestParentDeath
		f := os.NewFile(3, "pipe")
		if _, err := Start(Options{Args: []string{"worker", "wait"}, Files: []*os.File{f}}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		select {}
	}
	os.Exit(m.Run())
}

// launch starts a worker of this test, with a pipe as its descriptor 3 whose other end is returned.
func launch(t testing.TB, o Options, args ...string) (*Process, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	t.Cleanup(func() { r.Close() })
	o.Args, o.Files = append([]string{"worker"}, args...), []*os.File{w}
	p, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, r
}

// ended waits for the end of p.
func ended(t testing.TB, p *Process) State {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(patience):
		t.Fatalf("the worker still runs; it said: %s", p.Stderr())
	}
	return p.State()
}

// status is a line of /proc/PID/status of each thread of p, those that are the same once.
func status(t *testing.T, p *Process, name string) (l []string) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.PID()))
	if err != nil || len(tasks) < 3 {
		t.Fatalf("%d threads, %v, want more", len(tasks), err)
	}
	for _, f := range tasks {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that ended
		}
		_, s, _ := strings.Cut(string(b), "\n"+name+":")
		s, _, _ = strings.Cut(s, "\n")
		if s = strings.TrimSpace(s); !slices.Contains(l, s) {
			l = append(l, s)
		}
	}
	return l
}

// ready waits for the worker's first line on its pipe.
func ready(t testing.TB, p *Process, r io.Reader) string {
	t.Helper()
	s, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		<-p.Done()
		t.Fatalf("the worker said nothing on its pipe: %v; %v; %s", err, p.State(), p.Stderr())
	}
	return strings.TrimSpace(s)
}

// without tells whether the system refused what begins so.
func (p *Process) without(what string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.refused, func(l string) bool { return strings.HasPrefix(l, what) })
}

func TestEnter(t *testing.T) {
	p, r := launch(t, Options{}, "wait")
	if s := ready(t, p, r); s != "ready" {
		t.Fatalf("the worker said %q, want ready", s)
	}
	if err := p.Entered(patience); err != nil {
		t.Fatal(err)
	}
	caps := []string{"0000000000000000"}
	for name, want := range map[string][]string{"NoNewPrivs": {"1"}, "Seccomp": {"2"}, "CapEff": caps, "CapPrm": caps, "CapInh": caps, "CapAmb": caps} {
		if name[:3] == "Cap" && usesCgo() {
			continue
		}
		if got := status(t, p, name); !slices.Equal(got, want) {
			t.Errorf("%s of all threads = %q, want %q", name, got, want)
		}
	}
	if os.Geteuid() == 0 && mapped("uid_map", nobody) && !p.without("another user") && !p.without("a user of its own") {
		if got := status(t, p, "Uid"); len(got) != 1 || got[0] != "65534\t65534\t65534\t65534" {
			t.Errorf("Uid = %q, want nobody's", got)
		}
		if got := status(t, p, "Groups"); len(got) != 1 || got[0] != "" {
			t.Errorf("Groups = %q, want none", got)
		}
	}
	for _, l := range p.refused {
		t.Log("without", l)
	}
	for _, ns := range []string{"user", "mnt", "net", "ipc", "uts", "pid"} {
		ours, err1 := os.Readlink("/proc/self/ns/" + ns)
		theirs, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.PID(), ns))
		if err1 == nil && err2 == nil && ours == theirs && !p.without("namespaces") && !(ns == "user" && p.without("a user namespace")) {
			t.Errorf("the %s namespace is the supervisor's", ns)
		}
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", p.PID())); err == nil && !p.without("namespaces") {
		if lines := strings.Split(strings.TrimSpace(string(b)), "\n"); len(lines) != 1 || !strings.Contains(lines[0], " / / ro,") {
			t.Errorf("mounts are %q, want one, read-only", lines)
		}
	}
	if p.Traced() {
		t.Error("Traced = true, want false")
	}
	if rss, _, err := p.Usage(); rss <= 0 || err != nil {
		t.Errorf("Usage = %d bytes, %v", rss, err)
	}
	p.Kill()
	if s := ended(t, p); s.Signal != unix.SIGKILL || s.String() != "killed by SIGKILL" {
		t.Errorf("State = %v, want killed by SIGKILL", s)
	}
}

// TestHarmless does what Go programs do.
func TestHarmless(t *testing.T) {
	p, r := launch(t, Options{}, "harmless")
	b, err := io.ReadAll(r)
	if s := ended(t, p); err != nil || s.String() != "exit status 0" || string(b) != "fine\n" {
		t.Errorf("%v, it said %q, %v, want exit status 0, fine; stderr %s", s, b, err, p.Stderr())
	}
}

func TestViolation(t *testing.T) {
	for name := range attempts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, r := launch(t, Options{}, "attempt", name)
			b, _ := io.ReadAll(r)
			s := ended(t, p)
			want, _, _ := strings.Cut(name, " ")
			if len(b) > 0 || !strings.HasPrefix(s.Violation, want+"(") {
				t.Errorf("%v, it said %q, want killed for %s; without %q; stderr %s", s, b, want, p.refused, p.Stderr())
			}
			if !bytes.Contains(p.Stderr(), []byte("sandbox.attempt")) {
				t.Errorf("stderr has no stack with sandbox.attempt: %s", p.Stderr())
			}
		})
	}
}

func TestNames(t *testing.T) {
	p, r := launch(t, Options{}, "names")
	b, err := io.ReadAll(r)
	if s := ended(t, p); err != nil || s.Code != 0 || len(b) != 0 {
		t.Errorf("%v, %v: %s%s", s, err, b, p.Stderr())
	}
}

func TestPanic(t *testing.T) {
	p, _ := launch(t, Options{}, "panic")
	s := ended(t, p)
	if s.Code != 2 || !bytes.Contains(p.Stderr(), []byte("panic: as asked")) || !bytes.Contains(p.Stderr(), []byte("sandbox.worker(")) {
		t.Errorf("%v, stderr %s, want exit status 2 and the stack", s, p.Stderr())
	}
}

// stuck is a writer that takes nothing.
type stuck chan struct{}

func (s stuck) Write(b []byte) (int, error) { <-s; return len(b), nil }

func TestStderr(t *testing.T) {
	w := make(stuck)
	defer close(w)
	p, _ := launch(t, Options{Stderr: w}, "flood")
	if s := ended(t, p); s.Code != 7 {
		t.Errorf("%v, want exit status 7", s)
	}
	if b := p.Stderr(); len(b) != keep || !bytes.HasSuffix(b, []byte("the end\n")) {
		t.Errorf("Stderr has %d bytes, ending in %q, want %d, the end", len(b), b[max(0, len(b)-20):], keep)
	}
}

// TestStderrElsewhere has a program give its stderr to somebody who keeps it: its last words are there, and nobody waits for others.
func TestStderrElsewhere(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	p, err := Start(Options{Args: []string{"worker", "lend"}, Files: []*os.File{theirs}})
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	b, rights := make([]byte, 1), make([]byte, 100)
	_, n, _, _, err := unix.Recvmsg(pair[0], b, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(msgs) != 1 {
		t.Fatalf("%d control messages, %v; stderr %s", len(msgs), err, p.Stderr())
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%d descriptors, %v", len(fds), err)
	}
	defer unix.Close(fds[0])
	if s := ended(t, p); s.Code != 7 || !bytes.HasSuffix(p.Stderr(), []byte("the end\n")) {
		t.Errorf("%v, stderr %q, want exit status 7, the end", s, p.Stderr())
	}
}

// TestFloodedElsewhere has another program of the workers' user put so many descriptors on their way that none of them may pass one with its limit: a worker starts all the same.
func TestFloodedElsewhere(t *testing.T) {
	const limit = 1024 // of both
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Max < 2*limit {
		t.Skipf("RLIMIT_NOFILE is %d, %v", l.Max, err)
	}
	cmd := exec.Command("/proc/self/exe", "flood-descriptors")
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if s, err := bufio.NewReader(out).ReadString('\n'); err != nil || s != "too many references: cannot splice\n" {
		t.Fatalf("the flood ends with %q, %v", s, err)
	}
	p, r := launch(t, Options{}, "attempt", "socket") // one that the listener tells of
	if err := p.Entered(patience); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); err != nil || len(b) != 0 {
		t.Errorf("it says %q, %v", b, err)
	}
	if s := ended(t, p); !p.without("a listener") && !strings.HasPrefix(s.Violation, "socket(") {
		t.Errorf("%v, want that it ends for a system call", s)
	}
}

// floodDescriptors fills a socket with them.
func floodDescriptors() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err := lower(unix.RLIMIT_NOFILE, 1024); err != nil {
		return err
	}
	for {
		if err := unix.Sendmsg(pair[0], []byte{1}, unix.UnixRights(make([]int, 250)...), nil, 0); err != nil {
			return err
		}
	}
}

func TestMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory does not fit")
	}
	p, _ := launch(t, Options{Memory: 256 << 20}, "hog")
	if s := ended(t, p); s.Code != 2 || !bytes.Contains(p.Stderr(), []byte("out of memory")) && !bytes.Contains(p.Stderr(), []byte("cannot allocate memory")) {
		t.Errorf("%v, stderr %.300s, want exit status 2, out of memory", s, p.Stderr())
	}
}

func TestThreads(t *testing.T) {
	if !countsApart() {
		t.Skip("this kernel counts threads for a user, not for a user namespace")
	}
	p, _ := launch(t, Options{Threads: 64}, "threads")
	if s := ended(t, p); s.Code != 2 || !p.without("namespaces") && !bytes.Contains(p.Stderr(), []byte("failed to create new OS thread")) && !bytes.Contains(p.Stderr(), []byte("pthread_create failed")) {
		t.Errorf("%v, stderr %.300s, want exit status 2, no thread", s, p.Stderr())
	}
}

func TestParentDeath(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", "supervisor")
	cmd.ExtraFiles, cmd.Stderr = []*os.File{w}, os.Stderr
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(r)
	s, err := br.ReadString('\n')
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if s != "ready\n" {
		t.Fatalf("the worker said %q, %v, want ready", s, err)
	}
	_ = r.SetReadDeadline(time.Now().Add(patience))
	if _, err := br.ReadByte(); err != io.EOF { // the end of all that have it open
		t.Errorf("reading the pipe: %v, want its end: the worker lives", err)
	}
}

// TestProgram starts a program by its descriptor, after its file is gone.
func TestProgram(t *testing.T) {
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ring3")
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	p, r := launch(t, Options{Program: f}, "wait")
	if s := ready(t, p, r); s != "ready" {
		t.Errorf("the worker said %q, want ready", s)
	}
	if p, err := Start(Options{Path: path}); err == nil {
		p.Close()
		t.Error("starting a program that is gone succeeded")
	}
}

// TestNotEntered starts a program that never calls Enter.
func TestNotEntered(t *testing.T) {
	p, err := Start(Options{Path: "/bin/true"})
	if err != nil {
		t.Skip(err)
	}
	defer p.Close()
	if err := p.Entered(patience); err == nil {
		t.Error("Entered = nil for a program that did not")
	}
	if err := Enter(); err != ErrNotStarted {
		t.Errorf("Enter here = %v, want ErrNotStarted", err)
	}
}

// TestElsewhere runs tests as another user, and where the system refuses.
func TestElsewhere(t *testing.T) {
	if os.Getenv("RING3_SANDBOX_ELSEWHERE") != "" {
		t.Skip("this is elsewhere")
	}
	if raceEnabled {
		t.Skip("six times all tests take half a minute under the race detector")
	}
	dir, err := os.MkdirTemp("/tmp", "sandbox")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "test")
	b, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(exe, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, argv := range map[string][]string{
		"an ordinary user":        {"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"},
		"inside unshare":          {"unshare", "-Urn"},
		"no user namespaces":      {"unshare", "-Ur", "sh", "-c", `echo 0 >/proc/sys/user/max_user_namespaces && exec "$0" "$@"`},
		"no namespaces":           {"unshare", "-Ur", "sh", "-c", `echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all "$0" "$@"`},
		"a program for root only": {"sh", "-c", `chmod 700 "$0" && exec "$0" "$@"`},
		"no rights to be nobody":  {"setpriv", "--bounding-set=-all"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(argv[0]); err != nil {
				t.Skip(err)
			}
			if argv[0] == "setpriv" && os.Geteuid() != 0 {
				t.Skip("only root changes its user")
			}
			cmd := exec.Command(argv[0], append(slices.Clone(argv[1:]), exe, "-test.run=^(TestEnter|TestViolation|TestHarmless|TestNames|TestMemory|TestParentDeath)$", "-test.v")...)
			cmd.Env = append(os.Environ(), "RING3_SANDBOX_ELSEWHERE="+name)
			cmd.Dir = dir
			if err := os.Chmod(exe, 0o755); err != nil {
				t.Fatal(err)
			}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	for _, l := range Limits("worker", "wait") {
		t.Log(l)
		if strings.Contains(l, "\n") {
			t.Errorf("%q is more than a line", l)
		}
	}
}

// BenchmarkStart is from Start to a worker that has given its rights up.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		p, err := Start(Options{Args: []string{"worker", "exit"}})
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Entered(patience); err != nil {
			b.Fatal(err)
		}
		p.Close()
	}
}

// TestBare: a program that keeps its rights makes calls that another one is killed for, and is watched all the same.
func TestBare(t *testing.T) {
	p, r := launch(t, Options{Bare: true}, "attempt", "memfd_create")
	if err := p.Entered(patience); err != nil {
		t.Errorf("Entered = %v", err)
	}
	b, err := io.ReadAll(r)
	if s := ended(t, p); err != nil || string(b) != "memfd_create = <nil>" || s.String() != "exit status 0" {
		t.Errorf("it said %q, %v, and ended: %v; stderr %s", b, err, s, p.Stderr())
	}
	p, _ = launch(t, Options{Bare: true}, "panic")
	if s := ended(t, p); s.Code != 2 || !strings.Contains(string(p.Stderr()), "panic: as asked") {
		t.Errorf("a panic: %v; stderr %s", s, p.Stderr())
	}
}
