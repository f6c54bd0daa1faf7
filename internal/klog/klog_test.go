package klog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/slogtest"
	"time"
	"unicode/utf8"
)

func fixed(o Options) *Ring {
	r := New(o)
	var t int64 = 12_345_678_999
	r.recs.Now = func() int64 { t += 1e6; return t }
	return r
}

func dump(t *testing.T, r *Ring) string {
	t.Helper()
	var b bytes.Buffer
	n, err := r.WriteTo(&b)
	if err != nil || n != int64(b.Len()) {
		t.Errorf("WriteTo = %d, %v, want %d", n, err, b.Len())
	}
	return b.String()
}

func TestLines(t *testing.T) {
	var stderr bytes.Buffer
	r := fixed(Options{Stderr: &stderr})
	l := r.Logger()
	dev := l.With("driver", "e1000", "address", "1000:00:04.0", "device", "eth0")
	l.Info("ring3 up")
	dev.Info("link up, 1000 Mb/s", "device", "eth0")
	dev.Warn("resetting", "cause", "transmit hang", "queue", 0, "took", 3*time.Millisecond, "none", "")
	dev.WithGroup("rx").Debug("refill", slog.Group("ring", "size", 256), "device", "x")
	l.Error("two\nlines\n", "err", errors.New("a\nb"))
	dev.Info("evil \x1b[2J\u009b\xff\x7f\ttab")
	const want = `[   12.346678] ring3 up
[   12.347678] e1000 1000:00:04.0 eth0: link up, 1000 Mb/s
[   12.348678] e1000 1000:00:04.0 eth0: resetting cause="transmit hang" queue=0 took=3ms none=""
[   12.349678] e1000 1000:00:04.0 eth0: refill rx.ring.size=256 rx.device=x
[   12.350678] two
[   12.350678] lines err="a\nb"
[   12.351678] e1000 1000:00:04.0 eth0: evil \x1b[2J\u009b\xff\x7f	tab
`
	if got := dump(t, r); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	const wantErr = `ring3: e1000 1000:00:04.0 eth0: resetting cause="transmit hang" queue=0 took=3ms none=""
ring3: two
ring3: lines err="a\nb"
`
	if got := stderr.String(); got != wantErr {
		t.Errorf("stderr:\n%s\nwant:\n%s", got, wantErr)
	}
	var prios []int
	recs, _ := r.Read(0)
	for _, rec := range recs {
		prios = append(prios, rec.Prio)
	}
	if got, want := fmt.Sprint(prios), "[6 6 4 7 3 6]"; got != want {
		t.Errorf("priorities %s, want %s", got, want)
	}
}

func TestLevel(t *testing.T) {
	r := New(Options{Level: slog.LevelWarn})
	r.Logger().Info("no")
	r.Logger().Warn("yes")
	if recs, _ := r.Read(0); len(recs) != 1 || recs[0].Text != "yes" {
		t.Errorf("Read = %v, want one", recs)
	}
}

func TestClock(t *testing.T) {
	r := New(Options{})
	r.Logger().Info("a")
	r.Logger().Info("b")
	recs, _ := r.Read(0)
	if recs[0].Time <= 0 || recs[1].Time < recs[0].Time {
		t.Errorf("times %d, %d, want growing", recs[0].Time, recs[1].Time)
	}
	if d := time.Since(recs[0].Since()); d < 0 || d > time.Minute {
		t.Errorf("Since is %v ago", d)
	}
}

func TestBounded(t *testing.T) {
	const size = 4096
	r := New(Options{Size: size})
	for i := range 1000 {
		r.Logger().Info(strings.Repeat("x", i%100))
	}
	sum := 0
	recs, lost := r.Read(0)
	for i, rec := range recs {
		sum += len(rec.Text) + perRecord
		if rec.Seq != lost+1+uint64(i) {
			t.Fatalf("record %d has number %d, want %d", i, rec.Seq, lost+1+uint64(i))
		}
	}
	if sum > size || sum < size/2 || lost+uint64(len(recs)) != 1000 {
		t.Errorf("%d bytes in %d messages, %d lost, want at most %d and 1000 in all", sum, len(recs), lost, size)
	}
	if r.recs.Room() > 4*size/perRecord {
		t.Errorf("room for %d messages is held", r.recs.Room())
	}
	for _, seq := range []uint64{1000, 1001, 1 << 63, ^uint64(0)} {
		if recs, lost := r.Read(seq); len(recs) != 0 || lost != 0 {
			t.Errorf("Read(%d) = %d messages, %d lost, want none", seq, len(recs), lost)
		}
	}
	// One that alone is more than the ring stays, cut.
	r = New(Options{Size: 1})
	r.Logger().Info(strings.Repeat("ä", 5000))
	recs, _ = r.Read(0)
	if len(recs) != 1 || len(recs[0].Text) > MaxLine || !utf8.ValidString(recs[0].Text) || !strings.HasSuffix(recs[0].Text, "ä...") {
		t.Errorf("long message: %d kept, %d bytes, %q", len(recs), len(recs[0].Text), recs[0].Text[max(0, len(recs[0].Text)-10):])
	}
}

