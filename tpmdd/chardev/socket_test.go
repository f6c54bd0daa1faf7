package chardev

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/devfs"
	"github.com/ring3dev/ring3/tpmdd"
)

// listen makes a socket, for as long as the test.
func listen(t testing.TB) *net.UnixListener {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm") // not t.TempDir: a socket's name is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// serve serves what open gives on a socket, to the end of the test, and returns where.
func serve(t testing.TB, open func() (*File, error)) string {
	t.Helper()
	l := listen(t)
	done := make(chan error, 1)
	go func() {
		done <- ServeSocket(l, func() (devfs.Stream, error) { return open() }, nil)
	}()
	t.Cleanup(func() {
		l.Close()
		if err := <-done; err != nil {
			t.Errorf("ServeSocket() = %v, want nil", err)
		}
	})
	return l.Addr().String()
}

func tpmOpener(d *Device) func() (*File, error) {
	return func() (*File, error) { return d.OpenTPM(0) }
}

// dial connects, for as long as the test.
func dial(t testing.TB, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { c.Close() })
	return c
}

func wantAnswers(t testing.TB, c net.Conn, want ...[]byte) {
	t.Helper()
	all := bytes.Join(want, nil)
	got := make([]byte, len(all))
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, all) {
		t.Errorf("answers = % x, %v, want % x", got[:n], err, all)
	}
}

func wantEnd(t testing.TB, c net.Conn) {
	t.Helper()
	// With data unread on the other side the end is a reset.
	if n, err := c.Read(make([]byte, 99)); n != 0 || err != io.EOF && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("Read = %d, %v, want the end", n, err)
	}
}

func TestSocketFraming(t *testing.T) {
	bustest.NoLeaks(t)
	d := New(newChip(echo), nil, Options{})
	c := dial(t, serve(t, tpmOpener(d)))
	for _, b := range one {
		c.Write([]byte{b})
	}
	wantAnswers(t, c, one)
	c.Write(slices.Concat(one, two, one, two[:5]))
	wantAnswers(t, c, one, two, one)
	c.Write(two[5:])
	wantAnswers(t, c, two)
	long := make([]byte, 4096)
	copy(long, []byte{0x80, 1, 0, 0, 0x10, 0})
	c.Write(long)
	wantAnswers(t, c, long)
	// Half closed, what was sent is answered.
	c.Write(one)
	c.(*net.UnixConn).CloseWrite()
	wantAnswers(t, c, one)
	wantEnd(t, c)
}

func TestSocketBadLengths(t *testing.T) {
	path := serve(t, tpmOpener(New(newChip(echo), nil, Options{})))
	for _, c := range []struct{ send, want []byte }{
		{[]byte{0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0}, tpmdd.Answer(tpmdd.TagNoSessions, 0x142)},
		{[]byte{0x80, 2, 0, 0, 0x10, 1}, tpmdd.Answer(tpmdd.TagNoSessions, 0x142)},
		{[]byte{0, 0xc1, 0xff, 0xff, 0xff, 0xff}, tpmdd.Answer(tpmdd.TagResponse12, 25)},
	} {
		conn := dial(t, path)
		conn.Write(c.send)
		wantAnswers(t, conn, c.want)
		wantEnd(t, conn)
	}
}

func TestSocketFailures(t *testing.T) {
	var mu sync.Mutex
	errno := unix.ETIME
	path := serve(t, tpmOpener(New(newChip(func(cmd []byte) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		if errno == 0 {
			return echo(cmd)
		}
		return fails(errno)(cmd)
	}), nil, Options{})))
	set := func(e unix.Errno) {
		mu.Lock()
		defer mu.Unlock()
		errno = e
	}
	c := dial(t, path)
	c.Write(one)
	wantAnswers(t, c, tpmdd.Answer(tpmdd.TagNoSessions, 0x101))
	c.Write(tpmdd.Command(tpmdd.TagRequest12, 1))
	wantAnswers(t, c, tpmdd.Answer(tpmdd.TagResponse12, 9))
	set(0)
	c.Write(one) // the connection goes on
	wantAnswers(t, c, one)
	set(unix.EPIPE)
	c.Write(one)
	wantAnswers(t, c, tpmdd.Answer(tpmdd.TagNoSessions, 0x101))
	wantEnd(t, c)
}

