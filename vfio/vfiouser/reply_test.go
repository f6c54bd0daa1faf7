package vfiouser

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
)

// dmaClient is a client that has a window of 64 KiB at 0x10000 that it reads and writes itself, with a socket for
// that or without. cmds is where it is asked.
func dmaClient(t testing.TB, f *fake, twin bool, o ServerOptions) (mem bus.WindowMemory, r, cmds *raw, done <-chan error) {
	t.Helper()
	srv, err := NewServer(f, o)
	if err != nil {
		t.Fatal(err)
	}
	r, done = rawServed(t, t.Context(), srv)
	cmds = r
	if !twin {
		r.hello()
	} else {
		errno, _ := r.ask(cmdVersion, []byte("\x00\x00\x00\x00{\"capabilities\":{\"max_msg_fds\":16,\"twin_socket\":{\"supported\":true}}}\x00"))
		if errno != 0 || len(r.in.fds) != 1 {
			t.Fatalf("VERSION: error %d, %d descriptors", errno, len(r.in.fds))
		}
		cmds = newRaw(t, r.in.fds[0])
		r.in.fds[0] = -1
	}
	if errno, _ := r.ask(cmdDMAMap, dmaMapBody(dmaMap{flags: 3, addr: 0x10000, size: 0x10000})); errno != 0 {
		t.Fatalf("DMA_MAP: error %d", errno)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.windows[0].Mem, r, cmds, done
}

// honestDMA is the answer to a DMA_READ of bytes that are their address's, or to a DMA_WRITE.
func honestDMA(m *message) []byte {
	r := reader{b: m.body}
	a := r.dmaAccess()
	b := body(func(w *writer) { w.dmaAccess(a) })
	if m.cmd == cmdDMARead {
		for i := range min(a.count, 64) { // also of what is no command
			b = append(b, byte(a.addr+i))
		}
	}
	return b
}

// What a client answers the server's own commands: the device's access fails where it must, in time, and the session
// ends where no answer could be told from another's any more.
func TestDMAReplies(t *testing.T) {
	setCount := func(n byte) func(h *header, b []byte) []byte {
		return func(_ *header, b []byte) []byte { b[8] = n; return b }
	}
	const limit = time.Second
	for _, c := range []struct {
		name        string
		reply       func(h *header, b []byte) []byte // nil: none
		fds         int
		read, write error // of the access
		ends        bool  // the session
	}{
		{name: "honest", reply: func(_ *header, b []byte) []byte { return b }},
		{name: "without a command", reply: func(h *header, b []byte) []byte { h.cmd = 0; return b }},
		{name: "with descriptors", reply: func(_ *header, b []byte) []byte { return b }, fds: 3},
		{name: "short", reply: func(_ *header, b []byte) []byte { return b[:len(b)-1] }, read: bus.ErrProtocol, write: bus.ErrProtocol},
		{name: "shorter", reply: func(_ *header, b []byte) []byte { return b[:7] }, read: bus.ErrProtocol, write: bus.ErrProtocol},
		{name: "empty", reply: func(*header, []byte) []byte { return nil }, read: bus.ErrProtocol},
		{name: "long", reply: func(_ *header, b []byte) []byte { return append(b, 1) }, read: bus.ErrProtocol, write: bus.ErrProtocol},
		{name: "very long", reply: func(_ *header, b []byte) []byte { return append(b, make([]byte, 1<<19)...) }, read: bus.ErrProtocol, write: bus.ErrProtocol},
		{name: "a smaller count", reply: setCount(7), read: bus.ErrProtocol, write: bus.ErrProtocol},
		{name: "a larger count", reply: setCount(9), read: bus.ErrProtocol, write: bus.ErrProtocol},
		{name: "an error", reply: func(h *header, _ []byte) []byte {
			h.flags, h.errno = h.flags|flagError, uint32(unix.EFAULT)
			return nil
		}, read: unix.EFAULT, write: unix.EFAULT},
		{name: "an error and data", reply: func(h *header, b []byte) []byte {
			h.flags, h.errno = h.flags|flagError, uint32(unix.EIO)
			return b
		}, read: unix.EIO, write: unix.EIO},
		{name: "error 0", reply: func(h *header, _ []byte) []byte { h.flags |= flagError; return nil }, read: unix.Errno(0), write: unix.Errno(0)},
		{name: "another's", reply: func(h *header, b []byte) []byte { h.id++; return b }, read: bus.ErrProtocol, write: bus.ErrProtocol, ends: true},
		{name: "another command's", reply: func(h *header, b []byte) []byte { h.cmd = cmdReset; return b }, read: bus.ErrProtocol, write: bus.ErrProtocol, ends: true},
		{name: "of no type", reply: func(h *header, b []byte) []byte { h.flags = 7; return b }, read: bus.ErrProtocol, write: bus.ErrProtocol, ends: true},
		{name: "too many descriptors", reply: func(_ *header, b []byte) []byte { return b }, fds: ownFDs + 1, read: bus.ErrProtocol, write: bus.ErrProtocol, ends: true},
		{name: "none", read: bus.ErrTimeout, write: bus.ErrTimeout, ends: true},
	} {
		for _, twin := range []bool{false, true} {
			for _, write := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, twin %v, write %v", c.name, twin, write), func(t *testing.T) {
					bustest.NoLeaks(t)
					mem, r, cmds, done := dmaClient(t, newFake(t, false), twin, ServerOptions{Timeout: limit})
					access := func() error {
						p := make([]byte, 8)
						if write {
							_, err := mem.WriteAt(p, 16)
							return err
						}
						_, err := mem.ReadAt(p, 16)
						if err == nil && !bytes.Equal(p, []byte{16, 17, 18, 19, 20, 21, 22, 23}) {
							err = fmt.Errorf("read % x", p)
						}
						return err
					}
					result := make(chan error, 1)
					begun := time.Now()
					go func() { result <- access() }()
					m := &cmds.in
					if err := cmds.s.receive(m, 100); err != nil || m.isReply() {
						t.Fatalf("no command comes: %v", err)
					}
					if c.reply != nil {
						h := header{id: m.id, cmd: m.cmd, flags: typeReply}
						var fds []int
						for range c.fds {
							fds = append(fds, eventfd(t))
						}
						b := c.reply(&h, honestDMA(m))
						_ = cmds.send(h, b, fds...)
					}
					want := c.read
					if write {
						want = c.write
					}
					err := <-result
					if !errors.Is(err, want) || (err == nil) != (want == nil) {
						t.Errorf("the access: %v, want %v", err, want)
					}
					if took := time.Since(begun); took > limit {
						t.Errorf("the access took %v, want less than %v", took, limit)
					}
					if c.ends {
						begun := time.Now()
						if err := access(); err == nil || time.Since(begun) > limit/2 {
							t.Errorf("a second access: %v after %v, want an error at once", err, time.Since(begun))
						}
						if err := <-done; !errors.Is(err, want) {
							t.Errorf("the session ended with %v, want %v", err, want)
						}
						return
					}
					go func() { result <- access() }()
					if err := cmds.s.receive(m, 100); err != nil {
						t.Fatalf("no command comes any more: %v", err)
					}
					_ = cmds.send(header{id: m.id, cmd: m.cmd, flags: typeReply}, honestDMA(m))
					if err := <-result; err != nil {
						t.Errorf("an access after that: %v", err)
					}
					r.hello0()
				})
			}
		}
	}
}

