//go:build vm

package guest

import (
	"context"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/vfio"
	"github.com/ring3dev/ring3/vfio/vfiouser"
)

// socketPair is two ends of one connection.
func socketPair(t *testing.T) (ends [2]*net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	return ends
}

// A function of this machine, served over vfio-user: its client's memory is mapped in the IOMMU, at the
// client's addresses.
func TestVFIOServed(t *testing.T) {
	Memlock(t, enough)
	bustest.All(t, func(t *testing.T) bustest.Subject {
		d := openVFIO(t, "edu0", vfio.Options{})
		s, err := vfiouser.NewServer(d, vfiouser.ServerOptions{Name: "edu0", Log: bustest.Log(t)})
		if err != nil {
			t.Fatal(err)
		}
		ends := socketPair(t)
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- s.ServeConn(ctx, ends[0]) }()
		t.Cleanup(func() {
			cancel()
			<-served
		})
		c, err := vfiouser.Open(t.Context(), ends[1], vfiouser.Options{Log: bustest.Log(t)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		sub := bustest.Edu(t, c)
		sub.Kill = func() { askBack(t, d) }
		return sub
	})
}
