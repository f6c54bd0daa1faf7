package fabricd

import "time"

// How often a node may begin anew: some times at once, as drivers come and go, and then no more often than this. Each time its link goes down
// and up, which the switch tells the host, and all nodes look for their ways through the fabric again.
const (
	restartsAtOnce = 8
	restartEvery   = 250 * time.Millisecond
)

// pace is when the next restarts may be. The zero value has none behind it.
type pace struct {
	due time.Time // when the one after those that were would be, if all came in their time
}

// wait counts a restart, and says how long it has to wait.
func (p *pace) wait(now time.Time) time.Duration {
	if p.due.Before(now) {
		p.due = now
	}
	wait := p.due.Sub(now) - (restartsAtOnce-1)*restartEvery
	p.due = p.due.Add(restartEvery)
	return max(wait, 0)
}
