package e1000

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/sysfs"
)

// Values of InterruptThrottleRate that are not interrupts a second.
const (
	itrOff          = 0
	itrDynamic      = 1
	itrConservative = 3 // dynamic, but never faster than rates[latencyLow]
	minRate         = 100
	maxRate         = 100000
)

// itrUnit is the unit of ITR and EITR, 13.4.18 and 82574L 10.2.4.2.
const itrUnit = 256 * time.Nanosecond

// latency is a class of traffic, from what should be answered at once to what comes in bulk.
type latency uint8

const (
	latencyLowest latency = iota
	latencyLow
	latencyBulk
)

// rates are the interrupts a second of each class; bulk's is also that of a link slower than
// 1000 Mb/s.
var rates = [...]int{latencyLowest: 70000, latencyLow: 20000, latencyBulk: 4000}

// next is the class after frames of octets bytes came with one interrupt. The borders overlap, so
// that traffic on a border does not change class with every interrupt.
func (l latency) next(frames, octets uint64) latency {
	if frames == 0 {
		return l
	}
	size := octets / frames
	switch l {
	case latencyLowest:
		switch {
		case size > 8000: // jumbo frames, or segments in one
			return latencyBulk
		case frames < 5 && octets > 512:
			return latencyLow
		}
	case latencyLow:
		switch {
		case octets > 10000 && (frames < 10 || size > 1200), size > 2000:
			return latencyBulk
		case octets > 10000 && frames > 35, frames <= 2 && octets < 512:
			return latencyLowest
		}
	case latencyBulk:
		if octets > 25000 && frames > 35 || octets < 6000 {
			return latencyLow
		}
	}
	return l
}

// moderation limits interrupts: one register for INTx and MSI, one for each vector of MSI-X.
// The vector of the link is never limited.
type moderation struct {
	adaptive atomic.Bool // setting is dynamic

	mu       sync.Mutex // guards all below
	setting  int        // InterruptThrottleRate
	interval time.Duration
	flows    [2 * maxQueues]flow  // receive queues, then transmit queues
	rate     [2 * maxQueues]int   // adaptive: in force, by vector
	regs     [2 * maxQueues]int64 // last written, by vector
	longest  int64                // ever written: an interval that began with it may still run
}

// flow is what a queue carries.
type flow struct {
	frames, octets uint64 // at the last interrupt
	class          latency
}

// setITR sets moderation up. Setting is InterruptThrottleRate, interval what it means where it is
// fixed.
func (n *nic) setITR(setting int, interval time.Duration) {
	m := &n.mod
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setting, m.interval = setting, interval
	m.adaptive.Store(setting == itrDynamic || setting == itrConservative)
	for v := range m.regs {
		m.flows[v].class = latencyLow
		m.rate[v] = rates[latencyLow]
		m.regs[v] = -1
	}
	if m.adaptive.Load() {
		interval = time.Second / time.Duration(rates[latencyLow])
	}
	for v := range n.queueVectors() {
		n.writeITR(v, interval)
	}
}

// queueVectors is how many vectors queues have.
func (n *nic) queueVectors() int {
	if n.irq.mode == bus.MSIX {
		return 2 * n.queues
	}
	return 1
}

// writeITR sets the least time between two interrupts of a vector. Called with mod.mu held.
func (n *nic) writeITR(v int, interval time.Duration) {
	units := min((int64(interval)+int64(itrUnit)-1)/int64(itrUnit), 0xffff)
	if n.mod.regs[v] == units {
		return
	}
	n.mod.regs[v] = units
	n.mod.longest = max(n.mod.longest, units)
	if n.irq.mode == bus.MSIX {
		n.regs.Write32(regEITR(v), uint32(units))
	} else {
		n.regs.Write32(regITR, uint32(units))
	}
}

// restoreITR writes what is in force, after a reset.
func (n *nic) restoreITR() {
	m := &n.mod
	m.mu.Lock()
	defer m.mu.Unlock()
	for v := range n.queueVectors() {
		units := m.regs[v]
		m.regs[v] = -1
		n.writeITR(v, time.Duration(units)*itrUnit)
	}
}

// leastInterval is what QEMU's models make of a shorter interval, and a little more for a timer that
// is late.
const leastInterval = 500*itrUnit + 250*time.Microsecond

