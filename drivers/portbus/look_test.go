package portbus

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus/internal/portmodel"
)

// kept is a service whose registers are as a test says.
type kept struct {
	fake
	wrong, missed string
	took          int // interrupts, and what stands for them
}

func (k *kept) Check() (wrong, missed string) { return k.wrong, k.missed }
func (k *kept) Repair(_ context.Context, reset bool) error {
	k.log.add("repair(%t)", reset)
	return nil
}

// lookRig is a port that is looked at when the test says so, with a hot-plug service and a card, of which the trail tells.
func lookRig(t *testing.T) (*rig, *kept) {
	t.Helper()
	bustest.NoLeaks(t)
	r := &rig{T: t, model: portmodel.New(all(pci.ExpRootPort)), tree: &portmodel.Tree{}, log: &trail{}}
	k := &kept{fake: fake{name: "hp", log: r.log}}
	var err error
	if r.bus, err = New(&ServiceDriver{Name: "hp", Service: HP, Port: AnyPort, Probe: func(_ context.Context, d *Device) (Instance, error) {
		_, err := d.Handle("hp", func() bool { k.took++; return true })
		return k, err
	}}); err != nil {
		t.Fatal(err)
	}
	r.bus.SetLook(0)
	r.bind("")
	r.below(0, &voter{log: r.log, name: "a", detected: bus.NeedReset, reset: bus.Recovered})
	return r, k
}

// looks has the port looked at, and says how often what stands behind it was reset, and what was told.
func (r *rig) looks(n int) (resets int, lines []string) {
	before := len(r.tree.Lines())
	for range n {
		r.port.look(time.Millisecond)
	}
	return strings.Count(r.log.take(), "a:detected(true)"), r.tree.Lines()[before:]
}

// count is how many lines have a text.
func count(lines []string, text string) (n int) {
	for _, l := range lines {
		if strings.Contains(l, text) {
			n++
		}
	}
	return n
}

// TestLookMessages: what stands behind a port is reset where its messages were lost, and not where one read lied, nor without end where they do not stay.
func TestLookMessages(t *testing.T) {
	const again, given = "set up again: interrupt messages go nowhere", "it cannot be set up, and is left as it is: interrupt messages go nowhere"
	for _, c := range []struct {
		name                  string
		keep                  func(n int, written *bool, write bool) (bool, error) // at the nth call
		resets, again, errors int
		given                 bool
	}{
		{"one read lies", func(n int, _ *bool, write bool) (bool, error) {
			if write {
				t.Error("messages are written that were never lost")
			}
			return n == 1, nil
		}, 0, 0, 0, false},
		{"they are lost once", func(_ int, written *bool, write bool) (bool, error) {
			lost := !*written
			*written = *written || write
			return lost, nil
		}, 1, 1, 0, false},
		{"they are lost again and again", func(int, *bool, bool) (bool, error) { return true, nil }, mendings, mendings, 0, true},
		{"they do not stay", func(_ int, _ *bool, write bool) (bool, error) {
			if write {
				return true, fmt.Errorf("restoring: %w", bus.ErrProtocol)
			}
			return true, nil
		}, 0, mendings, mendings, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, _ := lookRig(t)
			n, written := 0, false
			r.model.OnRestoreIRQs(func(write bool) (bool, error) { n++; return c.keep(n, &written, write) })
			resets, lines := r.looks(20)
			if resets != c.resets || count(lines, again) != c.again || count(lines, "setting up again: restoring") != c.errors || count(lines, given) == 1 != c.given {
				t.Errorf("20 looks: %d resets, want %d; messages %q, want %d of being set up, %d errors, given up %t", resets, c.resets, lines, c.again, c.errors, c.given)
			}
			r.model.OnRestoreIRQs(nil)
			if resets, lines = r.looks(1); resets != 0 || len(lines) != 0 {
				t.Errorf("a look at a port that is well: %d resets, messages %q, want none", resets, lines)
			}
			r.model.OnRestoreIRQs(func(write bool) (bool, error) { return true, nil })
			if resets, lines = r.looks(1); resets != 1 || count(lines, again) != 1 {
				t.Errorf("they are lost later: %d resets, messages %q, want 1", resets, lines)
			}
		})
	}
}

// TestLookMissed: what is given up, or missed for long, does not keep from taking in what is missed later, and what is only missed is no error.
func TestLookMissed(t *testing.T) {
	r, k := lookRig(t)
	const takenIn = "what it did not interrupt for is taken in: Slot Status=0x8"
	k.wrong = "Slot Control=0x0, want 0x20"
	if _, lines := r.looks(mendings + 2); count(lines, "left as it is: Slot Control=0x0") != 1 {
		t.Fatalf("messages %q, want that it is given up", lines)
	}
	for i := range 2 * mendings { // events, of which each is taken in
		k.missed, k.took = "Slot Status=0x8", 0
		if _, lines := r.looks(1); k.took == 0 || count(lines, takenIn) != 1 {
			t.Errorf("event %d is taken in %d times, messages %q, want once", i, k.took, lines)
		}
		k.missed = ""
		r.looks(1)
	}
	k.wrong, k.missed = "", "Slot Status=0x8"
	if _, lines := r.looks(64); count(lines, takenIn) != mendings+4 || count(lines, "cannot be set up") != 0 { // the looks 0, 1, 2, 4, 8, 16, 32
		t.Errorf("what stands for 64 looks: messages %q, want %d, no error", lines, mendings+4)
	}
}
