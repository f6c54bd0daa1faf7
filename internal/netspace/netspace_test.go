package netspace

import (
	"net"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/ring3dev/ring3/bus/bustest"
)

func TestSpace(t *testing.T) {
	bustest.NoLeaks(t)
	s, err := New()
	if err != nil {
		t.Skip(err)
	}
	defer s.Close()
	s.Do(func() {
		links, err := net.Interfaces()
		if err != nil || len(links) == 0 || links[0].Name != "lo" || links[0].Flags&net.FlagUp != 0 {
			t.Errorf("interfaces inside: %v, %v, want lo that is down", links, err)
		}
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	if took, err := Send(s, s, "127.0.0.1:0", 10<<20); err != nil || took <= 0 {
		t.Errorf("Send = %v, %v", took, err)
	}
	var l net.Listener
	s.Do(func() { l, err = net.Listen("tcp", "127.0.0.1:0") })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// Outside, nobody listens there, unless by chance another does.
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Logf("something answers at %s outside", l.Addr())
	}
}

// TestGoexit: a function that ends its goroutine leaves nobody waiting.
func TestGoexit(t *testing.T) {
	bustest.NoLeaks(t)
	s, err := New()
	if err != nil {
		t.Skip(err)
	}
	s.Do(runtime.Goexit)
	<-s.gone
	s.Do(func() { t.Error("a function ran after the end") })
	s.Close()
}
