package vfiouser

import (
	"context"
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// script is fuzz input as a series of steps.
type script struct{ b []byte }

func (s *script) byte() byte {
	if len(s.b) == 0 {
		return 0
	}
	c := s.b[0]
	s.b = s.b[1:]
	return c
}

// bytes is a body, whose length stands before it.
func (s *script) bytes() []byte {
	n := min(int(s.byte())|int(s.byte())<<8, len(s.b))
	b := s.b[:n]
	s.b = s.b[n:]
	return b
}

// fds makes descriptors of several kinds: eventfds, memory that is sealed, that is not, that is short.
func (s *script) fds(t testing.TB) (fds []int) {
	n := s.byte()
	for i := range int(n & 0x1f) {
		switch (int(n>>5) + i) % 4 {
		case 0:
			fds = append(fds, eventfd(t))
		case 1:
			fds = append(fds, memory(t, 1<<16, true))
		case 2:
			fds = append(fds, memory(t, 1<<16, false))
		default:
			fds = append(fds, memory(t, 100, true))
		}
	}
	return fds
}

// openFDs counts this process's descriptors.
func openFDs(t testing.TB) int {
	t.Helper()
	ent, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(ent)
}

// step is a record of a script: a command, flags, descriptors, a body.
func step(cmd command, flags byte, fds byte, body []byte) []byte {
	return append([]byte{byte(cmd), flags, fds, byte(len(body)), byte(len(body) >> 8)}, body...)
}

// The server: whatever a client sends, in whatever order, with whatever descriptors, ends in an answer
// or in the end of the session, and leaves nothing.
func FuzzServer(f *testing.F) {
	seeds := [][]byte{
		step(cmdDeviceInfo, 0, 0, []byte{16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}),
		step(cmdRegionInfo, 0, 0, body(func(w *writer) { w.regionInfo(regionInfo{argsz: 200, index: 2}) })),
		step(cmdRegionRead, 0, 0, accessBody(0, 7, 256)),
		step(cmdRegionWrite, flagNoReply, 0, accessBody(0x400, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8)),
		step(cmdRegionWrite, 0, 0, accessBody(4, 7, 4, 0xff, 0xff, 0xff, 0xff)),
		step(cmdWriteMulti, 0, 0, append(body(func(w *writer) { w.u64(1) }), accessBody(0, 0, 4, 1, 2, 3, 4, 5, 6, 7, 8)...)),
		step(cmdDMAMap, 0, 1|1<<5, dmaMapBody(dmaMap{flags: 3, addr: 0x10000, size: 0x10000})),
		step(cmdDMAMap, 0, 0, dmaMapBody(dmaMap{flags: 1, addr: 0x40000, size: 0x10000})),
		step(cmdDMAUnmap, 0, 0, body(func(w *writer) { w.dmaUnmap(dmaUnmap{argsz: 24, addr: 0x10000, size: 0x10000}) })),
		step(cmdDMAUnmap, 0, 0, body(func(w *writer) { w.dmaUnmap(dmaUnmap{argsz: 24, flags: 2}) })),
		step(cmdIRQInfo, 0, 0, body(func(w *writer) { w.irqInfo(irqInfo{argsz: 16, index: 2}) })),
		step(cmdSetIRQs, 0, 1, irqBody(irqSet{flags: setEventfd | setTrigger, index: irqMSIX, count: 1})),
		step(cmdSetIRQs, 0, 1, irqBody(irqSet{flags: setEventfd | setTrigger, count: 1})),
		step(cmdSetIRQs, 0, 1, irqBody(irqSet{flags: setEventfd | setUnmask, count: 1})),
		step(cmdSetIRQs, 0, 0, irqBody(irqSet{flags: setNone | setTrigger})),
		step(cmdRegionFDs, 0, 0, body(func(w *writer) { w.ioFDs(ioFDs{argsz: 4096}) })),
		step(cmdReset, 0, 0, nil),
	}
	var all []byte
	for _, s := range seeds {
		f.Add(append([]byte{0}, s...))
		all = append(all, s...)
	}
	f.Add(append([]byte{0}, all...))
	f.Add(append([]byte{1}, all...))
	f.Add([]byte("\x02anything at all, and no message in it"))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := openFDs(t)
		d := newFake(t, false)
		srv, err := NewServer(d, ServerOptions{Timeout: time.Second, Registers: doorbells})
		if err != nil {
			t.Fatal(err)
		}
		runServer(t, srv, &script{data})
		if d.Err() != nil || len(d.windows) != 0 || len(d.irqs) != 0 {
			t.Errorf("the session left %d windows, %d vectors", len(d.windows), len(d.irqs))
		}
		if n := openFDs(t); n != before {
			t.Errorf("%d descriptors, want %d as before", n, before)
		}
	})
}

