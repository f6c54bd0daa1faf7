package tpmdd_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/sysfs"
	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/class"
	"github.com/ring3dev/ring3/tpmdd/rm"
)

// told is a Transport that answers one command after the other from bytes: for each a word with the number of bytes, and the bytes.
// After the last no command is answered any more.
type told struct {
	said []byte
	now  []byte
	ask  func(cmd []byte) []byte // where set: answers instead, and said becomes what it said
	cmd  []byte
}

const (
	toldLength = 0x0fff // mask of the number
	toldFixed  = 0x8000 // the header says it too, whatever it says
)

func (t *told) Begin(context.Context) error   { return nil }
func (t *told) End()                          {}
func (t *told) Cancel()                       {}
func (t *told) SetTimeouts(tpmdd.Timeouts)    {}
func (t *told) MaxCommand() int               { return tpmdd.MaxCommand }
func (t *told) Send(cmd []byte) error         { t.cmd = slices.Clone(cmd); return nil }
func (t *told) Receive(p []byte) (int, error) { return copy(p, t.now), nil }
func (t *told) answer(n int) (a []byte)       { a, t.said = t.said[:n], t.said[n:]; return a }
func (t *told) Wait(d time.Duration) error {
	if t.ask != nil {
		t.now = t.ask(t.cmd)
		t.said = append(binary.BigEndian.AppendUint16(t.said, uint16(len(t.now))), t.now...)
		return nil
	}
	if len(t.said) < 2 {
		return fmt.Errorf("nothing is said any more: %w", unix.ETIME)
	}
	w := binary.BigEndian.Uint16(t.answer(2))
	t.now = slices.Clone(t.answer(min(int(w&toldLength), len(t.said))))
	if w&toldFixed != 0 && len(t.now) >= tpmdd.HeaderSize {
		binary.BigEndian.PutUint32(t.now[2:], uint32(len(t.now)))
	}
	return nil
}

// liveChip is the life of a chip: its start, all of its files, the resource manager, its end.
func liveChip(t testing.TB, x tpmdd.Transport) {
	ctx := context.Background()
	chip, err := tpmdd.New(ctx, x, tpmdd.Options{Name: "tpm0"})
	if (chip == nil) != (err != nil) {
		t.Fatalf("New = %v, %v, want a chip or an error", chip, err)
	}
	if err != nil {
		return
	}
	id := chip.Identity()
	if id.Family != chip.Family() || id.Family != tpmdd.TPM12 && id.Family != tpmdd.TPM20 || id.PCRs <= 0 {
		t.Errorf("Identity() = %+v, want a family and registers", id)
	}
	for _, b := range id.Banks {
		if b.Size <= 0 {
			t.Errorf("Identity() = %+v, want sizes", id)
		}
	}
	sys := &sysfs.Dir{}
	class.Add(sys, chip, class.Place{Name: "tpm0", Device: "/devices/x", Bus: "pnp", Driver: "tpm_tis", ID: "PNP0C31"})
	class.AddRandom(sys, "tpm0")
	showAll(t, sys, "")
	if p, err := tpmdd.ReadPCR(ctx, chip, id.Family, tpmdd.Bank{Alg: 11, Name: "sha256", Size: 32}, 3); (err == nil) != (p != nil) {
		t.Errorf("ReadPCR = %x, %v, want a value or an error", p, err)
	}
	if id.Family == tpmdd.TPM20 {
		m, err := rm.New(ctx, chip, nil)
		if (m == nil) != (err != nil) {
			t.Fatalf("rm.New = %v, %v, want a manager or an error", m, err)
		}
		if m != nil {
			s := m.Open()
			for range 2 {
				if a, err := s.Transmit(ctx, longCommand()); (a == nil) != (err != nil) {
					t.Errorf("Transmit = %x, %v, want an answer or an error", a, err)
				}
			}
			_ = s.Close()
		}
	}
	first := chip.Close()
	if again := chip.Close(); again != first {
		t.Errorf("Close() = %v, then %v, want the same", first, again)
	}
}

// showAll reads all files of a tree, of the registers of a bank the first and the last: a short life leads to more others.
func showAll(t testing.TB, d *sysfs.Dir, at string) {
	for _, name := range d.Names() {
		if strings.Contains(at, "/pcr-") && name != "0" && name != "23" {
			continue
		}
		switch n := d.Lookup(name).(type) {
		case *sysfs.Dir:
			showAll(t, n, at+"/"+name)
		case *sysfs.File:
			if n.Mode&0o444 == 0 {
				continue
			}
			if text, err := n.ReadAll(); err != nil && text != nil {
				t.Errorf("%s/%s = %q, %v, want a text or an error", at, name, text, err)
			}
		}
	}
}

// FuzzChip has a TPM say anything, all its life long.
func FuzzChip(f *testing.F) {
	// As it should be: what models say.
	for _, props := range [][]string{nil, {"family=1.2"}} {
		inst, sim, err := serve(f.Context(), f, openSim(f, "tpm-tis", props...))
		if err != nil {
			f.Fatal(err)
		}
		x := &told{ask: func(cmd []byte) []byte {
			a, err := sim.Transmit(f.Context(), cmd)
			if err != nil {
				f.Fatal(err)
			}
			return a
		}}
		liveChip(f, x)
		_ = inst.Close()
		f.Add(x.said)
		fixed := slices.Clone(x.said)
		for p := fixed; len(p) > 2; {
			n := binary.BigEndian.Uint16(p)
			binary.BigEndian.PutUint16(p, n|toldFixed)
			p = p[2+n:]
		}
		f.Add(fixed)
	}
	f.Add([]byte{})
	f.Add([]byte{0, 10, 0x80, 1, 0, 0, 0, 10, 0, 0, 9, 0x22}) // TPM_RC_RETRY
	f.Fuzz(func(t *testing.T, said []byte) {
		synctest.Test(t, func(t *testing.T) { liveChip(t, &told{said: said}) }) // so that nothing is waited for
	})
}
