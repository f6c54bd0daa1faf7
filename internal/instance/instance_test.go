package instance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/mounts"
)

func TestCreateAndClose(t *testing.T) {
	base := newBase(t)
	if err := Sweep(nil); err != nil {
		t.Errorf("Sweep without a run folder = %v, want nil", err)
	}
	if l, err := List(); err != nil || l != nil {
		t.Errorf("List without a run folder = %v, %v, want none", l, err)
	}
	if exists(base) {
		t.Errorf("Sweep and List made %s", base)
	}
	in, err := Create(Options{Version: "v1", Devices: []string{"eth0=qemu:e1000e"}})
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(base)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("run folder: %v, %v, want mode 0700", st.Mode(), err)
	}
	l, err := List()
	if err != nil || len(l) != 1 {
		t.Fatalf("List = %v, %v, want one", l, err)
	}
	if got := l[0]; got.Name != "r0" || got.Pid != os.Getpid() || got.Version != "v1" || got.Start != startOf(os.Getpid()) ||
		time.Since(got.Since) > time.Minute || got.Dir != in.Dir() || len(got.Devices) != 1 {
		t.Errorf("List = %+v", got)
	}
	if got, want := l[0].Env(), BaseEnv+"="+base; got != want {
		t.Errorf("Env = %q, want %q", got, want)
	}
	if err := Sweep(nil); err != nil || !exists(in.Dir()) {
		t.Errorf("Sweep of a live one: %v, folder there: %v", err, exists(in.Dir()))
	}
	if err := in.Update(func(s *State) { s.Devices = append(s.Devices, "eth1=sim:x"); s.Pid = 1; s.ID = "" }); err != nil {
		t.Fatal(err)
	}
	if i, err := Pick(""); err != nil || len(i.Devices) != 2 || i.Pid != os.Getpid() || i.ID == "" {
		t.Errorf("Pick after Update = %+v, %v", i, err)
	}
	for range 2 {
		if err := in.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
	if ents, err := os.ReadDir(base); err != nil || len(ents) != 0 {
		t.Errorf("after Close there are %v, %v, want nothing", ents, err)
	}
	if err := in.Update(func(*State) {}); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Update after Close = %v, want %v", err, fs.ErrClosed)
	}
}

func TestNames(t *testing.T) {
	newBase(t)
	var all []*Instance
	defer func() {
		for _, in := range all {
			in.Close()
		}
	}()
	mk := func(name string) *Instance {
		t.Helper()
		in, err := Create(Options{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, in)
		return in
	}
	for i, want := range []string{"r0", "r1", "r2"} {
		if got := mk("").Name(); got != want {
			t.Errorf("name %d = %s, want %s", i, got, want)
		}
	}
	all[1].Close()
	if got := mk("").Name(); got != "r1" {
		t.Errorf("lowest free name = %s, want r1", got)
	}
	mk("lab.1_x-y")
	if _, err := Create(Options{Name: "r2"}); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("Create of a taken name = %v, want %v with the pid", err, ErrExists)
	}
	for _, bad := range []string{".", "..", ".lock", "fabric.sock", "fabric.sock.d", "a/b", "-x", "a b", "ä", "a\n", strings.Repeat("x", 33)} {
		if in, err := Create(Options{Name: bad}); err == nil {
			in.Close()
			t.Errorf("Create(%q) made an instance", bad)
		}
	}
	if ents, _ := filepath.Glob(os.Getenv(BaseEnv) + "/.new*"); len(ents) > 0 {
		t.Errorf("left behind: %v", ents)
	}
	// A fabric's folder has no lock, and is not swept.
	fabric := filepath.Join(os.Getenv(BaseEnv), "fabric.sock.d")
	if err := os.Mkdir(fabric, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(fabric); err != nil {
		t.Errorf("Sweep took a fabric's folder away: %v", err)
	}
}

func TestPick(t *testing.T) {
	newBase(t)
	if _, err := Pick(""); !errors.Is(err, ErrNone) {
		t.Errorf("Pick with none = %v, want %v", err, ErrNone)
	}
	if _, err := Pick("x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Pick(x) with none = %v, want %v", err, ErrNotFound)
	}
	for _, n := range []string{"r10", "r2", "b"} {
		in, err := Create(Options{Name: n})
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
	}
	if i, err := Pick("r2"); err != nil || i.Name != "r2" {
		t.Errorf("Pick(r2) = %v, %v", i, err)
	}
	_, err := Pick("")
	var amb *AmbiguousError
	if !errors.As(err, &amb) || len(amb.Running) != 3 || !strings.HasSuffix(err.Error(), "-i: b, r2, r10") {
		t.Errorf("Pick with three = %v, want an AmbiguousError with the list in order", err)
	}
	if _, err := Pick("r1"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "b, r2, r10") {
		t.Errorf("Pick(r1) = %v, want %v with the list", err, ErrNotFound)
	}
}

