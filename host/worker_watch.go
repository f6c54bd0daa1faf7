package host

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/trace"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/netdev"
)

// A worker's own watchdog: what its supervisor cannot see. It looks once a second, and judges by what has not moved since: a process that was stopped, or had no CPU,
// has not looked either, and is not blamed. It asks no device anything, since that may be what hangs.

// watchTick is the time between two looks.
const watchTick = time.Second

// How many looks in a row something must be seen until it is told, and until it is told that the worker cannot get out of it.
const (
	ticksTold  = 3
	ticksFatal = 8
	// A driver that took its device out of service does nothing any more. The bus may be about to say that the device is gone.
	ticksGaveUp = 2
)

// Bounds.
const (
	stormRate     = 20_000  // interrupts of a vector a second that go on, and bring less than a frame for ten of them
	manyRoutines  = 20_000  // goroutines
	someReads     = 4       // reads of at least two registers that all give all-ones
	memoryPercent = 90      // of the limit that the process has
	memoryNoLimit = 4 << 30 // bytes, where it has none
	tpmSlack      = 5 * time.Second
	tpmLongest    = time.Minute // beyond what a command may take, whatever goes on
	maxQueues     = 64          // of a device
)

// watchdog looks after a System.
type watchdog struct {
	s     *System
	calls *openCalls
	tick  time.Duration
	say   func(suspect)
	end   chan struct{}
	over  sync.WaitGroup
	up    atomic.Bool // the devices are in service: all is looked at. Before that, only whether that goes on

	seen   map[suspectKey]int    // looks in a row
	marks  map[suspectKey]uint64 // what must move
	quiets map[string]int64      // of trace: time of the last read that was looked at, by device
	stood  [callWaits]int        // looks at which the oldest call of a kind was the same
	aged   int                   // the same of the oldest slow one, whatever else moved
	told   [callWaits]string     // what messages call that one
	spin   spinners
	slack  time.Duration // tpmSlack
}

type suspectKey struct{ kind, device, what string }

func newWatchdog(s *System, calls *openCalls, tick time.Duration, say func(suspect)) *watchdog {
	w := &watchdog{s: s, calls: calls, tick: tick, say: say, end: make(chan struct{}), seen: map[suspectKey]int{}, marks: map[suspectKey]uint64{}, quiets: map[string]int64{}, slack: tpmSlack}
	w.over.Go(w.run)
	return w
}

// stop ends it; nil is none.
func (w *watchdog) stop() {
	if w == nil {
		return
	}
	close(w.end)
	w.over.Wait()
}

func (w *watchdog) run() {
	t := time.NewTicker(w.tick)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			w.look()
		case <-w.end:
			return
		}
	}
}

// look looks once at everything.
func (w *watchdog) look() {
	now := map[suspectKey]string{}
	w.stuck(now)
	for _, b := range w.s.bound() {
		if !w.up.Load() || b.driver == nil || b.asleep != nil || b.dev.Err() != nil {
			continue
		}
		w.interrupts(b, now)
		w.queues(b, now)
		w.silent(b, now)
		w.late(b, now)
		w.failed(b, now)
	}
	w.process(now)
	w.spins(now)
	for k := range w.seen {
		if _, still := now[k]; !still {
			if w.seen[k] >= ticksTold || k.kind == suspectDriver {
				w.say(suspect{Kind: k.kind, Device: k.device, Text: k.text("it has passed"), Over: true})
			}
			delete(w.seen, k)
		}
	}
	for k, text := range now {
		w.seen[k]++
		switch n := w.seen[k]; {
		case k.kind == suspectDriver:
			if n <= ticksGaveUp {
				w.say(suspect{Kind: k.kind, Device: k.device, Text: k.text(text), Fatal: n == ticksGaveUp})
			}
		case n == ticksTold:
			w.say(suspect{Kind: k.kind, Device: k.device, Text: k.text(text)})
		case n == ticksFatal:
			w.say(suspect{Kind: k.kind, Device: k.device, Text: k.text(fmt.Sprintf("%s, for %v", text, ticksFatal*w.tick)), Fatal: true})
		}
	}
}

// text is a line about it.
func (k suspectKey) text(s string) string {
	if k.device == "" {
		return k.what + ": " + s
	}
	return k.device + ": " + k.what + ": " + s
}

// stands says whether something is as it was at the look before.
func (w *watchdog) stands(k suspectKey, v uint64) bool {
	before, ok := w.marks[k]
	w.marks[k] = v
	return ok && before == v
}

// interrupts looks at the vectors of a device.
func (w *watchdog) interrupts(b *boundDevice, now map[suspectKey]string) {
	for _, r := range w.s.irqs.rowsOf(b) {
		name := r.handler.Name()
		if k := (suspectKey{suspectQueue, b.spec.Name, "interrupt handler " + name}); true {
			turn, inside := r.handler.Turn()
			if stands := w.stands(k, turn); inside && stands {
				now[k] = "it does not return"
			}
		}
		l := w.s.lines.of(r.handler.IRQ())
		if l == nil {
			continue
		}
		fired, unmasked := l.fired.Load(), l.unmasked.Load()
		if k := (suspectKey{suspectLine, b.spec.Name, "interrupt line " + name}); r.handler.IRQ().Mode() == bus.INTx {
			if stands := w.stands(k, fired+unmasked); l.masked.Load() && stands {
				now[k] = "it fired and is not unmasked"
			}
		}
		k := suspectKey{suspectStorm, b.spec.Name, "interrupt " + name}
		before, ok := w.marks[k]
		w.marks[k] = fired
		rate := float64(fired-before) / w.tick.Seconds()
		frames := k
		frames.what += " frames"
		if !ok || rate < stormRate {
			delete(w.marks, frames)
			continue
		}
		// Only now: counters are read from the device.
		done := uint64(0)
		if b.net != nil {
			st := b.net.Stats()
			done = st.RxPackets + st.TxPackets
		}
		last, ok := w.marks[frames]
		w.marks[frames] = done
		if ok && float64(done-last) < float64(fired-before)/10 {
			now[k] = fmt.Sprintf("%.0f a second, for %d frames", rate, done-last)
		}
	}
}