func TestFollow(t *testing.T) {
	r := New(Options{Size: 1 << 20})
	const writers, each, readers = 4, 250, 3
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stop := errors.New("enough")
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			var seq uint64
			err := r.Follow(ctx, 0, func(recs []Record, lost uint64) error {
				for _, rec := range recs {
					if rec.Seq != seq+1 || lost != 0 {
						t.Errorf("number %d after %d, %d lost", rec.Seq, seq, lost)
					}
					seq = rec.Seq
				}
				if seq == writers*each {
					return stop
				}
				return nil
			})
			if !errors.Is(err, stop) {
				t.Errorf("Follow = %v after %d", err, seq)
			}
		})
	}
	for range writers {
		wg.Go(func() {
			for i := range each {
				r.Logger().Info("x", "i", i)
			}
		})
	}
	wg.Wait()
	cancel()
	if err := r.Follow(ctx, writers*each, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Follow with an ended context = %v", err)
	}
}

// TestFollowSlow: a reader that does not keep up is told what it missed.
func TestFollowSlow(t *testing.T) {
	r := New(Options{Size: 10 * (perRecord + 1)})
	r.Logger().Info("x")
	var got []string
	err := r.Follow(t.Context(), 0, func(recs []Record, lost uint64) error {
		got = append(got, fmt.Sprintf("%d+%d", lost, len(recs)))
		if len(got) == 2 {
			return context.Canceled
		}
		for range 50 {
			r.Logger().Info("x")
		}
		return nil
	})
	if s := strings.Join(got, " "); s != "0+1 40+10" || !errors.Is(err, context.Canceled) {
		t.Errorf("Follow gave %s, %v, want 0+1 40+10", s, err)
	}
}

// TestSlogConforms runs the standard library's conformance tests, on the text taken
// apart again.
func TestSlogConforms(t *testing.T) {
	var r *Ring
	slogtest.Run(t, func(t *testing.T) slog.Handler {
		if strings.Contains(t.Name(), "zero-time") {
			t.Skip("the time is the ring's own, never the record's")
		}
		r = New(Options{})
		return r.Handler()
	}, func(t *testing.T) map[string]any {
		recs, _ := r.Read(0)
		out := map[string]any{slog.TimeKey: recs[0].Time, slog.LevelKey: recs[0].Prio}
		words := strings.Fields(recs[0].Text)
		out[slog.MessageKey] = words[0]
		for _, w := range words[1:] {
			k, v, _ := strings.Cut(w, "=")
			at := out
			for g, rest, ok := strings.Cut(k, "."); ok; g, rest, ok = strings.Cut(k, ".") {
				if at[g] == nil {
					at[g] = map[string]any{}
				}
				at, k = at[g].(map[string]any), rest
			}
			at[k] = v
		}
		return out
	})
}

func FuzzClean(f *testing.F) {
	f.Add("plain", 1)
	f.Add("\x1b[31m\xff\u009b\n", 300)
	f.Fuzz(func(t *testing.T, s string, n int) {
		got := clean(strings.Repeat(s, max(0, min(n, 2000/(len(s)+1)))))
		if len(got) > MaxLine || !utf8.ValidString(got) {
			t.Fatalf("clean gave %d bytes: %q", len(got), got)
		}
		for _, c := range got {
			if c < ' ' && c != '\n' && c != '\t' || c >= 0x7f && c < 0xa0 {
				t.Fatalf("clean left %q in %q", c, got)
			}
		}
	})
}
