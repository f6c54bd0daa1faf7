package chardev

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/rm"
)

var (
	one = tpmdd.Command(tpmdd.TagNoSessions, 0x17b, 1, 1, 1, 1)
	two = tpmdd.Command(tpmdd.TagNoSessions, 0x17b, 2, 2)
)

func openTPM(t testing.TB, answer func([]byte) ([]byte, error), opt Options) *File {
	t.Helper()
	f, err := New(newChip(answer), nil, opt).OpenTPM(unix.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func wantWrite(t testing.TB, f *File, p []byte, flags int, want error) {
	t.Helper()
	n, err := f.Write(t.Context(), p, flags)
	wantN := len(p)
	if want != nil {
		wantN = 0
	}
	if n != wantN || !isErrno(err, want) {
		t.Errorf("Write(%d bytes, flags %#x) = %d, %v, want %d, %v", len(p), flags, n, err, wantN, want)
	}
}

// wantRead reads at most n bytes.
func wantRead(t testing.TB, f *File, n int, want []byte, wantErr error) {
	t.Helper()
	p := make([]byte, n)
	got, err := f.Read(t.Context(), p, 0)
	if !bytes.Equal(p[:got], want) || !isErrno(err, wantErr) {
		t.Errorf("Read(%d bytes) = % x, %v, want % x, %v", n, p[:got], err, want, wantErr)
	}
}

// isErrno tells whether a program would see want.
func isErrno(err, want error) bool {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return err == nil && want == nil
	}
	return errno == want
}

func wantPoll(t testing.TB, f *File, want uint32) {
	t.Helper()
	if got, _ := f.Poll(); got != want {
		t.Errorf("Poll() = %#x, want %#x", got, want)
	}
}

const (
	readable = unix.EPOLLIN | unix.EPOLLRDNORM
	writable = unix.EPOLLOUT | unix.EPOLLWRNORM
)

func TestWriteAndRead(t *testing.T) {
	f := openTPM(t, echo, Options{})
	wantPoll(t, f, writable)
	wantRead(t, f, 99, nil, nil) // nothing pending
	wantWrite(t, f, one, 0, nil)
	wantPoll(t, f, readable)
	wantWrite(t, f, two, 0, unix.EBUSY) // nothing of it was read
	wantWrite(t, f, two[:3], 0, unix.EBUSY)
	wantRead(t, f, 99, one, nil)
	wantRead(t, f, 99, nil, nil)
	wantPoll(t, f, writable)

	// In parts; a write is legal after the first, and takes the rest away.
	wantWrite(t, f, one, 0, nil)
	wantRead(t, f, 10, one[:10], nil)
	wantPoll(t, f, readable)
	wantRead(t, f, 3, one[10:13], nil)
	wantRead(t, f, 3, one[13:], nil)
	wantRead(t, f, 3, nil, nil)
	wantWrite(t, f, one, 0, nil)
	wantRead(t, f, 1, one[:1], nil)
	wantWrite(t, f, two[:9], 0, unix.EINVAL)
	wantRead(t, f, 1, one[1:2], nil) // still there
	wantWrite(t, f, two, 0, nil)
	wantRead(t, f, 99, two, nil)

	// No bytes discard it.
	wantWrite(t, f, one, 0, nil)
	wantRead(t, f, 0, nil, nil)
	wantRead(t, f, 99, nil, nil)
	wantWrite(t, f, one, 0, nil)
}

func TestLengths(t *testing.T) {
	f := openTPM(t, echo, Options{})
	wantWrite(t, f, make([]byte, 4097), 0, unix.E2BIG)
	for _, p := range [][]byte{nil, one[:5], one[:13], {0, 0, 0xff, 0xff, 0xff, 0xff}} {
		wantWrite(t, f, p, 0, unix.EINVAL)
	}
	wantWrite(t, f, make([]byte, 6), 0, unix.ENODATA)
	wantWrite(t, f, make([]byte, 4096), unix.O_NONBLOCK, nil) // a length of 0
	wantRead(t, f, 99, nil, unix.ENODATA)
	long := make([]byte, 4096)
	copy(long, []byte{0x80, 1, 0, 0, 0x10, 0})
	wantWrite(t, f, long, 0, nil)
	wantRead(t, f, 9999, long, nil)
	// What goes out is as long as the header says.
	wantWrite(t, f, append(bytes.Clone(one), 7, 7, 7), 0, nil)
	wantRead(t, f, 99, one, nil)
}

// What was read, or thrown away, is zeroed.
func TestNothingRemains(t *testing.T) {
	f := openTPM(t, echo, Options{})
	wantWrite(t, f, one, 0, nil)
	kept := f.answer
	wantRead(t, f, 9, one[:9], nil)
	if want := append(make([]byte, 9), one[9:]...); !bytes.Equal(kept, want) {
		t.Errorf("kept after Read = % x, want % x", kept, want)
	}
	wantWrite(t, f, two, 0, nil)
	if want := make([]byte, len(kept)); !bytes.Equal(kept, want) {
		t.Errorf("kept after Write = % x, want zeros", kept)
	}
}

func TestTransmitFails(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EPIPE, unix.ETIME, unix.EIO, unix.ECANCELED} {
		f := openTPM(t, fails(errno), Options{})
		wantWrite(t, f, one, 0, errno)
		wantPoll(t, f, writable)
		wantRead(t, f, 99, nil, nil)
		wantWrite(t, f, one, unix.O_NONBLOCK, nil)
		wantRead(t, f, 99, nil, errno)
		wantPoll(t, f, writable)
		wantRead(t, f, 99, nil, nil)
		wantWrite(t, f, one, 0, errno)
	}
	f := openTPM(t, func([]byte) ([]byte, error) { return nil, nil }, Options{})
	wantWrite(t, f, one, 0, unix.EIO)
	f = openTPM(t, func([]byte) ([]byte, error) { return nil, errors.New("no errno") }, Options{})
	wantWrite(t, f, one, 0, unix.EIO)
	f = openTPM(t, func([]byte) ([]byte, error) { return make([]byte, 4097), nil }, Options{})
	wantWrite(t, f, one, 0, unix.EIO)
}

