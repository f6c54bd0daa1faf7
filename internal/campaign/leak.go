package campaign

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/internal/runlabel"
)

// leftovers are what a run must not leave: a count of each, while nothing runs.
type leftovers struct{ goroutines, files int }

func (l leftovers) more(than leftovers) bool {
	return l.goroutines > than.goroutines || l.files > than.files
}

func (l leftovers) String() string {
	return fmt.Sprintf("%d goroutines and %d descriptors", l.goroutines, l.files)
}

// settleTime is how long goroutines may take to end; stillTime how long one looks for the least that there is.
const (
	settleTime = 5 * time.Second
	stillTime  = 200 * time.Millisecond
)

func countLeftovers() leftovers { return leftovers{runtime.NumGoroutine(), openFiles()} }

// openFiles counts this process's descriptors.
func openFiles() int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(d)
}

// still is what there is while nobody does anything, the driver beside stopped. What is just ending does not count.
func (c *campaign) still() leftovers {
	defer c.beside.pause()()
	least := countLeftovers()
	for end := time.Now().Add(stillTime); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		now := countLeftovers()
		least = leftovers{min(least.goroutines, now.goroutines), min(least.files, now.files)}
	}
	return least
}

// settled waits until there is no more than there was, the driver beside stopped, and otherwise says what there is.
func (c *campaign) settled(was leftovers) (now leftovers, ok bool) {
	defer c.beside.pause()()
	ctx, cancel := within(context.Background(), settleTime)
	defer cancel()
	for {
		if now = countLeftovers(); !now.more(was) {
			return now, true
		}
		if ctx.Err() != nil {
			return now, false
		}
		time.Sleep(5 * time.Millisecond) // nothing signals that a goroutine is gone
	}
}

// leaks looks what runs left, and whose it is.
func (c *campaign) leaks(ctx context.Context, mine []int) {
	now, ok := c.settled(c.base)
	if ok {
		return
	}
	defer func() { c.base = c.still() }() // what is known to be left is not found again
	if left := runlabel.Left(); len(left) > 0 {
		for _, l := range left {
			name, stack, _ := strings.Cut(l, "\n")
			scenario, spec, _ := strings.Cut(name, " ")
			c.failed(Outcome{Scenario: scenario, Faults: spec, Verdict: Failed, Class: "leak", Why: "goroutines left behind:\n" + stack})
		}
		return
	}
	what := fmt.Sprintf("%s, and %s before", now, c.base)
	for len(mine) > 1 { // those of one half leave something, or nobody does alone
		half := mine[:len(mine)/2]
		if !c.leave(ctx, half) {
			if half = mine[len(mine)/2:]; !c.leave(ctx, half) {
				break
			}
		}
		mine = half
	}
	if ctx.Err() != nil {
		return
	}
	if len(mine) > 1 {
		c.failed(Outcome{Scenario: "all", Verdict: Failed, Class: "leak", Why: fmt.Sprintf("left behind by runs %d to %d, by no half of them alone: %s", mine[0], mine[len(mine)-1], what)})
		return
	}
	s, faults := c.run(mine[0])
	o := Outcome{Scenario: s.Name, Faults: fault.Plan{Faults: faults}.String(), Number: mine[0]}
	o.fail("leak", "left behind: %s", what)
	c.failed(o)
}

// leave makes runs again, and says whether they leave something.
func (c *campaign) leave(ctx context.Context, mine []int) bool {
	at := c.still()
	c.inFlight(ctx, c.Parallel, mine, func(i int) {
		s, faults := c.run(i)
		c.make(ctx, s, faults)
	})
	c.closeRigs()
	_, ok := c.settled(at)
	return !ok && ctx.Err() == nil
}
