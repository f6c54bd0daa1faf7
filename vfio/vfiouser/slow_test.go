package vfiouser

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
)

const (
	slowLimit = 200 * time.Millisecond
	slowStep  = 50 * time.Millisecond // between two bytes
	slowMost  = 3 * slowLimit         // that one message takes who reads it
)

// drip sends a byte at a time, until the peer has enough of it.
func drip(s *sock, b []byte) {
	for i := range b {
		if s.send(b[i:i+1]) != nil {
			return
		}
		time.Sleep(slowStep)
	}
}

// whole is a message.
func whole(h header, body []byte) []byte {
	b := append(make([]byte, headerSize), body...)
	h.size = uint32(len(b))
	h.put(b)
	return b
}

// A message that comes a byte at a time, each in time, is not waited for by either side: not by a client,
// nor by a server's session, handshake, or refusal.
func TestDrip(t *testing.T) {
	t.Run("reply", func(t *testing.T) {
		bustest.NoLeaks(t)
		l, conn := lie(t, map[command]func(m *message) answer{})
		l.on[cmdRegionRead] = func(m *message) answer {
			a := l.honest(m)
			r := reader{b: m.body}
			if r.access().region != 0 {
				return a
			}
			drip(l.r.s, whole(header{id: m.id, cmd: m.cmd, flags: typeReply}, a.body))
			return answer{mute: true}
		}
		l.start()
		d, err := Open(t.Context(), conn, Options{Timeout: slowLimit})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		r := regionOf(t, d, 0)
		within(t, slowMost, "a read", func() {
			if v := r.Read32(0); v != ^uint32(0) {
				t.Errorf("a read = %#x, want all-ones", v)
			}
		})
		if err := d.Err(); !errors.Is(err, bus.ErrTimeout) {
			t.Errorf("Err = %v, want ErrTimeout", err)
		}
	})
	version := whole(header{cmd: cmdVersion}, []byte("\x00\x00\x00\x00{\"capabilities\":{}}\x00"))
	for name, c := range map[string]struct {
		hello bool
		b     []byte
	}{
		"command":   {true, whole(header{cmd: cmdRegionWrite, flags: flagNoReply}, accessBody(0, 0, 64, make([]byte, 64)...))},
		"header":    {true, whole(header{cmd: cmdReset}, nil)},
		"handshake": {false, version},
	} {
		t.Run(name, func(t *testing.T) {
			bustest.NoLeaks(t)
			srv, err := NewServer(newFake(t, false), ServerOptions{Timeout: slowLimit})
			if err != nil {
				t.Fatal(err)
			}
			r, done := rawServed(t, t.Context(), srv)
			if c.hello {
				r.hello()
			}
			go drip(r.s, c.b)
			within(t, slowMost, "the session's end", func() {
				if err := <-done; !errors.Is(err, bus.ErrTimeout) {
					t.Errorf("the session ended with %v, want ErrTimeout", err)
				}
			})
			if c.hello {
				// One that is refused is no different.
				first, _ := rawServed(t, t.Context(), srv)
				first.hello()
				second, done := rawServed(t, t.Context(), srv)
				go drip(second.s, version)
				within(t, slowMost, "a refusal", func() {
					if err := <-done; !errors.Is(err, bus.ErrTimeout) {
						t.Errorf("the refusal ended with %v, want ErrTimeout", err)
					}
				})
				first.hello0()
			}
		})
	}
}

// A peer that takes a message slowly, each part of it in time, is not waited for.
func TestSlowReader(t *testing.T) {
	bustest.NoLeaks(t)
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSock(p[0], slowLimit)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	go func() {
		defer unix.Close(p[1])
		b := make([]byte, mostAtOnce)
		for {
			if n, err := unix.Read(p[1], b); n <= 0 || err != nil {
				return
			}
			time.Sleep(slowLimit / 2)
		}
	}()
	within(t, slowMost, "sending", func() {
		if err := s.send(make([]byte, ownTransfer)); !errors.Is(err, bus.ErrTimeout) {
			t.Errorf("send = %v, want ErrTimeout", err)
		}
	})
}

// Clients that say nothing fill the room that there is for those one too many. Serve ends all the same.
func TestServeEndsFull(t *testing.T) {
	bustest.NoLeaks(t)
	path, stop := listening(t, newFake(t, false), ServerOptions{Timeout: 20 * time.Second})
	var all []net.Conn
	for range maxRefusals + 4 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all = append(all, c)
	}
	time.Sleep(50 * time.Millisecond) // they are accepted
	within(t, 2*time.Second, "Serve's end", func() {
		if err := stop(); err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
	})
	for _, c := range all {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a client is still connected")
		}
	}
}

// A process that is short of descriptors for a time serves on when it has some again.
func TestServeShort(t *testing.T) {
	bustest.NoLeaks(t)
	path, _ := listening(t, newFake(t, false), fakeServer(t))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	r := newRaw(t, fd)
	var had unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &had); err != nil {
		t.Fatal(err)
	}
	next := dup(t, 0)
	unix.Close(next)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(next), Max: had.Max}); err != nil {
		t.Fatal(err)
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	time.Sleep(50 * time.Millisecond) // Accept fails
	if e := unix.Setrlimit(unix.RLIMIT_NOFILE, &had); e != nil {
		t.Fatal(e)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.hello()
	r.hello0()
}

// A client that sends no more still has all that it sent handled, and answered.
func TestHalfClose(t *testing.T) {
	bustest.NoLeaks(t)
	for range 20 {
		f := newFake(t, false)
		r, done := rawServed(t, t.Context(), mustServer(t, f))
		r.hello()
		f.took()
		for i := range 5 {
			if err := r.send(header{id: uint16(i), cmd: cmdRegionWrite}, accessBody(8, 0, 4, byte(i), 0, 0, 0)); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Shutdown(r.s.fd, unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			if err := r.s.receive(&r.in, 100); err != nil || r.in.id != uint16(i) || r.in.flags != typeReply {
				t.Fatalf("answer %d: %v, id %d, flags %#x", i, err, r.in.id, r.in.flags)
			}
		}
		if err := r.s.receive(&r.in, 100); !errors.Is(err, io.EOF) {
			t.Errorf("after the answers: %v, want the end", err)
		}
		if err := <-done; err != nil {
			t.Errorf("the session ended with %v", err)
		}
		f.wantLog(t, "five writes", "write32 0+0x8=0x0", "write32 0+0x8=0x1", "write32 0+0x8=0x2", "write32 0+0x8=0x3", "write32 0+0x8=0x4", "reset", "config16 0x4=0x3")
	}
}
