package fabricd

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

func rawDial(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestBadClients: nothing that a client sends or does not do hurts the daemon or the others.
func TestBadClients(t *testing.T) {
	leakless(t)
	s, c := start(t, starTopology)
	for _, line := range []string{
		"", "\n", "hello\n", "{}\n", `{"v":2,"op":"show"}` + "\n", `{"op":"show"`, "\x00\xff\n", strings.Repeat("[", 4000) + "\n",
		strings.Repeat("x", maxRequest+10), `{"join":"pe0"}` + "\n" + `{"op":"show"}` + "\n", `{"join":"nobody"}` + "\n",
	} {
		conn := rawDial(t, s.path)
		if _, err := io.WriteString(conn, line); err != nil && !errors.Is(err, unix.EPIPE) {
			t.Errorf("%.30q: %v", line, err)
		}
		_ = conn.CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		out, err := io.ReadAll(conn)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%.30q: no end of the connection", line)
		}
		if strings.Contains(line, "\n") && !strings.Contains(string(out), `"error":"`) {
			t.Errorf("%.30q was answered %q, want an error", line, out)
		}
	}
	// Several requests on one connection, one of which fails.
	conn := rawDial(t, s.path)
	_, _ = io.WriteString(conn, `{"op":"version"}`+"\n"+`{"op":"link","ends":["a","b"],"up":true}`+"\n"+`{"op":"windows"}`+"\n")
	r := bufio.NewReader(conn)
	for _, want := range []string{`{"v":1,"ok":true}`, `"code":"unknown"`, `{"v":1,"ok":true}`} {
		if line, err := r.ReadString('\n'); err != nil || !strings.Contains(line, want) {
			t.Errorf("answer %q, %v, want %s", line, err, want)
		}
	}
	conn.Close()
	// As many as there may be, which say nothing, do not keep nodes that joined from working; one more is told so.
	p := joinAs(t, s.path, "pe0").open()
	eventually(t, "earlier connections to end", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.conns) == 0 })
	for range s.maxConns() {
		rawDial(t, s.path)
	}
	_, err := c.Show(t.Context())
	oneLine(t, "Show beside too many clients", err, "no more are taken", bus.ErrBusy)
	p.read(0)
}

// TestSlowWatcher: who watches and takes nothing is cut off, and holds up nobody.
func TestSlowWatcher(t *testing.T) {
	leakless(t)
	s, c := start(t, starTopology)
	conn := rawDial(t, s.path)
	if _, err := io.WriteString(conn, `{"op":"watch"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the watcher to be known", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.watchers) == 1 })
	ends := []string{strings.Repeat("x", 1000)}
	for known := true; known; {
		s.tell(Event{What: EventLinkUp, Ends: ends})
		s.mu.Lock()
		for w := range s.watchers {
			known = len(w.events) < maxEvents
		}
		s.mu.Unlock()
	}
	s.tell(Event{What: EventLinkUp})
	if _, err := c.Show(t.Context()); err != nil {
		t.Errorf("Show beside a slow watcher: %v", err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	out, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(out), "events were not taken") {
		t.Errorf("the watcher read %d bytes, %v, want to be told why it is cut off", len(out), err)
	}
}

// TestForeignServers: what answers at the path is no fabric's daemon, or another version's, or says nothing.
func TestForeignServers(t *testing.T) {
	leakless(t)
	for _, e := range []struct {
		answer, want string
		is           error
	}{
		{"220 mail ready\r\n", "is no fabric", bus.ErrProtocol},
		{`{"jsonrpc":"2.0"}` + "\n", "is no fabric", bus.ErrProtocol},
		{`{"v":2,"ok":true}` + "\n", "speaks version 2 of the control protocol, this program 1", bus.ErrNotSupported},
		{"", "is gone", bus.ErrGone},
		{`{"v":1,"ok":true`, "is gone", bus.ErrGone},
	} {
		path := t.TempDir() + "/sock"
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = bufio.NewReader(c).ReadString('\n')
				_, _ = io.WriteString(c, e.answer)
				c.Close()
			}
		}()
		_, err = Dial(t.Context(), path)
		oneLine(t, "Dial", err, e.want, e.is)
		_, _, err = Join(t.Context(), path, Request{Node: "pe0"})
		oneLine(t, "Join", err, e.want, e.is)
		ln.Close()
		<-done
	}
	// A node's answer that lacks what a node is told.
	c := &Client{path: "/x"}
	if _, err := c.parse([]byte(`{"v":1,"error":"no","code":"busy"}`)); !errors.Is(err, bus.ErrBusy) || err.Error() != "no" {
		t.Errorf("parse of an error = %v", err)
	}
}
