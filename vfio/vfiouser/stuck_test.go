package vfiouser

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/sim"
)

// A peer shares what its eventfds' descriptors say: it has them block, and keeps them full or empty, on purpose.

// within calls do, which must return soon.
func within(t testing.TB, limit time.Duration, what string, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(limit):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s takes longer than %v\n%s", what, limit, buf[:runtime.Stack(buf, true)])
	}
}

// dup is another descriptor of the same file.
func dup(t testing.TB, fd int) int {
	t.Helper()
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// stuff makes an eventfd one in which a write is held up.
func stuff(t testing.TB, fd int) {
	t.Helper()
	notify(fd, ^uint64(0)-1)
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
}

// rawServed is rawClient with a context, and an end that does not close the client's side.
func rawServed(t testing.TB, ctx context.Context, srv *Server) (*raw, <-chan error) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn, done := connOf(t, p[1]), make(chan error, 1)
	go func() { done <- srv.ServeConn(ctx, conn) }()
	r := newRaw(t, p[0])
	return r, done
}

// The eventfd that tells of the device's death, full and blocking: the session ends, whoever ends it.
func TestFullErrorEventfd(t *testing.T) {
	trigger := irqBody(irqSet{flags: setNone | setTrigger, index: irqErr, count: 1})
	for name, c := range map[string]struct {
		tried bool // the message loop is held up
		end   func(r *raw, f *fake, cancel func())
		want  error
	}{
		"the client leaves":             {true, func(r *raw, _ *fake, _ func()) { r.s.close() }, nil},
		"the server ends":               {true, func(_ *raw, _ *fake, cancel func()) { cancel() }, bus.ErrClosed},
		"the device dies":               {false, func(_ *raw, f *fake, _ func()) { _ = f.die(bus.ErrGone) }, bus.ErrGone},
		"the device dies while tried":   {true, func(_ *raw, f *fake, _ func()) { _ = f.die(bus.ErrGone) }, bus.ErrGone},
		"the server ends, nobody tried": {false, func(_ *raw, _ *fake, cancel func()) { cancel() }, bus.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			bustest.NoLeaks(t)
			f := newFake(t, false)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r, done := rawServed(t, ctx, mustServer(t, f))
			r.hello()
			fd := eventfd(t)
			defer unix.Close(fd)
			if errno, _ := r.ask(cmdSetIRQs, irqBody(irqSet{flags: setEventfd | setTrigger, index: irqErr, count: 1}), dup(t, fd)); errno != 0 {
				t.Fatalf("an eventfd: error %d", errno)
			}
			stuff(t, fd)
			if c.tried {
				if err := r.send(header{cmd: cmdSetIRQs}, trigger); err != nil {
					t.Fatal(err)
				}
				time.Sleep(50 * time.Millisecond)
			}
			c.end(r, f, cancel)
			// Before a client that keeps its eventfd full is sent away for that.
			within(t, DefaultTimeout/2-500*time.Millisecond, "the session's end", func() {
				if err := <-done; !errors.Is(err, c.want) {
					t.Errorf("the session ended with %v, want %v", err, c.want)
				}
			})
		})
	}
}

// A client that stays, and keeps the eventfd full that a model signals, is sent away: the model goes on.
func TestFullEventfdStays(t *testing.T) {
	bustest.NoLeaks(t)
	m, dev := model(t, "edu", sim.RealTime)
	o := simServer(t, m)
	o.Timeout = 400 * time.Millisecond
	srv, err := NewServer(dev, o)
	if err != nil {
		t.Fatal(err)
	}
	r, done := rawServed(t, t.Context(), srv)
	r.hello()
	fd := eventfd(t)
	defer unix.Close(fd)
	if errno, _ := r.ask(cmdSetIRQs, irqBody(irqSet{flags: setEventfd | setTrigger, index: irqMSI, count: 1}), dup(t, fd)); errno != 0 {
		t.Fatalf("an eventfd: error %d", errno)
	}
	stuff(t, fd)
	for _, w := range [][]byte{accessBody(4, 7, 2, 7, 0), accessBody(0x60, 0, 4, 1, 0, 0, 0)} {
		if err := r.send(header{cmd: cmdRegionWrite, flags: flagNoReply}, w); err != nil {
			t.Fatal(err)
		}
	}
	within(t, 5*time.Second, "sending the client away", func() {
		if err := <-done; !errors.Is(err, bus.ErrProtocol) {
			t.Errorf("the session ended with %v, want ErrProtocol", err)
		}
	})
	r, _ = rawServed(t, t.Context(), srv)
	r.hello()
	r.hello0()
}

