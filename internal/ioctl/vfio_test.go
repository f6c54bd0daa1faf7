package ioctl

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// A pipe answers FIONREAD with how much is in it.
func TestBytesAndValue(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	if _, err := unix.Write(p[1], make([]byte, 123)); err != nil {
		t.Fatal(err)
	}
	var b [4]byte
	if n, err := Bytes(p[0], unix.TIOCINQ, b[:]); n != 0 || err != nil || binary.NativeEndian.Uint32(b[:]) != 123 {
		t.Errorf("FIONREAD = %d, %v, gave %d, want 0, nil, 123", n, err, binary.NativeEndian.Uint32(b[:]))
	}
	if _, err := Bytes(-1, unix.TIOCINQ, b[:]); !errors.Is(err, unix.EBADF) {
		t.Errorf("Bytes of no file = %v, want EBADF", err)
	}
	if _, err := Value(p[0], unix.TIOCSCTTY, 0); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("Value of a terminal's ioctl on a pipe = %v, want ENOTTY", err)
	}
	if n := testing.AllocsPerRun(100, func() {
		var b [4]byte
		_, _ = Bytes(p[0], unix.TIOCINQ, b[:])
	}); n != 0 {
		t.Errorf("Bytes allocates %v times, want 0", n)
	}
}

func TestMemory(t *testing.T) {
	mem, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	if Address(mem)%4096 != 0 || Address(mem[1:]) != Address(mem)+1 {
		t.Errorf("Address = %#x, want a page's, and the next byte behind it", Address(mem))
	}
	b := make([]byte, 24)
	if _, err := Memory(-1, 0, b, 8, mem); !errors.Is(err, unix.EBADF) {
		t.Errorf("Memory of no file = %v, want EBADF", err)
	}
	if got := uintptr(binary.NativeEndian.Uint64(b[8:])); got != Address(mem) {
		t.Errorf("the structure holds %#x, want %#x", got, Address(mem))
	}
	out := []byte{1, 2, 3}
	if _, err := Out(-1, 0, b, 0, out); !errors.Is(err, unix.EBADF) || out[0] != 0 {
		t.Errorf("Out of no file = %v, out %v, want EBADF, zeros", err, out)
	}
}
