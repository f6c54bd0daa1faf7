package portseen

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var seconds = regexp.MustCompile(` ~(\d+\.\d\d)s$`)

// timed splits a line into its text and its seconds, 0 for none.
func timed(line string) (string, float64) {
	m := seconds.FindStringSubmatch(line)
	if m == nil {
		return line, 0
	}
	s, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return line, 0
	}
	return strings.TrimSuffix(line, m[0]), s
}

// Tolerance is by how much times may differ.
type Tolerance struct {
	Part float64       // of the time that is wanted: 0.2 is 20 %
	Late time.Duration // how much longer it may take beside that, where the machine may be busy
}

// Compare compares two recordings, of which the first is taken for right.
// It returns the lines that differ, by event; none if all is alike.
func Compare(want, got string, tolerance Tolerance) []string {
	var all []string
	wanted, had := sections(want), sections(got)
	for i := range max(len(wanted), len(had)) {
		var w, g []string
		if i < len(wanted) {
			w = wanted[i]
		}
		if i < len(had) {
			g = had[i]
		}
		lines := compareLines(w, g, tolerance)
		if len(lines) == 0 {
			continue
		}
		head := append(append([]string(nil), w...), g...)[0]
		all = append(append(all, head), lines...)
	}
	return all
}

// sections are the lines of each event, its head first.
func sections(s string) [][]string {
	var all [][]string
	for line := range strings.Lines(s) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "== ") || len(all) == 0 {
			all = append(all, nil)
		}
		all[len(all)-1] = append(all[len(all)-1], line)
	}
	return all
}

// compareLines aligns two lists of lines by their longest common subsequence, and returns what is in only one of them, or
// took another time.
func compareLines(want, got []string, tolerance Tolerance) []string {
	same := func(i, j int) bool {
		w, _ := timed(want[i])
		g, _ := timed(got[j])
		return w == g
	}
	n, m := len(want), len(got)
	common := make([][]int, n+1) // of what begins there
	for i := range common {
		common[i] = make([]int, m+1)
	}
	for i := n - 1; i >= 0; i-- {
		for j := m - 1; j >= 0; j-- {
			if same(i, j) {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var lines []string
	i, j := 0, 0
	for i < n || j < m {
		switch {
		case i < n && j < m && same(i, j):
			_, w := timed(want[i])
			_, g := timed(got[j])
			if !near(w, g, tolerance) {
				lines = append(lines, fmt.Sprintf("took %.2fs, want %.2fs: %s", g, w, want[i]))
			}
			i, j = i+1, j+1
		case j == m || i < n && common[i+1][j] >= common[i][j+1]:
			lines = append(lines, "want: "+want[i])
			i++
		default:
			lines = append(lines, "got:  "+got[j])
			j++
		}
	}
	return lines
}

// near tells whether two times are alike. One that was not written down was below MinGap.
func near(want, got float64, tolerance Tolerance) bool {
	gap := MinGap.Seconds()
	// What was not written down is anything up to MinGap.
	return max(got, gap) >= want*(1-tolerance.Part) && got <= max(want, gap)*(1+tolerance.Part)+tolerance.Late.Seconds()
}
