package rm

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/tpmdd"
)

// faults are what may become of a command.
var faults = map[string]func(cmd []byte, do func() []byte) ([]byte, error){
	"not sent": func([]byte, func() []byte) ([]byte, error) { return nil, fmt.Errorf("fault: %w", unix.EIO) },
	"lost": func(_ []byte, do func() []byte) ([]byte, error) {
		do()
		return nil, fmt.Errorf("fault: %w", unix.ETIME)
	},
	"gone":       func([]byte, func() []byte) ([]byte, error) { return nil, fmt.Errorf("fault: %w", unix.EPIPE) },
	"empty":      func(_ []byte, do func() []byte) ([]byte, error) { do(); return nil, nil },
	"short":      func(_ []byte, do func() []byte) ([]byte, error) { r := do(); return r[:len(r)-1], nil },
	"only ok":    func(_ []byte, do func() []byte) ([]byte, error) { do(); return ok(), nil },
	"too long":   func(_ []byte, do func() []byte) ([]byte, error) { return append(do(), 0), nil },
	"refused":    func([]byte, func() []byte) ([]byte, error) { return refuse(0x101), nil },
	"retry":      func([]byte, func() []byte) ([]byte, error) { return refuse(tpmdd.RCRetry), nil },
	"unknown":    func([]byte, func() []byte) ([]byte, error) { return refuse(rcRefH0), nil },
	"bad handle": func([]byte, func() []byte) ([]byte, error) { return refuse(0x1cb), nil },
	"ones": func(_ []byte, do func() []byte) ([]byte, error) {
		do()
		return ok(0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), nil
	},
	"zeros": func(_ []byte, do func() []byte) ([]byte, error) { do(); return ok(make([]byte, 64)...), nil },
	"noise": func(cmd []byte, do func() []byte) ([]byte, error) {
		r := do()
		rnd := rand.New(rand.NewPCG(uint64(len(cmd)), uint64(len(r))))
		for i := range r {
			r[i] = byte(rnd.Uint32())
		}
		return r, nil
	},
}

// scenario is a program: it goes on after an error, and believes no answer.
func scenario(s *Space) {
	send := func(cmd []byte) uint32 {
		rsp, err := s.Transmit(context.Background(), cmd)
		if err != nil || len(rsp) < 14 {
			return 0x80ffffff
		}
		return be.Uint32(rsp[10:])
	}
	a := send(cmdMake(1))
	b := send(cmdMake(2))
	x := send(words(ccStart, 0x40000007, 0x40000007))
	y := send(words(ccStart, 0x40000007, 0x40000007))
	send(words(ccUse, a))
	send(words(ccRestart, x))
	send(words(tpmdd.CCGetCapability, tpmdd.CapHandles, kindTransient, 9))
	send(words(ccLast, y))
	send(words(tpmdd.CCFlushContext, b))
	send(words(tpmdd.CCFlushContext, x))
	send(words(ccStart, 0x40000007, 0x40000007))
	send(cmdMake(3))
}

// lies are the faults with which the TPM says that it did not do a thing, and would not the next time: it is believed.
var lies = map[string]bool{"refused": true, "retry": true, "unknown": true, "bad handle": true}

// makes tells commands whose result nobody can flush where the answer is lost.
func makes(cmd []byte) bool {
	h, _ := tpmdd.ParseHeader(cmd)
	return h.Code == ccMake || h.Code == ccStart || h.Code == tpmdd.CCContextLoad
}

func TestFaultAtEveryCommand(t *testing.T) {
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			for k := 0; ; k++ {
				f := newFake()
				f.room = 6
				m, s := open(t, f)
				f.count = 0
				lost, met := false, false
				f.fault = func(n int, cmd []byte, do func() []byte) ([]byte, error) {
					if n != k {
						return do(), nil
					}
					met, lost = true, makes(cmd) || lies[name]
					return fault(cmd, do)
				}
				scenario(s)
				checkAfter(t, f, m, s, k, lost)
				if !met {
					break
				}
			}
		})
	}
}

