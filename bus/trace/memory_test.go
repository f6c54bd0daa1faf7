package trace_test

import (
	"bytes"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/trace"
)

// held is a plain device whose region is memory of this process.
type held struct {
	*plain
	released int
}

func (h *held) Region(int) (bus.Region, error) { return h, nil }
func (h *held) Hold() ([]byte, func())         { return h.regs, func() { h.released++ } }

func TestMemory(t *testing.T) {
	h := &held{plain: newPlain()}
	d := trace.Wrap(h, trace.Options{Name: "dev0"})
	defer d.Close()
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	b, release := bus.Hold(r)
	if len(b) != len(h.regs) || &b[0] != &h.regs[0] {
		t.Errorf("Hold of a traced memory has %d bytes, want the %d of the device's", len(b), len(h.regs))
	}
	if release(); h.released != 1 {
		t.Errorf("released %d times, want 1", h.released)
	}
	before := len(d.Last(100))
	want := []byte("0123456789abc")
	bus.WriteBytes(r, 0x100, want)
	got := make([]byte, len(want))
	if bus.ReadBytes(r, 0x100, got); !bytes.Equal(got, want) {
		t.Errorf("ReadBytes = %q, want %q", got, want)
	}
	if n := len(d.Last(100)); n != before {
		t.Errorf("%d records after copying, want %d", n, before)
	}

	_, _, r = open(t, trace.Options{}) // registers are held by nobody
	if b, release := bus.Hold(r); b != nil {
		t.Errorf("Hold of traced registers has %d bytes, want none", len(b))
	} else {
		release()
	}
}
