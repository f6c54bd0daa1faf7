package rionet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/internal/netspace"
	"github.com/ring3dev/ring3/netdev/tap"
)

// spaces are network namespaces, each with the interface of one device: rio0 with 10.9.0.1 and fd00:9::1, and so on.
func spaces(t *testing.T, devs []*Device) []*netspace.Space {
	t.Helper()
	if refused != "" {
		t.Skip(refused)
	}
	var list []*netspace.Space
	for i, d := range devs {
		s, err := netspace.New()
		if err != nil {
			t.Skip(err)
		}
		t.Cleanup(s.Close)
		b, err := tap.Attach(d, tap.Config{Name: d.name})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := b.Close(); err != nil {
				t.Errorf("Close of %s's bridge = %v", d.name, err)
			}
		})
		l, err := netlink.LinkByName(d.name)
		if err != nil {
			t.Fatal(err)
		}
		if a := l.Attrs(); a.MTU != maxMTU || a.HardwareAddr.String() != d.MAC().String() {
			t.Errorf("the interface has MTU %d and address %s, want %d, %s", a.MTU, a.HardwareAddr, maxMTU, d.MAC())
		}
		if err := netlink.LinkSetNsFd(l, s.FD()); err != nil {
			t.Fatal(err)
		}
		s.Do(func() {
			for _, text := range []string{fmt.Sprintf("10.9.0.%d/24", i+1), fmt.Sprintf("fd00:9::%d/64", i+1)} {
				a, aerr := netlink.ParseAddr(text)
				if a.IP.To4() == nil {
					a.Flags = unix.IFA_F_NODAD
				}
				l, lerr := netlink.LinkByName(d.name)
				if err = errors.Join(aerr, lerr); err == nil {
					err = errors.Join(err, netlink.AddrAdd(l, a), netlink.LinkSetUp(l))
				}
				if err != nil {
					return
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	return list
}

// echo sends datagrams of these sizes from one namespace to another one and back. The path may not be there at once.
func echo(t *testing.T, from, to *netspace.Space, addr string, sizes ...int) {
	t.Helper()
	at, stop, err := netspace.Echo(to, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	var c net.Conn
	from.Do(func() { c, err = net.Dial("udp", at) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := make([]byte, 65536)
	for _, n := range sizes {
		want := bytes.Repeat([]byte{byte(n), byte(n >> 8), 3}, n/3+1)[:n]
		for end := time.Now().Add(patience); ; {
			_, _ = c.Write(want)
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			k, err := c.Read(b)
			if err == nil && bytes.Equal(b[:k], want) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%d bytes to %s and back: %d bytes, %v", n, addr, k, err)
			}
		}
	}
}

// Three kernels' network stacks talk over rionet: neighbours are found by ARP and by multicast, datagrams up to the MTU and
// beyond, TCP both ways at once; a classic node among them.
func TestTap(t *testing.T) {
	bustest.NoLeaks(t)
	nodes := stars(t, 3, "")
	devs := []*Device{nodes[0].open(Options{}), nodes[1].open(Options{}), nodes[2].open(Options{Classic: true})}
	knows(t, devs[0], 2, "active exact")
	knows(t, devs[0], 3, "active")
	knows(t, devs[1], 1, "active exact")
	knows(t, devs[1], 3, "active")
	knows(t, devs[2], 1, "active")
	knows(t, devs[2], 2, "active")
	s := spaces(t, devs)
	for i := range s {
		to := (i + 1) % len(s)
		echo(t, s[i], s[to], fmt.Sprintf("10.9.0.%d:0", to+1), 0, 1, 17, 1000, 4054, 4055, 20000)
		echo(t, s[i], s[to], fmt.Sprintf("[fd00:9::%d]:0", to+1), 0, 1, 17, 1000, 4034, 4035, 20000)
	}
	size := int64(64 << 20)
	if testing.Short() {
		size = 4 << 20
	}
	ended := make(chan error, 3)
	for i := range s {
		to := (i + 1) % len(s)
		go func() {
			_, err := netspace.Send(s[i], s[to], fmt.Sprintf("10.9.0.%d:0", to+1), size)
			ended <- err
		}()
	}
	for range s {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	for _, d := range devs {
		st := d.Stats()
		t.Logf("%s: %+v", d.name, st)
		if st.TxErrors != 0 || st.RxErrors != 0 {
			t.Errorf("%s: errors were counted: %+v", d.name, st)
		}
	}
}
