package rapidio

import (
	"slices"
	"testing"
)

// Who asked is told of the link, until it asks no more or the port goes.
func TestOnLink(t *testing.T) {
	r := newRig(t, Small, 3)
	var first, second []bool
	cancel := r.m.OnLink(func(up bool) { first = append(first, up) })
	r.m.OnLink(func(up bool) { second = append(second, up) })
	tell := func(up bool) { r.f.ports[0].tell(func(e Events) { e.Link(up) }) }
	tell(false)
	tell(true)
	cancel()
	cancel()
	tell(false)
	r.b.RemoveMport(r.m)
	tell(true)
	if want := []bool{false, true}; !slices.Equal(first, want) {
		t.Errorf("the first one was told %v, want %v", first, want)
	}
	if want := []bool{false, true, false}; !slices.Equal(second, want) {
		t.Errorf("the second one was told %v, want %v", second, want)
	}
	var self func()
	n := 0
	r = newRig(t, Small, 3)
	self = r.m.OnLink(func(bool) { n++; self() }) // from within
	tell(false)
	tell(true)
	if n != 1 {
		t.Errorf("who lets go from within was told %d times, want 1", n)
	}
}