// runServer plays a script to a session, and ends it.
func runServer(t *testing.T, srv *Server, s *script) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := connOf(t, p[1])
	done := make(chan error, 1)
	go func() { done <- srv.ServeConn(context.Background(), conn) }()
	r := &raw{t: t}
	if r.s, err = newSock(p[0], time.Second); err != nil {
		t.Fatal(err)
	}
	mode := s.byte()
	if mode == 2 {
		_ = r.s.send(s.b)
		s.b = nil
	} else {
		caps := "{\"max_msg_fds\":16}"
		if mode == 1 {
			caps = "{\"max_msg_fds\":16,\"twin_socket\":{\"supported\":true},\"ring3\":{\"write_queue\":{},\"last_words\":true}}"
		}
		_ = r.send(header{cmd: cmdVersion}, []byte("\x00\x00\x00\x00{\"capabilities\":"+caps+"}\x00"))
	}
	answers := make(chan int)
	go func() {
		n := 0
		for {
			err := r.s.receive(&r.in, ownTransfer+64)
			if err == nil {
				n++
			} else if !errors.Is(err, errIdle) { // a busy machine may be silent for a second
				break
			}
		}
		answers <- n
	}()
	asked := 1
	for n := 0; len(s.b) > 0 && n < 64; n++ {
		h := header{cmd: command(s.byte())}
		h.flags = uint32(s.byte())
		fds := s.fds(t)
		if len(fds) > 20 {
			for _, fd := range fds[20:] {
				unix.Close(fd)
			}
			fds = fds[:20]
		}
		if r.send(h, s.bytes(), fds...) != nil {
			break
		}
		if h.flags&flagNoReply == 0 {
			asked++
		}
	}
	_ = unix.Shutdown(p[0], unix.SHUT_WR) // all of it is handled
	select {
	case err := <-done:
		if n := <-answers; err == nil && mode != 2 && n != asked {
			t.Errorf("%d answers to %d requests", n, asked)
		}
	case <-time.After(10 * time.Second):
		buf := make([]byte, 1<<20)
		t.Fatalf("the session does not end\n%s", buf[:runtime.Stack(buf, true)])
	}
	r.in.closeFDs()
	r.s.close()
}

// The write queue: whatever a client puts there is a write, or the end of the session.
func FuzzQueue(f *testing.F) {
	p := post{region: 0, width: 4, off: 8, value: 5}
	f.Add(uint64(1), p.word(), uint64(7))
	f.Add(uint64(2), ^uint64(0), ^uint64(0))
	f.Add(^uint64(0), uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, tail, word, value uint64) {
		d := newFake(t, false)
		srv, err := NewServer(d, ServerOptions{})
		if err != nil {
			t.Fatal(err)
		}
		x := newSession(srv, nil)
		if err := x.open(); err != nil {
			t.Fatal(err)
		}
		q, err := newConsumer()
		if err != nil {
			t.Fatal(err)
		}
		x.bells.queue = q
		defer q.close()
		for i := range 8 {
			q.mem[queueTail+i] = byte(tail >> (8 * i))
			q.mem[queueRing+i] = byte(word >> (8 * i))
			q.mem[queueRing+8+i] = byte(value >> (8 * i))
		}
		d.took()
		x.bells.group.join(&x.bells)
		err = x.bells.drain()
		if n := q.head; n > tail || n > queueEntries || err == nil && n != tail {
			t.Errorf("%d writes of %d, %v", n, tail, err)
		}
	})
}

