package tap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/internal/netspace"
)

// TestHold: an interface outlives its bridges, with its address, MTU and mode, which the next device follows.
func TestHold(t *testing.T) {
	needTap(t)
	bustest.NoLeaks(t)
	h := Hold(Config{Name: "x0", Up: true})
	defer h.Close()
	x, _ := wired(2)
	b, err := Attach(x, Config{Name: "x0", Lender: h})
	if err != nil {
		t.Fatal(err)
	}
	up(t, "x0", "10.1.0.1/24")
	l := link(t, "x0")
	if err := errors.Join(netlink.LinkSetMTU(l, 4000), netlink.SetPromiscOn(l)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "MTU 4000 of the device", func() bool { return x.MTU() == 4000 && x.RxMode().Promisc })
	for _, queues := range []int{1, 2, 1} {
		b.cancel() // so that it says no last words
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		h.Left()
		if a := link(t, "x0").Attrs(); a.Index != l.Attrs().Index || a.RawFlags&unix.IFF_LOWER_UP == 0 {
			t.Errorf("without a bridge: %+v, want the same, with a link", a)
		}
		y, _ := wired(queues)
		y.mac = x.mac
		if b, err = Attach(y, Config{Name: "x0", Lender: h}); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "device that follows", func() bool { return y.MTU() == 4000 && y.RxMode().Promisc })
		if tt, ok := link(t, "x0").(*netlink.Tuntap); !ok || tt.Queues != queues {
			t.Errorf("%d queues, want %d", tt.Queues, queues)
		}
		if addrs, err := netlink.AddrList(l, netlink.FAMILY_V4); err != nil || len(addrs) != 1 {
			t.Errorf("addresses %v, %v, want one", addrs, err)
		}
		if err := y.SetMTU(t.Context(), 3000); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "MTU 3000 of the interface", func() bool { return link(t, "x0").Attrs().MTU == 3000 })
		if err := netlink.LinkSetMTU(l, 4000); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "MTU 4000 of the device", func() bool { return y.MTU() == 4000 })
	}
	// Deleted: the bridge ends, and the next one makes another.
	if err := netlink.LinkDel(link(t, "x0")); err != nil {
		t.Fatal(err)
	}
	<-b.Done()
	if err := b.Err(); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Err = %v, want ErrGone", err)
	}
	b.Close()
	if b, err = Attach(x, Config{Name: "x0", Lender: h}); err != nil {
		t.Fatal(err)
	}
	link(t, "x0")
	if err := errors.Join(b.Close(), b.Release()); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName("x0"); err == nil {
		t.Error("the interface is there after Release")
	}
}

// TestHoldTraffic: a TCP connection goes on over bridges that die.
func TestHoldTraffic(t *testing.T) {
	needTap(t)
	bustest.NoLeaks(t)
	hx, hy := Hold(Config{Name: "x0"}), Hold(Config{Name: "x1"})
	defer hx.Close()
	defer hy.Close()
	var bx, by *Bridge
	attach := func() {
		x, y := wired(1)
		var err1, err2 error
		bx, err1 = Attach(x, Config{Name: "x0", Lender: hx})
		by, err2 = Attach(y, Config{Name: "x1", Lender: hy})
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
	}
	detach := func() {
		if err := errors.Join(bx.Close(), by.Close()); err != nil {
			t.Fatal(err)
		}
		hx.Left()
		hy.Left()
	}
	attach()
	there := newSpace(t)
	if err := netlink.LinkSetNsFd(link(t, "x1"), there.FD()); err != nil {
		t.Fatal(err)
	}
	up(t, "x0", "10.1.0.1/24")
	there.Do(func() { up(t, "x1", "10.1.0.2/24") })
	sent := make(chan error, 1)
	waitFor(t, "carrier", func() bool { return link(t, "x0").Attrs().RawFlags&unix.IFF_LOWER_UP != 0 })
	go func() {
		_, err := netspace.Send(nil, there, "10.1.0.2:0", 64<<20)
		sent <- err
	}()
	for done, n := false, 0; !done; n++ {
		for before := bx.Stats(); bx.Stats().TxBytes < before.TxBytes+4<<20 && !done; {
			select {
			case err := <-sent:
				if err != nil {
					t.Error(err)
				}
				done = true
			default:
			}
		}
		if done && n == 0 {
			t.Error("no bridge died meanwhile")
		}
		detach()
		attach()
	}
	detach()
}

// TestHoldRefuses: whoever asks may be anybody.
func TestHoldRefuses(t *testing.T) {
	h := Hold(Config{Name: "x0"})
	defer h.Close()
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for _, q := range []Request{
		{},
		{Op: "x"},
		{Op: opOpen},
		{Op: opOpen, Queues: 257, MAC: mac, MTU: 1500},
		{Op: opOpen, Queues: -1, MAC: mac, MTU: 1500},
		{Op: opOpen, Queues: 1, MAC: mac, MTU: 67},
		{Op: opOpen, Queues: 1, MAC: mac[:5], MTU: 1500},
		{Op: opOpen, Queues: 1, MAC: net.HardwareAddr{1, 0, 0, 0, 0, 1}, MTU: 1500},
		{Op: opMAC, MAC: make([]byte, 6)},
		{Op: opMTU, MTU: 1 << 30},
		{Op: opMTU, MTU: 1500},
		{Op: opOffload, Offload: ^uint32(0)},
		{Op: opCarrier},
		{Op: opAlive},
		{Op: opWait},
	} {
		if _, files, err := h.Call(context.Background(), q); err == nil || len(files) > 0 {
			t.Errorf("%+v = %d files, %v, want an error", q, len(files), err)
		}
	}
	if s := fmt.Sprint(h.tap); s != "<nil>" {
		t.Errorf("an interface was made: %s", s)
	}
}