// A client that is killed while the server waits for its answer is not waited for.
func TestKilledAsked(t *testing.T) {
	for _, twin := range []bool{false, true} {
		bustest.NoLeaks(t)
		mem, r, cmds, done := dmaClient(t, newFake(t, false), twin, ServerOptions{})
		result := make(chan error, 1)
		go func() {
			_, err := mem.ReadAt(make([]byte, 8), 0)
			result <- err
		}()
		if err := cmds.s.receive(&cmds.in, 100); err != nil {
			t.Fatal(err)
		}
		r.s.close()
		within(t, time.Second, "the session's end", func() {
			if err := <-result; err == nil {
				t.Error("the access = nil, want an error")
			}
			if err := <-done; err != nil {
				t.Errorf("the session ended with %v", err)
			}
		})
	}
}

// The server as one that asks: whatever is answered, the access gets an answer or an error, in time, and nothing is
// left. What an access reads is what was sent.
func FuzzDMAReplies(f *testing.F) {
	f.Add(false, false, []byte{1, 0, 0, 0, 8})
	f.Add(true, false, []byte{1, 0, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0, 0, 0, 8})
	f.Add(false, true, []byte{1, 0, 1, 3, 16, 0})
	f.Add(true, true, []byte{1 | flagError, 0, 0, 0, 0, 0, 5, 7, 1, 2, 3})
	f.Fuzz(func(t *testing.T, twin, write bool, data []byte) {
		before := openFDs(t)
		s := &script{data}
		d := newFake(t, false)
		mem, r, cmds, done := dmaClient(t, d, twin, ServerOptions{Timeout: 200 * time.Millisecond})
		var mu sync.Mutex
		var sent [][]byte
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			m := &cmds.in
			for n := 0; len(s.b) > 0 && n < 8 && cmds.s.receive(m, ownTransfer+64) == nil; n++ {
				h := header{cmd: m.cmd, flags: uint32(s.byte()), id: m.id + uint16(s.byte())}
				if c := s.byte(); c != 0 {
					h.cmd = command(c)
				}
				fds := s.fds(t)
				b := honestDMA(m)
				b = append(b[:min(len(b), int(s.byte()))], s.bytes()...)
				mu.Lock()
				sent = append(sent, b)
				mu.Unlock()
				if cmds.send(h, b, fds...) != nil {
					return
				}
			}
		}()
		for range 2 {
			var err error
			p := make([]byte, 8)
			if write {
				_, err = mem.WriteAt(p, 16)
			} else {
				_, err = mem.ReadAt(p, 16)
			}
			mu.Lock()
			if err == nil && !slices.ContainsFunc(sent, func(b []byte) bool { return write || len(b) == 24 && bytes.Equal(b[16:], p) }) {
				t.Errorf("read % x of % x", p, sent)
			}
			mu.Unlock()
		}
		r.s.close()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			buf := make([]byte, 1<<20)
			t.Fatalf("the session does not end\n%s", buf[:runtime.Stack(buf, true)])
		}
		cmds.s.close()
		<-answered
		cmds.in.closeFDs()
		r.in.closeFDs()
		if len(d.windows) != 0 {
			t.Errorf("the session left %d windows", len(d.windows))
		}
		if n := openFDs(t); n != before {
			t.Errorf("%d descriptors, want %d as before", n, before)
		}
	})
}
