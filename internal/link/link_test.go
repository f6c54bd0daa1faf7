package link

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
)

type echo struct{ events chan string }

func (e echo) Call(ctx context.Context, m Method, body []byte, files []*os.File, part func([]byte) error) ([]byte, []*os.File, error) {
	switch m {
	case 0x101:
		return body, files, nil
	case 0x102:
		<-ctx.Done()
		return nil, nil, syscall.EINTR
	}
	return nil, nil, syscall.ENOENT
}

func (e echo) Event(m Method, body []byte, files []*os.File) error {
	e.events <- string(body)
	return nil
}

func pair(t testing.TB, h Handler) (*Conn, *Conn) {
	t.Helper()
	return pairOf(t, h, Options{})
}

// pairOf is a pair of which the end that has the handler has options.
func pairOf(t testing.TB, h Handler, o Options) (*Conn, *Conn) {
	t.Helper()
	a, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	o.Name = "x"
	x, y := New(a, Mux{}, Options{Name: "y"}), New(b, Mux{1: h}, o)
	t.Cleanup(func() { x.Close(); y.Close() })
	return x, y
}

func TestCall(t *testing.T) {
	x, _ := pair(t, echo{make(chan string, 1)})
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, files, err := x.Call(context.Background(), 0x101, make([]byte, 1<<20), f)
	if len(b) != 1<<20 || len(files) != 1 || err != nil {
		t.Errorf("Call = %d bytes, %d files, %v, want 1 MiB, 1, nil", len(b), len(files), err)
	}
	closeAll(files)
	if _, _, err := x.Call(context.Background(), 0x103, nil); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("Call = %v, want ENOENT", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := x.Call(ctx, 0x102, nil); !errors.Is(err, syscall.EINTR) {
		t.Errorf("Call that is cancelled = %v, want EINTR", err)
	}
}

// TestEnded: who wants to know of the end does before the calls are cancelled that are open.
func TestEnded(t *testing.T) {
	h := &waiter{begun: make(chan struct{}), over: make(chan struct{})}
	ended := make(chan error, 2)
	self := make(chan *Conn, 1)
	x, y := pairOf(t, h, Options{Ended: func(err error) {
		go (<-self).End(errors.New("found by somebody else, too"))
		select {
		case <-h.over:
			t.Error("the call was cancelled before")
		case <-time.After(50 * time.Millisecond):
		}
		ended <- err
	}})
	self <- y
	go func() { _, _, _ = x.Call(context.Background(), 0x101, nil) }()
	<-h.begun
	x.Close()
	if err := <-ended; !errors.Is(err, bus.ErrGone) {
		t.Errorf("the end is told as %v, want gone", err)
	}
	<-h.over
	if y.Close(); len(ended) > 0 {
		t.Errorf("the end is told twice: %v", <-ended)
	}
}

// waiter has a call that waits to be cancelled.
type waiter struct{ begun, over chan struct{} }

func (w *waiter) Call(ctx context.Context, m Method, body []byte, files []*os.File, part func([]byte) error) ([]byte, []*os.File, error) {
	close(w.begun)
	<-ctx.Done()
	close(w.over)
	return nil, nil, syscall.EINTR
}

func (w *waiter) Event(Method, []byte, []*os.File) error { return nil }

func BenchmarkCall(b *testing.B) {
	x, _ := pair(b, echo{})
	for range b.N {
		if _, _, err := x.Call(context.Background(), 0x101, nil); err != nil {
			b.Fatal(err)
		}
	}
}
