package rm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/tpmdd"
)

func open(t testing.TB, f *fake) (*Manager, *Space) {
	t.Helper()
	m, err := New(t.Context(), f, nil)
	if err != nil {
		t.Fatal(err)
	}
	return m, m.Open()
}

// answer sends a command, and gives the result code and the first word after it.
func answer(t testing.TB, s *Space, cmd []byte) (rc, word uint32) {
	t.Helper()
	rsp, err := s.Transmit(context.Background(), cmd)
	if err != nil {
		t.Fatalf("Transmit(% x) = %v", cmd, err)
	}
	h, ok := tpmdd.ParseHeader(rsp)
	if !ok || int(h.Length) != len(rsp) {
		t.Fatalf("Transmit(% x) = % x, which is no answer", cmd, rsp)
	}
	if len(rsp) >= 14 {
		word = be.Uint32(rsp[10:])
	}
	return h.Code, word
}

func wantAnswer(t testing.TB, s *Space, cmd []byte, rc, word uint32) {
	t.Helper()
	if gotRC, got := answer(t, s, cmd); gotRC != rc || got != word {
		t.Errorf("Transmit(% x) = rc 0x%x, 0x%x, want rc 0x%x, 0x%x", cmd, gotRC, got, rc, word)
	}
}

func wantErrno(t testing.TB, s *Space, cmd []byte, want unix.Errno) {
	t.Helper()
	rsp, err := s.Transmit(context.Background(), cmd)
	var got unix.Errno
	if !errors.As(err, &got) || got != want || rsp != nil {
		t.Errorf("Transmit(% x) = % x, %v, want %v", cmd, rsp, err, want)
	}
}

func TestVirtualHandles(t *testing.T) {
	f := newFake()
	m, s := open(t, f)
	for i, v := range []uint32{11, 22, 33} {
		wantAnswer(t, s, cmdMake(v), 0, 0x80ffffff-uint32(i))
	}
	other := m.Open()
	wantAnswer(t, other, cmdMake(44), 0, 0x80ffffff)
	wantAnswer(t, s, words(ccUse, 0x80fffffe), 0, 22)
	wantAnswer(t, other, words(ccUse, 0x80ffffff), 0, 44)
	wantErrno(t, other, words(ccUse, 0x80fffffe), unix.EINVAL)
	wantErrno(t, other, words(tpmdd.CCFlushContext, 0x80fffffe), unix.EINVAL)
	wantErrno(t, other, words(ccUse, 0x80000000), unix.EINVAL) // the real handle
	wantErrno(t, other, words(ccUse, 0x80fffffc), unix.EINVAL) // the slot after the last

	// A slot that became free is taken again.
	wantAnswer(t, s, words(tpmdd.CCFlushContext, 0x80fffffe), 0, 0)
	wantErrno(t, s, words(ccUse, 0x80fffffe), unix.EINVAL)
	wantAnswer(t, s, cmdMake(55), 0, 0x80fffffe)
	wantAnswer(t, s, words(ccUse, 0x80fffffd), 0, 33)

	// Persistent handles, and others, go through.
	wantAnswer(t, s, words(ccUse, 0x81000001), rcRefH0, 0)
	if len(f.objects) != 0 {
		t.Errorf("objects in the TPM between commands = %v, want none", f.objects)
	}
}

func TestOutOfSlots(t *testing.T) {
	f := newFake()
	f.room = 5
	_, s := open(t, f)
	for v := range uint32(3) {
		answer(t, s, cmdMake(v))
		answer(t, s, words(ccStart, 0x40000007, 0x40000007))
	}
	wantErrno(t, s, cmdMake(9), unix.ENOMEM)
	if len(f.objects) != 0 || len(f.sessions) != 0 {
		t.Errorf("in the TPM after ENOMEM: %v, %v, want nothing", f.objects, f.sessions)
	}
	wantAnswer(t, s, words(ccUse, 0x80fffffd), 0, 2) // objects are as they were

	for range 3 {
		answer(t, s, words(ccStart, 0x40000007, 0x40000007))
	}
	wantErrno(t, s, words(ccStart, 0x40000007, 0x40000007), unix.ENOMEM)
	if len(f.sessions) != 0 {
		t.Errorf("sessions in the TPM after ENOMEM = %v, want none", f.sessions)
	}
	wantAnswer(t, s, words(ccStart, 0x40000007, 0x40000007), 0, kindPolicy)
}

func TestTooMuchContext(t *testing.T) {
	f := newFake()
	f.size = bufferSize/2 - contextHead
	_, s := open(t, f)
	answer(t, s, cmdMake(1))
	wantAnswer(t, s, cmdMake(2), 0, 0x80fffffe) // exactly full
	wantErrno(t, s, cmdMake(3), unix.ENOMEM)
	wantAnswer(t, s, words(ccUse, 0x80fffffe), 0, 2)
	if len(f.objects) != 0 {
		t.Errorf("objects in the TPM = %v, want none", f.objects)
	}
}

