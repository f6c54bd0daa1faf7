package vfiouser

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/sim"
)

// pair is a connection in this process.
func pair(t testing.TB) (client, server *net.UnixConn) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return connOf(t, p[0]), connOf(t, p[1])
}

func connOf(t testing.TB, fd int) *net.UnixConn {
	t.Helper()
	c, err := fileConn(os.NewFile(uintptr(fd), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// fileConn is a descriptor as a connection. The file is closed.
func fileConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// served is a device and its server's end.
type served struct {
	*Device
	server *Server
	end    func() error // ends the session and says how it ended
}

// serve opens a device that is served in this process.
func serve(t testing.TB, dev bus.Device, so ServerOptions, o Options) served {
	t.Helper()
	srv, err := NewServer(dev, so)
	if err != nil {
		t.Fatal(err)
	}
	return attach(t, srv, o)
}

// attach opens a server's device over a pair.
func attach(t testing.TB, srv *Server, o Options) served {
	t.Helper()
	c, s := pair(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.ServeConn(ctx, s) }()
	end := sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = end() })
	if o.Log == nil {
		o.Log = bustest.Log(t)
	}
	d, err := Open(t.Context(), c, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return served{d, srv, end}
}

// model is a device of package sim.
func model(t testing.TB, name string, clock sim.Clock) (*sim.Machine, bus.Device) {
	t.Helper()
	m, err := sim.Start(t.Context(), sim.Config{Devices: []sim.DeviceSpec{{Name: "d", Model: name}}, Clock: clock, Log: bustest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil && !errors.Is(err, bus.ErrGone) {
			t.Errorf("closing the machine: %v", err)
		}
		if n, err := m.StrayDMA(); n != 0 {
			t.Errorf("%d times stray DMA, first %v", n, err)
		}
	})
	d, err := m.Device("d")
	if err != nil {
		t.Fatal(err)
	}
	return m, d
}

// simServer says how a model is reset.
func simServer(t testing.TB, m *sim.Machine) ServerOptions {
	return ServerOptions{Log: bustest.Log(t), Reset: func(ctx context.Context) error { return m.Reset(ctx, "d") }}
}
