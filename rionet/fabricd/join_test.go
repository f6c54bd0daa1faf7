package fabricd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// TestJoin: a node joins, is shown, tells nobody else to join as it, and leaves.
func TestJoin(t *testing.T) {
	leakless(t)
	s, c := start(t, starTopology)
	events := make(chan Event, 10)
	ready := make(chan struct{})
	links := make(chan Event, 10)
	go c.Watch(t.Context(), func() { close(ready) }, func(e Event) error {
		if len(e.Ends) > 0 {
			links <- e
		} else {
			events <- e
		}
		return nil
	})
	<-ready
	p := joinAs(t, s.path, "pe1", 8192, 4096)
	if e := <-events; e.What != EventJoined || e.Node != "pe1" || e.PID != os.Getpid() {
		t.Errorf("event %+v, want pe1 to have joined", e)
	}
	if e := <-links; e.What != EventLinkUp || e.Ends[0] != "pe1" || e.Ends[1] != "sw0:1" {
		t.Errorf("event %+v, want pe1's link to be up", e)
	}
	f, err := c.Show(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := f.Nodes[1]; !n.Joined || n.PID != os.Getpid() || !n.Up || f.Nodes[0].Joined || f.IDs != rapidio.Small || f.PID != os.Getpid() || len(f.Links) != 4 {
		t.Errorf("Show = %+v", f)
	}
	w, err := c.Windows(t.Context())
	if err != nil || len(w) != 2 || w[1].Size != 4096 || w[1].Node != "pe1" || w[1].Index != 1 || w[0].DestID != 0xff {
		t.Errorf("Windows = %+v, %v", w, err)
	}
	for _, e := range []struct {
		q    Request
		want string
		is   error
	}{
		{Request{Node: "pe1"}, fmt.Sprintf("pe1: joined already by process %d", os.Getpid()), bus.ErrBusy},
		{Request{Node: "pe2", IDs: rapidio.Large}, "8-bit IDs, wanted 16-bit IDs", bus.ErrNotSupported},
		{Request{Node: "pe9"}, `no endpoint "pe9" in the fabric at ` + s.path + "; it has pe0, pe1, pe2, pe3", fs.ErrNotExist},
		{Request{}, "wants the name", nil},
		{Request{Node: "pe2", Windows: Sizes{100}}, "window of 100 bytes", nil},
	} {
		_, _, err := Join(t.Context(), s.path, e.q)
		oneLine(t, fmt.Sprintf("Join(%+v)", e.q), err, e.want, e.is)
	}
	p.open().setID(5)
	if e := <-events; e.What != EventNumbered || e.Node != "pe1" {
		t.Errorf("event %+v, want pe1 to have an ID", e)
	}
	if w, err := c.Windows(t.Context()); err != nil || len(w) != 2 || w[0].DestID != 5 {
		t.Errorf("Windows after the event = %+v, %v, want the ID 5", w, err)
	}
	p.close()
	if e := <-events; e.What != EventLeft || e.Node != "pe1" || e.Why != "its connection ended" {
		t.Errorf("event %+v, want pe1 to have left", e)
	}
	if e := <-links; e.What != EventLinkDown || e.Ends[0] != "pe1" {
		t.Errorf("event %+v, want pe1's link to be down", e)
	}
	if w, err := c.Windows(t.Context()); err != nil || len(w) != 0 {
		t.Errorf("Windows after it left = %+v, %v", w, err)
	}
	joinAs(t, s.path, "pe1").close()
	joinAs(t, s.path, "pe1").close() // at once: the one before has not been seen to end
}

// TestQEMUSocket: an endpoint's own socket speaks ivshmem at once; a second connection is closed.
func TestQEMUSocket(t *testing.T) {
	leakless(t)
	s, c := start(t, starTopology)
	dial := func() *net.UnixConn {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(s.path+".d", "pe2"), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	p := handshake(t, dial()).open()
	if p.id != 3 {
		t.Errorf("ivshmem ID %d, want 3", p.id)
	}
	second := dial()
	defer second.Close()
	_ = second.SetReadDeadline(time.Now().Add(patience))
	if n, err := second.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("second connection read %d, %v, want its end", n, err)
	}
	f, err := c.Show(t.Context())
	if err != nil || !f.Nodes[2].QEMU || !f.Nodes[2].Joined {
		t.Errorf("Show = %+v, %v", f, err)
	}
	// Who speaks where a client has nothing to say is no client.
	if _, err := p.conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a node that speaks to be ended", func() bool {
		f, err := c.Show(t.Context())
		return err == nil && !f.Nodes[2].Joined
	})
}

