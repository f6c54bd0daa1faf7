package tap

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/netdev"
)

// logs collects messages.
type logs struct{ bytes.Buffer }

func newLog() (*slog.Logger, *logs) {
	l := &logs{}
	return slog.New(slog.NewTextHandler(l, nil)), l
}

// TestFollow: the device follows the interface, and the interface the device, in this
// namespace, and in another one under another name.
func TestFollow(t *testing.T) {
	needTap(t)
	bustest.NoLeaks(t)
	x, _ := wired(1)
	b := attachT(t, x, Config{Name: "x0"})
	l := link(t, "x0")
	if l.Attrs().HardwareAddr.String() != x.mac.String() || l.Attrs().MTU != 1500 || l.Attrs().RawFlags&unix.IFF_UP != 0 {
		t.Errorf("the interface begins as %+v, want down, %s, MTU 1500", l.Attrs(), x.mac)
	}
	if m := x.RxMode(); !m.AllMulti || m.Promisc {
		t.Errorf("RxMode = %+v, want every multicast", m)
	}
	follow := func() {
		t.Helper()
		attrs := func() *netlink.LinkAttrs { return link(t, "y0").Attrs() }
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Error(err)
			}
		}
		must(netlink.LinkSetUp(l))
		must(netlink.LinkSetMTU(l, 4000))
		waitFor(t, "MTU 4000 of the device", func() bool { return x.MTU() == 4000 })
		must(netlink.LinkSetMTU(l, 9001))
		waitFor(t, "MTU set back", func() bool { return attrs().MTU == 4000 && x.MTU() == 4000 })
		must(x.SetMTU(t.Context(), 1500))
		waitFor(t, "MTU 1500 of the interface", func() bool { return attrs().MTU == 1500 })
		must(netlink.SetPromiscOn(l))
		waitFor(t, "promiscuous device", func() bool { return x.RxMode().Promisc })
		must(netlink.SetPromiscOff(l))
		waitFor(t, "device that is not promiscuous", func() bool { return !x.RxMode().Promisc })
		must(netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 9, 9, 9, 9, 9}))
		waitFor(t, "promiscuous device", func() bool { return x.RxMode().Promisc })
		must(netlink.LinkSetHardwareAddr(l, x.mac))
		waitFor(t, "device that is not promiscuous", func() bool { return !x.RxMode().Promisc })
		x.setLink(false)
		waitFor(t, "interface without carrier", func() bool { return attrs().RawFlags&unix.IFF_LOWER_UP == 0 })
		x.setLink(true)
		waitFor(t, "carrier", func() bool { return attrs().RawFlags&unix.IFF_LOWER_UP != 0 })
		must(netlink.LinkSetDown(l))
	}
	if err := netlink.LinkSetName(l, "y0"); err != nil {
		t.Fatal(err)
	}
	follow()
	there := newSpace(t)
	if err := netlink.LinkSetNsFd(l, there.FD()); err != nil {
		t.Fatal(err)
	}
	there.Do(func() {
		l = link(t, "y0")
		follow()
	})
	if err := b.Close(); err != nil {
		t.Errorf("Close = %v, want nil", err)
	}
	if m := x.RxMode(); m.AllMulti || m.Promisc {
		t.Errorf("RxMode after Close = %+v, want what it was", m)
	}
}

// plain is a device without optional interfaces.
type plain struct{ netdev.Device }

func TestFollowPlain(t *testing.T) {
	needTap(t)
	bustest.NoLeaks(t)
	x, _ := wired(1)
	log, said := newLog()
	b := attachT(t, plain{x}, Config{Name: "x0", Up: true, Log: log})
	l := link(t, "x0")
	if l.Attrs().RawFlags&unix.IFF_UP == 0 {
		t.Error("the interface is not up")
	}
	if err := errors.Join(netlink.LinkSetMTU(l, 2000), netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 9, 9, 9, 9, 9})); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "MTU and address set back", func() bool {
		a := link(t, "x0").Attrs()
		return a.MTU == 1500 && a.HardwareAddr.String() == x.mac.String()
	})
	if err := netlink.LinkSetMTU(l, 1000); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * lookEvery)
	if mtu := link(t, "x0").Attrs().MTU; mtu != 1000 {
		t.Errorf("a smaller MTU became %d, want 1000", mtu)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"an MTU of 2000 is set back to 1500: x0 cannot change its own", "the address was set back"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("the log says %q, want %q in it", said, want)
		}
	}
}

// TestNamespaces: the thread that joins a namespace comes back from it.
func TestNamespaces(t *testing.T) {
	needTap(t)
	bustest.NoLeaks(t)
	here, err := netns.Get()
	if err != nil {
		t.Skip(err)
	}
	defer here.Close()
	x, _ := wired(1)
	attachT(t, x, Config{Name: "x0"})
	for range 5 {
		there := newSpace(t)
		l, err := netlink.LinkByName("x0")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetNsFd(l, there.FD()); err != nil {
			t.Fatal(err)
		}
		there.Do(func() {
			if err := netlink.LinkSetMTU(link(t, "x0"), 3000); err != nil {
				t.Error(err)
			}
			waitFor(t, "MTU 3000", func() bool { return x.MTU() == 3000 })
			if err := errors.Join(netlink.LinkSetMTU(link(t, "x0"), 1500), netlink.LinkSetNsFd(link(t, "x0"), int(here))); err != nil {
				t.Error(err)
			}
		})
		waitFor(t, "MTU 1500", func() bool { return x.MTU() == 1500 })
	}
	for range 50 {
		now, err := netns.Get()
		if err != nil {
			t.Fatal(err)
		}
		if !now.Equal(here) {
			t.Error("a thread is in another namespace")
		}
		now.Close()
	}
}
