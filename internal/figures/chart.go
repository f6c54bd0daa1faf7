package figures

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/ring3dev/ring3/pktgen"
)

// The size of a drawing, and the room around what is drawn, in units of its viewBox.
const (
	chartWidth, chartHeight  = 640, 200
	chartLeft, chartRight    = 52, 10
	chartTop, chartBottom    = 10, 24
	plotWidth                = chartWidth - chartLeft - chartRight
	plotHeight               = chartHeight - chartTop - chartBottom
	plotRight, plotBase      = chartWidth - chartRight, chartHeight - chartBottom
	wantedTicks              = 4
	leastBar                 = 1.5 // of one frame among millions, that it is seen
	quantileLabel, labelStep = 9, 10
	maxRate                  = 1e18 // that an axis has: more is none, but in a file that somebody wrote
)

// chart is a drawing: lines over time, or bars.
type chart struct {
	Title  string
	Lines  []chartLine
	Bars   []chartBar
	Marks  []chartTick // upright lines
	XTicks []chartTick
	YTicks []chartTick
}

type chartLine struct{ Name, Points string }

type chartBar struct {
	X, Y, W, H string
	Title      string
}

// chartTick is a place on an axis, or a mark: At is where, Y where its label stands.
type chartTick struct{ At, Y, Label string }

// coord is a coordinate with as many digits as are seen.
func coord(v float64) string { return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64) }

// step is a round distance of ticks up to limit.
func step(limit float64, ticks int) float64 {
	raw := limit / float64(ticks)
	if !(raw > 0) || math.IsInf(raw, 0) {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(raw)))
	for _, m := range []float64{1, 2, 5} {
		if m*unit >= raw {
			return m * unit
		}
	}
	return 10 * unit
}

// si is a number with a prefix: "1.5 M".
func si(v float64) string {
	for _, p := range []struct {
		unit float64
		name string
	}{{1e12, " T"}, {1e9, " G"}, {1e6, " M"}, {1e3, " k"}} {
		if math.Abs(v) >= p.unit {
			return strconv.FormatFloat(v/p.unit, 'g', 3, 64) + p.name
		}
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// seconds is a time for an axis.
func seconds(v float64) string { return strconv.FormatFloat(v, 'g', 4, 64) + " s" }

// duration is a latency of so many ns.
func duration(ns uint64) string { return time.Duration(min(ns, math.MaxInt64)).String() }

// timeChart draws series over so many seconds. None of them is longer.
func timeChart(title string, length float64, all []series) *chart {
	c := &chart{Title: title}
	if length <= 0 {
		length = 1
	}
	highest := 0.0
	for _, s := range all {
		for _, p := range s.points {
			highest = max(highest, p.value)
		}
	}
	highest = min(highest, maxRate)
	dy := step(highest, wantedTicks)
	top := max(math.Ceil(highest/dy), 1) * dy
	y := func(v float64) float64 { return plotBase - plotHeight*min(max(v/top, 0), 1) }
	x := func(at float64) float64 { return chartLeft + plotWidth*min(max(at/length, 0), 1) }
	for v := 0.0; v <= top*1.001; v += dy {
		c.YTicks = append(c.YTicks, chartTick{At: coord(y(v)), Label: si(v)})
	}
	dx := step(length, 2*wantedTicks)
	for v := 0.0; v <= length*1.001; v += dx {
		c.XTicks = append(c.XTicks, chartTick{At: coord(x(v)), Label: seconds(v)})
	}
	for _, s := range all {
		var b strings.Builder
		if len(s.points) == 1 { // it is the rate of all the time until then
			fmt.Fprintf(&b, "%s,%s ", coord(x(0)), coord(y(s.points[0].value)))
		}
		for _, p := range thin(s.points, plotWidth) {
			fmt.Fprintf(&b, "%s,%s ", coord(x(p.at)), coord(y(p.value)))
		}
		c.Lines = append(c.Lines, chartLine{s.name, strings.TrimSpace(b.String())})
	}
	return c
}

// thin makes at most n points of more, each the mean of neighbours.
func thin(ps []point, n int) []point {
	if len(ps) <= n {
		return ps
	}
	out := make([]point, n)
	for i := range out {
		part := ps[i*len(ps)/n : (i+1)*len(ps)/n]
		for _, p := range part {
			out[i].value += p.value / float64(len(part))
		}
		out[i].at = part[0].at
	}
	return out
}

// latencyChart draws a histogram over a logarithmic axis of time, with the quantiles.
func latencyChart(l *pktgen.Latency) *chart {
	c := &chart{Title: "frames by latency"}
	if len(l.Buckets) == 0 {
		return c
	}
	log := func(ns uint64) float64 { return math.Log2(float64(max(ns, 1))) }
	from, to := log(l.Buckets[0].From), log(l.Buckets[len(l.Buckets)-1].To)
	if to-from < 1 {
		to = from + 1
	}
	x := func(ns uint64) float64 { return chartLeft + plotWidth*min(max((log(ns)-from)/(to-from), 0), 1) }
	most := uint64(1)
	for _, b := range l.Buckets {
		most = max(most, b.N)
	}
	dy := max(step(float64(most), wantedTicks), 1)
	top := math.Ceil(float64(most)/dy) * dy
	for v := 0.0; v <= top*1.001; v += dy {
		c.YTicks = append(c.YTicks, chartTick{At: coord(plotBase - plotHeight*v/top), Label: si(v)})
	}
	for _, b := range l.Buckets {
		if b.N == 0 || b.To <= b.From {
			continue
		}
		h := max(plotHeight*float64(b.N)/top, leastBar)
		c.Bars = append(c.Bars, chartBar{X: coord(x(b.From)), Y: coord(plotBase - h), W: coord(max(x(b.To)-x(b.From)-1, leastBar)), H: coord(h),
			Title: fmt.Sprintf("%s to %s: %d", duration(b.From), duration(b.To), b.N)})
	}
	c.XTicks = decades(l.Buckets[0].From, l.Buckets[len(l.Buckets)-1].To, x)
	for i, q := range []struct {
		name string
		ns   uint64
	}{{"p50", l.P50}, {"p90", l.P90}, {"p99", l.P99}, {"p99.9", l.P999}} {
		c.Marks = append(c.Marks, chartTick{At: coord(x(q.ns)), Y: coord(float64(chartTop + quantileLabel + i*labelStep)), Label: q.name})
	}
	return c
}

// decades are ticks at each power of ten, with 2 and 5 of it where they are few, as many as there is room for.
func decades(from, to uint64, x func(uint64) float64) (ticks []chartTick) {
	steps := []uint64{1, 2, 5}
	if to/1000 >= max(from, 1) {
		steps = steps[:1]
	}
	room := -math.MaxFloat64
	for unit := uint64(1); unit <= to && unit < math.MaxUint64/10; unit *= 10 {
		for _, m := range steps {
			v := m * unit
			if v < from || v > to || x(v) < room {
				continue
			}
			ticks = append(ticks, chartTick{At: coord(x(v)), Label: duration(v)})
			room = x(v) + 48
		}
	}
	return ticks
}
