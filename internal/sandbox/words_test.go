package sandbox

import (
	"bytes"
	"strings"
	"testing"
)

func TestWords(t *testing.T) {
	many := strings.Repeat("goroutine 7 [running]\n", 10000)
	for _, c := range []struct {
		in         []string
		head, tail string
	}{
		{[]string{"a", "b\n"}, "ab\n", "ab\n"},
		{[]string{many, "end\n"}, "", "end\n"},
		{[]string{"log line\npan", "ic: x\n", many, "end\n"}, "panic: x\n", "end\n"},
		{[]string{"log panic: no\n", many, "end\n"}, "", "end\n"},
		{[]string{many, "fatal error: out\n", "of memory"}, "", "fatal error: out\nof memory"},
		{[]string{strings.Repeat("x", 100), "\nfatal error: y\n" + many + many}, "fatal error: y\n", ""},
	} {
		var w words
		for _, s := range c.in {
			w.add([]byte(s))
		}
		b := w.bytes()
		if len(b) > keep || !bytes.HasPrefix(b, []byte(c.head)) || !bytes.HasSuffix(b, []byte(c.tail)) {
			t.Errorf("%.30q: %d bytes, %.30q ... %q, want at most %d, %q ... %q", c.in, len(b), b, b[max(0, len(b)-30):], keep, c.head, c.tail)
		}
	}
}

func FuzzWords(f *testing.F) {
	f.Add([]byte("panic: x\ngoroutine 1"), 3)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n < 1 {
			n = 1
		}
		var w words
		for rest := b; len(rest) > 0; {
			k := min(n, len(rest))
			w.add(rest[:k])
			rest = rest[k:]
			w.add(bytes.Repeat([]byte("z"), n%4096))
		}
		if got := len(w.bytes()); got > keep {
			t.Errorf("%d bytes, want at most %d", got, keep)
		}
	})
}
