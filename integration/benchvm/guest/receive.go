//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/netdev/tap"
	"github.com/ring3dev/ring3/vfio"
)

// nothing is the result of a child that only serves.
type nothing struct{}

// udpArg is what the child "udp" is to do.
type udpArg struct {
	Port int `json:"port"`
}

// udpMain reads datagrams, one system call each, and counts them.
func udpMain(a udpArg, serve func(func() uint64) error) (nothing, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: a.Port})
	}
	if err != nil {
		return nothing{}, fmt.Errorf("UDP port %d: %w", a.Port, err)
	}
	var n atomic.Uint64
	go func() {
		b := make([]byte, 2048)
		for {
			_, err := unix.Read(fd, b)
			switch {
			case errors.Is(err, unix.EINTR):
			case err != nil:
				fmt.Fprintln(os.Stderr, "reading UDP:", err)
				os.Exit(1)
			default:
				n.Add(1)
			}
		}
	}()
	return nothing{}, serve(n.Load)
}

// deviceArg names a device.
type deviceArg struct {
	Addr string `json:"addr"`
	Name string `json:"name"`
}

// sinkMain counts what ring3 receives.
func sinkMain(a deviceArg, serve func(func() uint64) error) (_ nothing, err error) {
	n, err := openNIC(a.Addr, a.Name, vfio.Options{}, nil)
	if err != nil {
		return nothing{}, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	s, err := netdev.NewSink(n.net)
	if err != nil {
		return nothing{}, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return nothing{}, serve(s.Frames)
}

// tapMain makes an interface of the device. What it says when asked is how many frames it carried.
func tapMain(a deviceArg, serve func(func() uint64) error) (_ nothing, err error) {
	n, err := openNIC(a.Addr, a.Name, vfio.Options{}, nil)
	if err != nil {
		return nothing{}, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	b, err := tap.Attach(n.net, tap.Config{Name: a.Name, Up: true})
	if err != nil {
		return nothing{}, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return nothing{}, serve(func() uint64 { return b.Stats().RxFrames })
}
