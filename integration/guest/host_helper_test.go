//go:build vm

package guest

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const ring3 = "/usr/bin/ring3"

// upWait is how long ring3 up may take to be ready, or to end.
const upWait = 3 * time.Minute

// instance is a ring3 up that a test of root's started.
type instance struct {
	t    *testing.T
	cmd  *exec.Cmd
	tree string // where it is mounted
	said string // its standard output until it was ready

	mu  sync.Mutex
	err bytes.Buffer // its standard error; guarded by mu
}

// Write takes what it says on standard error.
func (in *instance) Write(p []byte) (int, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.err.Write(p)
}

// stderr is what it said there.
func (in *instance) stderr() string {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.err.String()
}

// up starts ring3 up as nobody and waits until it is ready.
func up(t *testing.T, args ...string) *instance {
	t.Helper()
	return start(t, AsNobody(exec.Command(ring3, append([]string{"up"}, args...)...)))
}

// start starts a program that is a ring3 up.
func start(t *testing.T, cmd *exec.Cmd) *instance {
	t.Helper()
	in := &instance{t: t, cmd: cmd}
	cmd.Stderr = in
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	stop := time.AfterFunc(upWait, func() { _ = cmd.Process.Kill() })
	defer stop.Stop()
	ready := false
	s := bufio.NewScanner(out)
	for !ready && s.Scan() {
		in.said += s.Text() + "\n"
		if dir, ok := strings.CutPrefix(s.Text(), "tree: "); ok {
			in.tree = dir
		}
		ready = strings.Contains(s.Text(), "is ready")
	}
	if !ready {
		_ = cmd.Wait()
		t.Fatalf("%v ends with %v: %s%s", cmd.Args, cmd.ProcessState, in.said, in.stderr())
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	return in
}

// end sends a signal and waits for the end; it returns the exit status, -1 for a signal.
func (in *instance) end(s syscall.Signal) int {
	in.t.Helper()
	_ = in.cmd.Process.Signal(s)
	return in.wait()
}

func (in *instance) wait() int {
	in.t.Helper()
	late := time.AfterFunc(upWait, func() { _ = in.cmd.Process.Signal(syscall.SIGABRT) })
	err := in.cmd.Wait()
	if !late.Stop() {
		in.t.Errorf("%v does not end: %v, %s", in.cmd.Args, err, in.stderr())
	}
	return in.cmd.ProcessState.ExitCode()
}

// sh runs a script as nobody, in the instance's tree, and returns what it printed.
func (in *instance) sh(script string) string {
	in.t.Helper()
	out, err := in.shell(script).CombinedOutput()
	if err != nil {
		in.t.Fatalf("%s: %v: %s; %s", script, err, out, in.stderr())
	}
	return string(out)
}

// shell is a script of nobody's, with TREE as the instance's tree.
func (in *instance) shell(script string) *exec.Cmd {
	cmd := AsNobody(exec.Command("sh", "-c", "set -e\n"+script))
	cmd.Dir = "/"
	cmd.Env = append(cmd.Env, "TREE="+in.tree)
	return cmd
}

// command runs a ring3 command as nobody, or as root, and returns what it printed and its
// exit status.
func command(t *testing.T, root bool, args ...string) (string, int) {
	t.Helper()
	cmd := exec.Command(ring3, args...)
	if !root && os.Getuid() == 0 {
		AsNobody(cmd)
	}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// must runs a ring3 command as root that is to succeed.
func must(t *testing.T, args ...string) string {
	t.Helper()
	out, code := command(t, true, args...)
	if code != 0 {
		t.Fatalf("ring3 %s: exit status %d: %s", strings.Join(args, " "), code, out)
	}
	return out
}

// refused runs a ring3 command that is to fail with an exit status and one line that has all
// the texts.
func refused(t *testing.T, root bool, status int, texts []string, args ...string) {
	t.Helper()
	out, code := command(t, root, args...)
	if code != status || strings.Count(out, "\n") != 1 {
		t.Errorf("ring3 %s: exit status %d, want %d and one line: %s", strings.Join(args, " "), code, status, out)
	}
	for _, s := range texts {
		if !strings.Contains(out, s) {
			t.Errorf("ring3 %s says %q, want %q in it", strings.Join(args, " "), out, s)
		}
	}
}

// driver is the kernel's driver that has a device; "" for none.
func driver(addr string) string {
	to, err := os.Readlink("/sys/bus/pci/devices/" + addr + "/driver")
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

// iface is a device's interface, once there is one.
func iface(t *testing.T, addr string) string {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if names, _ := filepath.Glob("/sys/bus/pci/devices/" + addr + "/net/*"); len(names) == 1 {
			return filepath.Base(names[0])
		}
	}
	t.Fatalf("%s has no interface", addr)
	return ""
}

// leaveNothing has the end of the test look for what instances and bindings of ring3 leave
// when they do not end well. It is called first, so that what is deferred comes before.
func leaveNothing(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		var left []string
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			instances, _ := filepath.Glob("/run/user/65534/ring3/*")
			bound, _ := filepath.Glob("/run/ring3/*")
			if left = append(instances, bound...); len(left) == 0 {
				return
			}
		}
		t.Errorf("left over: %v", left)
	})
}
