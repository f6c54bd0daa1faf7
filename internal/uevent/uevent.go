// Package uevent keeps the events by which a kernel tells user space of its devices: in a ring of bounded size, each with
// the seconds of CLOCK_MONOTONIC, for any number of readers. ring3 events shows them as `udevadm monitor --kernel` does:
//
//	KERNEL[1234.567890] add      /devices/pci1000:00/1000:00:03.0 (pci)
//
// and with --property what the kernel's message holds, in its order:
//
//	ACTION=add
//	DEVPATH=/devices/pci1000:00/1000:00:03.0
//	SUBSYSTEM=pci
//	PCI_CLASS=60400
//	SEQNUM=1
//
// Whoever changes a device publishes; it never waits for who reads. A reader that does not keep up is told how many it
// lost. Order is that of Publish: of two events, the one with the lower number was published first.
//
// All types are safe for concurrent use.
package uevent

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Actions (the kernel's kobject_action).
const (
	Add     = "add"
	Remove  = "remove"
	Change  = "change"
	Move    = "move"
	Online  = "online"
	Offline = "offline"
	Bind    = "bind"
	Unbind  = "unbind"
)

// Actions are all of them, as a file uevent takes them.
var Actions = []string{Add, Remove, Change, Move, Online, Offline, Bind, Unbind}

// DefaultSize is how many bytes of events a Ring keeps where nothing else is asked: a thousand and some.
const DefaultSize = 256 << 10

// perEvent is what an event costs beside its text.
const perEvent = 128

// Event is one event.
type Event struct {
	Seq       uint64   `json:"seq"` // SEQNUM: counts from 1 without gaps, also over events that were dropped
	Time      int64    `json:"ns"`  // CLOCK_MONOTONIC, nanoseconds
	Action    string   `json:"action"`
	Devpath   string   `json:"devpath"` // below /sys: "/devices/pci1000:00/1000:00:03.0"
	Subsystem string   `json:"subsystem"`
	Env       []string `json:"env"` // more variables, "KEY=VALUE", in order
}

// String is the event as `udevadm monitor` shows it, without a final newline.
func (e Event) String() string {
	return fmt.Sprintf("KERNEL[%d.%06d] %-8s %s (%s)", e.Time/1e9, e.Time%1e9/1e3, e.Action, e.Devpath, e.Subsystem)
}

// Properties are the variables of the kernel's message, in its order.
func (e Event) Properties() []string {
	p := append(make([]string, 0, len(e.Env)+4), "ACTION="+e.Action, "DEVPATH="+e.Devpath, "SUBSYSTEM="+e.Subsystem)
	return append(append(p, e.Env...), fmt.Sprintf("SEQNUM=%d", e.Seq))
}

// WriteProperties writes the event as `udevadm monitor --property` does: the line, the variables, an empty line.
func (e Event) WriteProperties(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%s\n%s\n\n", e, strings.Join(e.Properties(), "\n"))
	return err
}

func (e Event) size() int {
	n := perEvent + len(e.Action) + len(e.Devpath) + len(e.Subsystem)
	for _, v := range e.Env {
		n += len(v) + 16
	}
	return n
}

// Ring keeps events. The oldest go when there are too many. A nil Ring takes them and keeps none.
type Ring struct {
	limit int
	now   func() int64

	mu     sync.Mutex
	events []Event       // guarded by mu; in order of Seq
	size   int           // guarded by mu; of events
	next   uint64        // guarded by mu; Seq of the next event
	wake   chan struct{} // guarded by mu; closed at the next event
}

// New makes an empty ring that keeps so many bytes; 0 for DefaultSize.
func New(size int) *Ring {
	if size <= 0 {
		size = DefaultSize
	}
	return &Ring{limit: size, now: monotonic, next: 1, wake: make(chan struct{})}
}

// monotonic reads CLOCK_MONOTONIC, which package time keeps to itself.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0 // the clock always exists
	}
	return ts.Nano()
}

// Publish appends an event, and gives its number. env is "KEY=VALUE" each. Bytes that would break a line, or steer a
// terminal, become "?".
func (r *Ring) Publish(action, devpath, subsystem string, env ...string) uint64 {
	if r == nil {
		return 0
	}
	e := Event{Action: clean(action), Devpath: clean(devpath), Subsystem: clean(subsystem), Env: make([]string, len(env))}
	for i, v := range env {
		e.Env[i] = clean(v)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Seq, e.Time = r.next, r.now()
	r.next++
	r.events = append(r.events, e)
	r.size += e.size()
	drop := 0
	for r.size > r.limit && drop < len(r.events)-1 { // the latest always stays
		r.size -= r.events[drop].size()
		r.events[drop] = Event{} // its text goes with it
		drop++
	}
	r.events = r.events[drop:] // append moves what is left when the array is full
	close(r.wake)
	r.wake = make(chan struct{})
	return e.Seq
}

func clean(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c >= 0x7f && c < 0xa0 {
			return '?'
		}
		return c
	}, s)
}

// Read returns the events after number seq (0 for all that are kept), oldest first, and how many of those wanted are lost
// because the ring went over them. Their Env is not to be changed.
func (r *Ring) Read(seq uint64) (events []Event, lost uint64) {
	if r == nil {
		return nil, 0
	}
	events, lost, _ = r.read(seq)
	return events, lost
}

func (r *Ring) read(seq uint64) (events []Event, lost uint64, wake <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.events) == 0 || seq >= r.next-1 {
		return nil, 0, r.wake
	}
	first := r.events[0].Seq
	if seq+1 < first {
		lost = first - seq - 1
		seq = first - 1
	}
	return slices.Clone(r.events[seq+1-first:]), lost, r.wake
}

// Follow gives fn the events after number seq, those kept and then each new batch as it comes, until ctx ends or fn
// returns an error, which is returned. fn runs without a lock: a slow one loses events, and lost says how many, and
// delays nobody.
func (r *Ring) Follow(ctx context.Context, seq uint64, fn func(events []Event, lost uint64) error) error {
	if r == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		events, lost, wake := r.read(seq)
		if len(events) > 0 {
			seq = events[len(events)-1].Seq
			if err := fn(events, lost); err != nil {
				return err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		}
	}
}
