package fabricd

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

func TestStranger(t *testing.T) {
	for _, c := range []struct {
		uid, self int
		owners    []int
		want      bool
	}{
		{1000, 1000, nil, false},
		{0, 1000, nil, false}, // root may do anything to us anyway
		{1001, 1000, nil, true},
		{1001, 0, nil, true}, // and would hand all over to anybody
		{1001, 1000, []int{1002, 1001}, false},
		{1001, 1000, []int{1002}, true},
	} {
		if got := stranger(c.uid, c.self, c.owners); got != c.want {
			t.Errorf("stranger(%d, %d, %v) = %v, want %v", c.uid, c.self, c.owners, got, c.want)
		}
	}
}

// TestStrangersFabric: another user runs the fabric at a path, in a folder where anybody may.
func TestStrangersFabric(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have a process of another user")
	}
	const uid = 12345
	dir, err := os.MkdirTemp("", "ring3-strangers-") // a test's own has parents of mode 0700
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o1777); err != nil {
		t.Fatal(err)
	}
	// The test's program may be where the other user cannot reach it, but not the one that runs.
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	path := filepath.Join(dir, "f.sock")
	cmd := command(t, "serve", path, "-")
	cmd.Path, cmd.Dir = "/proc/self/fd/3", dir
	cmd.ExtraFiles = []*os.File{exe}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	launch(t, cmd)
	want := "is run by the user " + strconv.Itoa(uid)
	_, err = Dial(t.Context(), path)
	oneLine(t, "Dial", err, want, fs.ErrPermission)
	_, _, err = Join(t.Context(), path, Request{Node: "pe0"})
	oneLine(t, "Join", err, want, fs.ErrPermission)
	conn, err := net.Dial("unix", path+".d/pe0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	oneLine(t, "CheckOwner of an endpoint's socket", CheckOwner(conn.(*net.UnixConn), path), want, fs.ErrPermission)

	if _, err := Dial(t.Context(), path, 7, uid); err != nil {
		t.Errorf("Dial of one whose owner is named = %v", err)
	}
	node, _, err := Join(t.Context(), path, Request{Node: "pe1", Owners: []int{uid}})
	if err != nil {
		t.Fatalf("Join of one whose owner is named = %v", err)
	}
	node.Close()
}