// Who is silent, or stops in the middle, is in nobody's way.
func TestSocketIdlePeers(t *testing.T) {
	bustest.NoLeaks(t)
	path := serve(t, tpmOpener(New(newChip(echo), nil, Options{})))
	for i := range 20 {
		c := dial(t, path)
		c.Write(one[:i%len(one)])
	}
	c := dial(t, path)
	c.Write(one)
	wantAnswers(t, c, one)
}

func TestSocketBusy(t *testing.T) {
	path := serve(t, tpmOpener(New(newChip(echo), nil, Options{})))
	first := dial(t, path)
	first.Write(one)
	wantAnswers(t, first, one)

	// It waits for one that is closing.
	second := dial(t, path)
	second.Write(two)
	time.AfterFunc(200*time.Millisecond, func() { first.Close() })
	wantAnswers(t, second, two)

	// But not for ever.
	third := dial(t, path)
	third.Write(one)
	begin := time.Now()
	wantEnd(t, third)
	if d := time.Since(begin); d < patience {
		t.Errorf("given up after %v, want %v", d, patience)
	}
	second.Write(one)
	wantAnswers(t, second, one)
}

func TestSocketTooMany(t *testing.T) {
	d := New(newChip(echo), nil, Options{})
	path := serve(t, func() (*File, error) { return newFile(d, d.transmit, func() {}), nil })
	var conns []net.Conn
	for range maxConns {
		c := dial(t, path)
		c.Write(one)
		wantAnswers(t, c, one)
		conns = append(conns, c)
	}
	wantEnd(t, dial(t, path))
	conns[7].Close()
	for range 100 { // its place is free soon
		c := dial(t, path)
		c.Write(one)
		if n, err := io.ReadFull(c, make([]byte, len(one))); err == nil && n == len(one) {
			return
		}
	}
	t.Error("no place became free after a connection was closed")
}

// Closing the listener ends a wait for the TPM, and joins a command that the TPM has.
func TestSocketClose(t *testing.T) {
	bustest.NoLeaks(t)
	gate := make(chan struct{})
	begun := make(chan struct{}, 9)
	c := newChip(func(cmd []byte) ([]byte, error) {
		begun <- struct{}{}
		<-gate
		return echo(cmd)
	})
	d := New(c, nil, Options{})
	l := listen(t)
	done := make(chan error, 1)
	go func() {
		done <- ServeSocket(l, func() (devfs.Stream, error) { return newFile(d, d.transmit, func() {}), nil }, nil)
	}()
	for range 3 { // one runs, two wait for their turn
		dial(t, l.Addr().String()).Write(one)
	}
	idle := dial(t, l.Addr().String())
	<-begun
	l.Close()
	wantEnd(t, idle)
	select {
	case err := <-done:
		t.Errorf("ServeSocket() = %v before the command was done", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(gate)
	if err := <-done; err != nil {
		t.Errorf("ServeSocket() = %v, want nil", err)
	}
	if len(begun) != 0 {
		t.Errorf("%d more commands began after the listener was closed", len(begun))
	}
}

func FuzzReadCommand(f *testing.F) {
	f.Add(one)
	f.Add([]byte{0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		r := bytes.NewReader(p)
		cmd, err := readCommand(r, make([]byte, tpmdd.MaxCommand))
		if err == nil && (!bytes.Equal(cmd, p[:len(cmd)]) || len(cmd) < tpmdd.HeaderSize || r.Len() != len(p)-len(cmd)) {
			t.Errorf("readCommand(% x) = % x, want a command from its start", p, cmd)
		}
	})
}
