package sim

import "time"

// Clock says how a machine's virtual time passes. The zero value is RealTime.
type Clock uint8

// Clocks.
const (
	// RealTime is the wall clock: a device takes as long as it says. For running.
	RealTime Clock = iota
	// Stepped time moves only by Machine.Advance. For tests that say what happens when: with one
	// goroutine that makes the accesses, each run is the same.
	Stepped
	// Eager time passes as fast as it can: a register read takes 1 us, a write 0.1 us, and
	// while nobody makes an access the next timer fires within about a millisecond, however far
	// off it is. For tests of drivers that wait for their device. The order of the timers is
	// always the same; which access comes before which timer depends on how long the driver
	// pauses.
	Eager
)

func (c Clock) String() string {
	switch c {
	case RealTime:
		return "real time"
	case Stepped:
		return "stepped"
	case Eager:
		return "eager"
	}
	return "unknown clock"
}

// What an access takes in eager time, and how long nobody makes one before time jumps.
const (
	readTime  = time.Microsecond
	writeTime = 100 * time.Nanosecond
	idleTime  = 50 * time.Microsecond
)

// clock drives a queue. All of it is guarded by Machine.mu.
type clock struct {
	queue
	kind     Clock
	start    time.Time     // RealTime: when time was 0
	fire     func()        // called by wake
	wake     *time.Timer   // RealTime, Eager: nil until it is needed
	armed    bool          // wake is set
	armedFor time.Duration // RealTime: for when
	accesses uint64        // Eager: so far
	seen     uint64        // Eager: when wake was set
}

func (c *clock) init(kind Clock, fire func()) {
	c.kind, c.fire, c.start = kind, fire, time.Now()
}

// now brings time up to date.
func (c *clock) now() time.Duration {
	if c.kind == RealTime {
		c.time = max(c.time, time.Since(c.start))
	}
	return c.time
}

// access is called before each access to a register: what is due by then happens before.
func (c *clock) access(cost time.Duration) {
	switch c.kind {
	case RealTime:
		if len(c.heap) > 0 {
			for now := c.now(); c.step(now); {
			}
		}
	case Eager:
		c.accesses++
		c.advance(cost)
	}
}

// arm sees to it that somebody comes for the first timer. It is called before mu is unlocked,
// where dirty.
func (c *clock) arm() {
	c.dirty = false
	at, ok := c.next()
	if !ok || c.kind == Stepped {
		return
	}
	d := idleTime
	if c.kind == RealTime {
		if c.armed && c.armedFor <= at {
			return // comes early enough, and then looks again
		}
		c.armedFor = at
		d = max(0, at-c.now())
	} else if c.armed {
		return
	}
	c.seen, c.armed = c.accesses, true
	if c.wake == nil {
		c.wake = time.AfterFunc(d, c.fire)
		return
	}
	c.wake.Reset(d)
}

// woken is what wake does, under mu.
func (c *clock) woken() {
	c.armed, c.dirty = false, true
	at, ok := c.next()
	switch {
	case !ok:
	case c.kind == RealTime:
		for now := c.now(); c.step(now); {
		}
	case c.seen == c.accesses: // nobody moves time on
		for c.step(at) {
		}
	}
}

// stop forgets all timers, but for those that drivers wait for, whose time has come.
func (c *clock) stop() {
	for _, t := range c.heap {
		t.pos = -1
		if t.driver {
			t.f()
		}
	}
	c.heap = nil
	if c.wake != nil {
		c.wake.Stop()
	}
}
