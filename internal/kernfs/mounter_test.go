package kernfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/mounts"
)

// mounterEnv makes the test binary a process without privileges that mounts at this
// directory by the mounter whose socket is descriptor 3.
const mounterEnv = "KERNFS_TEST_MOUNTER"

// mountAsUser is that process: it mounts, reads a file of its own, and unmounts when its input ends.
func mountAsUser(dir string) error {
	// What sudo ring3 up --as does: no set-uid program helps any more.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	m := MounterOf(os.NewFile(3, "mounter"))
	s, err := Mount(dir, testTree(), Options{Mounter: m, Guard: true})
	if err != nil {
		return err
	}
	out, err := exec.Command("cat", filepath.Join(dir, "proc/hello")).Output()
	fmt.Printf("%q %v\n", out, err)
	_, _ = io.ReadAll(os.Stdin)
	err = s.Unmount()
	return errors.Join(err, m.Close())
}

const someUser = 65534

// startAsUser starts it at a directory that owner has.
func startAsUser(t *testing.T, dir string) (cmd *exec.Cmd, stdin io.Closer, says *bufio.Reader) {
	t.Helper()
	m, err := StartMounter(someUser, someUser)
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(filepath.Dir(dir), "test")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd = &exec.Cmd{Path: exe, Args: []string{"test"}, Env: []string{mounterEnv + "=" + dir, "PATH=" + os.Getenv("PATH")}, ExtraFiles: []*os.File{m.File()}, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: someUser, Gid: someUser}}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.Close() // the child's alone now
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, in, bufio.NewReader(out)
}

// userDir is a directory of that user's.
func userDir(t *testing.T) string {
	t.Helper()
	needFuse(t)
	if os.Geteuid() != 0 {
		t.Skip("only root has mounters")
	}
	top, err := os.MkdirTemp("/tmp", "kernfs-mounter")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(top, "tree")
	if err := errors.Join(os.Chmod(top, 0o755), os.Mkdir(dir, 0o700), os.Chown(dir, someUser, someUser)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		_ = os.RemoveAll(top)
	})
	return dir
}

// unmounted waits until nothing is mounted at dir.
func unmounted(t *testing.T, dir string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, ok := mounts.At(dir); !ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s is still mounted", dir)
		}
	}
}

func TestMounter(t *testing.T) {
	for _, end := range []string{"unmounts", "is killed"} {
		dir := userDir(t)
		cmd, stdin, says := startAsUser(t, dir)
		line, err := says.ReadString('\n')
		if want := "\"hello\\n\" <nil>\n"; line != want {
			t.Fatalf("it says %q (%v), want %q", line, err, want)
		}
		if e, ok := mounts.At(dir); !ok || e.FSType != "fuse.ring3" || e.Source != "ring3" {
			t.Errorf("mounts.At(%s) = %+v, %v", dir, e, ok)
		}
		if end == "is killed" {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			unmounted(t, dir)
			continue
		}
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("it ends with %v", err)
		}
		if _, ok := mounts.At(dir); ok {
			t.Errorf("%s is still mounted after Unmount", dir)
		}
	}
}

// A user gets no mount where he could not make one by fusermount3.
func TestMounterRefuses(t *testing.T) {
	dir := userDir(t)
	for name, c := range map[string]struct{ dir, want string }{
		"root's": {"/tmp", "belongs to uid 0"},
		"proc":   {fmt.Sprintf("/proc/%d", os.Getpid()), "belongs to uid 0"},
		"a file": {"", "no directory"},
	} {
		at, file := c.dir, -1
		if at == "" {
			at = filepath.Join(filepath.Dir(dir), "file")
			if err := os.WriteFile(at, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		file, err := unix.Open(at, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = mountFor(file, "ring3", someUser, someUser)
		unix.Close(file)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: mounting on %s: %v, want %q", name, at, err, c.want)
		}
	}
	// A directory of the kernel's that the user owns.
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: someUser, Gid: someUser}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	fd, err := unix.Open(fmt.Sprintf("/proc/%d", cmd.Process.Pid), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, _, err := mountFor(fd, "ring3", someUser, someUser); err == nil || !strings.Contains(err.Error(), "the kernel's") {
		t.Errorf("mounting on a process's directory: %v", err)
	}
}
