package mport

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// How long is looked before somebody sleeps: a call, and a mailbox at most. Each time the processor is offered to others, of
// whom one may be about to give what is waited for.
const (
	pollCall  = 10 * time.Microsecond
	pollBox   = 40 * time.Microsecond
	pollFirst = 5 * time.Microsecond
)

func yield() { _, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// poller decides how long to look before sleeping: longer where it helped the last time, less where not. On a machine where others
// take the processor for long that is never: there who sleeps is woken sooner.
type poller struct {
	limit time.Duration
	begin time.Time
}

// again says whether to look again, after another yield; first is the first time of a wait.
func (x *poller) again(first bool) bool {
	if first {
		x.begin = time.Now()
	}
	if x.limit == 0 || time.Since(x.begin) > x.limit {
		return false
	}
	yield()
	return true
}

// found is called when looking again helped, slept when it did not.
func (x *poller) found() {
	if time.Since(x.begin) <= x.limit {
		x.limit = min(2*x.limit, pollBox)
	} else {
		x.limit /= 2
	}
}

func (x *poller) slept() {
	if x.limit /= 2; x.limit < time.Microsecond {
		x.limit = 0
	}
}

// woke is called after a sleep: one that was short could have been a look.
func (x *poller) woke(after time.Duration) {
	if after < pollBox && x.limit == 0 {
		x.limit = pollFirst
	}
}

// waiter is a box whose owner waits: why it is of no use, whether there is something to do, and a sleep until there may be.
type waiter interface {
	err() error
	due() bool
	sleep(ctx context.Context) error
}

// wait looks for a while, and then sleeps until there is something to do.
func (x *poller) wait(ctx context.Context, w waiter) error {
	for i := 0; ; i++ {
		if err := w.err(); err != nil {
			return err
		}
		if w.due() {
			if i > 0 {
				x.found()
			}
			return ctx.Err()
		}
		if x.again(i == 0) {
			continue
		}
		x.slept()
		if err := w.sleep(ctx); err != nil {
			return err
		}
		x.woke(time.Since(x.begin))
	}
}