func TestBaseRefused(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "other")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, want string
		make       func(path string) error
	}{
		{"link", "symbolic link", func(p string) error { return os.Symlink(other, p) }},
		{"file", "not a directory", func(p string) error { return os.WriteFile(p, nil, 0o600) }},
		{"open mode", "mode 0750, want 0700", func(p string) error {
			return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o750))
		}},
		{"foreign", "belongs to uid 12345", func(p string) error {
			if os.Geteuid() != 0 {
				t.Log("not root: cannot make a stranger's folder")
				return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o755), fs.ErrPermission)
			}
			return errors.Join(os.Mkdir(p, 0o700), os.Chown(p, 12345, 12345))
		}},
		{"no parent", "XDG_RUNTIME_DIR is ", func(string) error { return nil }},
	} {
		t.Run(c.what, func(t *testing.T) {
			xdg := filepath.Join(dir, c.what)
			t.Setenv(BaseEnv, "")
			t.Setenv("XDG_RUNTIME_DIR", xdg)
			if c.what != "no parent" {
				if err := os.Mkdir(xdg, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.make(filepath.Join(xdg, "ring3")); err != nil {
				t.Skip(err)
			}
			_, err := Create(Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Create = %v, want one line with %q", err, c.want)
			}
		})
	}
}

func TestBaseChosen(t *testing.T) {
	tmp := t.TempDir()
	real, err := filepath.EvalSymlinks(tmp)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ own, xdg, want string }{
		{real + "/own", real, real + "/own"},
		{"", real, real + "/ring3"},
		{"", "", fmt.Sprintf("%s/ring3-%d", real, os.Geteuid())},
		{"", "relative", fmt.Sprintf("%s/ring3-%d", real, os.Geteuid())},
	} {
		t.Setenv(BaseEnv, c.own)
		t.Setenv("XDG_RUNTIME_DIR", c.xdg)
		t.Setenv("TMPDIR", tmp)
		if got, err := Base(true); got != c.want || err != nil {
			t.Errorf("Base with %+v = %s, %v, want %s", c, got, err, c.want)
		}
	}
	t.Setenv(BaseEnv, "relative")
	if got, err := Base(true); err == nil {
		t.Errorf("Base with a relative %s = %s, want an error", BaseEnv, got)
	}
}

// TestKilled: SIGKILL takes parent and watcher; the next command's Sweep does the rest,
// however many begin at once.
func TestKilled(t *testing.T) {
	needFuse(t)
	newBase(t)
	h := up(t, "child mount=tree")
	other := up(t, "name=other child")
	h.kill()
	if !h.child.alive() {
		t.Fatal("the child ended by itself")
	}
	if l, err := List(); err != nil || len(l) != 1 || l[0].Name != "other" {
		t.Errorf("List = %v, %v, want the live one only", l, err)
	}
	var log syncBuffer
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := Sweep(slog.New(slog.NewTextHandler(&log, nil))); err != nil {
				t.Errorf("Sweep = %v", err)
			}
		})
	}
	wg.Wait()
	gone(t, h)
	if got := strings.Count(log.String(), "cleaned up"); got != 1 {
		t.Errorf("%d messages of cleaning up, want 1:\n%s", got, log.String())
	}
	if !other.child.alive() {
		t.Error("Sweep killed the child of a live instance")
	}
	other.say("close")
	gone(t, other)
}

// gone checks that nothing is left of an instance.
func gone(t *testing.T, h *helper) {
	t.Helper()
	if h.child.alive() {
		t.Errorf("child %d still runs", h.Child)
	}
	if m := h.Info.Mount; m != "" {
		if e, left := mounts.At(m); left {
			t.Errorf("%s still mounted: %+v", m, e)
		}
	}
	if exists(h.Info.Dir) {
		t.Errorf("%s still there", h.Info.Dir)
	}
}

// TestWatcher: however the parent ends, its watcher leaves nothing behind.
func TestWatcher(t *testing.T) {
	needFuse(t)
	for _, how := range []string{"close", "exit", "panic", "SIGKILL"} {
		t.Run(how, func(t *testing.T) {
			newBase(t)
			// A folder that is not there yet, behind a link, with a blank in its real name.
			dir := filepath.Join(t.TempDir(), "a folder")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			link := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(dir, link); err != nil {
				t.Fatal(err)
			}
			h := up(t, "watch child mount="+link+"/tree")
			if _, ok := mounts.At(h.Info.Mount); !ok {
				t.Fatalf("nothing mounted at %s", h.Info.Mount)
			}
			// What a session's end sends, and an impatient user.
			for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP} {
				unix.Kill(h.Watcher, sig)
			}
			if how == "SIGKILL" {
				h.kill()
			} else {
				h.say(how)
			}
			eventually(t, "watcher gone", func() bool { return !h.watcher.alive() })
			gone(t, h)
			if exists(dir + "/tree") {
				t.Error("the mount point that was made is still there")
			}
		})
	}
}

