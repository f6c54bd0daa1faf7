package pktgen

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/rt"
)

// control is what others ask of a thread.
type control uint8

const (
	ctlStop   control = 1 << iota // end every run
	ctlRun                        // start every device
	ctlRemAll                     // remove every device
	ctlRem                        // remove the devices that are marked
	ctlExit
	ctlStopRun // ctlStop that came after a ctlRun which is not served yet
	ctlLeave   // end, and leave runs as they are, for another process
	ctlResume  // go on with the devices that ran in another process, and begin with those that it had not begun with
)

// thread serves the devices of one CPU.
type thread struct {
	eng  *Engine
	cpu  int
	name string
	wake chan struct{} // of capacity 1: control changed

	mu       sync.Mutex
	devs     []*device // the last one added first; changed by the thread, and by add
	result   string
	control  control
	req, ack uint64 // requests made, and served

	posted atomic.Bool // control is not 0

	run   []*device // the devices that run; the goroutine's own, as is the rest
	stall int       // turns in a row that found every queue full
	wait  waiter
	timer *time.Timer
}

// post asks for something and returns what to wait for.
func (t *thread) post(c control) uint64 {
	t.mu.Lock()
	switch {
	case c == ctlStop && t.control&(ctlRun|ctlResume) != 0:
		c = ctlStopRun
	case c == ctlRun, c == ctlResume:
		t.control &^= ctlStopRun
	}
	t.control |= c
	t.req++
	id := t.req
	t.posted.Store(true)
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
	return id
}

// done tells whether a request was served.
func (t *thread) done(id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ack >= id
}

// busy tells whether a device of the thread runs.
func (t *thread) busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.devs, func(d *device) bool { return d.running.Load() })
}

// loop is the thread.
func (t *thread) loop() {
	defer t.eng.wg.Done()
	if err := pin(t.cpu, t.name); err != nil {
		t.eng.log.Warn("pktgen: thread not pinned", "thread", t.name, "error", err)
	}
	defer t.eng.rt.Enter(t.name)()
	t.timer = time.NewTimer(time.Hour)
	defer t.timer.Stop()
	for {
		if t.serve() {
			return
		}
		if len(t.run) == 0 {
			<-t.wake
			continue
		}
		t.round()
	}
}

// serve does what was asked for; it tells whether the thread ends.
func (t *thread) serve() (exit bool) {
	if !t.posted.Load() {
		return false
	}
	t.mu.Lock()
	c, id := t.control, t.req
	t.control = 0
	t.posted.Store(false)
	devs := slices.Clone(t.devs)
	t.mu.Unlock()
	if c&(ctlStop|ctlExit) != 0 {
		for _, d := range slices.Clone(t.run) {
			t.finish(d)
		}
	}
	if c&ctlRun != 0 && c&ctlExit == 0 {
		for _, d := range devs {
			d.begin()
		}
		t.run = slices.Clone(devs)
	}
	if c&ctlResume != 0 && c&ctlExit == 0 {
		for _, d := range devs {
			if d.goOn() {
				t.run = append(t.run, d)
			}
		}
	}
	if c&ctlStopRun != 0 {
		for _, d := range slices.Clone(t.run) {
			t.finish(d)
		}
	}
	for _, d := range devs {
		if c&(ctlRemAll|ctlExit) != 0 || c&ctlRem != 0 && d.removed.Load() {
			t.remove(d)
		}
	}
	if c&ctlLeave != 0 {
		for _, d := range t.run {
			d.leave()
		}
		t.run = nil
	}
	exit = c&(ctlExit|ctlLeave) != 0
	if exit {
		id = math.MaxUint64 // nobody waits for a thread that is not there
	}
	t.mu.Lock()
	t.ack = id
	t.mu.Unlock()
	t.eng.changed.fire()
	return exit
}

// finish ends a device's run.
func (t *thread) finish(d *device) {
	d.end()
	t.run = slices.DeleteFunc(t.run, func(o *device) bool { return o == d })
	t.eng.changed.fire()
}

// remove takes a device away: first its file, so that its name is free when it is gone.
func (t *thread) remove(d *device) {
	if d.running.Load() {
		t.finish(d)
	}
	t.eng.dir.Remove(d.name)
	t.eng.rxRemoved(d.name, d.base)
	t.mu.Lock()
	t.devs = slices.DeleteFunc(slices.Clone(t.devs), func(o *device) bool { return o == d })
	t.mu.Unlock()
	d.mu.Lock()
	d.dead = true
	d.mu.Unlock()
}

