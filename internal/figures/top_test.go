package figures

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gdamore/tcell/v2"
)

// testScreen is a screen that is none. Only who draws may look at a simulation's cells, so it keeps what was shown.
type testScreen struct {
	tcell.SimulationScreen
	mu    sync.Mutex
	shown []string
}

func (s *testScreen) Show() {
	s.SimulationScreen.Show()
	cells, w, h := s.GetContents()
	out := make([]string, h)
	for y := range out {
		var l strings.Builder
		for _, c := range cells[y*w : (y+1)*w] {
			l.WriteString(string(c.Runes))
		}
		out[y] = strings.TrimRight(l.String(), " ")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shown = out
}

// topBench is a view on such a screen.
type topBench struct {
	t      *testing.T
	screen *testScreen
	feed   chan *Snapshot
	end    chan error // what watch returns
	cancel func()
	done   chan error
}

func newTopBench(t *testing.T) *topBench {
	t.Helper()
	b := &topBench{t: t, screen: &testScreen{SimulationScreen: tcell.NewSimulationScreen("UTF-8")}, feed: make(chan *Snapshot), end: make(chan error), done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	b.cancel = cancel
	t.Cleanup(cancel)
	go func() {
		b.done <- newTop(b.screen).Run(ctx, func(ctx context.Context, each func(*Snapshot) error) error {
			for {
				select {
				case s := <-b.feed:
					if err := each(s); err != nil {
						return err
					}
				case err := <-b.end:
					return err
				case <-ctx.Done():
					return nil
				}
			}
		})
	}()
	return b
}

// lines is what is on the screen.
func (b *topBench) lines() []string {
	b.screen.mu.Lock()
	defer b.screen.mu.Unlock()
	return b.screen.shown
}

// shows waits for a text on the screen; with "!" before it, until it is not there.
func (b *topBench) shows(text string) {
	b.t.Helper()
	text, not := strings.CutPrefix(text, "!")
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		all := strings.Join(b.lines(), "\n")
		if strings.Contains(all, text) != not {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%q on the screen: want it %v:\n%s", text, !not, all)
		}
	}
}

func (b *topBench) key(k tcell.Key, r rune) { b.screen.InjectKey(k, r, tcell.ModNone) }

// ends waits for the end of the view.
func (b *topBench) ends() error {
	b.t.Helper()
	select {
	case err := <-b.done:
		return err
	case <-time.After(20 * time.Second):
		b.t.Fatal("the view does not end")
		return nil
	}
}

func TestTop(t *testing.T) {
	b := newTopBench(t)
	b.shows("q: end")
	b.screen.SetSize(150, 30)
	var st Stream
	next := func(ms int64, n uint64) {
		s := at(ms, n)
		st.Next(s)
		b.feed <- s
	}
	next(0, 0)
	b.shows("ring3 top  r0")
	b.shows("eth0@1  kpktgend_0  running")
	next(1000, 4321)
	b.shows("rates of the last 1 s")
	b.shows("█")
	if l := b.lines(); !strings.HasPrefix(l[1], "DEVICE  DRIVER  LINK") || !strings.Contains(l[2], " 4321 ") {
		t.Errorf("the screen is\n%s", strings.Join(l, "\n"))
	}
	b.key(tcell.KeyRune, ' ')
	b.shows("(paused)")
	next(2000, 99999)
	b.shows(" 4321 ")
	b.key(tcell.KeyRune, ' ')
	b.shows("99999")

	// Less room than there are lines, and hardly any.
	b.screen.SetSize(40, 6)
	_ = b.screen.PostEvent(tcell.NewEventResize(40, 6))
	b.shows("!LATENCY")
	b.shows("scroll")
	b.key(tcell.KeyEnd, 0)
	b.shows("PACKETS/S")
	for range 50 {
		b.key(tcell.KeyUp, 0)
		time.Sleep(time.Millisecond) // the queue of keys is short
	}
	b.shows("DEVICE")
	for _, size := range [][2]int{{1, 1}, {0, 0}, {3, 2}, {150, 30}} {
		b.screen.SetSize(size[0], size[1])
		_ = b.screen.PostEvent(tcell.NewEventResize(size[0], size[1]))
	}
	b.shows("PACKETS/S")
	b.key(tcell.KeyRune, 'q')
	if err := b.ends(); err != nil {
		t.Errorf("after q: %v", err)
	}
}

// TestTopEnds: by keys, by the context, and by what it watches.
func TestTopEnds(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name string
		end  func(b *topBench)
		want error
	}{
		{"Ctrl-C", func(b *topBench) { b.key(tcell.KeyCtrlC, 0) }, nil},
		{"Escape", func(b *topBench) { b.key(tcell.KeyEscape, 0) }, nil},
		{"context", func(b *topBench) { b.cancel() }, nil},
		{"instance", func(b *topBench) { b.end <- nil }, nil},
		{"error", func(b *topBench) { b.end <- broken }, broken},
		{"no terminal", func(b *topBench) { _ = b.screen.PostEvent(tcell.NewEventError(broken)) }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newTopBench(t)
			b.shows("q: end")
			c.end(b)
			if err := b.ends(); !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Errorf("it ends with %v, want %v", err, c.want)
			}
		})
	}
}

func TestSpark(t *testing.T) {
	for _, c := range []struct {
		values []float64
		peak   float64
		want   string
	}{
		{nil, 0, ""},
		{[]float64{0, 0}, 0, "▁▁"},
		{[]float64{0, 5, 10}, 10, "▁▄█"},
		{[]float64{-1, 20}, 10, "▁█"},
	} {
		if got := spark(c.values, c.peak); strings.TrimLeft(got, " ") != c.want || len([]rune(got)) != history {
			t.Errorf("spark(%v) = %q, want %q", c.values, got, c.want)
		}
	}
}
