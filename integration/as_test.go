package integration

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/internal/mounts"
)

// TestAs brings models up as root that becomes nobody: the process has no privilege left and no way
// to one, the tree is mounted all the same, and goes whether it ends in order or is killed.
func TestAs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	for _, end := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		t.Run(end.String(), func(t *testing.T) { testAs(t, end) })
	}
}

const secretFile = "of-root"

func testAs(t *testing.T, end syscall.Signal) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// A descriptor of root's that nobody must not get.
	secret, err := os.OpenFile(filepath.Join(t.TempDir(), secretFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	cmd := exec.CommandContext(ctx, ring3, "up", "-i", "as", "--as", nobody, "edu0=sim:edu")
	cmd.Env = append(os.Environ(), "SECRET=1")
	cmd.ExtraFiles = []*os.File{secret}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	tree := ""
	for s := bufio.NewScanner(out); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "tree: "); ok {
			tree = v
		}
		if strings.Contains(s.Text(), "is ready") {
			break
		}
	}
	if tree == "" {
		t.Fatal("no tree was mounted")
	}
	checkPlain(t, cmd.Process.Pid)

	// The user's own commands find it, and the user's alone.
	user := exec.Command("setpriv", "--reuid="+nobody, "--regid="+nobody, "--clear-groups", "env", "-i", "PATH="+os.Getenv("PATH"), "RING3_RUNTIME_DIR="+filepath.Dir(filepath.Dir(tree)),
		"sh", "-c", ring3+" ls -i as && cat "+tree+"/sys/bus/pci/devices/*/vendor")
	if out, err := user.CombinedOutput(); err != nil || !strings.Contains(string(out), "edu0") || !strings.Contains(string(out), "0x1234") {
		t.Errorf("ring3 ls as the user: %v, %s", err, out)
	}
	_ = cmd.Process.Signal(end)
	err = cmd.Wait()
	if end == syscall.SIGINT && err != nil {
		t.Errorf("ring3 up ends with %v", err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, mounted := mounts.At(tree)
		_, err := os.Lstat(filepath.Dir(tree))
		if !mounted && os.IsNotExist(err) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("left over: mounted %v, folder %v", mounted, err)
		}
	}
}

// checkPlain looks at a process from outside: nothing is left of root.
func checkPlain(t *testing.T, pid int) {
	t.Helper()
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if len(tasks) == 0 {
		t.Fatal("no threads")
	}
	const none = "0000000000000000"
	for _, file := range tasks {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // the thread ended
		}
		for _, want := range []string{
			"Uid:\t65534\t65534\t65534\t65534\n", "Gid:\t65534\t65534\t65534\t65534\n", "CapInh:\t" + none, "CapPrm:\t" + none, "CapEff:\t" + none,
			"CapBnd:\t" + none, "CapAmb:\t" + none, "NoNewPrivs:\t1\n",
		} {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s lacks %q", file, want)
			}
		}
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || strings.Contains(string(env), "SECRET") {
		t.Errorf("the environment is root's: %q, %v", env, err)
	}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); filepath.Base(to) == secretFile {
			t.Error("a descriptor of root's was inherited")
		}
	}
}
