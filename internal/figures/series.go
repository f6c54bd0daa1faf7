package figures

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// point is a value at a time, in s since the first snapshot.
type point struct{ at, value float64 }

// series is how one rate went.
type series struct {
	name   string // and colour: "received", "sent"
	points []point
}

// maxPoints bounds the memory of a series: when there are that many, pairs become one.
const maxPoints = 4096

// thinner adds a point. Each stands for as many rates as the others do.
type thinner struct {
	series
	per, n int
	sum    float64
	at     float64
}

func (t *thinner) add(at, value float64) {
	if t.per == 0 {
		t.per = 1
	}
	if t.n == 0 {
		t.at, t.sum = at, 0
	}
	t.n++
	t.sum += value
	if t.n < t.per {
		return
	}
	t.points = append(t.points, point{t.at, t.sum / float64(t.n)})
	t.n = 0
	if len(t.points) < maxPoints {
		return
	}
	for i := range maxPoints / 2 {
		a, b := t.points[2*i], t.points[2*i+1]
		t.points[i] = point{a.at, (a.value + b.value) / 2}
	}
	t.points = t.points[:maxPoints/2]
	t.per *= 2
}

// drawn is the series with the values that are no point yet.
func (t *thinner) drawn() series {
	s := t.series
	if t.n > 0 {
		s.points = append(s.points[:len(s.points):len(s.points)], point{t.at, t.sum / float64(t.n)})
	}
	return s
}

// mean is that of all values.
func (t *thinner) mean() float64 {
	all := float64(len(t.points)*t.per + t.n)
	if all == 0 {
		return 0
	}
	m := 0.0
	for _, p := range t.points {
		m += p.value * (float64(t.per) / all)
	}
	if t.n > 0 {
		m += t.sum / all
	}
	return m
}

// track is what is drawn of one device, of a kind.
type track struct {
	name       string
	pps, bps   [2]thinner // two directions; generators have one
	peak       [2]Rate    // the largest of any interval
	directions []string
}

func (k *track) add(at float64, rates ...*Rate) {
	for i, r := range rates {
		if r == nil {
			continue
		}
		k.pps[i].add(at, r.PPS)
		k.bps[i].add(at, r.BPS)
		k.peak[i].PPS, k.peak[i].BPS = max(k.peak[i].PPS, r.PPS), max(k.peak[i].BPS, r.BPS)
	}
}

// Record is what a report is made of: how rates went, and the last figures. It belongs to one goroutine.
type Record struct {
	first, last *Snapshot
	snapshots   int
	devices     tracks
	generators  tracks
	receivers   tracks
}

// tracks are in the order in which they appeared.
type tracks struct {
	all    []*track
	byName map[string]*track
}

func (t *tracks) of(name string, directions ...string) *track {
	if k := t.byName[name]; k != nil {
		return k
	}
	k := &track{name: name, directions: directions}
	if t.byName == nil {
		t.byName = map[string]*track{}
	}
	t.byName[name] = k
	t.all = append(t.all, k)
	return k
}

// Add takes the next snapshot of a stream. It fails where that is of another instance, or earlier.
func (r *Record) Add(s *Snapshot) error {
	if r.first == nil {
		r.first = s
	}
	switch {
	case s.Instance != r.first.Instance:
		return fmt.Errorf("a snapshot of %q after one of %q: want one instance", s.Instance, r.first.Instance)
	case r.last != nil && s.Mono < r.last.Mono:
		return errors.New("a snapshot that is older than the one before it: want one stream")
	}
	r.last = s
	r.snapshots++
	at := float64(s.Mono-r.first.Mono) / 1e9
	for i := range s.Devices {
		if d := &s.Devices[i]; d.Net != nil {
			r.devices.of(d.Name, "received", "sent").add(at, d.Net.Rx, d.Net.Tx)
		}
	}
	for i := range s.Pktgen {
		r.generators.of(s.Pktgen[i].Name, "sent").add(at, s.Pktgen[i].Rate)
	}
	for i := range s.Receivers {
		r.receivers.of(s.Receivers[i].Name, "received").add(at, s.Receivers[i].Rate)
	}
	return nil
}

// Snapshots is how many there were.
func (r *Record) Snapshots() int { return r.snapshots }

// Read adds the snapshots of a saved stream, as `ring3 stats -json` writes it.
func (r *Record) Read(in io.Reader) error {
	d := json.NewDecoder(in)
	for {
		s := &Snapshot{}
		err := d.Decode(s)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("snapshot %d: it ends in the middle", r.snapshots+1)
		case err != nil:
			return fmt.Errorf("snapshot %d: %w", r.snapshots+1, err)
		case s.Instance == "" || s.Time.IsZero():
			return fmt.Errorf("snapshot %d: it says neither of whom nor when: no output of 'ring3 stats -json'", r.snapshots+1)
		}
		if err := r.Add(s); err != nil {
			return fmt.Errorf("snapshot %d: %w", r.snapshots+1, err)
		}
	}
}

// span is the time that the record is of.
func (r *Record) span() time.Duration { return time.Duration(r.last.Mono - r.first.Mono) }
