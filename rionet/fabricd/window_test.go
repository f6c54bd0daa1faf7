package fabricd

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWindow: a window is a file of the size asked for, and who has it mapped reads ones when its node is gone, and never faults.
func TestWindow(t *testing.T) {
	dir := t.TempDir()
	w := newWindows(filepath.Join(dir, "sock"), dir)
	ws, err := w.open("pe1", Sizes{8192, 4096})
	if err != nil {
		t.Fatal(err)
	}
	if len(ws) != 2 || filepath.Base(ws[1].Path) != "pe1.1" || ws[0].Size != 8192 {
		t.Fatalf("open = %+v", ws)
	}
	st, err := os.Stat(ws[0].Path)
	if err != nil || st.Size() != 8192 || st.Mode() != 0o600 {
		t.Errorf("%s: %v, %v, want 8192 bytes of mode 0600", ws[0].Path, st, err)
	}
	var sfs unix.Statfs_t
	if err := unix.Statfs(ws[0].Path, &sfs); err != nil || sfs.Type != unix.TMPFS_MAGIC {
		t.Errorf("%s is on a file system of type %#x, want a tmpfs", ws[0].Path, sfs.Type)
	}
	f, err := os.OpenFile(ws[0].Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	mem[8191] = 5
	if _, err := w.open("pe1", Sizes{4096}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second window of the same name: %v, want %v", err, fs.ErrExist)
	}
	if err := os.Truncate(ws[0].Path, 4096); err != nil { // somebody is careless
		t.Fatal(err)
	}
	if err := w.closeAll(ws); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(mem, bytes.Repeat([]byte{0xff}, 8192)) {
		t.Error("the mapping of a window that is gone reads other than ones")
	}
	if _, err := os.Stat(ws[0].Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file of a window that is gone: %v", err)
	}
	where := w.dir
	if err := w.close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(where); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder of windows: %v", err)
	}
}

// TestWindowPlaces: where no tmpfs is, one line says where it was looked for.
func TestWindowPlaces(t *testing.T) {
	w := &windows{candidates: []string{"/proc/x", "/no/such/y"}}
	_, err := w.open("pe1", Sizes{4096})
	if err == nil || !strings.Contains(err.Error(), "/proc is no tmpfs") || !strings.Contains(err.Error(), "/no/such") || strings.Contains(err.Error(), "\n") {
		t.Errorf("open = %v", err)
	}
	if ws, err := w.open("pe1", nil); err != nil || ws != nil {
		t.Errorf("open of no windows = %v, %v", ws, err)
	}
}

// TestWindowLeftovers: what a daemon that died left does not stay.
func TestWindowLeftovers(t *testing.T) {
	dir := t.TempDir()
	sock := filepath.Join(dir, "sock")
	ws, err := newWindows(sock, dir).open("pe1", Sizes{4096})
	if err != nil {
		t.Fatal(err)
	}
	ws[0].f.Close()
	w := newWindows(sock, dir)
	if ws, err = w.open("pe1", Sizes{4096}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.closeAll(ws), w.close()); err != nil {
		t.Error(err)
	}
}
