package bus

import (
	"context"
	"time"
)

// Clock is the time that a device lives in. A driver that waits a given time for its device (one that says so in its datasheet, or a
// person who presses a button) waits by it, so that against a model in virtual time nobody waits in fact.
type Clock interface {
	// Now is the time since some moment in the past. It never goes back.
	Now() time.Duration
	// AfterFunc calls f, in a goroutine of its own, once d has passed, unless stop is called before; stop says whether it was in
	// time.
	AfterFunc(d time.Duration, f func()) (stop func() bool)
}

// TimeKeeper is implemented by a device that does not live in the wall clock's time. A wrapper passes it on.
type TimeKeeper interface {
	Clock() Clock
}

// ClockOf is a device's clock: the wall clock, unless it has another.
func ClockOf(d Device) Clock {
	if k, ok := d.(TimeKeeper); ok {
		return k.Clock()
	}
	return wallClock{}
}

type wallClock struct{}

var wallStart = time.Now()

func (wallClock) Now() time.Duration { return time.Since(wallStart) }

func (wallClock) AfterFunc(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop }

// Sleep waits until d has passed by that clock, or ctx ends, whose error it then returns.
func Sleep(ctx context.Context, c Clock, d time.Duration) error {
	if err := ctx.Err(); err != nil || d <= 0 {
		return err
	}
	done := make(chan struct{})
	stop := c.AfterFunc(d, func() { close(done) })
	defer stop()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
