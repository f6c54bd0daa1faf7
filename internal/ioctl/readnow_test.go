package ioctl

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// An eventfd that blocks is read without blocking, and without allocating.
func TestReadNow(t *testing.T) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	b := make([]byte, 8)
	if n, err := ReadNow(fd, b); n != 0 || !errors.Is(err, unix.EAGAIN) {
		t.Errorf("ReadNow of nothing = %d, %v, want EAGAIN", n, err)
	}
	if _, err := unix.Write(fd, []byte{5, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	if n, err := ReadNow(fd, b); n != 8 || err != nil || b[0] != 5 {
		t.Errorf("ReadNow = %d, %v, % x, want 5", n, err, b)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = ReadNow(fd, b) }); n != 0 {
		t.Errorf("ReadNow allocates %v times", n)
	}
	if _, err := ReadNow(-1, b); !errors.Is(err, unix.EBADF) {
		t.Errorf("ReadNow of no descriptor = %v, want EBADF", err)
	}
}

// So is what cannot be read that way: here an inotify, elsewhere an eventfd of an old kernel.
func TestReadNowOld(t *testing.T) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	dir := t.TempDir()
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 256)
	if n, err := ReadNow(fd, b); n != 0 || !errors.Is(err, unix.EAGAIN) {
		t.Errorf("ReadNow of nothing = %d, %v, want EAGAIN", n, err)
	}
	if err := os.Mkdir(filepath.Join(dir, "new"), 0o700); err != nil {
		t.Fatal(err)
	}
	if n, err := ReadNow(fd, b); n <= 0 || err != nil {
		t.Errorf("ReadNow = %d, %v, want an event", n, err)
	}
}
