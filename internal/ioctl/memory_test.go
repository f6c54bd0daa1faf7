package ioctl

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMapOver(t *testing.T) {
	page := os.Getpagesize()
	area, err := unix.Mmap(-1, 0, 3*page, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(area)
	fd, err := unix.MemfdCreate("over", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(2*page)); err != nil {
		t.Fatal(err)
	}
	// The second page of the file, in the middle.
	if err := MapOver(area[page:2*page], fd, int64(page)); err != nil {
		t.Fatal(err)
	}
	area[page] = 7
	var b [1]byte
	if _, err := unix.Pread(fd, b[:], int64(page)); err != nil || b[0] != 7 {
		t.Errorf("the file has %d, %v where 7 was written", b[0], err)
	}
	if err := MapOver(area[1:page], fd, 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("MapOver of no whole page = %v, want EINVAL", err)
	}
}

func TestPin(t *testing.T) {
	b, err := unix.Mmap(-1, 0, 1<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	fd, err := Pin(b)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skipf("the kernel has no io_uring for this process: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
	hole, err := unix.Mmap(-1, 0, 1<<16, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(hole)
	if fd, err := Pin(hole); !errors.Is(err, unix.EFAULT) {
		t.Errorf("Pin of what cannot be reached = %d, %v, want EFAULT", fd, err)
	}
}