func TestSessions(t *testing.T) {
	f := newFake()
	m, s := open(t, f)
	start := words(ccStart, 0x40000007, 0x40000007)
	_, a := answer(t, s, start)
	_, b := answer(t, s, start)
	_, c := answer(t, s, start)
	wantAnswer(t, s, words(ccRestart, b), 0, 0)

	// b is flushed by somebody else: that one is forgotten, the others stay.
	wantAnswer(t, m.Open(), words(tpmdd.CCFlushContext, b), 0, 0)
	wantAnswer(t, s, words(ccRestart, b), rcRefH0, 0)
	wantAnswer(t, s, words(ccRestart, c), 0, 0)
	wantAnswer(t, s, words(ccRestart, a), 0, 0)

	// a ends by itself; a new one takes its slot, and with it its handle.
	wantAnswer(t, s, words(ccLast, a), 0, 0)
	wantAnswer(t, s, words(ccRestart, a), rcRefH0, 0)
	wantAnswer(t, s, start, 0, a)

	if err := s.Close(); err != nil {
		t.Errorf("Close() = %v", err)
	}
	if len(f.sessions) != 0 {
		t.Errorf("sessions after Close = %v, want none", f.sessions)
	}
	if err := s.Close(); !errors.Is(err, unix.EBADF) {
		t.Errorf("Close() again = %v, want EBADF", err)
	}
	wantErrno(t, s, start, unix.EBADF)
}

// Close leaves alone who got a session's handle after it was flushed from outside.
func TestCloseFlushesOnlyItsOwn(t *testing.T) {
	f := newFake()
	m, s := open(t, f)
	start := words(ccStart, 0x40000007, 0x40000007)
	_, h := answer(t, s, start)
	heir := m.Open()
	answer(t, heir, words(tpmdd.CCFlushContext, h))
	wantAnswer(t, heir, start, 0, h)
	s.Close()
	wantAnswer(t, heir, words(ccRestart, h), 0, 0)
}

// A program saves and loads contexts itself.
func TestProgramsOwnContexts(t *testing.T) {
	f := newFake()
	_, s := open(t, f)
	answer(t, s, cmdMake(7))
	rsp, err := s.Transmit(t.Context(), words(tpmdd.CCContextSave, 0x80ffffff))
	if err != nil {
		t.Fatal(err)
	}
	answer(t, s, words(tpmdd.CCFlushContext, 0x80ffffff))
	answer(t, s, cmdMake(8))
	wantAnswer(t, s, tpmdd.Command(tpmdd.TagNoSessions, tpmdd.CCContextLoad, rsp[10:]...), 0, 0x80fffffe)
	wantAnswer(t, s, words(ccUse, 0x80fffffe), 0, 7)

	_, h := answer(t, s, words(ccStart, 0x40000007, 0x40000007))
	if rsp, err = s.Transmit(t.Context(), words(tpmdd.CCContextSave, h)); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, s, words(ccRestart, h), rcRefH0, 0)
	wantAnswer(t, s, tpmdd.Command(tpmdd.TagNoSessions, tpmdd.CCContextLoad, rsp[10:]...), 0, h)
	wantAnswer(t, s, words(ccRestart, h), 0, 0)
	s.Close()
	if len(f.sessions) != 0 {
		t.Errorf("sessions after Close = %v, want none", f.sessions)
	}
}

func TestListOfHandles(t *testing.T) {
	f := newFake()
	f.room = 4
	_, s := open(t, f)
	answer(t, s, cmdMake(1))
	f.objects[0x80000000] = 99 // of somebody at /dev/tpm0
	answer(t, s, cmdMake(2))
	rsp, err := s.Transmit(t.Context(), words(tpmdd.CCGetCapability, tpmdd.CapHandles, kindTransient, 99))
	if err != nil {
		t.Fatal(err)
	}
	_, _, list, err := parseCapability(rsp)
	if err != nil || len(list) != 12 || int(be.Uint32(rsp[2:])) != len(rsp) {
		t.Fatalf("GetCapability = % x, want three handles: %v", rsp, err)
	}
	got := []uint32{be.Uint32(list), be.Uint32(list[4:]), be.Uint32(list[8:])}
	slices.Sort(got)
	if want := []uint32{0x80fffffe, 0x80ffffff, 0x81000001}; !slices.Equal(got, want) {
		t.Errorf("GetCapability(handles) = %#x, want %#x", got, want)
	}
}

