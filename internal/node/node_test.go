package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

func TestMergedDir(t *testing.T) {
	real := t.TempDir()
	if err := os.Mkdir(filepath.Join(real, "24"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, l := range []struct{ name, text string }{{"lo", "../../devices/virtual/net/lo"}, {"eth0", "../../devices/pci0/eth0"}} {
		if err := os.Symlink(l.text, filepath.Join(real, l.name)); err != nil {
			t.Fatal(err)
		}
	}
	pure := &Dir{}
	pure.Put("eth0", &Link{Target: "ours"})
	pure.Put("dev", &Link{Target: "pure"})
	pure.Put("sub", &Dir{})
	m := &Dir{Ours: pure, Kernel: real, Keep: "/old/net"}
	m.Put("dev", &Link{Target: "own"})

	if got, want := m.Names(), []string{"24", "dev", "eth0", "lo", "sub"}; !reflect.DeepEqual(got, want) {
		t.Errorf("Names() = %q, want %q", got, want)
	}
	for name, want := range map[string]string{"dev": "own", "eth0": "ours", "lo": "../../devices/virtual/net/lo", "24": "/old/net/24"} {
		l, ok := m.Lookup(name).(*Link)
		if !ok || l.Target != want {
			t.Errorf("Lookup(%q) = %+v, want a link to %q", name, l, want)
		}
	}
	for _, name := range []string{"none", "", ".", ".."} {
		if n := m.Lookup(name); n != nil {
			t.Errorf("Lookup(%q) = %v, want nil", name, n)
		}
	}
	if got, want := m.Hidden(), []string{"eth0"}; !reflect.DeepEqual(got, want) {
		t.Errorf("Hidden() = %q, want %q", got, want)
	}
	if got := m.Subdirs(); got != 1 {
		t.Errorf("Subdirs() = %d, want 1", got)
	}
	pure.Put("late", &Dir{})
	if m.Lookup("late") == nil || m.Subdirs() != 2 {
		t.Error("an entry that comes later in Ours does not show")
	}
	pure.Put("late", &Link{})
	pure.Remove("sub")
	pure.Remove("none")
	if got := m.Subdirs(); got != 0 {
		t.Errorf("Subdirs() after replacing and removing = %d, want 0", got)
	}
}

func TestWalk(t *testing.T) {
	root := &Dir{}
	f := &File{}
	root.MkdirAll("sys/devices/x").Put("f", f)
	root.MkdirAll("sys/class").Put("x", &Link{Target: "../devices/x"})
	root.Put("loop", &Link{Target: "loop"})
	root.Put("abs", &Link{Target: "/sys/class/x/f"})
	for path, want := range map[string]error{"sys/class/x/f": nil, "/abs": nil, "sys/../sys/devices/x/f": nil, "../../abs": nil,
		"loop": syscall.ELOOP, "none": syscall.ENOENT, "abs/f": syscall.ENOTDIR} {
		n, err := root.Walk(path)
		if err != want || (err == nil && n != Node(f)) {
			t.Errorf("Walk(%q) = %v, %v, want error %v", path, n, err, want)
		}
	}
}

func TestFileRules(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for _, c := range []struct {
		flavour Flavour
		want    int
	}{{Proc, 5000}, {Sys, 4096}} {
		var got int
		f := &File{Flavour: c.flavour, Show: func(w *bytes.Buffer) error { w.WriteString(long); return nil },
			Store: func(_ context.Context, p []byte) (int, error) { got = len(p); return len(p), nil }}
		if p, err := f.ReadAll(); err != nil || len(p) != c.want {
			t.Errorf("flavour %d: ReadAll() = %d bytes, %v, want %d", c.flavour, len(p), err, c.want)
		}
		if n, err := f.Write(context.Background(), []byte(long)); err != nil || n != c.want || got != c.want {
			t.Errorf("flavour %d: Write() = %d (store saw %d), %v, want %d", c.flavour, n, got, err, c.want)
		}
	}
	var none File
	if _, err := none.ReadAll(); err != syscall.EIO {
		t.Errorf("ReadAll() without show = %v, want EIO", err)
	}
	if _, err := none.Write(context.Background(), []byte("x")); err != syscall.EIO {
		t.Errorf("Write() without store = %v, want EIO", err)
	}
	bad := &File{ReadAt: func([]byte, int64) (int, error) { return -1, nil }}
	if p, err := bad.ReadAll(); len(p) != 0 || err != nil {
		t.Errorf("ReadAll() of a ReadAt that returns -1 = %d bytes, %v, want 0", len(p), err)
	}
}

func TestErrno(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{{nil, 0}, {fmt.Errorf("x: %w", syscall.EBUSY), syscall.EBUSY}, {os.ErrNotExist, syscall.ENOENT}, {os.ErrPermission, syscall.EACCES},
		{context.Canceled, syscall.EINTR}, {errors.New("x"), syscall.EIO}} {
		if got := Errno(c.err); got != c.want {
			t.Errorf("Errno(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}
