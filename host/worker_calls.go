package host

import (
	"encoding/json"
	"sync"

	"github.com/ring3dev/ring3/internal/node"
)

// A driver that hangs in what it was asked hangs in a call of the supervisor's, which nobody answers. The calls that are open are counted, so that the watchdog sees it.

// callKind says how long a call may be open.
type callKind int

const (
	callQuick callKind = iota // it asks something
	callSlow                  // it changes something: a device may be brought up for it, or a slot be waited for
	callWaits                 // it is there to wait
)

// openCall is one.
type openCall struct {
	kind callKind
	op   string     // what is asked for; of a file: "reading"
	file *node.File // nil: none
}

// openCalls are those that were not answered yet. The zero value is ready.
type openCalls struct {
	mu   sync.Mutex
	last uint64
	all  map[uint64]openCall
}

// begin counts a call, until end.
func (o *openCalls) begin(c openCall) (end func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all == nil {
		o.all = map[uint64]openCall{}
	}
	o.last++
	id := o.last
	o.all[id] = c
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.all, id)
	}
}

// oldest is the oldest call of each kind, and its number; 0: there is none.
func (o *openCalls) oldest() (calls [callWaits + 1]openCall, ids [callWaits + 1]uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id, c := range o.all {
		if ids[c.kind] == 0 || id < ids[c.kind] {
			calls[c.kind], ids[c.kind] = c, id
		}
	}
	return calls, ids
}

// called counts a call of a file. A `start` of pgctrl is there to wait, as is what is read from a stream and written to it: a TPM takes minutes for some commands, and its chip
// knows for which: watchdog.late.
func (w *workerSide) called(op string, f *node.File, p []byte) (end func()) {
	c := openCall{callQuick, op, f}
	switch op {
	case "writing":
		if c.kind = callSlow; f.Flavour == node.Proc && isStart(p) {
			c.kind = callWaits
		}
	case "opening":
		c.kind = callSlow
	case "streaming":
		c.kind = callWaits
	}
	return w.calls.begin(c)
}

// controlled counts an operation of the control socket.
func (w *workerSide) controlled(op string, args json.RawMessage) (end func()) {
	c := openCall{kind: callSlow, op: op}
	switch op {
	case opDevices, opCollisions, opEvents, opTraceLast, opTraceSet:
		c.kind = callQuick
	case opTrace, opEventsFollow:
		c.kind = callWaits
	case opStats:
		var a statsArgs
		if c.kind = callQuick; json.Unmarshal(args, &a) != nil || a.Count != 1 {
			c.kind = callWaits
		}
	case opEthtool: // to identify an adapter, and to test it, takes as long as its user likes
		var a ethtoolArgs
		if json.Unmarshal(args, &a) != nil || a.Op == "p" || a.Op == "t" {
			c.kind = callWaits
		}
	}
	return w.calls.begin(c)
}

// ticksSlow is how many looks more a call may take that changes something. A device's accesses are its progress, but not for longer than ticksMost: they may be another's, or
// of a driver that looks at its device now and then.
const (
	ticksSlow = 22
	ticksMost = 60
)

// stuck looks at the calls that are open.
func (w *watchdog) stuck(now map[suspectKey]string) {
	moved := !w.stands(suspectKey{suspectCall, "", "accesses"}, w.s.accesses())
	calls, ids := w.calls.oldest()
	if w.stands(suspectKey{suspectCall, "", "age"}, ids[callSlow]) && ids[callSlow] != 0 {
		w.aged++
	} else {
		w.aged = 0
	}
	moved = moved && w.aged <= ticksMost
	for kind := callQuick; kind < callWaits; kind++ {
		at := suspectKey{suspectCall, "", map[callKind]string{callQuick: "quick", callSlow: "slow"}[kind]}
		same := w.stands(at, ids[kind]) && ids[kind] != 0
		switch {
		case !same, kind == callSlow && moved:
			w.stood[kind], w.told[kind] = 0, ""
			continue
		case kind == callQuick && (ids[callWaits] != 0 && calls[callWaits].op == "streaming" || ids[callSlow] != 0 && moved):
			w.stood[kind], w.told[kind] = 0, "" // it may wait for the device that the other one has
			continue
		}
		if w.stood[kind]++; kind == callSlow && w.stood[kind] <= ticksSlow && w.aged <= ticksMost {
			continue
		}
		if w.told[kind] == "" {
			w.told[kind] = calls[kind].op + w.s.pathOf(calls[kind].file)
		}
		now[suspectKey{suspectCall, "", w.told[kind]}] = "it does not return"
	}
}

// pathOf is a place of a file, after a space; "" where it has none any more. It may have several.
func (s *System) pathOf(f *node.File) string {
	if f == nil {
		return ""
	}
	for name, n := range s.Tree().OwnEntries() { // files are called only of a tree that is there
		if d, ok := n.(*node.Dir); ok && name != "ns" {
			if p, ok := below(d, f, 0); ok {
				return " /" + name + p
			}
		}
	}
	return ""
}

// accesses counts those that were recorded of all devices.
func (s *System) accesses() (n uint64) {
	s.tracing.mu.Lock()
	defer s.tracing.mu.Unlock()
	for _, d := range s.tracing.devices {
		n += d.Recorded()
	}
	return n
}
