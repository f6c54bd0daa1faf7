package rapidio

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

func TestInboundDoorbells(t *testing.T) {
	r := newRig(t, Small, 3)
	peer := r.add(1, -1)
	ctx := t.Context()
	if err := peer.SendDoorbell(ctx, 0, 0x1000); !errors.Is(err, ErrResponse) {
		t.Errorf("a doorbell before anybody asked: %v, want an error response", err)
	}
	var mu sync.Mutex
	var got []string
	note := func(who string) func(DestID, uint16) {
		return func(src DestID, info uint16) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, fmt.Sprintf("%s %d %#x", who, src, info))
		}
	}
	low, err := r.m.RequestInbDoorbell("low", 0, 0xff, note("low"))
	if err != nil {
		t.Fatal(err)
	}
	high, err := r.m.RequestInbDoorbell("high", 0x200, 0xffff, note("high"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]uint16{{0, 0}, {0xff, 0xff}, {0x80, 0x300}, {0xff, 0x100}, {0x1ff, 0x200}, {0xffff, 0xffff}, {0, 0xffff}} {
		if rel, err := r.m.RequestInbDoorbell("late", c[0], c[1], note("late")); rel != nil || !errors.Is(err, ErrClaimed) || !errors.Is(err, bus.ErrBusy) {
			t.Errorf("RequestInbDoorbell(%#x, %#x) = %v, want ErrClaimed", c[0], c[1], err)
		}
	}
	if _, err := r.m.RequestInbDoorbell("turned", 2, 1, note("turned")); !errors.Is(err, ErrRange) {
		t.Errorf("RequestInbDoorbell(2, 1) = %v, want ErrRange", err)
	}
	middle, err := r.m.RequestInbDoorbell("middle", 0x100, 0x1ff, note("middle"))
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range []uint16{0, 0xff, 0x100, 0x1ff, 0x200, 0xffff} {
		if err := peer.SendDoorbell(ctx, 0, info); err != nil {
			t.Errorf("SendDoorbell(%#x) = %v", info, err)
		}
	}
	if want := []string{"low 1 0x0", "low 1 0xff", "middle 1 0x100", "middle 1 0x1ff", "high 1 0x200", "high 1 0xffff"}; !slices.Equal(got, want) {
		t.Errorf("doorbells = %q, want %q", got, want)
	}
	middle()
	middle()
	for range 3 {
		if err := peer.SendDoorbell(ctx, 0, 0x100); err != nil {
			t.Errorf("a doorbell between ranges = %v, want it to be taken", err)
		}
	}
	if s := r.m.Stats(); s.Doorbells != 9 || s.StrayDoorbells != 3 || r.log.count("0x0100 from 0x0001") != 1 {
		t.Errorf("Stats() = %+v, %d lines, want 9 doorbells, 3 of them stray, 1 line", s, r.log.count("0x0100 from 0x0001"))
	}
	low()
	high()
	if err := peer.SendDoorbell(ctx, 0, 0); !errors.Is(err, ErrResponse) {
		t.Errorf("a doorbell after all let go: %v, want an error response", err)
	}
}

// A doorbell that comes as soon as they are let in is its owner's, and after a claim that failed nobody's.
func TestDoorbellAtOnce(t *testing.T) {
	r := newRig(t, Small, 3)
	peer := r.add(1, -1)
	r.f.ports[0].opened = func() {
		if err := peer.SendDoorbell(t.Context(), 0, 5); err != nil {
			t.Errorf("SendDoorbell as soon as it is possible = %v", err)
		}
	}
	got := 0
	release, err := r.m.RequestInbDoorbell("me", 0, 9, func(DestID, uint16) { got++ })
	if err != nil {
		t.Fatal(err)
	}
	if s := r.m.Stats(); got != 1 || s.StrayDoorbells != 0 {
		t.Errorf("%d doorbells and %d stray ones, want 1 and 0", got, s.StrayDoorbells)
	}
	release()
	r.f.ports[0].opened = r.f.ports[0].die
	if _, err := r.m.RequestInbDoorbell("me", 0, 9, func(DestID, uint16) {}); !errors.Is(err, bus.ErrGone) {
		t.Errorf("RequestInbDoorbell at a port that goes meanwhile = %v, want %v", err, bus.ErrGone)
	}
	if n := len(r.m.bells.load()); n != 0 {
		t.Errorf("%d claims after one that failed, want 0", n)
	}
}

