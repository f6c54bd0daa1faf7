package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// rawPair is a connection whose other end is a bare socket.
func rawPair(t testing.TB, h Handler, o Options) (*Conn, *net.UnixConn) {
	t.Helper()
	a, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := Open(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	o.Name = "raw"
	c := New(a, Mux{1: h}, o)
	t.Cleanup(func() { c.Close(); raw.Close() })
	return c, raw
}

func frame(h header, body string) []byte {
	h.size = uint32(len(body))
	b := make([]byte, headerSize, headerSize+len(body))
	h.put(b)
	return append(b, body...)
}

// sizes is a header that says n, with nothing behind it.
func sizes(n uint32) []byte {
	b := make([]byte, headerSize)
	(&header{size: n, kind: kindEvent, method: 0x101}).put(b)
	return b
}

func ends(t testing.TB, c *Conn) error {
	t.Helper()
	select {
	case <-c.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the connection does not end")
	}
	return c.Err()
}

func descriptors() int {
	ent, _ := os.ReadDir("/proc/self/fd")
	return len(ent)
}

// TestHostileFrames has a peer break one rule after the other.
func TestHostileFrames(t *testing.T) {
	call := func(id uint64) []byte { return frame(header{kind: kindCall, method: 0x102, id: id}, "") }
	for _, c := range []struct {
		name string
		send []byte
		want error
	}{
		{"a kind that there is not", frame(header{kind: 99}, ""), bus.ErrProtocol},
		{"an event of nobody", frame(header{kind: kindEvent, method: 0x901}, "x"), bus.ErrProtocol},
		{"a frame that is too long", sizes(1 << 30), bus.ErrProtocol},
		{"a frame of the longest size", sizes(1<<32 - 1), bus.ErrProtocol},
		{"more descriptors than came", frame(header{kind: kindEvent, method: 0x101, files: 3}, ""), bus.ErrProtocol},
		{"more descriptors than any frame has", frame(header{kind: kindEvent, method: 0x101, files: 255}, ""), bus.ErrProtocol},
		{"one call twice", append(call(7), call(7)...), bus.ErrProtocol},
		{"more calls than may be open", bytes.Join([][]byte{call(1), call(2), call(3), call(4), call(5)}, nil), bus.ErrProtocol},
		{"bodies that are too much together", bytes.Join([][]byte{frame(header{kind: kindCall, method: 0x102, id: 1}, strings.Repeat("x", 900)),
			frame(header{kind: kindCall, method: 0x102, id: 2}, strings.Repeat("x", 900))}, nil), bus.ErrProtocol},
		{"half a frame, and the end", call(1)[:9], bus.ErrGone},
		{"answers that nobody asked for, and the end", append(frame(header{kind: kindReply, id: 1}, "x"), append(frame(header{kind: kindError, id: 2}, "x"),
			append(frame(header{kind: kindPart, id: 3}, "x"), frame(header{kind: kindCancel, id: 4}, "x")...)...)...), bus.ErrGone},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, raw := rawPair(t, echo{make(chan string, 1)}, Options{MaxCalls: 4, MaxHeld: 1500})
			if _, err := raw.Write(c.send); err != nil {
				t.Fatal(err)
			}
			_ = raw.CloseWrite()
			if err := ends(t, l); !errors.Is(err, c.want) {
				t.Errorf("Err() = %v, want %v", err, c.want)
			}
			l.Close()
			if len(l.open) != 0 || l.held != 0 || l.files != 0 {
				t.Errorf("after the end there are %d calls, %d bytes and %d descriptors of them", len(l.open), l.held, l.files)
			}
		})
	}
}

// keeper holds calls, with what came with them, until they are cancelled.
type keeper struct{}

func (keeper) Call(ctx context.Context, _ Method, _ []byte, files []*os.File, _ func([]byte) error) ([]byte, []*os.File, error) {
	defer closeAll(files)
	<-ctx.Done()
	return nil, nil, ctx.Err()
}

func (keeper) Event(_ Method, _ []byte, files []*os.File) error {
	closeAll(files)
	return nil
}

