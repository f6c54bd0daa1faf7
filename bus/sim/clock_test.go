package sim

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// Timers fire in the order of their times, and those of one moment in the order of their making,
// whatever is stopped and reset meanwhile.
func TestQueueOrder(t *testing.T) {
	type entry struct {
		at  time.Duration
		seq int
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	q := &queue{}
	var fired []entry
	live := map[*timer]entry{}
	made := 0
	add := func() {
		e := entry{q.time + time.Duration(rnd.IntN(50)), made}
		made++
		var x *timer
		x = q.after(e.at-q.time, func() {
			if q.time != live[x].at {
				t.Fatalf("a timer due at %d fired at %d", live[x].at, q.time)
			}
			fired = append(fired, live[x])
			delete(live, x)
		})
		live[x] = e
	}
	for range 5000 {
		switch rnd.IntN(6) {
		case 0:
			q.advance(time.Duration(rnd.IntN(20)))
		case 1:
			for x := range live {
				if x.stop(); x.pending() {
					t.Fatal("pending after stop")
				}
				delete(live, x)
				break
			}
		case 2:
			for x := range live {
				d := time.Duration(rnd.IntN(50))
				x.reset(d)
				live[x] = entry{q.time + d, made}
				made++
				break
			}
		default:
			add()
		}
	}
	q.advance(time.Hour)
	if len(live) != 0 {
		t.Errorf("%d timers never fired", len(live))
	}
	if !slices.IsSortedFunc(fired, func(a, b entry) int {
		if a.at != b.at {
			return int(a.at - b.at)
		}
		return a.seq - b.seq
	}) {
		t.Error("timers fired out of order")
	}
}

// A timer that makes the next one at the same moment, and one that resets itself.
func TestQueueNested(t *testing.T) {
	q := &queue{}
	var at []time.Duration
	var x *timer
	x = q.after(10, func() {
		at = append(at, q.time)
		q.after(0, func() { at = append(at, q.time+1000) })
		if len(at) < 6 {
			x.reset(10)
		}
	})
	q.advance(25)
	if want := []time.Duration{10, 1010, 20, 1020}; !slices.Equal(at, want) {
		t.Errorf("fired at %v, want %v", at, want)
	}
	if q.time != 25 {
		t.Errorf("time = %d, want 25", q.time)
	}
	var none *timer
	none.stop()
	if none.pending() {
		t.Error("no timer is pending")
	}
	gone := true
	q.after(1, func() { t.Error("a timer of a device that is gone fired") }).gone = &gone
	q.advance(5)
}

// Resetting a timer allocates nothing.
func TestTimerAllocates(t *testing.T) {
	q := &queue{}
	x := q.after(1, func() {})
	if n := testing.AllocsPerRun(100, func() { x.reset(5); x.stop(); x.reset(1); q.advance(2) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func started(t testing.TB, c Config) *Machine {
	t.Helper()
	m, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return m
}

func eduOn(t testing.TB, clock Clock) (*Machine, *device) {
	t.Helper()
	m := started(t, Config{Devices: []DeviceSpec{{Name: "edu0", Model: "edu"}}, Clock: clock})
	return m, m.devices[0]
}

// Each clock passes as it says: seen with edu's transfer of 100 ms.
func TestClocks(t *testing.T) {
	for _, clock := range []Clock{RealTime, Stepped, Eager} {
		t.Run(clock.String(), func(t *testing.T) {
			m, d := eduOn(t, clock)
			r, _ := d.Region(0)
			mem := start(t, d)
			running := func() bool { return r.Read32(eduCmd)&eduRun != 0 }
			go_ := func() {
				r.Write32(eduSrc, uint32(mem.IOVA))
				r.Write32(eduDst, eduBufAt)
				r.Write32(eduCount, 16)
				r.Write32(eduCmd, eduRun)
			}
			began, virtual := time.Now(), m.Now()
			go_()
			switch clock {
			case Stepped:
				time.Sleep(5 * time.Millisecond)
				if next, ok := m.Next(); !ok || next != eduDMATime || !running() {
					t.Errorf("Next = %v, %v, want %v", next, ok, eduDMATime)
				}
				m.Advance(eduDMATime - 1)
				if !running() {
					t.Error("the transfer ended before its time")
				}
				m.Advance(1)
				if running() {
					t.Error("the transfer runs after its time")
				}
			default:
				for running() {
					time.Sleep(time.Millisecond)
				}
			}
			if took := m.Now() - virtual; took < eduDMATime {
				t.Errorf("the transfer took %v of virtual time, want at least %v", took, eduDMATime)
			}
			if took := time.Since(began); clock == RealTime && took < eduDMATime {
				t.Errorf("the transfer took %v, want at least %v", took, eduDMATime)
			}
			if _, ok := m.Next(); ok {
				t.Error("something is still to come")
			}
			go_()
			m.Advance(time.Second) // makes any clock jump
			if running() {
				t.Error("the transfer runs after a second")
			}
		})
	}
}
