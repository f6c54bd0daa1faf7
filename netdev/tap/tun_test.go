package tap

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
)

// TestRefused has every reason for which there is no interface, each one line with what to
// do.
func TestRefused(t *testing.T) {
	needTap(t)
	bustest.NoLeaks(t)
	add := func(l netlink.Link) {
		t.Helper()
		if err := netlink.LinkAdd(l); err != nil {
			t.Skipf("making %s: %v", l.Attrs().Name, err)
		}
		t.Cleanup(func() { _ = netlink.LinkDel(l) })
	}
	attrs := func(name string) netlink.LinkAttrs { a := netlink.NewLinkAttrs(); a.Name = name; return a }
	add(&netlink.Tuntap{LinkAttrs: attrs("tun5"), Mode: netlink.TUNTAP_MODE_TUN, Flags: unix.IFF_NO_PI})
	add(&netlink.Tuntap{LinkAttrs: attrs("one5"), Mode: netlink.TUNTAP_MODE_TAP, Flags: unix.IFF_NO_PI})
	used, err := Open(Config{Name: "used5"})
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	x, _ := wired(2)
	for _, c := range []struct {
		name string
		is   error
		want string
	}{
		{"a234567890123456", unix.ENAMETOOLONG, "tap a234567890123456: a name of 16 bytes, want at most 15"},
		{"a/b", unix.EINVAL, `tap "a/b": an interface's name has no space, '/', ':' or '%'`},
		{"a%d", unix.EINVAL, "an interface's name"},
		{"lo", unix.EEXIST, "tap lo: the name is taken by an interface of type "},
		{"tun5", unix.EEXIST, "tap tun5: the name is taken by an interface of type tun that is no TAP"},
		{"one5", unix.EINVAL, "tap one5: the interface was made without multi_queue; have it made again: sudo ip link del one5 && sudo ip tuntap add dev one5 mode tap user $USER multi_queue vnet_hdr"},
		{"used5", unix.EBUSY, "tap used5: another program uses 1 queues of the interface"},
	} {
		_, err := Attach(x, Config{Name: c.name})
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Attach to %q = %v, want %q (%v)", c.name, err, c.want, c.is)
		}
	}
	if _, err := Open(Config{Name: "q", Queues: 257}); err == nil {
		t.Error("257 queues were opened")
	}
	one, _ := wired(1)
	b := attachT(t, one, Config{Name: "one5"}) // one queue is enough for it
	if _, err := Open(Config{Name: "one5"}); !errors.Is(err, unix.EBUSY) || err.Error() != "tap one5: another program uses the interface: device or resource busy" {
		t.Errorf("Open of an interface in use = %v, want EBUSY", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName("one5"); err != nil {
		t.Errorf("a persistent interface after Close: %v", err)
	}
	none := newCard("x0", 0)
	if _, err := Attach(none, Config{Name: "x0"}); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Attach of a device without queues = %v, want not supported", err)
	}
}

// TestExplain has the reasons that need other rights or another machine.
func TestExplain(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&os.PathError{Op: "open", Path: tunPath, Err: unix.ENOENT}, "modprobe tun"},
		{&os.PathError{Op: "open", Path: tunPath, Err: unix.ENODEV}, "modprobe tun"},
		{&os.PathError{Op: "open", Path: tunPath, Err: unix.EACCES}, "chmod 0666 /dev/net/tun"},
		{&os.PathError{Op: "open", Path: tunPath, Err: unix.EMFILE}, "too many open files"},
		{unix.EPERM, "sudo ip tuntap add dev zz0 mode tap user $USER multi_queue vnet_hdr"},
		{unix.EINVAL, "invalid argument"},
		{unix.ENOMEM, "cannot allocate memory"},
	} {
		if got := explain("zz0", false, c.err); !errors.Is(got, c.err) && !errors.Is(got, errors.Unwrap(c.err)) || !strings.Contains(got.Error(), c.want) {
			t.Errorf("explain(%v) = %v, want %q", c.err, got, c.want)
		}
	}
}
