// Package klog keeps a process's messages as the kernel keeps its own: in a ring of
// bounded size, each with the seconds of CLOCK_MONOTONIC, for any number of readers.
// ring3 dmesg shows them:
//
//	[   12.345678] e1000 1000:00:04.0 eth0: link up, 1000 Mb/s, full duplex
//	[   12.349001] e1000 1000:00:04.0 eth0: resetting cause="transmit hang" queue=0
//
// The clock is the one of the kernel's own messages (printk's differs from it by
// microseconds), so the two logs can be laid side by side.
//
// # From slog to a line
//
// Programs log through log/slog, with Ring's handler. The attributes driver, address and
// device, wherever they were given, make the beginning of the line in that order, as the
// kernel's dev_info does; a host gives each driver a logger With them, and a driver that
// names one again changes nothing. Other attributes follow the message as key=value,
// quoted where they need it. Bytes that could steer a terminal are shown as \x1b; a line
// is at most MaxLine bytes.
//
// Levels become the kernel's: error and above 3, warn 4, info 6, debug 7.
//
// All types are safe for concurrent use.
package klog

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/ring3dev/ring3/internal/journal"
)

// MaxLine is the longest text of a message in bytes; what is over is cut, and marked
// with "...". The kernel's limit is 1024 too.
const MaxLine = 1024

// DefaultSize is how much text a Ring keeps where nothing else is asked: the size of the
// kernel's own log buffer on most machines.
const DefaultSize = 256 << 10

// perRecord is what a message costs beside its text.
const perRecord = 64

// Kernel priorities of messages.
const (
	PrioErr     = 3
	PrioWarning = 4
	PrioInfo    = 6
	PrioDebug   = 7
)

// Record is one message.
type Record struct {
	Seq  uint64 `json:"seq"`  // counts from 1 without gaps, also over messages that were dropped
	Time int64  `json:"ns"`   // CLOCK_MONOTONIC, nanoseconds
	Prio int    `json:"prio"` // 3 error, 4 warning, 6 info, 7 debug
	Text string `json:"text"` // may hold several lines
}

// String is the message as dmesg shows it, without a final newline. Each line of it has
// the time.
func (r Record) String() string {
	stamp := fmt.Sprintf("[%5d.%06d] ", r.Time/1e9, r.Time%1e9/1e3)
	return stamp + strings.ReplaceAll(r.Text, "\n", "\n"+stamp)
}

// Options are what New is told. The zero value is of use.
type Options struct {
	Size  int          // bytes of messages kept; 0 for DefaultSize
	Level slog.Leveler // least level kept; nil for debug

	// Stderr, where given, gets a line "ring3: TEXT" for every message of at least
	// StderrLevel (nil for warn) while it is logged.
	Stderr      io.Writer
	StderrLevel slog.Leveler
}

// Ring keeps messages. The oldest go when there are too many.
type Ring struct {
	o    Options
	recs *journal.Journal[Record]

	errMu sync.Mutex // held while writing to Stderr, so that lines stay whole
}

// New makes an empty ring.
func New(o Options) *Ring {
	if o.Size <= 0 {
		o.Size = DefaultSize
	}
	if o.Level == nil {
		o.Level = slog.LevelDebug
	}
	if o.StderrLevel == nil {
		o.StderrLevel = slog.LevelWarn
	}
	return &Ring{o: o, recs: journal.New(o.Size, func(r Record) int { return len(r.Text) + perRecord })}
}

// Logger is a logger that writes to the ring.
func (r *Ring) Logger() *slog.Logger { return slog.New(r.Handler()) }

// add appends a message.
func (r *Ring) add(level slog.Level, text string) {
	text = clean(text)
	r.recs.Add(func(seq uint64, now int64) Record {
		return Record{Seq: seq, Time: now, Prio: prio(level), Text: text}
	})

	if r.o.Stderr != nil && level >= r.o.StderrLevel.Level() {
		r.errMu.Lock()
		defer r.errMu.Unlock()
		// Nobody to tell where stderr itself fails.
		_, _ = fmt.Fprintf(r.o.Stderr, "ring3: %s\n", strings.ReplaceAll(text, "\n", "\nring3: "))
	}
}

func prio(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return PrioErr
	case l >= slog.LevelWarn:
		return PrioWarning
	case l >= slog.LevelInfo:
		return PrioInfo
	}
	return PrioDebug
}

// clean makes a text fit for a terminal and for the ring.
func clean(s string) string {
	s = strings.TrimRight(s, "\n")
	var b strings.Builder
	for i := 0; i < len(s) && b.Len() < MaxLine+utf8.UTFMax; {
		c, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case c == utf8.RuneError && n == 1, c < ' ' && c != '\n' && c != '\t', c == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case c >= 0x80 && c < 0xa0: // the second set of control characters
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			b.WriteRune(c)
		}
		i += n
	}
	if b.Len() <= MaxLine {
		return b.String()
	}
	const mark = "..."
	cut := b.String()[:MaxLine-len(mark)]
	for len(cut) > 0 { // not in the middle of a character
		if c, n := utf8.DecodeLastRuneInString(cut); c != utf8.RuneError || n != 1 {
			break
		}
		cut = cut[:len(cut)-1]
	}
	return cut + mark
}

// Read returns the messages after number seq (0 for all that are kept), oldest first,
// and how many of those wanted are lost because the ring went over them.
func (r *Ring) Read(seq uint64) (recs []Record, lost uint64) {
	return r.recs.Read(seq)
}

// Follow gives fn the messages after number seq, those kept and then each new batch as
// it comes, until ctx ends or fn returns an error, which is returned. fn runs without a
// lock: a slow one loses messages, and lost says how many, and delays nobody.
func (r *Ring) Follow(ctx context.Context, seq uint64, fn func(recs []Record, lost uint64) error) error {
	return r.recs.Follow(ctx, seq, fn)
}

// WriteTo writes what is kept as dmesg does.
func (r *Ring) WriteTo(w io.Writer) (int64, error) {
	recs, _ := r.Read(0)
	var sum int64
	for _, rec := range recs {
		n, err := fmt.Fprintln(w, rec)
		sum += int64(n)
		if err != nil {
			return sum, fmt.Errorf("klog: writing: %w", err)
		}
	}
	return sum, nil
}

// Since is the time of a message as a wall clock shows it, for people.
func (r Record) Since() time.Time {
	return time.Now().Add(-time.Duration(journal.Monotonic() - r.Time))
}
