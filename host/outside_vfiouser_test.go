package host

import (
	"context"
	"errors"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/vfio/vfiouser"
)

// serveNICs has two wired network devices served, until the test's end.
func serveNICs(t *testing.T) (a, b string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", dir)
	a, b = filepath.Join(dir, "a.sock"), filepath.Join(dir, "b.sock")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	var said lockedBuffer
	go func() {
		ended <- testProgram.Run(ctx, []string{"serve", "eth0=sim:e1000e", "eth1=sim:e1000e", "--wire", "eth0-eth1", "--socket", a, "--socket", b}, nil, &said, &said)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(testPatience):
			t.Error("the server does not end")
		}
		if t.Failed() {
			t.Log(said.String())
		}
	})
	await(t, "they are served", func() bool {
		for _, s := range []string{a, b} {
			c, err := vfiouser.Connect(t.Context(), s)
			if err != nil {
				return false
			}
			c.Close()
		}
		return true
	})
	return a, b
}

// TestSuperviseServed: drivers of devices that another process serves have workers, and what one sends goes on when it, or the receiver, is killed.
func TestSuperviseServed(t *testing.T) {
	a, b := serveNICs(t)
	s, _ := supervise(t, nil, "eth0=vfio-user:"+a, "eth1=vfio-user:"+b)
	from, to := s.chargeOf("eth0"), s.chargeOf("eth1")
	if from == to {
		t.Fatal("two devices that do not depend on each other are one group")
	}
	var mac string
	for _, d := range s.Devices() {
		if !d.Supervised || d.Worker == 0 {
			t.Errorf("%s is not supervised", d.Name)
		}
		if d.Name == "eth1" {
			mac = d.MAC
		}
	}
	started := sends(t, s, "eth0", mac, time.Millisecond)
	receives := func(what string) { awaitReceives(t, s, "eth1", what) }
	receives("first")
	for i, ch := range []*charge{to, from, to} {
		ch.mu.Lock()
		n := ch.deaths.count
		ch.mu.Unlock()
		if err := syscall.Kill(ch.worker().p.PID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		d := awaitUp(t, ch, n+1)
		receives([]string{"the receiver died", "the sender died", "the receiver died again"}[i])
		t.Logf("%s: in service after %v", ch.Name, d.took)
	}
	if _, err := s.reloadHandler(t.Context(), []byte(`{"device":"eth0"}`), nil); err != nil {
		t.Error(err)
	}
	receives("the sender was exchanged")
	s.set(t, "/proc/net/pktgen/pgctrl", "stop")
	if err := <-started; err != nil {
		t.Errorf("start: %v", err)
	}
	sent, rx := s.Figures().Pktgen[0].Packets, receivedBy(s, "eth1")
	if rx.Received+rx.Lost > sent || rx.Received == 0 || rx.Duplicated != 0 {
		t.Errorf("sent %d, received %d, lost %d, twice %d: want some received, and none more than sent", sent, rx.Received, rx.Lost, rx.Duplicated)
	}
	t.Logf("sent %d, received %d, lost %d", sent, rx.Received, rx.Lost)
}

// A worker gets the connection that the plan names, and so much memory.
func TestServedRefused(t *testing.T) {
	a, _ := serveNICs(t)
	plan, err := ParsePlan([]string{"eth0=vfio-user:" + a, "edu0=sim:edu"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := holdServed(Config{}, groupPlan{Plan: plan})
	if err != nil {
		t.Fatal(err)
	}
	h := b.(*heldServed)
	defer h.Close()
	for _, body := range []string{`{"device":"edu0"}`, `{"device":"/etc"}`, `{}`} {
		for what, f := range map[string]outsideCall{"connect": h.connect, "share": h.share} {
			if _, files, err := f(t.Context(), []byte(body), nil); !errors.Is(err, syscall.EACCES) || len(files) > 0 {
				t.Errorf("%s %s: %d files, %v, want EACCES", what, body, len(files), err)
			}
		}
	}
	share := func(size string) error {
		_, files, err := h.share(t.Context(), []byte(`{"device":"eth0","size":`+size+`}`), nil)
		closeOpen(files)
		return err
	}
	if err := share("4096"); err == nil {
		t.Error("memory before there is a connection: want an error")
	}
	connect := func() {
		t.Helper()
		_, files, err := h.connect(t.Context(), []byte(`{"device":"eth0"}`), nil)
		if err != nil || len(files) != 1 {
			t.Fatalf("connect: %d files, %v", len(files), err)
		}
		closeOpen(files)
	}
	for range 2 { // workers
		connect()
		for _, c := range []struct {
			size string
			want error
		}{{"0", syscall.ENOMEM}, {"-4096", syscall.ENOMEM}, {"100", syscall.ENOMEM}, {"1073745920", syscall.ENOMEM}, {"1073737728", nil}, {"4096", nil}, {"4096", syscall.ENOMEM}} {
			if err := share(c.size); !errors.Is(err, c.want) {
				t.Errorf("%s bytes: %v, want %v", c.size, err, c.want)
			}
		}
		connect()
		if err := share("4096"); !errors.Is(err, syscall.ENOMEM) {
			t.Errorf("4096 bytes by a worker that has all it may, and connected again: %v, want ENOMEM", err)
		}
		if err := h.Quiesce(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
