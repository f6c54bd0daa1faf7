package vfiouser

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/sim"
)

// listening serves a device at a socket, until the test ends or stop is called.
func listening(t testing.TB, dev bus.Device, o ServerOptions) (path string, stop func() error) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "dev.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := NewServer(dev, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	return path, stop
}

// retry opens a device that the client before may still have.
func retry(t testing.TB, path string) *Device {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		d, err := Dial(t.Context(), path, Options{})
		if err == nil {
			return d
		}
		if !errors.Is(err, bus.ErrBusy) || time.Now().After(until) {
			t.Fatal(err)
		}
	}
}

// A thousand clients come and go, in order or not, and nothing is left of them on either side.
func TestThousand(t *testing.T) {
	bustest.NoLeaks(t)
	m, dev := model(t, "edu", sim.RealTime)
	path, stop := listening(t, dev, ServerOptions{Reset: func(ctx context.Context) error { return m.Reset(ctx, "d") }})
	before := openFDs(t)
	for i := range 1000 {
		if i%10 == 7 { // says nothing, or not enough
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			if i%20 == 7 {
				_, _ = c.Write([]byte{1, 2, 3})
			}
			c.Close()
			continue
		}
		d := retry(t, path)
		r := regionOf(t, d, 0)
		if r.Write32(4, uint32(i)); r.Read32(4) != ^uint32(i) {
			t.Fatalf("client %d reads %#x", i, r.Read32(4))
		}
		mem, err := d.DMA().Alloc(bus.DMARequest{Size: 4096})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.EnableIRQs(bus.MSI, 1); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			d.l.s.shutdown() // as when it is killed
			<-d.Done()
		} else {
			mem.Free()
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		mem.Free()
		if i%100 == 99 {
			waitFor(t, "the end of all sessions", func() bool { return openFDs(t) <= before+2 })
		}
	}
	if err := stop(); err != nil {
		t.Errorf("Serve = %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// What Listen finds at the path.
func TestListen(t *testing.T) {
	bustest.NoLeaks(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v, %v, want 0600", st.Mode(), err)
	}
	if _, err := Listen(path); !errors.Is(err, bus.ErrBusy) {
		t.Errorf("a second Listen = %v, want ErrBusy", err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if l, err = Listen(path); err != nil {
		t.Fatalf("Listen where an old socket is = %v", err)
	}
	l.Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Listen at a file = %v, want ErrExist", err)
	}
	if _, err := Listen(filepath.Join(dir, "no", "such")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Listen in no folder = %v", err)
	}
	if _, err := Listen(filepath.Join(dir, strings.Repeat("x", 200))); err == nil {
		t.Error("Listen at a path that is too long = nil")
	}
}

// What Dial says where nobody serves.
func TestDialErrors(t *testing.T) {
	bustest.NoLeaks(t)
	path := filepath.Join(t.TempDir(), "s")
	if _, err := Dial(t.Context(), path, Options{}); !errors.Is(err, bus.ErrGone) || !strings.Contains(err.Error(), "start the server first") {
		t.Errorf("Dial where there is nothing = %v", err)
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := Dial(t.Context(), path, Options{}); !errors.Is(err, bus.ErrGone) || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("Dial of a socket that is left = %v", err)
	}
}

// Serve ends with its context, and with its device.
func TestServeEnds(t *testing.T) {
	bustest.NoLeaks(t)
	f := newFake(t, false)
	path, stop := listening(t, f, fakeServer(t))
	d := retry(t, path)
	if err := stop(); err != nil {
		t.Errorf("Serve = %v, want nil", err)
	}
	<-d.Done()
	if err := d.Err(); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Err = %v, want ErrGone", err)
	}
	_ = d.Close()
	g := newFake(t, false)
	path, stop = listening(t, g, fakeServer(t))
	d = retry(t, path)
	_ = g.die(fmt.Errorf("pulled out: %w", bus.ErrGone))
	<-d.Done()
	if err := stop(); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Serve of a device that died = %v, want its reason", err)
	}
	_ = d.Close()
	if _, err := NewServer(g, ServerOptions{}); !errors.Is(err, bus.ErrGone) {
		t.Errorf("NewServer of a dead device = %v", err)
	}
	b := newFake(t, false)
	b.cfg[0x0e] = 1
	if _, err := NewServer(b, ServerOptions{}); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("NewServer of a bridge = %v, want ErrNotSupported", err)
	}
}

// Clients at once: one has the device, the others are told so, and each gets its turn.
func TestManyClients(t *testing.T) {
	bustest.NoLeaks(t)
	m, dev := model(t, "edu", sim.RealTime)
	path, _ := listening(t, dev, simServer(t, m))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				d, err := Dial(context.Background(), path, Options{})
				for ; errors.Is(err, bus.ErrBusy); d, err = Dial(context.Background(), path, Options{}) {
					time.Sleep(time.Millisecond)
				}
				if err != nil {
					t.Error(err)
					return
				}
				if r, err := d.Region(0); err != nil {
					t.Error(err)
				} else if v := r.Read32(4); v != 0 {
					t.Errorf("a client finds %#x, which another left", v)
				} else {
					r.Write32(4, 5)
				}
				_ = d.Close()
			}
		})
	}
	wg.Wait()
}