// The eventfd that unmasks a line, empty and blocking: it still works, and can be taken away.
func TestResumeBlocks(t *testing.T) {
	bustest.NoLeaks(t)
	f := newFake(t, false)
	r, done := rawServed(t, t.Context(), mustServer(t, f))
	r.hello()
	ev, resume := eventfd(t), eventfd(t)
	defer unix.Close(ev)
	defer unix.Close(resume)
	if errno, _ := r.ask(cmdSetIRQs, irqBody(irqSet{flags: setEventfd | setTrigger, count: 1}), dup(t, ev)); errno != 0 {
		t.Fatalf("a line: error %d", errno)
	}
	if errno, _ := r.ask(cmdSetIRQs, irqBody(irqSet{flags: setEventfd | setUnmask, count: 1}), dup(t, resume)); errno != 0 {
		t.Fatalf("a line to resume: error %d", errno)
	}
	if err := unix.SetNonblock(resume, false); err != nil {
		t.Fatal(err)
	}
	f.took()
	for range 2 {
		notify(resume, 1)
		waitFor(t, "an unmask", func() bool { return slices.Contains(f.took(), "unmask") })
	}
	within(t, 2*time.Second, "taking it away", func() {
		if errno, _ := r.ask(cmdSetIRQs, irqBody(irqSet{flags: setEventfd | setUnmask, count: 1})); errno != 0 {
			t.Errorf("taking it away: error %d", errno)
		}
	})
	r.s.close()
	within(t, 2*time.Second, "the session's end", func() { <-done })
}

// An interrupt's eventfd that the server has block: interrupts can be disabled, and the device closed.
func TestInterruptBlocks(t *testing.T) {
	for _, handled := range []bool{false, true} {
		bustest.NoLeaks(t)
		passed := make(chan int, 1)
		l, conn := lie(t, map[command]func(m *message) answer{cmdSetIRQs: func(m *message) answer {
			if len(m.fds) > 0 {
				passed <- m.fds[0]
				m.fds[0] = -1
			}
			return answer{}
		}})
		l.start()
		d, err := Open(t.Context(), conn, Options{})
		if err != nil {
			t.Fatal(err)
		}
		q, err := d.EnableIRQs(bus.MSIX, 1)
		if err != nil {
			t.Fatal(err)
		}
		fd := <-passed
		if err := unix.SetNonblock(fd, false); err != nil {
			t.Fatal(err)
		}
		got := make(chan uint64, 10)
		ended := make(chan struct{})
		if handled {
			h := bus.Handle(q[0], "blocks", func(n uint64) { got <- n })
			go func() {
				defer close(ended)
				<-d.Done()
				_ = h.Close()
			}()
		} else {
			go func() {
				defer close(ended)
				for n, err := q[0].Wait(context.Background()); err == nil; n, err = q[0].Wait(context.Background()) {
					got <- n
				}
			}()
		}
		for range 2 {
			notify(fd, 1)
			if n := <-got; n != 1 {
				t.Errorf("%d interrupts, want 1", n)
			}
		}
		time.Sleep(10 * time.Millisecond) // it waits again
		within(t, 2*time.Second, "DisableIRQs", func() {
			if err := d.DisableIRQs(); err != nil {
				t.Error(err)
			}
		})
		within(t, 2*time.Second, "Close", func() {
			_ = d.Close()
			<-ended
		})
		unix.Close(fd)
	}
}

