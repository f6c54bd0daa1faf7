package link

import (
	"fmt"
	"time"
)

// pace is what the other side may still begin.
type pace struct {
	rate, left int // in a second, and of it
	since      time.Time
	told       bool
}

// take counts n, and says how long to wait.
func (p *pace) take(n int) time.Duration {
	if p.left -= n; p.left >= 0 {
		return 0
	}
	now := time.Now()
	more := min(now.Sub(p.since).Seconds(), 2) * float64(p.rate)
	p.left, p.since = min(p.left+int(more), p.rate), now
	if p.left >= 0 {
		return 0
	}
	return time.Duration(float64(-p.left) / float64(p.rate) * float64(time.Second))
}

// Charge counts n more calls or events than came, for an event that is as much work, and waits as long as the other side must (Options.Rate). It is
// for an Event, on the goroutine that reads. It says whether the connection is there afterwards.
func (l *Conn) Charge(n int) bool {
	wait := l.pace.take(n)
	if wait <= 0 {
		return true
	}
	if !l.pace.told {
		l.pace.told = true
		l.o.Log.Warn(fmt.Sprintf("%s: it floods: more than %d calls and events in a second; they are slowed down", l.o.Name, l.o.Rate))
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.ctx.Done():
		return false
	}
}
