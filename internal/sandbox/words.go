package sandbox

import (
	"bytes"
	"fmt"
)

// Bounds of what is kept of stderr, in bytes: all, and of the beginning of a crash. A crash begins with its cause, and
// ends with the stacks of all goroutines, which may be many.
const (
	keep      = 64 << 10
	keepCrash = 24 << 10
)

// marks begin the lines with which Go's crashes begin.
var marks = [][]byte{[]byte("panic: "), []byte("fatal error: "), []byte("runtime: "), []byte("runtime/cgo: "), []byte("SIG"), []byte("unexpected fault address"), []byte("WARNING: DATA RACE")}

// words are the end of a stream, and the beginning of a crash in it.
type words struct {
	last  []byte // at least the last keep bytes, at most twice as many
	total int64
	crash []byte // the first keepCrash bytes of the crash
	at    int64  // where it begins
	line  []byte // the beginning of the line that is not complete, while there was no crash
}

func (w *words) add(b []byte) {
	w.look(b)
	w.total += int64(len(b))
	w.last = append(w.last, b...)
	if n := len(w.last) - keep; n > keep { // seldom, so that a byte is copied once
		w.last = append([]byte(nil), w.last[n:]...)
	}
}

// look finds a crash in what comes.
func (w *words) look(b []byte) {
	if w.crash != nil {
		w.crash = append(w.crash, b[:min(len(b), keepCrash-len(w.crash))]...)
		return
	}
	const longest = 32 // of a line, as far as it is looked at; more than any mark has
	for at := w.total; len(b) > 0; {
		n := bytes.IndexByte(b, '\n') + 1
		whole := n > 0
		if !whole {
			n = len(b)
		}
		had := len(w.line)
		w.line = append(w.line, b[:min(n, longest-min(had, longest))]...)
		for _, m := range marks {
			if bytes.HasPrefix(w.line, m) {
				w.at = at - int64(had)
				w.crash = append(bytes.Clone(w.line[:had]), b[:min(len(b), keepCrash-had)]...)
				w.line = nil
				return
			}
		}
		if whole {
			w.line = w.line[:0]
		}
		b, at = b[n:], at+int64(n)
	}
}

// bytes are what was kept.
func (w *words) bytes() []byte {
	last := w.last[max(0, len(w.last)-keep):]
	if w.crash == nil || w.at >= w.total-int64(len(last)) {
		return bytes.Clone(last)
	}
	gap := fmt.Appendf(nil, "\n... (%d bytes) ...\n", w.total-w.at-keep)
	return append(append(bytes.Clone(w.crash), gap...), last[min(len(last), len(w.crash)+len(gap)):]...)
}
