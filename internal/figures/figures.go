package figures

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/pktgen"
)

// Snapshot is what there is to count of an instance, at one time.
type Snapshot struct {
	Instance string    `json:"instance"`
	Time     time.Time `json:"time"`
	// Mono is the same time by CLOCK_MONOTONIC, in ns, as pktgen's own times are.
	Mono int64 `json:"mono_ns"`
	// Interval is the time since the snapshot before, in ns, that rates are of; 0: there are none.
	Interval  int64       `json:"interval_ns"`
	Devices   []Device    `json:"devices"`
	Pktgen    []Generator `json:"pktgen"`
	Receivers []Receiver  `json:"receivers"`
}

// Device is a device in service.
type Device struct {
	Name       string      `json:"name"`
	Driver     string      `json:"driver"`
	Model      string      `json:"model,omitempty"`
	Up         bool        `json:"up"`  // false: it is gone
	Net        *Net        `json:"net"` // nil: no network device
	Interrupts []Interrupt `json:"interrupts"`
	// Rate is of all its interrupts, a second; nil: none is known.
	Rate *float64 `json:"interrupt_rate"`
}

// Net is what a network device has beside.
type Net struct {
	Link       bool         `json:"link"`
	Speed      int          `json:"speed"` // Mb/s; 0 while the link is down
	FullDuplex bool         `json:"full_duplex"`
	Statistics netdev.Stats `json:"statistics"`
	Rx         *Rate        `json:"rx_rate"`
	Tx         *Rate        `json:"tx_rate"`
	// Share is who sends by the device, where several do.
	Share []netdev.ShareFigures `json:"share,omitempty"`
}

// Interrupt is a line of /proc/interrupts.
type Interrupt struct {
	Number int    `json:"number"`
	Name   string `json:"name"`
	Count  uint64 `json:"count"` // on all CPUs
}

// Rate is how fast something went since the snapshot before. nil: it is not known.
type Rate struct {
	PPS float64 `json:"pps"`
	BPS float64 `json:"bps"` // bits
}

// Generator is a device of pktgen's.
type Generator struct {
	pktgen.DeviceFigures
	Rate *Rate `json:"rate"`
}

// State is running, stopped after a run, or idle since the device was added.
func (g *Generator) State() string {
	switch {
	case g.Running:
		return "running"
	case g.Started != 0:
		return "stopped"
	}
	return "idle"
}

// Receiver is what a network device received of pktgen's frames.
type Receiver struct {
	pktgen.RxFigures
	Rate *Rate `json:"rate"`
}

// InterruptCount is the sum of a device's interrupts.
func (d *Device) InterruptCount() uint64 {
	n := uint64(0)
	for _, i := range d.Interrupts {
		n += i.Count
	}
	return n
}

// Stream makes rates of snapshots that follow each other. It belongs to one goroutine.
type Stream struct{ last *Snapshot }

// Next sets the rates of s, which came after those before.
func (st *Stream) Next(s *Snapshot) {
	last := st.last
	st.last = s
	if last == nil || s.Mono <= last.Mono {
		return
	}
	s.Interval = s.Mono - last.Mono
	seconds := float64(s.Interval) / 1e9
	before := index(last.Devices, func(d *Device) string { return d.Name })
	for i := range s.Devices {
		d := &s.Devices[i]
		if was := before[d.Name]; was != nil {
			d.rates(was, seconds)
		}
	}
	generators := index(last.Pktgen, func(g *Generator) string { return g.Name })
	for i := range s.Pktgen {
		s.Pktgen[i].rates(generators[s.Pktgen[i].Name])
	}
	receivers := index(last.Receivers, func(r *Receiver) string { return r.Name })
	for i := range s.Receivers {
		r := &s.Receivers[i]
		if was := receivers[r.Name]; was != nil {
			r.Rate = rate(was.Received, r.Received, was.Bytes, r.Bytes, seconds)
		}
	}
}

func index[T any](all []T, name func(*T) string) map[string]*T {
	m := make(map[string]*T, len(all))
	for i := range all {
		m[name(&all[i])] = &all[i]
	}
	return m
}

func (d *Device) rates(was *Device, seconds float64) {
	n := float64(grown(was.InterruptCount(), d.InterruptCount())) / seconds
	d.Rate = &n
	if d.Net == nil || was.Net == nil {
		return
	}
	a, b := &was.Net.Statistics, &d.Net.Statistics
	d.Net.Rx = rate(a.RxPackets, b.RxPackets, a.RxBytes, b.RxBytes, seconds)
	d.Net.Tx = rate(a.TxPackets, b.TxPackets, a.TxBytes, b.TxBytes, seconds)
}

// rates of a generator are of its run alone, where that began or ended in between. They are by the times that were taken
// together with its counters: a snapshot's own is from before registers were read, which may take long.
func (g *Generator) rates(was *Generator) {
	g.Rate = &Rate{}
	from := g.Started
	switch {
	case was == nil || g.Started != was.Started:
		was = &Generator{}
	case g.Packets < was.Packets: // cleared, and so are the bytes, though they may be more by now
		from, was = was.Stopped, &Generator{}
	default:
		from = was.Stopped
	}
	if g.Stopped <= from {
		return
	}
	seconds := float64(g.Stopped-from) / 1e9
	g.Rate = rate(was.Packets, g.Packets, was.Bytes, g.Bytes, seconds)
	if g.Bytes == g.Packets*uint64(g.SizeLast) {
		// The last size is taken for all, as in Result; before, another may have been.
		g.Rate.BPS = g.Rate.PPS * 8 * float64(g.SizeLast)
	}
}

func rate(p0, p1, b0, b1 uint64, seconds float64) *Rate {
	return &Rate{PPS: float64(grown(p0, p1)) / seconds, BPS: 8 * float64(grown(b0, b1)) / seconds}
}

// grown is by how much a counter grew; one that was cleared began at 0.
func grown(from, to uint64) uint64 {
	if to < from {
		return to
	}
	return to - from
}

// Printable is s for a terminal or a label: valid UTF-8 without control characters, which it shows as '?'.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
