package rm

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/tpmdd"
)

func FuzzMapCommand(f *testing.F) {
	f.Add(words(ccUse, 0x80ffffff, 0x81000000), 2)
	f.Add(words(ccUse, 0x80fffffe)[:13], 7)
	f.Fuzz(func(t *testing.T, cmd []byte, n int) {
		w := &work{}
		w.objects[0] = slot{handle: 0x80000005, saved: []byte{}}
		got := bytes.Clone(cmd)
		err := mapCommand(got, n&7, w.real)
		if err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("mapCommand(% x) = %v, want EINVAL or nothing", cmd, err)
		}
		end := min(len(cmd), tpmdd.HeaderSize+4*(n&7))
		if len(cmd) > tpmdd.HeaderSize && (!bytes.Equal(got[:tpmdd.HeaderSize], cmd[:tpmdd.HeaderSize]) || !bytes.Equal(got[end:], cmd[end:])) {
			t.Errorf("mapCommand(% x, %d) = % x, which is changed outside of the handles", cmd, n&7, got)
		}
	})
}

func FuzzFilterHandles(f *testing.F) {
	f.Add(ok(0, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0, 0, 5, 0x80, 0, 0, 6))
	f.Add(ok(0, 0, 0, 0, 1, 0x40, 0, 0, 1, 0x80, 0, 0, 5))
	f.Add(ok(0, 0, 0, 0, 6, 0, 0, 0, 1, 1))
	f.Fuzz(func(t *testing.T, rsp []byte) {
		w := &work{}
		w.objects[1] = slot{handle: 0x80000005}
		got, err := filterHandles(bytes.Clone(rsp), w.virtual)
		if (got == nil) != (err != nil) && len(rsp) > 0 {
			t.Fatalf("filterHandles(% x) = % x, %v, want one of both", rsp, got, err)
		}
		h, _ := tpmdd.ParseHeader(rsp)
		_, capability, list, perr := parseCapability(got)
		if err != nil || h.Tag == tpmdd.TagSessions || capability != tpmdd.CapHandles {
			return
		}
		if g, _ := tpmdd.ParseHeader(got); perr != nil || int(g.Length) != len(got) || len(got) > len(rsp) {
			t.Errorf("filterHandles(% x) = % x: %v, want a list that is whole", rsp, got, perr)
		}
		for ; len(list) > 0; list = list[4:] {
			if v := be.Uint32(list); v&kindMask == kindTransient && v != 0x80fffffe {
				t.Errorf("filterHandles(% x) has 0x%x, want own handles only", rsp, v)
			}
		}
	})
}

func FuzzParseCommands(f *testing.F) {
	f.Add(ok(1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0x10, 1, 0x7a))
	f.Fuzz(func(t *testing.T, rsp []byte) {
		page, more, err := parseCommands(rsp)
		if err != nil && (page != nil || more) {
			t.Errorf("parseCommands(% x) = %v, %v, %v, want values or an error", rsp, page, more, err)
		}
	})
}

// FuzzSpace has a TPM answer anything to a program that says anything.
func FuzzSpace(f *testing.F) {
	f.Add(cmdMake(1), ok(0x80, 0, 0, 1), []byte{1, 2, 3})
	f.Add(words(tpmdd.CCGetCapability, tpmdd.CapHandles), ok(0, 0, 0, 0, 1, 0, 0, 0, 0), []byte{0})
	f.Add(words(ccStart, 1, 2), ok(3, 0, 0, 0), []byte{9})
	f.Fuzz(func(t *testing.T, cmd, rsp, mix []byte) {
		fk := newFake()
		_, s := open(t, fk)
		answer(t, s, cmdMake(5))
		answer(t, s, words(ccStart, 1, 2))
		i := 0
		fk.fault = func(_ int, _ []byte, do func() []byte) ([]byte, error) {
			i++
			if len(mix) == 0 || mix[i%len(mix)]&1 == 0 {
				return do(), nil
			}
			return bytes.Clone(rsp), nil
		}
		for range 4 {
			got, err := s.Transmit(context.Background(), bytes.Clone(cmd))
			if (got == nil) != (err != nil) {
				t.Errorf("Transmit(% x) = % x, %v, want an answer or an error", cmd, got, err)
			}
		}
		s.Close()
	})
}
