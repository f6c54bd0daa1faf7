package host

import (
	"encoding/json"
	"fmt"

	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/internal/link"
)

// wireVersion is the number of the conversation between supervisor and worker. Both say theirs, and who meets another says so and ends: the
// binary of a worker may be another one ('ring3 reload').
const wireVersion = 1

// High bytes of the methods of a link between supervisor and worker, for its link.Mux.
const (
	linkTree    = 0x01 // package mirror's
	linkControl = 0x02 // supervisor to worker: operations of the control socket
	linkOutside = 0x03 // worker to supervisor: what a System that may open nothing asks for
	linkLife    = 0x04
)

// Methods of a worker's life, all with bodies of JSON.
const (
	lifeHello     link.Method = 0x0400 // event to the supervisor: workerHello, the first that it hears
	lifeConfigure link.Method = 0x0401 // call to the worker: workerConfig, and the ledger's file; workerUp when its devices are in service
	lifeState     link.Method = 0x0402 // event to the supervisor: Saved, before the answer to what changed it
	lifeLog       link.Method = 0x0403 // event to the supervisor: workerRecord
	lifeReport    link.Method = 0x0404 // event to the supervisor: workerReport, the last words before a panic
	lifeStop      link.Method = 0x0405 // call to the worker: an orderly end; workerStopped. The worker's process ends after it
	lifeUevent    link.Method = 0x0406 // event to the supervisor: uevent.Event, whose number and time are the supervisor's to give
	lifeSuspect   link.Method = 0x0407 // event to the supervisor: suspect
	lifeGone      link.Method = 0x0409 // event to the supervisor: no device of the group is left alive; a text says why
	lifeAsk       link.Method = 0x0408 // call to the worker, nothing: workerReport of how it is; for reports of what was not a panic
)

// controlCall is the one method of linkControl: its body is a controlRequest, its parts are what the operation streams, its reply the result,
// all JSON.
const controlCall link.Method = 0x0201

// controlRequest is an operation of instance.Handlers, that the worker has.
type controlRequest struct {
	Op   string          `json:"op"`
	Args json.RawMessage `json:"args,omitempty"`
}

// workerHello is what a worker says first: it has given up its rights, and waits to be configured.
type workerHello struct {
	Wire    int    `json:"wire"`
	Version string `json:"version"` // of its program
	PID     int    `json:"pid"`     // as it sees itself
}

// workerConfig is what a worker is told.
type workerConfig struct {
	Wire    int             `json:"wire"`
	Group   string          `json:"group"` // name of its part: "eth0+eth1"
	Plan    workerPlan      `json:"plan"`
	Numbers Numbers         `json:"numbers"`
	Facts   Facts           `json:"facts"`
	Saved   json.RawMessage `json:"saved,omitempty"` // what the worker before told last; empty for the first
	Debug   bool            `json:"debug,omitempty"` // its watchdog suspects nobody: somebody debugs it
}

// workerPlan is a Plan as JSON.
type workerPlan struct {
	Plan
	Faults map[string]string `json:"Faults,omitempty"` // as fault.Parse reads them; hides Plan's
}

// wirePlan makes a workerPlan of a Plan.
func wirePlan(p Plan) workerPlan {
	w := workerPlan{Plan: p}
	for name, f := range p.Faults {
		if w.Faults == nil {
			w.Faults = map[string]string{}
		}
		w.Faults[name] = f.String()
	}
	w.Plan.Faults = nil
	return w
}

// plan makes the Plan of it again.
func (w *workerPlan) plan() (Plan, error) {
	p := w.Plan
	p.Faults = map[string]fault.Plan{}
	for name, text := range w.Faults {
		f, err := fault.Parse(text)
		if err != nil {
			return p, fmt.Errorf("%s: reading its faults: %w", name, err)
		}
		p.Faults[name] = f
	}
	return p, nil
}

// usagePrefix begins each line of why the devices did not come up that is the user's mistake.
const usagePrefix = "usage: "

// workerUp answers lifeConfigure.
type workerUp struct {
	Wire    int          `json:"wire"`
	Version string       `json:"version"`
	Devices []DeviceInfo `json:"devices"`
	Lost    []string     `json:"lost,omitempty"` // what of Saved could not be replayed, a line each
}

