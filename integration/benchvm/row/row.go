// Package row is what make bench-vm's two halves, on the host and in the VM, say to each other:
// what to measure, and the rows of the result.
package row

import (
	"fmt"
	"regexp"
	"slices"
	"time"
)

// Plan is what the host tells the program in the VM.
type Plan struct {
	Time    time.Duration `json:"time"`              // of one measurement
	Reps    int           `json:"reps"`              // of each
	Only    string        `json:"only,omitempty"`    // rows whose "BENCH CASE" matches; "": all
	NoIOMMU bool          `json:"noIOMMU,omitempty"` // this VM has none
	Testpmd string        `json:"testpmd,omitempty"` // folder of DPDK in the VM; "": none, for this reason:
	NoDPDK  string        `json:"noDPDK,omitempty"`
	NoTPM   string        `json:"noTPM,omitempty"` // why the VM has none; "": it has
}

// Where the devices stand in the VM.
const (
	Sender   = "0000:00:04.0" // e1000e with nobody on its wire
	Receiver = "0000:00:05.0" // e1000e, wired to Feeder
	Feeder   = "0000:00:06.0" // e1000e
	Edu      = "0000:00:08.0"
)

// Row is one line of the result.
type Row struct {
	Bench string  `json:"bench"`          // "tx"
	Case  string  `json:"case"`           // "ring3 burst=32 clone_skb=0"
	Value float64 `json:"value"`          // in Unit: the median
	Unit  string  `json:"unit"`           // "pps"
	Low   float64 `json:"low,omitempty"`  // of the repetitions
	High  float64 `json:"high,omitempty"` // of the repetitions
	// Of is the case that Value is compared with, Other that one's median, and Ratio the median
	// of the ratios, each of one repetition.
	Of    string  `json:"of,omitempty"`
	Other float64 `json:"other,omitempty"`
	Ratio float64 `json:"ratio,omitempty"`
	// Skipped says why there is no value.
	Skipped string `json:"skipped,omitempty"`
}

// String is a row for people.
func (r Row) String() string {
	s := fmt.Sprintf("%-6s %-44s ", r.Bench, r.Case)
	switch {
	case r.Skipped != "":
		return s + "skipped: " + r.Skipped
	case r.Of != "":
		return s + fmt.Sprintf("%12.6g %-5s of %s: %.6g, ratio %.3f", r.Value, r.Unit, r.Of, r.Other, r.Ratio)
	case r.Low != r.High:
		return s + fmt.Sprintf("%12.6g %-5s %.6g to %.6g", r.Value, r.Unit, r.Low, r.High)
	}
	return s + fmt.Sprintf("%12.6g %-5s", r.Value, r.Unit)
}

// Set collects measurements until they become rows. The zero value is ready.
type Set struct {
	Bench string
	Only  *regexp.Regexp // nil: all
	keys  []key
	rows  map[key][]float64
	skips []Row
}

type key struct{ name, unit string }

// Wants says whether a case is wanted.
func (s *Set) Wants(name string) bool {
	return s.Only == nil || s.Only.MatchString(s.Bench+" "+name)
}

// Add adds a measurement of a case.
func (s *Set) Add(name, unit string, v float64) {
	k := key{name, unit}
	if s.rows == nil {
		s.rows = map[key][]float64{}
	}
	if s.rows[k] == nil {
		s.keys = append(s.keys, k)
	}
	s.rows[k] = append(s.rows[k], v)
}

// Skip notes why a case has no measurements.
func (s *Set) Skip(name, why string) {
	row := Row{Bench: s.Bench, Case: name, Skipped: why}
	if !slices.Contains(s.skips, row) {
		s.skips = append(s.skips, row)
	}
}

// Rows are the medians, in the order in which cases came, and then what was skipped each time.
func (s *Set) Rows() []Row {
	var out []Row
	for _, k := range s.keys {
		v := slices.Clone(s.rows[k])
		out = append(out, Row{Bench: s.Bench, Case: k.name, Unit: k.unit, Value: Median(v), Low: slices.Min(v), High: slices.Max(v)})
	}
	for _, skip := range s.skips {
		if !slices.ContainsFunc(out, func(r Row) bool { return r.Case == skip.Case }) {
			out = append(out, skip)
		}
	}
	return out
}

// Best is the case with the highest median among those with this unit that match; "" where there is
// none.
func (s *Set) Best(unit string, match func(name string) bool) string {
	best, top := "", 0.0
	for _, k := range s.keys {
		if k.unit != unit || !match(k.name) {
			continue
		}
		if m := Median(slices.Clone(s.rows[k])); m > top {
			best, top = k.name, m
		}
	}
	return best
}

// Compare is the row of one case beside another: the median of the ratios within a repetition.
func (s *Set) Compare(name, other, unit string) (Row, bool) {
	a, b := s.rows[key{name, unit}], s.rows[key{other, unit}]
	n := min(len(a), len(b))
	if n == 0 {
		return Row{}, false
	}
	ratios := make([]float64, n)
	for i := range ratios {
		ratios[i] = a[i] / b[i]
	}
	return Row{
		Bench: s.Bench, Case: name, Unit: unit, Value: Median(slices.Clone(a)),
		Of: other, Other: Median(slices.Clone(b)), Ratio: Median(ratios),
	}, true
}

// Median of an odd or even number of values; it sorts them.
func Median(v []float64) float64 {
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// Quantile q of sorted durations.
func Quantile(v []time.Duration, q float64) time.Duration {
	return v[min(len(v)-1, int(q*float64(len(v))))]
}