func TestWithoutTheTPM(t *testing.T) {
	f := newFake()
	_, s := open(t, f)
	before := len(f.log)
	rsp, err := s.Transmit(t.Context(), words(0x12345))
	if want := []byte{0x80, 1, 0, 0, 0, 10, 0, 0x0b, 1, 0x43}; err != nil || !bytes.Equal(rsp, want) {
		t.Errorf("Transmit(unknown command) = % x, %v, want % x", rsp, err, want)
	}
	for _, cmd := range [][]byte{nil, {0x80, 1, 0, 0, 0, 6}, words(ccUse, 1)[:12], {0x80, 1, 0, 0, 0, 9, 0, 0, 1, 0x7b}} {
		wantErrno(t, s, cmd, unix.EINVAL)
	}
	if got := f.log[before:]; len(got) != 0 {
		t.Errorf("commands sent = %#x, want none", got)
	}
	wantAnswer(t, s, append(words(ccVendors), 1, 2, 3), rcNoCmd, 0) // known: the TPM answers
	if got := f.log[before:]; len(got) != 1 {
		t.Errorf("commands sent for an empty space = %#x, want the one", got)
	}
}

// What was saved under keys that the TPM does not have any more (it was cleared) cannot be loaded.
func TestCleared(t *testing.T) {
	f := newFake()
	_, s := open(t, f)
	answer(t, s, cmdMake(1))
	f.keys++
	wantErrno(t, s, words(ccUse, 0x80ffffff), unix.EINVAL)
}

func TestWaitIsInterrupted(t *testing.T) {
	f := newFake()
	_, s := open(t, f)
	s.turn <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Transmit(ctx, cmdMake(1)); !errors.Is(err, unix.EINTR) {
		t.Errorf("Transmit(interrupted) = %v, want EINTR", err)
	}
	s.unlock()
}

func TestManySpaces(t *testing.T) {
	f := newFake()
	m, _ := open(t, f)
	var wg sync.WaitGroup
	for i := range uint32(64) {
		wg.Go(func() {
			s := m.Open()
			defer s.Close()
			for n := range uint32(30) {
				v := i<<16 | n
				rc, h := answer(t, s, cmdMake(v))
				_, sess := answer(t, s, words(ccStart, 0x40000007, 0x40000007))
				if rc != 0 {
					t.Errorf("making an object = 0x%x", rc)
				}
				wantAnswer(t, s, words(ccUse, h), 0, v)
				wantAnswer(t, s, words(ccRestart, sess), 0, 0)
				if n%3 != 0 {
					wantAnswer(t, s, words(tpmdd.CCFlushContext, sess), 0, 0)
				} else {
					wantAnswer(t, s, words(ccLast, sess), 0, 0)
				}
				wantAnswer(t, s, words(tpmdd.CCFlushContext, h), 0, 0)
			}
		})
	}
	wg.Wait()
	if len(f.objects) != 0 || len(f.sessions) != 0 {
		t.Errorf("left in the TPM: %v, %v", f.objects, f.sessions)
	}
}

func TestNew(t *testing.T) {
	for page := 1; page < 13; page++ {
		f := newFake()
		f.page = page
		m, err := New(t.Context(), f, nil)
		if err != nil || len(m.commands) != len(fakeCommands) {
			t.Errorf("New(pages of %d) = %d commands, %v, want %d", page, len(m.commands), err, len(fakeCommands))
		}
	}
	head := func(more byte, rest ...byte) []byte { return ok(append([]byte{more, 0, 0, 0, 2}, rest...)...) }
	for name, c := range map[string]struct {
		rsp  []byte
		err  error
		want unix.Errno
	}{
		"error":      {nil, fmt.Errorf("no: %w", unix.EPIPE), unix.EPIPE},
		"refused":    {refuse(0x101), nil, unix.ENODEV},
		"nothing":    {nil, nil, unix.EIO},
		"short":      {ok(0), nil, unix.EFAULT},
		"none":       {head(0, 0, 0, 0, 0), nil, unix.ENODATA},
		"count lies": {head(0, 0x40, 0, 0, 1, 0, 0, 1, 0x7a), nil, unix.EFAULT},
		"no end":     {head(1, 0, 0, 0, 1, 0, 0, 1, 0x7a), nil, unix.EFAULT},
		"other":      {ok(0, 0, 0, 0, 1, 0, 0, 0, 0), nil, unix.EFAULT},
	} {
		f := newFake()
		f.fault = func(int, []byte, func() []byte) ([]byte, error) { return c.rsp, c.err }
		m, err := New(t.Context(), f, nil)
		var got unix.Errno
		if !errors.As(err, &got) || got != c.want || m != nil {
			t.Errorf("New(%s) = %v, %v, want %v", name, m, err, c.want)
		}
	}
}