// round gives every running device its turn, and waits where none could do anything.
func (t *thread) round() {
	busy, due := false, int64(never)
	only := t.first()
	for i := 0; i < len(t.run); {
		d := t.run[i]
		if only != nil && d != only {
			d.waits = false
			i++
			continue
		}
		p, at := d.turn()
		d.waits = p == waiting && at != never || p == full
		switch p {
		case finished:
			t.finish(d)
			busy = true // there may be another device's turn
			continue
		case sent:
			busy = true
		case full:
			due = 0
		case waiting:
			due = min(due, at)
		}
		if i++; i < len(t.run) && t.posted.Load() {
			return
		}
	}
	switch {
	case busy || len(t.run) == 0:
		t.stall = 0
		if t.eng.rt != nil {
			rt.Yield()
		}
	case due == 0:
		t.backOff()
	default:
		t.stall = 0
		t.sleep(due)
	}
}

// first is the device that a kernel would serve, and no other: that whose packet is due first, the last
// one added of those that have no delay. nil: all devices have their turns.
func (t *thread) first() (best *device) {
	if !t.eng.prof.Strict || len(t.run) < 2 {
		return nil
	}
	for _, d := range t.run {
		d.mu.Lock()
		parked := d.delay == neverDelay
		d.mu.Unlock()
		if !parked && (best == nil || d.nextTx < best.nextTx) {
			best = d
		}
	}
	return best
}

const (
	spinTime = 100_000     // ns: shorter waits keep the CPU, as in the kernel
	napTime  = 1_000_000   // longer ones can be interrupted
	pollTime = 100_000_000 // the longest, so that a lost link is noticed

	// A real-time thread wakes when it is time, and while it spins nobody else has its CPU.
	rtSpinTime = 10_000
	rtPollTime = 10_000_000 // the longest: nobody wakes it to stop
)

// sleep waits until a packet is due.
func (t *thread) sleep(due int64) {
	now := mono()
	wait := due - now
	switch {
	case t.eng.rt != nil && wait >= rtSpinTime:
		nap(min(wait, rtPollTime))
	case wait < spinTime:
		for mono() < due {
		}
	case wait < napTime:
		nap(wait)
	default:
		t.timer.Reset(time.Duration(min(wait-napTime/2, pollTime)))
		select {
		case <-t.timer.C:
		case <-t.wake:
		}
	}
	t.idle(now)
}

// idle books the time since then for the devices that waited.
func (t *thread) idle(since int64) {
	n := mono() - since
	for _, d := range t.run {
		if d.waits {
			d.mu.Lock()
			d.idle += n
			d.mu.Unlock()
		}
	}
}

// show writes the thread's file.
func (t *thread) show(w *bytes.Buffer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var running, stopped bytes.Buffer
	for _, d := range t.devs {
		to := &stopped
		if d.running.Load() {
			to = &running
		}
		to.WriteString(d.name + " ")
	}
	result := t.result
	if result == "" {
		result = "NA"
	}
	fmt.Fprintf(w, "Running: %s\nStopped: %s\nResult: %s\n", &running, &stopped, result)
	return nil
}

// threadNameLen is how much of a command's name is looked at.
const threadNameLen = 39

// store takes one write to the thread's file.
func (t *thread) store(ctx context.Context, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, unix.EINVAL
	}
	s, name := scan(p, t.eng.prof, threadNameLen)
	switch name {
	case "add_device":
		dev := s.word(maxNameLen)
		if err := t.eng.add(t, dev, nil); err != nil {
			t.setResult("ERROR: can not add device " + dev)
			return 0, err
		}
		t.setResult("OK: add_device=" + dev)
	case "rem_device_all":
		id := t.post(ctlRemAll)
		t.eng.wait(ctx, func() bool { return t.done(id) })
		t.setResult("OK: rem_device_all")
	case "max_before_softirq":
		t.setResult("OK: Note! max_before_softirq is obsoleted -- Do not use")
	default:
		return 0, unix.EINVAL
	}
	return len(p), nil
}

func (t *thread) setResult(s string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.result = s
}
