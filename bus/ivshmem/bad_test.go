package ivshmem

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
)

// A server that lies is told apart, at whatever time.
func TestBadServer(t *testing.T) {
	small, shrinks := memfd(t, 100, unix.F_SEAL_SHRINK), memfd(t, memSize, unix.F_SEAL_GROW)
	defer small.Close()
	defer shrinks.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, x := range []struct {
		name string
		send func(s *server)
		want error
		text string
	}{
		{"says nothing", func(s *server) {}, bus.ErrTimeout, "waiting for the protocol's version"},
		{"hangs up", func(s *server) { s.close() }, bus.ErrGone, "the server closed the connection"},
		{"has another version", func(s *server) { s.send(1, 8) }, bus.ErrProtocol, "version 1 of the protocol, want 0"},
		{"gives an ID that is none", func(s *server) { s.send(0, 8); s.send(1<<16, 8) }, bus.ErrProtocol, "the ID 65536"},
		{"gives no memory", func(s *server) { s.send(0, 8); s.send(7, 8); s.send(-1, 8) }, bus.ErrProtocol, "want -1 with the memory"},
		{"gives a device as memory", func(s *server) { s.send(0, 8); s.send(7, 8); s.send(-1, 8, int(null.Fd())) }, bus.ErrProtocol, "want a regular file"},
		{"gives too little memory", func(s *server) { s.send(0, 8); s.send(7, 8); s.send(-1, 8, int(small.Fd())) }, bus.ErrProtocol, "100 bytes"},
		{"gives memory that may shrink", func(s *server) { s.send(0, 8); s.send(7, 8); s.send(-1, 8, int(shrinks.Fd())) }, bus.ErrProtocol, "may shrink"},
		{"stops in the middle", func(s *server) { s.send(0, 8); s.send(7, 8); _ = unix.Sendmsg(s.fd, []byte{1, 2}, nil, nil, 0) }, bus.ErrTimeout, "2 bytes of a message"},
		{"sends two descriptors", func(s *server) { s.send(0, 8, int(null.Fd()), int(null.Fd())) }, bus.ErrProtocol, "more than one descriptor"},
		{"gives no eventfd", func(s *server) { s.own = []int{s.own[0], int(null.Fd())}; s.greet(8) }, bus.ErrProtocol, "/dev/null"},
		{"gives too few vectors", func(s *server) { s.own = s.own[:2]; s.greet(8) }, bus.ErrTimeout, "own vector 2 of 3"},
		{"says that we are gone", func(s *server) { s.own = s.own[:2]; s.greet(8); s.send(ownID, 8) }, bus.ErrProtocol, "is gone"},
		{"talks of a peer that cannot be", func(s *server) { s.own = s.own[:2]; s.greet(8); s.send(-5, 8) }, bus.ErrProtocol, "sent -5"},
		{"gives a peer many vectors", func(s *server) {
			for s.zero = nil; len(s.zero) <= maxVectors; {
				s.zero = append(s.zero, s.own[0])
			}
			s.greet(8)
		}, bus.ErrProtocol, "at most 64"},
	} {
		t.Run(x.name, func(t *testing.T) {
			bustest.NoLeaks(t)
			s, c := pair(t)
			own, zero := s.own, s.zero
			x.send(s)
			s.own, s.zero = own, zero
			limit := 5 * time.Second
			if errors.Is(x.want, bus.ErrTimeout) {
				limit = 50 * time.Millisecond
			}
			d, err := Open(t.Context(), c, Options{Vectors: vectors, Timeout: limit, Backend: "fabric"})
			if !errors.Is(err, x.want) || !strings.Contains(err.Error(), x.text) {
				t.Errorf("Open of a server that %s = %v, %v, want %v with %q", x.name, d, err, x.want, x.text)
			}
		})
	}
	t.Run("later", func(t *testing.T) {
		bustest.NoLeaks(t)
		s, d := open(t)
		s.send(-1, 8, int(s.file.Fd()))
		<-d.Done()
		if err := d.Err(); !errors.Is(err, bus.ErrProtocol) || !errors.Is(err, bus.ErrGone) {
			t.Errorf("Err after a second memory = %v, want ErrProtocol, and gone", err)
		}
		_ = d.Close()
	})
	t.Run("canceled", func(t *testing.T) {
		bustest.NoLeaks(t)
		_, c := pair(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Open(ctx, c, Options{Vectors: 1}); !errors.Is(err, context.Canceled) {
			t.Errorf("Open with a ctx that ended = %v", err)
		}
	})
	t.Run("options", func(t *testing.T) {
		_, c := pair(t)
		if _, err := Open(t.Context(), c, Options{}); !errors.Is(err, bus.ErrNotSupported) {
			t.Errorf("Open with 0 vectors = %v, want ErrNotSupported", err)
		}
	})
}

// Whatever bytes a server sends: an error or a device.
func FuzzServer(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255}, byte(2))
	f.Add([]byte{}, byte(0))
	f.Fuzz(func(t *testing.T, b []byte, with byte) {
		s, c := pair(t)
		for i := 0; len(b) > 0; i++ {
			n := min(8, len(b))
			var oob []byte
			if with>>(i%8)&1 != 0 {
				oob = unix.UnixRights([]int{int(s.file.Fd()), s.own[0]}[i%3%2])
			}
			if unix.Sendmsg(s.fd, b[:n], oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT) != nil {
				break
			}
			b = b[n:]
		}
		_ = unix.Shutdown(s.fd, unix.SHUT_WR)
		d, err := Open(t.Context(), c, Options{Vectors: 1})
		if (d == nil) == (err == nil) {
			t.Errorf("Open = %v, %v, want a device or an error", d, err)
		}
		if d != nil {
			<-d.Done()
			_ = d.Close()
		}
	})
}
