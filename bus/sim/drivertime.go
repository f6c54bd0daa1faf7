package sim

import (
	"time"

	"github.com/ring3dev/ring3/bus"
)

// driverClock is the machine's time as drivers see it.
type driverClock struct{ m *Machine }

// Clock is the time that the device lives in; bus.TimeKeeper.
func (d *device) Clock() bus.Clock { return driverClock{d.m} }

func (c driverClock) Now() time.Duration { return c.m.Now() }

// AfterFunc has f called when the machine's time has come that far; at once where the machine is closed, whose time stands still: nobody is to
// wait for it.
func (c driverClock) AfterFunc(d time.Duration, f func()) (stop func() bool) {
	m := c.m
	m.lock()
	defer m.unlock()
	if m.err != nil {
		go f()
		return func() bool { return false }
	}
	m.clock.now()
	t := m.clock.after(d, func() { go f() })
	t.driver = true
	m.clock.dirty = true
	return func() bool {
		m.lock()
		defer m.unlock()
		in := t.pending()
		t.stop()
		return in
	}
}
