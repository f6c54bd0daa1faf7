package instance

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/mounts"
)

// The test binary plays ring3 up: started again with helperEnv it creates an instance
// and then does what its standard input says.
const helperEnv = "RING3_TEST_HELPER"

func TestMain(m *testing.M) {
	WatcherMain()
	if os.Getenv(helperEnv) != "" {
		if err := helperMain(); err != nil {
			fmt.Fprintln(os.Stderr, "helper:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helperReport is the helper's first line.
type helperReport struct {
	Info    Info
	Watcher int
	Child   int
}

// dialRaw asks the control socket at path for the tree's root and prints the answer.
func dialRaw(path string) error {
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer c.Close()
	// A stranger is answered and cut off without having been listened to.
	_, _ = io.WriteString(c, `{"v":1,"op":"readdir","args":{"path":"/"}}`+"\n")
	line, err := bufio.NewReader(c).ReadString('\n')
	fmt.Print(line)
	return err
}

// helperMain understands the words dial=PATH (see dialRaw), or name=NAME, watch, child, mount=DIR in helperEnv; then
// the lines close, exit and panic.
func helperMain() error {
	var o Options
	var mnt string
	var watch, child bool
	for _, w := range strings.Fields(os.Getenv(helperEnv)) {
		k, v, _ := strings.Cut(w, "=")
		switch k {
		case "dial":
			return dialRaw(v)
		case "name":
			o.Name = v
		case "mount":
			mnt = v
		case "watch":
			watch = true
		case "child":
			child = true
		}
	}
	o.Devices, o.Version = []string{"eth0=qemu:e1000e"}, "test"
	o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	in, err := Create(o)
	if err != nil {
		return err
	}
	defer in.Close()
	rep := helperReport{}
	if watch {
		if err := in.StartWatcher(); err != nil {
			return err
		}
		rep.Watcher = in.watch.cmd.Process.Pid
	}
	if child {
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			return err
		}
		go cmd.Wait()
		rep.Child = cmd.Process.Pid
		if err := in.AddChild(cmd.Process.Pid, "sleep"); err != nil {
			return err
		}
	}
	if mnt != "" {
		if mnt == "tree" {
			mnt = in.Tree()
		}
		if os.Mkdir(mnt, 0o700) == nil {
			if err := in.AddDir(mnt); err != nil {
				return err
			}
		}
		if _, err := mountSilent(mnt); err != nil {
			return err
		}
		if err := in.AddMount(mnt); err != nil {
			return err
		}
	}
	rep.Info = in.Info()
	if err := json.NewEncoder(os.Stdout).Encode(rep); err != nil {
		return err
	}
	line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	switch strings.TrimSpace(line) {
	case "exit":
		os.Exit(3)
	case "panic":
		panic("as a driver might")
	}
	return in.Close()
}

// mountSilent mounts a FUSE file system whose server never answers: whoever looks into
// it hangs. It goes through fusermount3, so it works as any user.
func mountSilent(dir string) (*os.File, error) {
	sp, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(sp[1]), "fusermount")
	defer unix.Close(sp[0])
	cmd := exec.Command("fusermount3", "-o", "fsname=ring3-test,subtype=ring3", "--", dir)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	out, err := cmd.CombinedOutput()
	theirs.Close()
	if err != nil {
		return nil, fmt.Errorf("fusermount3: %w: %s", err, out)
	}
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sp[0], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("fusermount3 sent %d messages: %w", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("fusermount3 sent %d descriptors: %w", len(fds), err)
	}
	// A plain descriptor held for the life of the process.
	return os.NewFile(uintptr(fds[0]), "/dev/fuse"), nil
}

func needFuse(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("fusermount3"); err != nil {
		t.Skip("no fusermount3 here; install fuse3")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("/dev/fuse cannot be opened: %v", err)
	}
	f.Close()
}

// helper is a running ring3 up.
type helper struct {
	helperReport
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	done  chan struct{}
	// The two processes it started, with their start times.
	watcher, child Proc
	stderr         *strings.Builder // to be read after done
}

// newBase gives the test a run folder of its own.
func newBase(t *testing.T) string {
	t.Helper()
	base := t.TempDir() + "/run"
	t.Setenv(BaseEnv, base)
	return base
}

// up starts a helper and waits until it is ready.
func up(t *testing.T, words string) *helper {
	t.Helper()
	h, err := tryUp(t, words)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func tryUp(t *testing.T, words string) (*helper, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"= "+words+" ")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	h := &helper{t: t, cmd: cmd, stdin: stdin, done: make(chan struct{}), stderr: &stderr}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &h.helperReport)
	}
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return nil, fmt.Errorf("helper: %w: %s", err, stderr.String())
	}
	h.watcher, h.child = Proc{Pid: h.Watcher, Start: startOf(h.Watcher)}, Proc{Pid: h.Child, Start: startOf(h.Child)}
	go func() { cmd.Wait(); close(h.done) }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-h.done
		for _, p := range []Proc{h.watcher, h.child} { // only what a failed test left
			if p.alive() {
				t.Errorf("%s outlives the test", p)
				p.kill()
			}
		}
		if m := h.Info.Mount; m != "" {
			if _, left := mounts.At(m); left {
				t.Errorf("%s is still mounted", m)
				unmount(m)
			}
		}
	})
	return h, nil
}

func startOf(pid int) uint64 { s, _, _ := procStart(pid); return s }

func (h *helper) say(word string) {
	h.t.Helper()
	if _, err := io.WriteString(h.stdin, word+"\n"); err != nil {
		h.t.Fatal(err)
	}
	<-h.done
	if code := h.cmd.ProcessState.ExitCode(); word == "close" && code != 0 {
		h.t.Errorf("closing: exit status %d: %s", code, h.stderr)
	}
}

func (h *helper) kill() {
	h.cmd.Process.Signal(syscall.SIGKILL)
	<-h.done
}

// eventually waits for what a watcher does after its parent is gone.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after 10s still not: %s", what)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, os.ErrNotExist)
}
