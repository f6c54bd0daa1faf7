package dma

import (
	"testing"

	"github.com/ring3dev/ring3/bus"
)

// TestTwice: a double free panics with -tags dmadebug, and never puts a buffer into the
// pool twice.
func TestTwice(t *testing.T) {
	p, err := NewPool(&heap{}, 2, 64, bus.Bidirectional)
	if err != nil {
		t.Fatal(err)
	}
	b := p.Get()
	b.Free()
	func() {
		defer func() {
			if r := recover(); (r != nil) != debug {
				t.Errorf("recover() = %v, with dmadebug %v", r, debug)
			}
		}()
		b.Free()
	}()
	if p.Free() != 2 {
		t.Errorf("Free() = %d, want 2", p.Free())
	}
	if x, y := p.Get(), p.Get(); x == y {
		t.Error("one buffer was handed out twice")
	}
}

func TestPoison(t *testing.T) {
	p, err := NewPool(&heap{}, 1, 64, bus.Bidirectional)
	if err != nil {
		t.Fatal(err)
	}
	b := p.Get()
	b.Mem[0], b.Tag = 7, 9
	b.Free()
	want, tag := byte(7), uint32(9)
	if debug {
		want, tag = 0xdb, 0
	}
	if b.Mem[0] != want || b.Tag != tag {
		t.Errorf("a freed buffer holds %#x, tag %d, want %#x, %d", b.Mem[0], b.Tag, want, tag)
	}
}