// stuckDevice is a device of a server whose doorbell for writes by shared memory holds up who rings it.
func stuckDevice(t *testing.T, way string, twin bool, limit time.Duration) (d *Device, l *liar, end func()) {
	t.Helper()
	kick := eventfd(t)
	var fds []int
	caps := ""
	closers := []func(){func() { unix.Close(kick) }}
	mem := memory(t, queueBytes(16), true)
	b, err := unix.Mmap(mem, 0, int(queueBytes(16)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	closers = append(closers, func() { _ = unix.Munmap(b) })
	l, conn := lie(t, map[command]func(m *message) answer{})
	if way == "queue" {
		fds = append(fds, mem, dup(t, kick))
		caps = `"ring3":{"write_queue":{"fd_index":0,"kick_index":1,"entries":16}}`
		b[queueSleep] = 1
	} else {
		l.on[cmdRegionFDs] = func(*message) answer {
			return answer{fds: []int{dup(t, kick), mem}, body: body(func(w *writer) {
				w.ioFDs(ioFDs{argsz: ioFDsSize + shadowFDSize, count: 1})
				w.shadowFD(shadowFD{off: 0x100, size: 4, kind: typeShadowFD, fd: 0, mem: 1})
			})}
		}
	}
	if twin {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if caps != "" {
			caps += ","
		}
		caps += fmt.Sprintf(`"twin_socket":{"supported":true,"fd_index":%d}`, len(fds))
		fds = append(fds, p[1])
		closers = append(closers, func() { unix.Close(p[0]) })
	}
	l.caps, l.fds = "{"+caps+"}", fds
	l.start()
	if d, err = Open(t.Context(), conn, Options{Timeout: limit}); err != nil {
		t.Fatal(err)
	}
	stuff(t, kick)
	return d, l, func() {
		for _, c := range closers {
			c()
		}
	}
}

// A doorbell that the server keeps full, and blocking: a register write is held up for a time-out at most, and
// not beyond the server's end.
func TestKickBlocks(t *testing.T) {
	for _, way := range []string{"queue", "doorbell"} {
		for _, twin := range []bool{false, true} {
			for _, dies := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, twin %v, dies %v", way, twin, dies), func(t *testing.T) {
					bustest.NoLeaks(t)
					limit, want := 500*time.Millisecond, bus.ErrProtocol
					if dies {
						limit, want = 20*time.Second, bus.ErrGone
					}
					d, l, end := stuckDevice(t, way, twin, limit)
					defer end()
					r := regionOf(t, d, 0)
					if dies {
						end := time.AfterFunc(50*time.Millisecond, func() {
							if l.r.s.shutdown(); twin {
								d.l.twin.s.shutdown()
							}
						})
						defer end.Stop()
					}
					within(t, 5*time.Second, "a write", func() { r.Write32(0x100, 1) })
					within(t, 5*time.Second, "the end", func() { <-d.Done() })
					if err := d.Err(); !errors.Is(err, want) && !errors.Is(err, bus.ErrProtocol) { // it may be seen before
						t.Errorf("Err = %v, want %v", err, want)
					}
					within(t, 2*time.Second, "all after it", func() {
						r.Write32(0x100, 2)
						if v := r.Read32(0); v != ^uint32(0) {
							t.Errorf("a read = %#x, want all-ones", v)
						}
						_ = d.Close()
					})
				})
			}
		}
	}
	// Close while a write is held up.
	for _, twin := range []bool{false, true} {
		d, _, end := stuckDevice(t, "queue", twin, 20*time.Second)
		defer end()
		r := regionOf(t, d, 0)
		wrote := make(chan struct{})
		go func() {
			defer close(wrote)
			r.Write32(0, 1)
		}()
		time.Sleep(50 * time.Millisecond)
		d.l.fail(bus.ErrClosed) // as where a request is not answered
		within(t, 2*time.Second, "Close", func() {
			_ = d.Close()
			<-wrote
		})
	}
}
