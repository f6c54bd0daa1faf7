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
	"strings"

	"github.com/ring3dev/ring3/internal/journal"
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
	events *journal.Journal[Event]
}

// New makes an empty ring that keeps so many bytes; 0 for DefaultSize.
func New(size int) *Ring {
	if size <= 0 {
		size = DefaultSize
	}
	return &Ring{journal.New(size, Event.size)}
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
	return r.events.Add(func(seq uint64, now int64) Event {
		e.Seq, e.Time = seq, now
		return e
	})
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
	return r.events.Read(seq)
}

// Follow gives fn the events after number seq, those kept and then each new batch as it comes, until ctx ends or fn
// returns an error, which is returned. fn runs without a lock: a slow one loses events, and lost says how many, and
// delays nobody.
func (r *Ring) Follow(ctx context.Context, seq uint64, fn func(events []Event, lost uint64) error) error {
	if r == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return r.events.Follow(ctx, seq, fn)
}
