package kernfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/mounts"
	"github.com/ring3dev/ring3/internal/node"
)

func TestMountPointErrors(t *testing.T) {
	needFuse(t)
	dir := t.TempDir()
	full, file := filepath.Join(dir, "full"), filepath.Join(dir, "file")
	if err := os.MkdirAll(filepath.Join(full, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "does not exist: `mkdir -p",
		file:                       "not a directory",
		full:                       "not empty (x)",
		"/proc":                    "already a mount, of type proc",
	} {
		s, err := Mount(path, &node.Dir{}, Options{})
		if err == nil {
			_ = s.Unmount()
			t.Fatalf("Mount(%s) succeeds", path)
		}
		if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Mount(%s) = %q, want one line with the path and %q", path, err, want)
		}
	}
}

func TestMountedTwice(t *testing.T) {
	s := serve(t, false, false)
	if _, err := checkDir(s.dir); err == nil || !strings.Contains(err.Error(), "already a mount, of type fuse.ring3") {
		t.Errorf("mounting over a tree: %v", err)
	}
	s.pause()
	start := time.Now()
	_, err := checkDir(s.dir)
	_ = s.cmd.Process.Signal(syscall.SIGCONT)
	if err == nil || !strings.Contains(err.Error(), "does not answer") || time.Since(start) > statWait+time.Second {
		t.Errorf("mounting over a stopped tree: %v after %v", err, time.Since(start))
	}
}

// TestRefused takes away what mounting needs, in mount namespaces of root's.
func TestRefused(t *testing.T) {
	needFuse(t)
	if os.Geteuid() != 0 {
		t.Skip("only root can take things away")
	}
	s := serve(t, true, false) // for its copy of the test binary
	if err := os.Mkdir(s.dir+".other", 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(s.dir + ".other")
	if err := os.Chown(s.dir+".other", 65534, 65534); err != nil {
		t.Fatal(err)
	}
	run := "KERNFS_TEST_SERVE=$D.other setpriv --reuid=65534 --regid=65534 --clear-groups $D.test < /dev/null"
	for _, c := range []struct{ script, want string }{
		{`f=$(mktemp); chmod 600 $f; mount --bind $f /dev/fuse; rm -f $f`, "/dev/fuse: permission denied: let users in with `sudo chmod 0666 /dev/fuse`"},
		{`mkdir /tmp/dev.$$; touch /tmp/dev.$$/null; mount --bind /dev/null /tmp/dev.$$/null; mount --rbind /tmp/dev.$$ /dev`, "/dev/fuse: no such file or directory: load the module"},
		{`for f in $(readlink -f $(command -v fusermount3)) $(readlink -f $(command -v fusermount)); do mount --bind /dev/null $f; done`, "fusermount3 is not installed"},
	} {
		got := s.sh(`export PATH=$PATH; unshare -m bash -c '` + c.script + `; ` + run + `'`)
		if !strings.Contains(got, c.want) || !strings.HasPrefix(got, "error mounting at "+s.dir+".other: ") {
			t.Errorf("%s\n got %q\nwant %q", c.script, got, c.want)
		}
	}
}

func TestUnmountBusy(t *testing.T) {
	both(t, func(t *testing.T, s *server, as []string) {
		argv := append(append([]string{}, as...), "bash", "-c", `exec 3< $D/proc/hello 4> $D/proc/ctrl; cd $D/sys; echo start >&4; echo started; read -r _; read -r x <&3; echo "$x $?"; echo again >&4`)
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "D="+s.dir, "LC_ALL=C")
		out := new(strings.Builder)
		cmd.Stdout, cmd.Stderr = out, out
		stdin, err := cmd.StdinPipe() // it goes on when this ends
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if s.sh(`cat $D/proc/ctrl`, as...) == "1\n" {
				break
			}
		}
		start := time.Now()
		if got := s.ask("unmount"); got != "<nil> <nil>" && got != "done" {
			t.Errorf("Unmount() twice = %s, want nil", got)
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("Unmount() of a busy mount took %v", took)
		}
		stdin.Close()
		killer := time.AfterFunc(patience, func() {
			t.Error("a client of an unmounted tree hangs")
			_ = cmd.Process.Kill()
		})
		_ = cmd.Wait()
		killer.Stop()
		if !strings.Contains(out.String(), "started") || !strings.Contains(out.String(), "Transport endpoint is not connected") {
			t.Errorf("a client of an unmounted tree sees %q, want the end of its write, then ENOTCONN", out)
		}
	})
}

func TestUnmountedByAnother(t *testing.T) {
	both(t, func(t *testing.T, s *server, as []string) {
		if got := s.sh(`fusermount3 -u $D || umount $D`, as...); got != "" {
			t.Fatalf("fusermount3 -u: %s", got)
		}
		if got := s.line(); got != "done" {
			t.Errorf("the server says %q, want done", got)
		}
		if got := s.ask("unmount"); got != "<nil> <nil>" {
			t.Errorf("Unmount() afterwards = %s", got)
		}
	})
}

// TestUnmountLeavesNothing counts what a server still has after Unmount, in this process: it serves but
// does not touch the mount itself.
func TestUnmountLeavesNothing(t *testing.T) {
	for _, guard := range []bool{false, true} {
		s := serve(t, false, guard)
		before := s.ask("left")
		s.sh(`for i in 1 2 3 4 5 6 7 8; do cat $D/proc/hello > /dev/null & done; wait; ls -lR $D > /dev/null`)
		if after := s.ask("left"); after != before {
			t.Errorf("guard %v: after some work %s, want %s", guard, after, before)
		}
		got := s.ask("unmount")
		if got == "done" {
			got = s.line()
		} else if next := s.line(); next != "done" {
			t.Errorf("after Unmount the server says %q, want done", next)
		}
		if got != "<nil> <nil>" {
			t.Errorf("Unmount() = %s", got)
		}
		if left := s.ask("left"); left != "fds=0 goroutines=0" {
			t.Errorf("guard %v: after Unmount there is more than before Mount: %s", guard, left)
		}
		p, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", s.cmd.Process.Pid, s.cmd.Process.Pid))
		if err == nil && len(p) > 0 {
			t.Errorf("guard %v: after Unmount there are children: %s", guard, p)
		}
	}
}

func TestOddMountPoints(t *testing.T) {
	needFuse(t)
	dir := filepath.Join(t.TempDir(), `a b\c,d`)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := Mount(dir, &node.Dir{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Unmount()
	if e, ok := mounts.At(dir); !ok || e.FSType != "fuse.ring3" {
		t.Errorf("mounts.At(%q) = %q, %v, want fuse.ring3", dir, e.FSType, ok)
	}
	if err := s.Unmount(); err != nil {
		t.Errorf("Unmount() = %v", err)
	}
	if _, ok := mounts.At(dir); ok {
		t.Errorf("still mounted at %q", dir)
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
	select {
	case <-s.Done():
	default:
		t.Error("Done() is not closed after Unmount")
	}
}