// endIntervals waits until every throttled interval is over, once everything is masked. QEMU 7.2 ends
// itself when MSI-X is switched on or off while one runs, and its CTRL.RST does not stop them.
func (n *nic) endIntervals() {
	if !n.chip.pcie || len(n.handlers) == 0 || n.dev.Err() != nil {
		return
	}
	n.mod.mu.Lock()
	longest := leastInterval + time.Duration(n.mod.longest)*itrUnit
	n.mod.mu.Unlock()
	over := time.NewTimer(longest)
	defer over.Stop()
	select {
	case <-over.C:
		n.regs.Read32(regSTATUS) // what is due there has happened when the next access comes
	case <-n.dev.Done():
	}
}

// adapt looks at what a queue carried since its last interrupt, and chooses the next interval. It
// is called before the queue's interrupt is armed, where moderation is adaptive. f is the
// queue's index among the receive and then the transmit queues, as vectors are.
func (n *nic) adapt(f int, frames, octets uint64) {
	m := &n.mod
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.adaptive.Load() || n.stopped() {
		return
	}
	q := &m.flows[f]
	q.class = q.class.next(frames-q.frames, octets-q.octets)
	q.frames, q.octets = frames, octets
	v, class := f, q.class
	if n.irq.mode != bus.MSIX {
		v = 0
		for i := range 2 * n.queues {
			class = max(class, m.flows[i].class)
		}
	}
	if m.setting == itrConservative {
		class = max(class, latencyLow)
	}
	rate := rates[class]
	if status(n.link.Load()).speed() != 1000 {
		rate = rates[latencyBulk]
	}
	if rate > m.rate[v] { // slowly up, at once down
		rate = min(m.rate[v]+rate/4, rate)
	}
	m.rate[v] = rate
	n.writeITR(v, time.Second/time.Duration(rate))
}

// parseITR reads an InterruptThrottleRate: EINVAL for no number, ERANGE for none of its values.
func parseITR(s string) (int, error) {
	if s == "adaptive" {
		return itrConservative, nil
	}
	u, err := sysfs.ParseUint(s, maxRate)
	v := int(u)
	if err != nil {
		return 0, err
	}
	if v != itrOff && v != itrDynamic && v != itrConservative && (v < minRate || v > maxRate) {
		return 0, fmt.Errorf("%d is none of 0, 1, 3, %d to %d: %w", v, minRate, maxRate, unix.ERANGE)
	}
	return v, nil
}

// itrInterval is the interval of a fixed setting.
func itrInterval(setting int) time.Duration {
	if setting < minRate {
		return 0
	}
	return time.Second / time.Duration(setting)
}

// throttleRate is the InterruptThrottleRate in force.
func (n *nic) throttleRate() string {
	n.mod.mu.Lock()
	defer n.mod.mu.Unlock()
	return strconv.Itoa(n.mod.setting)
}

// Coalesce tells of interrupt moderation; netdev.Coalescer. Where it is adaptive, RxUsecs is the
// longest interval in force.
func (n *nic) Coalesce() netdev.Coalesce {
	m := &n.mod
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.adaptive.Load() {
		return netdev.Coalesce{RxUsecs: int(m.interval.Microseconds())}
	}
	slowest := m.rate[0]
	for v := range n.queueVectors() {
		slowest = min(slowest, m.rate[v])
	}
	return netdev.Coalesce{Adaptive: true, RxUsecs: int(time.Second.Microseconds()) / slowest}
}

// SetCoalesce sets interrupt moderation; netdev.Coalescer. Without Adaptive RxUsecs is 0 or from
// 10 to 10000.
func (n *nic) SetCoalesce(_ context.Context, c netdev.Coalesce) error {
	const lowest, highest = 1e6 / maxRate, 1e6 / minRate
	setting := itrOff
	switch {
	case c.Adaptive:
		if setting = itrConservative; n.throttleRate() == strconv.Itoa(itrDynamic) {
			setting = itrDynamic
		}
	case c.RxUsecs == 0:
	case c.RxUsecs < lowest || c.RxUsecs > highest:
		return n.errorf("interrupt moderation: %d us, want 0 or %d to %d: %w", c.RxUsecs, int(lowest), int(highest), unix.EINVAL)
	default:
		setting = 1e6 / c.RxUsecs
	}
	if err := n.alive("interrupt moderation"); err != nil {
		return err
	}
	n.setITR(setting, time.Duration(c.RxUsecs)*time.Microsecond)
	return n.alive("interrupt moderation")
}