// What a process leaves when it is killed in the middle of everything: the server is there for the next.
func TestKilled(t *testing.T) {
	d, kill := spawn(t, "sim:edu", Options{})
	r := regionOf(t, d, 0)
	mem, err := d.DMA().Alloc(bus.DMARequest{Size: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Free()
	q, err := d.EnableIRQs(bus.MSI, 1)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					r.Write32(4, 1)
					r.Read32(4)
				}
			}
		})
	}
	begun := time.Now()
	kill()
	<-d.Done()
	if took := time.Since(begun); took > 10*time.Second { // no time-out, which would be 30 s
		t.Errorf("the end was noticed after %v, want it at once", took)
	}
	if err := d.Err(); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Err = %v, want ErrGone", err)
	}
	close(stop)
	wg.Wait()
	_ = q[0].Close()
	if v := r.Read32(4); v != ^uint32(0) {
		t.Errorf("a read = %#x, want all-ones", v)
	}
	mem.Bytes[7] = 1
}

// A peer that is stopped answers nothing, and is not waited for.
func TestStopped(t *testing.T) {
	f := newFake(t, false)
	srv, err := NewServer(f, fakeServer(t))
	if err != nil {
		t.Fatal(err)
	}
	d := attach(t, srv, Options{Timeout: 100 * time.Millisecond})
	r := regionOf(t, d, 0)
	f.mu.Lock() // the device, and with it the server, stands still
	begun := time.Now()
	v := r.Read32(0)
	took := time.Since(begun)
	f.mu.Unlock()
	if v != ^uint32(0) || took > 5*time.Second {
		t.Errorf("a read = %#x after %v", v, took)
	}
	if err := d.Err(); !errors.Is(err, bus.ErrTimeout) {
		t.Errorf("Err = %v, want ErrTimeout", err)
	}
	// Posted messages into a full socket.
	e := attach(t, mustServer(t, newFake(t, false)), Options{Timeout: 100 * time.Millisecond, Without: WriteQueue | Doorbells})
	g := e.server.dev.(*fake)
	r = regionOf(t, e, 0)
	g.mu.Lock()
	for begun = time.Now(); e.l.reason() == nil && time.Since(begun) < 10*time.Second; {
		r.Write32(0, 1)
	}
	g.mu.Unlock()
	if err := e.Err(); !errors.Is(err, bus.ErrTimeout) {
		t.Errorf("Err = %v, want ErrTimeout", err)
	}
}

func mustServer(t testing.TB, dev bus.Device) *Server {
	t.Helper()
	srv, err := NewServer(dev, fakeServer(t))
	if err != nil {
		t.Fatal(err)
	}
	return srv
}

// A client that takes no answers is not waited for either.
func TestDeafClient(t *testing.T) {
	bustest.NoLeaks(t)
	srv, err := NewServer(newFake(t, false), ServerOptions{Timeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	r, done := rawServed(t, t.Context(), srv)
	r.hello()
	begun := time.Now()
	for err == nil {
		err = r.send(header{cmd: cmdRegionRead}, accessBody(0, 7, 4096))
	}
	if !ended(err) {
		t.Errorf("the client's send = %v, want the server's end", err)
	}
	if err := <-done; !errors.Is(err, bus.ErrTimeout) {
		t.Errorf("the session ended with %v, want ErrTimeout", err)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A server that is woken again and again looks longer before it sleeps, up to a limit; one that is left
// alone looks for a short time.
func TestSpin(t *testing.T) {
	spin := leastSpin
	for range 10 {
		spin = nextSpin(spin, 50*time.Microsecond)
	}
	if spin != mostSpin {
		t.Errorf("after short sleeps it looks for %v, want %v", spin, mostSpin)
	}
	for range 10 {
		spin = nextSpin(spin, time.Millisecond)
	}
	if spin != leastSpin {
		t.Errorf("after long sleeps it looks for %v, want %v", spin, leastSpin)
	}
}
