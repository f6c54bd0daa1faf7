package figures

import (
	"context"
	"fmt"
	"math"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/gdamore/tcell/v2"
)

// Top is a live view of snapshots on a terminal's screen.
type Top struct {
	screen tcell.Screen
	latest *Snapshot
	paused *Snapshot // is shown instead, while the user looks at it
	first  int       // line that stands below the title, when there are more than fit
	tracks map[string][]float64
}

// history is how many rates are kept of each device, for its sparkline.
const history = 60

// OpenTop makes a view on the terminal of this process, which Run takes over and gives back.
func OpenTop() (*Top, error) {
	screen, err := tcell.NewScreen()
	if err != nil {
		return nil, fmt.Errorf("the terminal (TERM=%s): %w", os.Getenv("TERM"), err)
	}
	return newTop(screen), nil
}

func newTop(screen tcell.Screen) *Top { return &Top{screen: screen, tracks: map[string][]float64{}} }

// Run shows what watch gives, until the user wants no more, ctx ends or watch does, whose error it returns. watch's own
// context ends when the view does.
func (t *Top) Run(ctx context.Context, watch func(ctx context.Context, each func(*Snapshot) error) error) error {
	if err := t.screen.Init(); err != nil {
		return fmt.Errorf("taking over the terminal: %w", err)
	}
	defer t.screen.Fini() // also when something panics: the terminal must not stay raw
	t.screen.HideCursor()
	ctx, cancel := context.WithCancel(ctx)
	snapshots, ended := make(chan *Snapshot), make(chan error, 1)
	go func() {
		ended <- watch(ctx, func(s *Snapshot) error {
			select {
			case snapshots <- s:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	// The goroutine of the events ends with the screen.
	events, quit := make(chan tcell.Event, 16), make(chan struct{})
	go t.screen.ChannelEvents(events, quit)
	defer close(quit)
	wait := func() error {
		cancel()
		return <-ended
	}
	for {
		t.draw()
		select {
		case s := <-snapshots:
			t.take(s)
		case e, ok := <-events:
			if !ok || t.event(e) {
				_ = wait() // who leaves does not ask how it went on
				return nil
			}
		case err := <-ended:
			cancel()
			return err
		case <-ctx.Done():
			return wait()
		}
	}
}

// take makes a snapshot the latest.
func (t *Top) take(s *Snapshot) {
	t.latest = s
	for i := range s.Devices {
		d := &s.Devices[i]
		if d.Net != nil && d.Net.Rx != nil && d.Net.Tx != nil {
			h := append(t.tracks[d.Name], d.Net.Rx.PPS+d.Net.Tx.PPS)
			t.tracks[d.Name] = h[max(0, len(h)-history):]
		}
	}
}

// event does what a key asks for. It tells whether that was to end.
func (t *Top) event(e tcell.Event) (end bool) {
	switch e := e.(type) {
	case *tcell.EventResize:
		t.screen.Sync()
	case *tcell.EventKey:
		_, h := t.screen.Size()
		switch e.Key() {
		case tcell.KeyCtrlC, tcell.KeyEscape:
			return true
		case tcell.KeyUp:
			t.first--
		case tcell.KeyDown:
			t.first++
		case tcell.KeyPgUp:
			t.first -= h - 2
		case tcell.KeyPgDn:
			t.first += h - 2
		case tcell.KeyHome:
			t.first = 0
		case tcell.KeyEnd:
			t.first = math.MaxInt / 2
		case tcell.KeyRune:
			return t.letter(e.Rune())
		}
	case *tcell.EventError:
		return true // the terminal has gone
	}
	return false
}

func (t *Top) letter(r rune) (end bool) {
	switch r {
	case 'q', 'Q':
		return true
	case 'k':
		t.first--
	case 'j':
		t.first++
	case ' ', 'p':
		if t.paused != nil {
			t.paused = nil
		} else {
			t.paused = t.latest
		}
	}
	return false
}

// draw puts it all on the screen, as much as there is room for.
func (t *Top) draw() {
	s := t.latest
	title := "ring3 top"
	if t.paused != nil {
		s, title = t.paused, title+" (paused)"
	}
	var lines []Line
	if s != nil {
		lines = append(s.Lines(), t.sparks(s)...)
		title += "  " + lines[0].Text
		lines = lines[1:]
	}
	w, h := t.screen.Size()
	room := h - 2
	t.first = max(min(t.first, len(lines)-room), 0)
	t.screen.Clear()
	plain := tcell.StyleDefault
	t.put(0, w, title, plain.Bold(true))
	for i := 0; i < room && t.first+i < len(lines); i++ {
		l := lines[t.first+i]
		style := plain
		if l.Header {
			style = style.Reverse(true)
			l.Text += strings.Repeat(" ", max(0, w-utf8.RuneCountInString(l.Text)))
		}
		t.put(1+i, w, l.Text, style)
	}
	help := "q: end  space: pause"
	if len(lines) > room {
		help += "  up, down: scroll"
	}
	if h > 1 {
		t.put(h-1, w, help, plain.Dim(true))
	}
	t.screen.Show()
}

// put writes a line, as much as fits. It has printable characters only.
func (t *Top) put(y, width int, s string, style tcell.Style) {
	x := 0
	for _, r := range s {
		if x >= width {
			return
		}
		t.screen.SetContent(x, y, r, nil, style)
		x++
	}
}

// sparks are how the packets of each device went, both ways.
func (t *Top) sparks(s *Snapshot) []Line {
	rows := [][]string{{"PACKETS/S", "PEAK", ""}}
	for i := range s.Devices {
		name := s.Devices[i].Name
		if h := t.tracks[name]; len(h) > 0 {
			peak := 0.0
			for _, v := range h {
				peak = max(peak, v)
			}
			rows = append(rows, []string{Printable(name), fmt.Sprintf("%.0f", peak), spark(h, peak)})
		}
	}
	if len(rows) == 1 {
		return nil
	}
	var lines []Line
	for i, l := range columns(rows, 1) {
		lines = append(lines, Line{l, i == 0})
	}
	return lines
}

// spark draws values as bars of an eighth of a line each.
func spark(values []float64, peak float64) string {
	const bars = "▁▂▃▄▅▆▇█"
	steps := []rune(bars)
	out := []rune(strings.Repeat(" ", history-len(values)))
	for _, v := range values {
		k := 0
		if peak > 0 {
			k = int(v / peak * float64(len(steps)-1))
		}
		out = append(out, steps[min(max(k, 0), len(steps)-1)])
	}
	return string(out)
}