// workerStopped answers lifeStop.
type workerStopped struct {
	Saved Saved  `json:"saved"`
	Error string `json:"error,omitempty"` // of closing; empty: all went well
	// Unmade: a fault was asked for, and there was none ('up' ends with exit status 1).
	Unmade bool `json:"unmade,omitempty"`
}

// workerRecord is a message of a worker's.
type workerRecord struct {
	Level int    `json:"level"` // slog's
	Text  string `json:"text"`  // with its attributes, as package klog makes a line of them
	Time  int64  `json:"ns"`    // CLOCK_MONOTONIC
}

// workerReport is what a worker knows of itself when something went wrong.
type workerReport struct {
	Cause   string         `json:"cause"`           // "panic: ...", or what it was asked for
	Stack   string         `json:"stack,omitempty"` // of the goroutine, or of all of them; cut
	Devices []deviceReport `json:"devices,omitempty"`
}

// deviceReport is what one of its devices did last.
type deviceReport struct {
	Name     string   `json:"name"`
	Driver   string   `json:"driver,omitempty"`
	Backend  string   `json:"backend"`
	Address  string   `json:"address"`
	Error    string   `json:"error,omitempty"`    // why it is dead
	Accesses []string `json:"accesses,omitempty"` // the last ones, by register name, the oldest first
	// Registers are the values that were seen last, by name; nothing is read for it, since reading may be what went wrong.
	Registers map[string]string `json:"registers,omitempty"`
}

// suspect is something that the worker's own watchdog saw. It says so once, and again when it has got worse or is over.
type suspect struct {
	Kind   string `json:"kind"`             // one of the suspects below
	Device string `json:"device,omitempty"` // "" for the whole worker
	Text   string `json:"text"`             // a line: what was seen, and what is wanted
	// Fatal: the worker cannot get out of it by itself. It is to be replaced.
	Fatal bool `json:"fatal,omitempty"`
	Over  bool `json:"over,omitempty"` // it has passed
}

// Kinds of suspects.
const (
	suspectQueue  = "queue"  // work, and no progress
	suspectLine   = "line"   // an INTx line that nobody unmasks
	suspectStorm  = "storm"  // interrupts without end
	suspectSilent = "silent" // a device that reads all-ones, or does not answer
	suspectDriver = "driver" // it took its device out of service, which is there
	suspectCall   = "call"   // what was asked is not answered
	suspectMemory = "memory" // the heap grows without end
	suspectThread = "thread" // goroutines without end
	suspectSpin   = "spin"   // a goroutine that never stops
	suspectDMA    = "dma"    // a device reached for what is not mapped for it
)

// Numbers are where a group begins to count, so that nothing of one group collides with another's in the joined tree. The zero value, but
// for NoLo, is that of a System which is alone.
type Numbers struct {
	Domain   uint32 `json:"domain,omitempty"`    // PCI domain of its first machine, the others count on; 0: the first that the machine does not use
	NICs     int    `json:"nics,omitempty"`      // network devices before its first: their station addresses
	TPMs     int    `json:"tpms,omitempty"`      // TPMs before its first; the first of all is what makes /dev/hwrng
	Slots    int    `json:"slots,omitempty"`     // slots of ports before its first
	Ports    int    `json:"ports,omitempty"`     // master ports of RapidIO before its first
	Devices  int    `json:"devices,omitempty"`   // devices before its first: interface indices
	FirstIRQ int    `json:"first_irq,omitempty"` // 0: the first that leaves the kernel room
	// Plugged is added to the counts of network devices, slots and interface indices once the group is up: what is plugged in later has numbers that no
	// other group's devices have. 0: they count on.
	Plugged int  `json:"plugged,omitempty"`
	NoLo    bool `json:"no_lo,omitempty"` // lo is in another group
}

// Facts are what a System wants to know of the machine and may not read by itself.
type Facts struct {
	CPUs      string `json:"cpus"`       // that are online, as a list: "0-3"
	Nodes     string `json:"nodes"`      // NUMA nodes that are possible: "0"; "": the kernel has none
	IRQDigits int    `json:"irq_digits"` // width of a number in /proc/interrupts
	Firmware  string `json:"firmware"`   // names of devices that firmware calls TPMs: "MSFT0101:00", separated by spaces
}