// TestWatcherLeavesSuccessorAlone: by the time the watcher gets to it, the name and the
// mount point belong to the next instance.
func TestWatcherLeavesSuccessorAlone(t *testing.T) {
	needFuse(t)
	newBase(t)
	mnt := t.TempDir()
	h := up(t, "name=a watch child mount="+mnt)
	unix.Kill(h.Watcher, unix.SIGSTOP)
	h.kill()
	if err := Sweep(nil); err != nil {
		t.Fatal(err)
	}
	next := up(t, "name=a child mount="+mnt)
	unix.Kill(h.Watcher, unix.SIGCONT)
	eventually(t, "watcher gone", func() bool { return !h.watcher.alive() })
	if _, ok := mounts.At(mnt); !ok {
		t.Error("the old watcher unmounted the new instance")
	}
	if i, err := Pick("a"); err != nil || i.ID != next.Info.ID || i.ID == h.Info.ID {
		t.Errorf("Pick(a) = %+v, %v, want the new one", i, err)
	}
	next.say("close")
	gone(t, next)
}

// TestWatcherHoldsNoPipe: in ring3 run ... | cat, cat ends when ring3 does, whatever
// descriptors the shell gave along.
func TestWatcherHoldsNoPipe(t *testing.T) {
	newBase(t)
	cmd := exec.Command("sh", "-c", `exec 7>&1; exec "$0"`, "/proc/"+fmt.Sprint(os.Getpid())+"/exe")
	cmd.Env = append(os.Environ(), helperEnv+"= watch ")
	cmd.Stdin = strings.NewReader("exit\n")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var out bytes.Buffer
	buf := make([]byte, 4096)
	n, err := r.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(buf[:n])
	r.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(&out, r); err != nil {
		t.Errorf("waiting for the pipe's end: %v", err)
	}
	cmd.Wait()
	eventually(t, "folder gone", func() bool { l, _ := filepath.Glob(os.Getenv(BaseEnv) + "/r*"); return len(l) == 0 })
}

// TestReusedPid: a process with the recorded pid and another start time is a stranger.
func TestReusedPid(t *testing.T) {
	newBase(t)
	h := up(t, "child")
	stranger := exec.Command("sleep", "1000")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stranger.Process.Kill(); stranger.Wait() }()
	h.kill()
	s, err := readState(h.Info.Dir)
	if err != nil {
		t.Fatal(err)
	}
	s.Children = append(s.Children, Proc{Pid: stranger.Process.Pid, Start: startOf(stranger.Process.Pid) - 1},
		Proc{Pid: 1, Start: startOf(1)}, Proc{Pid: -1}, Proc{Pid: 0})
	if err := writeState(h.Info.Dir, s); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(nil); err != nil {
		t.Fatal(err)
	}
	gone(t, h)
	if p, _ := procOf(stranger.Process.Pid, ""); !p.alive() {
		t.Error("Sweep killed a stranger")
	}
}

// TestOtherBoot: after a reboot with /tmp kept, pids and start times may well agree.
func TestOtherBoot(t *testing.T) {
	newBase(t)
	h := up(t, "child")
	h.kill()
	s, err := readState(h.Info.Dir)
	if err != nil {
		t.Fatal(err)
	}
	s.Where.Boot = "another"
	if err := writeState(h.Info.Dir, s); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(nil); err != nil {
		t.Fatal(err)
	}
	if !h.child.alive() {
		t.Error("Sweep killed a process of another boot")
	}
	if exists(h.Info.Dir) {
		t.Error("folder still there")
	}
	if err := h.child.kill(); err != nil || h.child.alive() {
		t.Errorf("kill = %v", err)
	}
}

// TestTornState: garbage in the run folder stops nobody.
func TestTornState(t *testing.T) {
	base := newBase(t)
	in, err := Create(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	for name, state := range map[string]string{"torn": `{"format":1,`, "none": "", "old": `{"format":99}`, ".new-1-x": "{}"} {
		d := filepath.Join(base, name)
		if err := os.MkdirAll(d+"/tree/sub", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d+"/"+stateFile, []byte(state), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(base+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := List(); err != nil || len(l) != 1 {
		t.Errorf("List = %v, %v, want one", l, err)
	}
	if err := Sweep(nil); err != nil {
		t.Errorf("Sweep = %v", err)
	}
	ents, _ := os.ReadDir(base)
	var left []string
	for _, e := range ents {
		left = append(left, e.Name())
	}
	if got := strings.Join(left, " "); got != "file r0" {
		t.Errorf("left: %s, want file r0", got)
	}
}

// TestTwoAtOnce: many starting and sweeping at once get different names.
func TestTwoAtOnce(t *testing.T) {
	newBase(t)
	const n = 16
	var wg sync.WaitGroup
	got := make(chan *Instance, n)
	for range n {
		wg.Go(func() {
			if err := Sweep(nil); err != nil {
				t.Errorf("Sweep = %v", err)
			}
			in, err := Create(Options{})
			if err != nil {
				t.Errorf("Create = %v", err)
				return
			}
			got <- in
		})
	}
	wg.Wait()
	close(got)
	seen := map[string]bool{}
	for in := range got {
		if seen[in.Name()] {
			t.Errorf("%s twice", in.Name())
		}
		seen[in.Name()] = true
		t.Cleanup(func() { in.Close() })
	}
	if l, err := List(); len(l) != n || err != nil || !seen["r0"] || !seen[fmt.Sprintf("r%d", n-1)] {
		t.Errorf("List = %d instances, %v, want %d", len(l), err, n)
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
