package row

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestSet(t *testing.T) {
	s := Set{Bench: "tx"}
	for i, v := range []float64{100, 300, 200} {
		s.Add("kernel burst=1", "pps", v)
		s.Add("ring3 burst=1", "pps", v*float64(i+1))
	}
	s.Add("kernel burst=8", "pps", 50)
	s.Skip("testpmd", "no packages")
	s.Skip("testpmd", "no packages")
	rows := s.Rows()
	if len(rows) != 4 || rows[0].Value != 200 || rows[0].Low != 100 || rows[0].High != 300 || rows[3].Skipped == "" {
		t.Fatalf("Rows = %+v, want three medians (200 from 100 to 300 the first) and one skipped", rows)
	}
	best := s.Best("pps", func(n string) bool { return strings.HasPrefix(n, "kernel") })
	if best != "kernel burst=1" {
		t.Errorf("Best = %q, want kernel burst=1", best)
	}
	if b := s.Best("Mb/s", func(string) bool { return true }); b != "" {
		t.Errorf("Best of a unit that is not there = %q, want none", b)
	}
	r, ok := s.Compare("ring3 burst=1", best, "pps")
	if !ok || r.Ratio != 2 || r.Value != 600 || r.Other != 200 {
		t.Errorf("Compare = %+v, %v, want ratio 2, value 600, other 200", r, ok)
	}
	if _, ok := s.Compare("ring3 burst=1", "no such", "pps"); ok {
		t.Error("Compare with a case that is not there = true, want false")
	}
}

func TestRowString(t *testing.T) {
	for want, r := range map[string]Row{
		"skipped: no DPDK": {Bench: "tx", Case: "testpmd burst=32", Skipped: "no DPDK"},
		"ratio 1.500":      {Bench: "tx", Case: "ring3", Value: 3, Unit: "pps", Of: "kernel", Other: 2, Ratio: 1.5},
		"2 to 4":           {Bench: "tx", Case: "ring3", Value: 3, Unit: "pps", Low: 2, High: 4},
	} {
		if got := r.String(); !strings.HasPrefix(got, "tx ") || !strings.HasSuffix(got, want) {
			t.Errorf("String of %+v = %q, want it to end in %q", r, got, want)
		}
	}
}

func TestWants(t *testing.T) {
	s := Set{Bench: "tx", Only: regexp.MustCompile("^tx ring3")}
	if s.Wants("kernel burst=1") || !s.Wants("ring3 burst=1") {
		t.Error("Wants does not follow the expression")
	}
	if v := Quantile([]time.Duration{1, 2, 3, 4}, 0.5); v != 3 {
		t.Errorf("Quantile(0.5) = %d, want 3", v)
	}
	if v := Quantile([]time.Duration{1, 2, 3, 4}, 1); v != 4 {
		t.Errorf("Quantile(1) = %d, want the last", v)
	}
}
