package tpmdd

import "time"

// Pauses between looks at a register: the first, which doubles up to the second, and the third for what takes longer than
// slowAfter.
const (
	pauseFirst = 50 * time.Microsecond
	pauseMost  = time.Millisecond
	pauseSlow  = 5 * time.Millisecond
	slowAfter  = 50 * time.Millisecond
)

// Poll is for transports: it looks until done, with pauses that grow, and says false when limit is over, or died is
// closed.
func Poll(limit time.Duration, died <-chan struct{}, done func() bool) bool {
	pause, begin := pauseFirst, time.Now()
	for {
		if done() {
			return true
		}
		since := time.Since(begin)
		if since >= limit {
			return done() // the process may have stood still meanwhile
		}
		select {
		case <-died:
			return false
		case <-time.After(min(pause, limit-since)):
		}
		switch {
		case since > slowAfter:
			pause = pauseSlow
		case pause < pauseMost:
			pause = min(pause*2, pauseMost)
		}
	}
}