func TestRefuse(t *testing.T) {
	said := tpmdd.Answer(tpmdd.TagNoSessions, 0x907)
	sent := 0
	c := newChip(func(cmd []byte) ([]byte, error) { sent++; return commandList(cmd) })
	c.family = tpmdd.TPM20
	m, err := rm.New(context.Background(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	sent = 0
	d := New(c, m, Options{Refuse: func(cmd []byte) []byte {
		if h, _ := tpmdd.ParseHeader(cmd); h.Code == 0x17b && len(cmd) == len(one) {
			return said
		}
		return nil
	}})
	for name, open := range map[string]func(int) (*File, error){"tpm0": d.OpenTPM, "tpmrm0": d.OpenRM} {
		f, err := open(0)
		if err != nil {
			t.Fatal(err)
		}
		before := sent
		wantWrite(t, f, append(bytes.Clone(one), 9, 9), 0, nil)
		wantRead(t, f, 99, said, nil)
		wantWrite(t, f, one, unix.O_NONBLOCK, nil)
		wantRead(t, f, 99, said, nil)
		if sent != before {
			t.Errorf("%s: %d refused commands reached the chip, want none", name, sent-before)
		}
		wantWrite(t, f, two, 0, nil)
		wantRead(t, f, 99, two, nil)
		wantWrite(t, f, make([]byte, 6), 0, unix.ENODATA)
		f.Close()
	}
	if said[9] != 7 {
		t.Errorf("the policy's answer was zeroed: % x", said)
	}
}

// commandList says that the TPM has GetRandom and nothing else, and repeats other commands.
func commandList(cmd []byte) ([]byte, error) {
	if h, _ := tpmdd.ParseHeader(cmd); h.Code == 0x17a {
		return tpmdd.Command(tpmdd.TagNoSessions, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 1, 0x7b), nil
	}
	return echo(cmd)
}

func TestNoRM(t *testing.T) {
	d := New(newChip(echo), nil, Options{})
	if f, err := d.OpenRM(0); f != nil || !isErrno(err, unix.ENODEV) {
		t.Errorf("OpenRM(TPM 1.2) = %v, %v, want ENODEV", f, err)
	}
}
