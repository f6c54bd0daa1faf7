package tap

import (
	"errors"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/internal/rt/rttest"
)

// TestRealTime carries TCP and datagrams on real-time threads, one for each queue and direction, and ends them
// in every way there is.
func TestRealTime(t *testing.T) {
	needTap(t)
	p := rttest.Policy(t, 2)
	t.Run("driver", func(t *testing.T) {
		bustest.NoLeaks(t)
		x0, x1 := nics(t, "e1000e")
		_, _, there := twoSides(t, x0, x1, Config{RT: p})
		rttest.Wait(t, 2, "napi/x0-0", "napi/x1-0", "tap/x0-0", "tap/x1-0")
		for range 3 {
			time.Sleep(10 * time.Millisecond) // they wait in the kernel
			echo(t, there, "10.1.0.2:0", 1, 1200, 5000, 20000)
			transfer(t, there, "10.1.0.2:0", 8<<20)
		}
	})
	t.Run("card", func(t *testing.T) { // whose queues are no netdev.ThreadWaiter
		bustest.NoLeaks(t)
		x0, x1 := wired(2)
		_, _, there := twoSides(t, x0, x1, Config{RT: p})
		echo(t, there, "10.1.0.2:0", 1, 1200, 5000)
		transfer(t, there, "10.1.0.2:0", 4<<20)
	})
	t.Run("interface", func(t *testing.T) {
		bustest.NoLeaks(t)
		x, _ := wired(2)
		b := attachT(t, x, Config{Name: "x0", RT: p})
		if err := netlink.LinkDel(link(t, "x0")); err != nil {
			t.Fatal(err)
		}
		<-b.Done()
		if err := b.Err(); !errors.Is(err, bus.ErrGone) {
			t.Errorf("Err = %v, want that the interface was deleted", err)
		}
	})
	t.Run("device", func(t *testing.T) {
		bustest.NoLeaks(t)
		x, _ := wired(2)
		b := attachT(t, x, Config{Name: "x0", RT: p})
		why := errors.New("pulled out")
		x.die(why)
		<-b.Done()
		if err := b.Err(); !errors.Is(err, why) {
			t.Errorf("Err = %v, want %v", err, why)
		}
	})
	t.Run("close", func(t *testing.T) {
		bustest.NoLeaks(t)
		for range 20 {
			x, _ := wired(1)
			if err := attachT(t, x, Config{RT: p}).Close(); err != nil {
				t.Errorf("Close = %v, want nil", err)
			}
		}
	})
	rttest.Wait(t, 2)
}
