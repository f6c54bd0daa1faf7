package pktgen

import (
	"cmp"
	"math/bits"
)

// DeviceFigures are the numbers of one device, as its file shows them. Times are of CLOCK_MONOTONIC ([Now]).
type DeviceFigures struct {
	Name    string `json:"name"`   // as added: "eth0@3"
	NetDev  string `json:"netdev"` // the network device's name
	Thread  string `json:"thread"`
	Running bool   `json:"running"`
	Count   uint64 `json:"count"` // wanted; 0: no end
	Packets uint64 `json:"packets"`
	// Bytes are of the run, as Packets are: where sizes vary, all are taken to be of the last one's, but those of a mix and of
	// a capture are counted. Result, as the kernel's does, adds what a mix counted in earlier runs.
	Bytes    uint64 `json:"bytes"`
	Errors   uint64 `json:"errors"`
	Started  int64  `json:"started_ns"` // of the run that runs or was the last; 0: there was none
	Stopped  int64  `json:"stopped_ns"` // while it runs: now
	Idle     int64  `json:"idle_ns"`    // of this, waited for delay or rate
	SizeLast uint32 `json:"size"`       // of the packet built last, bytes
	Result   string `json:"result"`     // of the last command or run
}

// Figures are the numbers of all devices, by thread in the order in which they were added. Each device is locked once, for a
// copy.
func (e *Engine) Figures() []DeviceFigures {
	out := []DeviceFigures{}
	for _, t := range e.threads {
		t.mu.Lock()
		devs := t.devs // never changed in place
		t.mu.Unlock()
		for i := len(devs) - 1; i >= 0; i-- {
			out = append(out, devs[i].figures())
		}
	}
	return out
}

func (d *device) figures() DeviceFigures {
	f := DeviceFigures{Name: d.name, NetDev: d.base, Thread: d.thr.name}
	d.mu.Lock()
	defer d.mu.Unlock()
	f.Running, f.Count, f.Packets, f.Bytes, f.Errors = d.running.Load(), d.count, d.sofar, d.runBytes(), d.errors
	f.Started, f.Stopped, f.Idle, f.SizeLast = d.started, d.stopped, d.idle, d.size
	if f.Running {
		f.Stopped = Now()
	}
	f.Result = cmp.Or(d.result, "Idle")
	return f
}

// sentBytes is how many bytes a run sent, as its result counts them: with those of a mix's earlier runs.
func (d *device) sentBytes() uint64 {
	switch {
	case d.capture != nil:
		return d.replay.bytes
	case len(d.imix) > 0:
		n := uint64(0)
		for _, e := range d.imix {
			n += e.size * e.count
		}
		return n
	}
	return d.sofar * uint64(d.size)
}

// runBytes is sentBytes without what a mix counted before this run, or clear_counters.
func (d *device) runBytes() uint64 {
	n := d.sentBytes()
	if d.capture == nil {
		for i, e := range d.imix {
			n -= e.size * d.imixBase[i]
		}
	}
	return n
}

// Now is the time by the clock that all figures are by, CLOCK_MONOTONIC in ns.
func Now() int64 { return mono() }

// RxFigures are the numbers of a receiver, as its file shows them but for runs and flows.
type RxFigures struct {
	Name       string `json:"name"`     // of the network device
	Received   uint64 `json:"received"` // of pktgen's, and whole
	Bytes      uint64 `json:"bytes"`
	Other      uint64 `json:"other"` // not pktgen's
	Lost       uint64 `json:"lost"`  // less again when one comes late
	Duplicated uint64 `json:"duplicated"`
	Reordered  uint64 `json:"reordered"`
	Clones     uint64 `json:"clones"`

	// Corrupted, by what is wrong.
	BadChecksum uint64 `json:"checksum"`
	BadHeader   uint64 `json:"header"`
	BadLength   uint64 `json:"length"`
	BadPayload  uint64 `json:"payload"`

	NoTimestamp  uint64  `json:"no_timestamp"`
	BadTimestamp uint64  `json:"bad_timestamp"`
	Started      int64   `json:"started_ns"` // arrival of the first and the last frame; 0: there was none
	Stopped      int64   `json:"stopped_ns"`
	Runs         uint64  `json:"runs"`
	Flows        int     `json:"flows"`
	Latency      Latency `json:"latency"`

	Restarts       uint64 `json:"restarts,omitempty"`         // processes that went on with this account; 1 where one began it again
	LostInRestarts uint64 `json:"lost_in_restarts,omitempty"` // of Lost, the numbers that were missing after one, before the first that came
}