// TestSockets: what is at the socket's path, and what the daemon makes of it.
func TestSockets(t *testing.T) {
	leakless(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "sock")
	topo, err := fabric.Parse("t", []byte(starTopology))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Dial(t.Context(), path)
	oneLine(t, "Dial of nothing", err, "no fabric at "+path, fs.ErrNotExist)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Dial(t.Context(), path)
	oneLine(t, "Dial of a file", err, "not a socket", nil)
	_, err = Open(Config{Topology: topo, Socket: path})
	oneLine(t, "Open at a file", err, "is not a socket", fs.ErrExist)
	os.Remove(path)
	// A stale socket: its process is gone.
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(Config{Topology: topo, Socket: path})
	oneLine(t, "Open where something else answers", err, "something else answers at "+path, bus.ErrBusy)
	ln.SetUnlinkOnClose(false)
	ln.Close()
	_, err = Dial(t.Context(), path)
	oneLine(t, "Dial of a stale socket", err, "no fabric answers at "+path+" (its process is gone)", bus.ErrGone)
	_, _, err = Join(t.Context(), path, Request{Node: "pe0"})
	oneLine(t, "Join at a stale socket", err, "no fabric answers at "+path+" (its process is gone)", bus.ErrGone)
	s, _ := startAt(t, starTopology, path)
	_, err = Open(Config{Topology: topo, Socket: path})
	oneLine(t, "Open where a fabric runs", err, fmt.Sprintf("another fabric runs at %s (process %d)", path, os.Getpid()), bus.ErrBusy)
	for _, f := range []struct {
		path string
		mode fs.FileMode
	}{{path, fs.ModeSocket | 0o600}, {path + ".d", fs.ModeDir | 0o700}, {path + ".d/pe0", fs.ModeSocket | 0o600}} {
		if st, err := os.Stat(f.path); err != nil || st.Mode() != f.mode {
			t.Errorf("%s: mode %v, %v, want %v", f.path, st.Mode(), err, f.mode)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	os.Mkdir(path+".d", 0o755)
	_, err = Open(Config{Topology: topo, Socket: path})
	oneLine(t, "Open with an open folder", err, "wanted 0700", nil)
	os.Remove(path + ".d")
}

// TestDaemonEnds: nodes see their connection end, clients are told in a line.
func TestDaemonEnds(t *testing.T) {
	leakless(t)
	s, c := start(t, starTopology)
	p := joinAs(t, s.path, "pe0", 4096).open()
	file := must(c.Windows(t.Context()))(t)[0].Path
	res := make(chan error, 1)
	ready := make(chan struct{})
	go func() { res <- c.Watch(t.Context(), func() { close(ready) }, func(Event) error { return nil }) }()
	<-ready
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	oneLine(t, "Watch", <-res, "the fabric at "+s.path+" is gone", bus.ErrGone)
	if _, _, err := p.recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the node's connection: %v, want its end", err)
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the node's window: %v", err)
	}
	_, err := c.Show(t.Context())
	oneLine(t, "Show", err, "no fabric at "+s.path, fs.ErrNotExist)
}

// TestBlockedSignals: a node that makes its eventfds blocking and fills them stops nobody for long.
func TestBlockedSignals(t *testing.T) {
	leakless(t)
	s, c := start(t, starTopology)
	p := joinAs(t, s.path, "pe0").open()
	p.setID(5)
	p.mustCall(shm.Header{Kind: shm.KindDoorbells, Value: 1})
	p.node.Events.Arm()
	for _, fd := range p.own {
		full := [8]byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		_, _ = unix.Read(fd, make([]byte, 8)) // what it was signalled so far
		if _, err := unix.Write(fd, full[:]); err != nil {
			t.Fatal(err)
		}
		if err := unix.SetNonblock(fd, false); err != nil {
			t.Fatal(err)
		}
	}
	q := joinAs(t, s.path, "pe1").open()
	q.setID(6)
	q.route(5, 0)
	q.route(6, 1)
	if _, st := q.call(shm.Header{Kind: shm.KindDoorbell, Peer: 5, Info: 1}, nil); st != rapidio.Done {
		t.Errorf("doorbell to a node that blocks: %v", st)
	}
	eventually(t, "the node that blocks to be ended", func() bool {
		f, err := c.Show(t.Context())
		return err == nil && !f.Nodes[0].Joined
	})
	q.read(rapidio.RegDeviceID)
	// Nor does one that makes the daemon's blocking, which then sleeps in the kernel.
	p = joinAs(t, s.path, "pe0").open()
	if err := unix.SetNonblock(p.kicks, false); err != nil {
		t.Fatal(err)
	}
	p.read(rapidio.RegDeviceID)
	p.close()
	joinAs(t, s.path, "pe0").open()
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