// The client: whatever a server answers, Open fails or there is a device, whose use ends.
func FuzzClient(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 0, 3, 0, 'a', 'b', 'c'})
	f.Add([]byte{0, 2, 22})
	f.Add([]byte{0, 0, 1, 1 | 1<<5, 32, 0, 32, 0, 0, 0, 7, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 3, 11, 0, 4, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		before := openFDs(t)
		s := &script{data}
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		k, err := newSock(p[1], time.Second)
		if err != nil {
			t.Fatal(err)
		}
		l := &liar{t: t, r: &raw{t: t, s: k}, done: make(chan struct{}), on: map[command]func(*message) answer{}}
		for c := range commandNames {
			l.on[c] = func(m *message) answer { return scripted(t, l, s, m) }
		}
		l.start()
		d, err := Open(t.Context(), connOf(t, p[0]), Options{Timeout: 50 * time.Millisecond})
		if (d == nil) == (err == nil) {
			t.Fatalf("Open = %v, %v", d, err)
		}
		if err == nil {
			use(d)
			if err := d.Close(); err != nil && d.Err() == nil {
				t.Errorf("Close = %v", err)
			}
		}
		k.shutdown()
		<-l.done
		l.r.in.closeFDs()
		k.close()
		if n := openFDs(t); n != before {
			t.Errorf("%d descriptors, want %d as before", n, before)
		}
	})
}

// use does a little of everything.
func use(d *Device) {
	for _, i := range d.Regions() {
		r, err := d.Region(i.Index)
		if err != nil {
			return
		}
		for _, o := range []bus.Off{0, 8, bus.Off(i.Size - 8), bus.Off(i.Size)} {
			r.Write32(o, 1)
			r.Write64(o, 2)
			r.Read8(o)
			r.Read64(o)
		}
	}
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 100})
	if err == nil {
		m.Bytes[0] = 1
		defer m.Free()
	}
	for _, mode := range irqModes {
		_, _ = d.EnableIRQs(mode, 1)
	}
}

// scripted answers as a script says: honestly, with anything, with an error, with a command first, or
// not at all.
func scripted(t testing.TB, l *liar, s *script, m *message) answer {
	switch s.byte() % 8 {
	case 1:
		return answer{fds: s.fds(t), body: s.bytes()}
	case 2:
		return answer{errno: uint32(s.byte())}
	case 3:
		_ = l.r.send(header{cmd: command(s.byte()), flags: uint32(s.byte())}, s.bytes())
	case 4:
		a := l.honest(m)
		b := s.bytes()
		copy(a.body, b)
		return a
	case 5:
		return answer{body: s.bytes(), head: func(h *header) { h.size = uint32(s.byte()) }}
	case 6:
		a := l.honest(m)
		a.fds = s.fds(t)
		return a
	}
	return l.honest(m)
}

// The parsers, alone: a value or an error, and no panic.
func FuzzParse(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00{\"capabilities\":{\"max_msg_fds\":8,\"twin_socket\":{\"supported\":true,\"fd_index\":0}}}\x00"))
	f.Add(append(body(func(w *writer) { w.regionInfo(regionInfo{argsz: 64, flags: 15, caps: 32, size: 8192}) }), sparse([]bus.Part{{Size: 4096}})...))
	f.Add(body(func(w *writer) {
		w.ioFDs(ioFDs{argsz: 64, count: 1})
		w.shadowFD(shadowFD{off: 8, size: 4, kind: 2})
	}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := parseVersion(b); err == nil {
			if v.caps.fds() < 0 || v.caps.fds() > ownFDs || v.caps.transfer() < 1 || v.caps.transfer() > ownTransfer || v.caps.page() < pageSize || v.caps.maps() < 0 {
				t.Errorf("limits of %q: %d, %d, %d, %#x", b, v.caps.fds(), v.caps.transfer(), v.caps.maps(), v.caps.page())
			}
		}
		m := &message{body: b}
		var r regionReply
		if err := r.parse(m, 0); err == nil && len(r.areas) > maxSparse {
			t.Errorf("%d areas", len(r.areas))
		}
		if err := lastWords(b); err == nil {
			t.Error("last words without a reason")
		}
		g := &region{d: &Device{}, info: bus.RegionInfo{Size: 4096}}
		if err := g.takeBells(m); err == nil && len(g.bells) > 0 {
			t.Error("doorbells without descriptors")
		}
		var h header
		if len(b) >= headerSize {
			if err := h.parse(b, 1000); err == nil && (h.size < headerSize || h.size > 1000+headerSize) {
				t.Errorf("a size of %d", h.size)
			}
		}
	})
}