// Corrupted is the sum of what arrived otherwise than it was sent.
func (f *RxFigures) Corrupted() uint64 {
	return f.BadChecksum + f.BadHeader + f.BadLength + f.BadPayload
}

// Latency says how long frames took, in ns.
type Latency struct {
	Samples uint64          `json:"samples"`
	Sum     uint64          `json:"sum_ns"`
	Min     uint64          `json:"min_ns"`
	Max     uint64          `json:"max_ns"`
	P50     uint64          `json:"p50_ns"`
	P90     uint64          `json:"p90_ns"`
	P99     uint64          `json:"p99_ns"`
	P999    uint64          `json:"p999_ns"`
	Buckets []LatencyBucket `json:"buckets,omitempty"` // not empty ones, in order
}

// Mean is the mean latency; 0 without samples.
func (l *Latency) Mean() uint64 {
	if l.Samples == 0 {
		return 0
	}
	return l.Sum / l.Samples
}

// LatencyBucket counts latencies from From up to, not including, To. There are four of equal width between two powers of two.
type LatencyBucket struct {
	From uint64 `json:"from_ns"`
	To   uint64 `json:"to_ns"`
	N    uint64 `json:"frames"`
}

// Figures are the receiver's numbers now. The lock is held for a copy of the runs and the histogram, never of the flows.
func (r *Rx) Figures() RxFigures {
	f := RxFigures{Name: r.name}
	var h histogram
	var l span
	func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.keepAll() // what was seen stays
		f.Received, f.Other = r.seen[rxGood], r.seen[rxOther]
		f.BadChecksum, f.BadHeader, f.BadLength, f.BadPayload = r.seen[rxSum], r.seen[rxHeader], r.seen[rxLength], r.seen[rxPayload]
		s := r.state
		if s == nil {
			return
		}
		sum := s.past
		for i := range s.runs[:s.live] {
			if s.runs[i].frames > 0 {
				sum.add(&s.runs[i])
			}
		}
		f.Lost, f.Duplicated, f.Reordered, f.Clones = sum.lost, sum.doubled, sum.reordered, sum.clones
		f.Bytes, f.Started, f.Stopped, f.Runs, f.Flows = s.bytes, s.started, s.ended, s.begun, s.table.n
		f.Restarts, f.LostInRestarts = s.restarts, s.gap
		f.NoTimestamp, f.BadTimestamp = s.noStamp, s.badStamp
		h, l = s.histogram, s.latency
	}()
	f.Latency = latency(&h, &l)
	return f
}

// quarterBits is how much finer than powers of two figures count latencies.
const quarterBits = 2

func latency(h *histogram, s *span) Latency {
	l := Latency{Samples: s.n, Sum: s.sum, Min: s.min, Max: s.max}
	if s.n == 0 {
		return l
	}
	l.P50, l.P90, l.P99, l.P999 = h.quantile(0.5, s), h.quantile(0.9, s), h.quantile(0.99, s), h.quantile(0.999, s)
	for i, n := range h {
		if n == 0 {
			continue
		}
		from, width := lower(i), uint64(1)
		if shift := bits.Len64(from) - 1 - quarterBits; shift > 0 {
			from, width = from>>shift<<shift, 1<<shift
		}
		if k := len(l.Buckets); k == 0 || l.Buckets[k-1].From != from {
			l.Buckets = append(l.Buckets, LatencyBucket{From: from, To: from + width})
		}
		l.Buckets[len(l.Buckets)-1].N += n
	}
	return l
}