// A release waits for the callback that runs; one from within does not, and there is none after it.
func TestReleaseWaits(t *testing.T) {
	r := newRig(t, Small, 2)
	in, out := make(chan struct{}), make(chan struct{})
	release, err := r.m.RequestInbDoorbell("slow", 5, 5, func(DestID, uint16) { close(in); <-out })
	if err != nil {
		t.Fatal(err)
	}
	go r.f.ports[0].tell(func(e Events) { e.Doorbell(1, 5) })
	<-in
	over := make(chan struct{})
	go func() { release(); close(over) }()
	eventually(t, "the range is free", func() bool { return len(r.m.bells.load()) == 0 })
	select {
	case <-over:
		t.Error("release returned while the callback ran")
	default:
	}
	close(out)
	<-over

	calls := 0
	var self func()
	if self, err = r.m.RequestInbDoorbell("once", 5, 5, func(DestID, uint16) { calls++; self() }); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r.f.ports[0].tell(func(e Events) { e.Doorbell(1, 5) })
	}
	self()
	if calls != 1 {
		t.Errorf("a callback that let itself go was called %d times, want 1", calls)
	}
}

func TestOutboundDoorbells(t *testing.T) {
	r := newRig(t, Small, 3)
	d, sw := r.device("00:e:0002"), r.device("00:s:0000")
	release, err := d.RequestOutbDoorbell(0x1000, 0x1001)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.RequestOutbDoorbell(0x1001, 0x1001); !errors.Is(err, ErrClaimed) || !strings.HasPrefix(err.Error(), "00:e:0002: claiming its doorbells 0x1001 to 0x1001: ") {
		t.Errorf("RequestOutbDoorbell of what is taken = %v, want ErrClaimed", err)
	}
	if _, err := d.RequestOutbDoorbell(1, 0); !errors.Is(err, ErrRange) {
		t.Errorf("RequestOutbDoorbell(1, 0) = %v, want ErrRange", err)
	}
	if _, err := r.device("00:e:0003").RequestOutbDoorbell(0x1000, 0x1001); err != nil {
		t.Errorf("RequestOutbDoorbell of another device = %v", err)
	}
	if _, err := sw.RequestOutbDoorbell(0, 0); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("RequestOutbDoorbell of a switch = %v, want ErrNotSupported", err)
	}
	if err := sw.SendDoorbell(t.Context(), 0); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("SendDoorbell to a switch = %v, want ErrNotSupported", err)
	}
	release()
	again, err := d.RequestOutbDoorbell(0, 0xffff)
	if err != nil {
		t.Fatalf("RequestOutbDoorbell after the release = %v", err)
	}
	release() // is no other's
	if _, err := d.RequestOutbDoorbell(0x1000, 0x1001); !errors.Is(err, ErrClaimed) {
		t.Errorf("RequestOutbDoorbell after a second release = %v, want ErrClaimed", err)
	}
	d.Net.RemoveDevice(d)
	again()
	if _, err := d.RequestOutbDoorbell(0, 0); !errors.Is(err, bus.ErrGone) {
		t.Errorf("RequestOutbDoorbell of a device that went = %v, want ErrGone", err)
	}
	if err := d.SendDoorbell(t.Context(), 0); !errors.Is(err, bus.ErrGone) {
		t.Errorf("SendDoorbell to a device that went = %v, want ErrGone", err)
	}
}

// A doorbell that comes in costs no memory.
func TestDoorbellAllocates(t *testing.T) {
	r := newRig(t, Small, 2)
	n := 0
	if _, err := r.m.RequestInbDoorbell("n", 0, 9, func(DestID, uint16) { n++ }); err != nil {
		t.Fatal(err)
	}
	if got := testing.AllocsPerRun(100, func() { r.m.doorbell(1, 7) }); got != 0 || n == 0 {
		t.Errorf("a doorbell allocates %v times, want 0", got)
	}
}