// queues looks whether something waits in the queues of a network device, and stays.
func (w *watchdog) queues(b *boundDevice, now map[suspectKey]string) {
	if b.net == nil {
		return
	}
	for q := range maxQueues {
		tx, rx := b.net.Tx(q), b.net.Rx(q)
		if tx == nil && rx == nil {
			return
		}
		w.queue(b, fmt.Sprintf("transmit queue %d", q), tx, "frames wait for the device", now)
		w.queue(b, fmt.Sprintf("receive queue %d", q), rx, "frames came and nobody takes them", now)
	}
}

func (w *watchdog) queue(b *boundDevice, what string, q any, text string, now map[suspectKey]string) {
	p, ok := q.(netdev.Progress)
	if !ok {
		return
	}
	k := suspectKey{suspectQueue, b.spec.Name, what}
	turn, waits, known := p.Waits()
	if !known {
		// Somebody is at work in it: then its accesses move, of which there is a record.
		text, waits, turn = "an access to the device does not return", true, math.MaxUint64
		if b.trace != nil && b.trace.Enabled() {
			turn -= 1 + b.trace.Recorded()
		} else {
			waits = false
		}
	}
	if stands := w.stands(k, turn); waits && stands {
		now[k] = text
	}
}

// silent looks at what the driver has read since the look before.
func (w *watchdog) silent(b *boundDevice, now map[suspectKey]string) {
	if b.trace == nil || !b.trace.Enabled() {
		return
	}
	k := suspectKey{suspectSilent, b.spec.Name, "registers"}
	offsets, reads := map[bus.Off]bool{}, 0
	last := w.quiets[b.spec.Name]
	for _, r := range b.trace.Last(trace.DefaultRecords) {
		if r.Kind != trace.Read || r.Region < 0 || r.Time <= last {
			continue
		}
		w.quiets[b.spec.Name] = r.Time
		if r.Value != uint64(math.MaxUint64)>>(64-8*uint(r.Width)) {
			return
		}
		offsets[r.Off] = true
		reads++
	}
	// Who reads nothing for a while has not heard better.
	if reads >= someReads && len(offsets) > 1 || reads == 0 && w.seen[k] > 0 {
		now[k] = "all that are read give all-ones"
	}
}

// failed looks whether the driver itself gave its device up, though that does not say that it is dead: a port whose config space is gone.
func (w *watchdog) failed(b *boundDevice, now map[suspectKey]string) {
	if b.net != nil {
		if err := b.net.Err(); err != nil && !errors.Is(err, bus.ErrClosed) {
			now[suspectKey{suspectDriver, b.spec.Name, "its driver gave up"}] = err.Error()
		}
	}
	if !b.use.TryLock() {
		return
	}
	defer b.use.Unlock()
	if p, ok := b.inst.(*portbus.Port); ok && p.Err() != nil {
		now[suspectKey{suspectSilent, b.spec.Name, "the port"}] = p.Err().Error()
	}
}

// process looks at what this process uses.
func (w *watchdog) process(now map[suspectKey]string) {
	if n := runtime.NumGoroutine(); n > manyRoutines {
		now[suspectKey{suspectThread, "", "goroutines"}] = fmt.Sprintf("there are %d, want at most %d", n, manyRoutines)
	}
	limit := debug.SetMemoryLimit(-1)
	if limit == math.MaxInt64 {
		limit = memoryNoLimit
	}
	m := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(m)
	if used := int64(m[0].Value.Uint64() - m[1].Value.Uint64()); used > limit/100*memoryPercent {
		now[suspectKey{suspectMemory, "", "memory"}] = fmt.Sprintf("%d MB are used, want at most %d", used>>20, limit/100*memoryPercent>>20)
	}
}

// irqLines are the vectors of a System, as its watchdog sees them.
type irqLines struct {
	mu  sync.Mutex
	all map[*bus.IRQ]*irqLine // guarded by mu
}

// irqLine is one vector.
type irqLine struct {
	fired, unmasked atomic.Uint64
	masked          atomic.Bool
}

// observe looks at a vector that its driver has not yet. Without a watchdog nobody does.
func (l *irqLines) observe(q *bus.IRQ) {
	if l == nil {
		return
	}
	x := new(irqLine)
	q.Observe(func(n uint64) {
		if n == 0 {
			x.masked.Store(false)
			x.unmasked.Add(1)
			return
		}
		x.fired.Add(n)
		x.masked.Store(true)
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = map[*bus.IRQ]*irqLine{}
	}
	for old := range l.all {
		if old.Closed() {
			delete(l.all, old)
		}
	}
	l.all[q] = x
}

func (l *irqLines) of(q *bus.IRQ) *irqLine {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all[q]
}