func checkAfter(t *testing.T, f *fake, m *Manager, s *Space, k int, lost bool) {
	t.Helper()
	f.fault = nil
	// The next use works: of this space, where it has a slot, and of another.
	next := m.Open()
	wantAnswer(t, next, cmdMake(77), 0, 0x80ffffff)
	wantAnswer(t, next, words(ccUse, 0x80ffffff), 0, 77)
	next.Close()
	for i := range slots {
		answerOrErrno(t, s, words(tpmdd.CCFlushContext, virtual(i)))
	}
	wantAnswer(t, s, cmdMake(78), 0, 0x80ffffff)
	wantAnswer(t, s, words(ccUse, 0x80ffffff), 0, 78)
	if err := s.Close(); err != nil {
		t.Errorf("fault at %d: Close() = %v", k, err)
	}
	if s.tables.objects[0].saved != nil || len(f.objects)+len(f.sessions) > 0 && !lost {
		t.Errorf("fault at %d: left in the TPM: %v, %v", k, f.objects, f.sessions)
	}
	if len(f.objects)+len(f.sessions) > 1 {
		t.Errorf("fault at %d: left in the TPM: %v, %v, want what was made unseen at most", k, f.objects, f.sessions)
	}
}

// answerOrErrno accepts EINVAL: a slot that is free.
func answerOrErrno(t *testing.T, s *Space, cmd []byte) {
	t.Helper()
	if _, err := s.Transmit(context.Background(), cmd); err != nil {
		wantErrno(t, s, cmd, unix.EINVAL)
	}
}

// What a program sees where loading or saving goes wrong, and what it has after it: its objects, and no session.
func TestErrnos(t *testing.T) {
	for _, c := range []struct {
		name, fault string
		code        uint32 // which command fails
		nth         int    // the how manieth of its kind: an object's comes before a session's
		want        unix.Errno
	}{
		{"load refused", "refused", tpmdd.CCContextLoad, 0, unix.EFAULT},
		{"load, unknown object", "bad handle", tpmdd.CCContextLoad, 0, unix.ENOENT},
		{"load fails", "not sent", tpmdd.CCContextLoad, 0, unix.EFAULT},
		{"load, chip gone", "gone", tpmdd.CCContextLoad, 0, unix.EPIPE},
		{"load gives no handle", "only ok", tpmdd.CCContextLoad, 0, unix.EFAULT},
		{"load gives another kind", "zeros", tpmdd.CCContextLoad, 0, unix.EFAULT},
		{"session's load refused", "refused", tpmdd.CCContextLoad, 1, unix.EFAULT},
		{"session loaded as another", "zeros", tpmdd.CCContextLoad, 1, unix.EFAULT},
		{"save refused", "refused", tpmdd.CCContextSave, 0, unix.EFAULT},
		{"save fails", "lost", tpmdd.CCContextSave, 0, unix.EFAULT},
		{"save gives nothing", "only ok", tpmdd.CCContextSave, 0, unix.EFAULT},
		{"session's save refused", "refused", tpmdd.CCContextSave, 1, unix.EFAULT},
		{"session's save fails", "lost", tpmdd.CCContextSave, 1, unix.EFAULT},
		{"command fails", "lost", ccUse, 0, unix.ETIME},
		{"command answered with nothing", "empty", ccUse, 0, unix.EIO},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake()
			f.room = 6
			_, s := open(t, f)
			answer(t, s, cmdMake(5))
			_, session := answer(t, s, words(ccStart, 0x40000007, 0x40000007))
			seen := 0
			f.fault = func(_ int, cmd []byte, do func() []byte) ([]byte, error) {
				if h, _ := tpmdd.ParseHeader(cmd); h.Code != c.code {
					return do(), nil
				}
				if seen++; seen-1 != c.nth {
					return do(), nil
				}
				return faults[c.fault](cmd, do)
			}
			wantErrno(t, s, words(ccUse, 0x80ffffff), c.want)
			f.fault = nil
			if len(f.sessions) != 0 {
				t.Errorf("sessions in the TPM = %v, want none", f.sessions)
			}
			wantAnswer(t, s, words(ccUse, 0x80ffffff), 0, 5)
			wantAnswer(t, s, words(ccRestart, session), rcRefH0, 0)
		})
	}
}

// Nobody's command comes between a program's and what is loaded and saved for it.
func TestOneTurn(t *testing.T) {
	f := newFake()
	_, s := open(t, f)
	answer(t, s, cmdMake(5))
	answer(t, s, words(ccStart, 0x40000007, 0x40000007))
	before, turns := len(f.log), f.turns
	answer(t, s, words(ccUse, 0x80ffffff))
	want := []uint32{tpmdd.CCContextLoad, tpmdd.CCContextLoad, ccUse, tpmdd.CCContextSave, tpmdd.CCFlushContext, tpmdd.CCContextSave}
	if got := f.log[before:]; !slices.Equal(got, want) || f.turns != turns+1 {
		t.Errorf("commands of one = %#x in %d turns, want %#x in one", got, f.turns-turns, want)
	}
}
