package scan

import (
	"testing"
	"time"
)

// TestPause: how soon a port looks again depends on what looking takes.
func TestPause(t *testing.T) {
	f := newFabric(t, star(2, "standard").String())
	m := join(t, f, "pe0", 0, quick).m
	for _, c := range []struct {
		last, retry, want time.Duration
	}{
		{0, 0, 5 * time.Second},
		{40 * time.Millisecond, 0, 5 * time.Second},
		{100 * time.Millisecond, 0, 10 * time.Second},
		{600 * time.Millisecond, 0, time.Minute},
		{3 * time.Second, 0, time.Minute},
		{20 * time.Second, 0, 200 * time.Second},
		{20 * time.Second, time.Second, time.Second},
	} {
		p := &port{s: &Scanner{o: Options{Check: 5 * time.Second}}, m: m, role: host, last: c.last, retry: c.retry}
		if got := p.pause(); got != c.want {
			t.Errorf("after a check of %v, to be tried again in %v, the next is due in %v, want %v", c.last, c.retry, got, c.want)
		}
	}
}