// TestDescriptorFlood has a peer send descriptors in every way.
func TestDescriptorFlood(t *testing.T) {
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fds := make([]int, 200)
	for i := range fds {
		fds[i] = int(null.Fd())
	}
	before := descriptors()
	for _, c := range []struct {
		name string
		h    header
	}{
		{"that no frame says", header{kind: kindEvent, method: 0x101}},
		{"with calls that do not end", header{kind: kindCall, method: 0x101, files: 200}},
	} {
		l, raw := rawPair(t, keeper{}, Options{MaxFiles: 500})
		for i := range 100 {
			h := c.h
			h.id = uint64(i + 1)
			_ = raw.SetWriteDeadline(time.Now().Add(20 * time.Second))
			if _, _, err := raw.WriteMsgUnix(frame(h, ""), unix.UnixRights(fds...), nil); err != nil {
				break
			}
		}
		if err := ends(t, l); !errors.Is(err, bus.ErrProtocol) {
			t.Errorf("%s: Err() = %v, want a protocol error", c.name, err)
		}
		l.Close()
		raw.Close()
	}
	// A reply that nobody waits for.
	l, raw := rawPair(t, keeper{}, Options{})
	if _, _, err := raw.WriteMsgUnix(frame(header{kind: kindReply, id: 5, files: 200}, ""), unix.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
	raw.Close()
	ends(t, l)
	l.Close()
	for end := time.Now().Add(20 * time.Second); descriptors() > before && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if after := descriptors(); after > before {
		t.Errorf("%d descriptors, before there were %d", after, before)
	}
}

// TestFlood has a peer send more than anybody needs: it must wait, and a call of ours must not.
func TestFlood(t *testing.T) {
	l, raw := rawPair(t, keeper{}, Options{Rate: 1000})
	events := bytes.Repeat(frame(header{kind: kindEvent, method: 0x101}, "x"), 500)
	_ = raw.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	sent := 0
	for {
		n, err := raw.Write(events)
		sent += n
		if err != nil {
			break
		}
	}
	// In half a second, beside the first second's and what the socket holds.
	if most := 4000*(headerSize+1) + 1<<20; sent > most {
		t.Errorf("a peer could send %d bytes, want at most %d", sent, most)
	}
	if err := l.Err(); err != nil {
		t.Errorf("the connection of a peer that floods ended: %v", err)
	}
}

// TestDeafPeer has a peer that takes nothing.
func TestDeafPeer(t *testing.T) {
	l, _ := rawPair(t, keeper{}, Options{SendWait: 200 * time.Millisecond})
	var err error
	for range 1000 {
		if err = l.Send(0x101, make([]byte, 64<<10)); err != nil {
			break
		}
	}
	if !errors.Is(err, bus.ErrTimeout) {
		t.Errorf("Send() to a peer that takes nothing: %v, want a timeout", err)
	}
	ends(t, l)
	if _, _, err := l.Call(context.Background(), 0x101, nil); !errors.Is(err, ErrUnsent) || !errors.Is(err, ErrEnded) {
		t.Errorf("Call() after the end: %v, want ErrUnsent and ErrEnded", err)
	}
}

// TestSilentPeer has a peer that never answers.
func TestSilentPeer(t *testing.T) {
	l, raw := rawPair(t, keeper{}, Options{})
	go func() { _, _ = io.Copy(io.Discard, raw) }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, _, err := l.Call(ctx, 0x101, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Call() = %v, want the end of its context", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := l.Finish(ctx, 0x101, nil)
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("Finish() returned with its context: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	l.End(syscall.EPIPE)
	if err := <-done; !errors.Is(err, ErrEnded) || errors.Is(err, ErrUnsent) {
		t.Errorf("Finish() at the end of the connection: %v, want ErrEnded", err)
	}
}

// TestNothingStays looks for a secret where it has passed.
func TestNothingStays(t *testing.T) {
	const secret = "a key that must stay nowhere"
	x, _ := pair(t, echo{make(chan string, 1)})
	b, _, err := x.Call(context.Background(), 0x101, []byte(secret))
	if err != nil || string(b) != secret {
		t.Fatalf("Call = %q, %v", b, err)
	}
	for range 100 {
		p := buffers.Get().(*[]byte)
		if bytes.Contains((*p)[:cap(*p)], []byte(secret)) {
			t.Fatal("a buffer for frames on their way out still has it")
		}
	}
}

// FuzzFrames sends what it likes to a connection, which must end in good order.
func FuzzFrames(f *testing.F) {
	f.Add(frame(header{kind: kindCall, method: 0x101, id: 1}, "hello"))
	f.Add(append(frame(header{kind: kindCall, method: 0x102, id: 1}, "hello"), frame(header{kind: kindCancel, id: 1}, "")...))
	f.Add(frame(header{kind: kindEvent, method: 0x101}, "hello"))
	f.Add(frame(header{kind: kindReply, id: 1}, "hello"))
	f.Add(frame(header{kind: kindError, id: 1}, "hello"))
	f.Add(frame(header{kind: kindPart, id: 1}, "hello"))
	f.Add(sizes(1 << 31))
	f.Fuzz(func(t *testing.T, p []byte) {
		l, raw := rawPair(t, echo{make(chan string, len(p)/headerSize+1)}, Options{MaxBody: 1 << 16})
		ctx, cancel := context.WithCancel(context.Background())
		answered := make(chan error, 1)
		go func() {
			_, files, err := l.Call(ctx, 0x101, nil)
			closeAll(files)
			answered <- err
		}()
		go func() { _, _ = io.Copy(io.Discard, raw) }()
		_ = raw.SetWriteDeadline(time.Now().Add(20 * time.Second))
		_, _ = raw.Write(p)
		_ = raw.CloseWrite()
		if err := ends(t, l); err == nil {
			t.Error("a connection that ended has no error")
		}
		cancel()
		<-answered
		l.Close()
		if len(l.open) != 0 || len(l.calls) != 0 || l.held != 0 {
			t.Errorf("after the end there are %d calls of theirs, %d of ours, %d bytes", len(l.open), len(l.calls), l.held)
		}
	})
}

// FuzzError reads errors as a peer may send them.
func FuzzError(f *testing.F) {
	f.Add(errorBody(syscall.EBUSY))
	f.Add(errorBody(bus.ErrGone))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		err := errorOf(p)
		var e *RemoteError
		if err == nil || !errors.As(err, &e) || len(err.Error()) > maxText || e.Errno > 4095 {
			t.Fatalf("errorOf(%x) = %v", p, err)
		}
		if again := errorOf(errorBody(err)); errors.Is(err, bus.ErrGone) != errors.Is(again, bus.ErrGone) {
			t.Errorf("errorOf(%x) = %v, and after another turn %v", p, err, again)
		}
	})
}
