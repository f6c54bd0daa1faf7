package figures

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"time"
)

//go:embed report.html
var reportText string

var reportTemplate = template.Must(template.New("report").Parse(reportText))

// reportData is what the template draws.
type reportData struct {
	Instance, From, Took string
	Snapshots            int
	Rates                bool // there were two snapshots, so there are rates
	Summary              []reportTable
	Tracks               []reportTrack
	Latencies            []reportLatency
	Version              string
	Width, Height        int
	Left, Right          int
	Base, Top            int
}

// reportTable is a table of the last figures.
type reportTable struct {
	Title string
	Words int // columns of words
	Head  []string
	Rows  [][]string
}

// reportTrack is a device's rates.
type reportTrack struct {
	Title  string
	Charts []*chart
}

type reportLatency struct {
	Name  string
	Chart *chart
}

// Report writes the record as a page that needs nothing else: no script, no other file. version is of the program.
func (r *Record) Report(w io.Writer, version string) error {
	if r.last == nil {
		return errors.New("a report needs at least one snapshot; there is none")
	}
	d := reportData{
		Instance: Printable(r.first.Instance), From: r.first.Time.Format("2006-01-02 15:04:05 MST"), Took: r.span().Round(time.Millisecond).String(),
		Snapshots: r.snapshots, Rates: r.snapshots > 1, Version: version,
		Width: chartWidth, Height: chartHeight, Left: chartLeft, Right: plotRight, Base: plotBase, Top: chartTop,
	}
	for _, t := range []struct {
		title string
		words int
		rows  [][]string
	}{
		{"Devices", 3, r.last.deviceRows()}, {"pktgen", 3, r.last.pktgenRows()}, {"Received of pktgen's", 1, r.last.receiverRows()},
		{"Latency, in microseconds", 1, r.last.latencyRows()}, {"Rates", 2, r.rateRows()},
	} {
		if len(t.rows) > 1 {
			d.Summary = append(d.Summary, reportTable{t.title, t.words, t.rows[0], t.rows[1:]})
		}
	}
	if d.Rates {
		d.Tracks = r.tracks()
	}
	for i := range r.last.Receivers {
		if v := &r.last.Receivers[i]; v.Latency.Samples > 0 {
			d.Latencies = append(d.Latencies, reportLatency{Printable(v.Name), latencyChart(&v.Latency)})
		}
	}
	var b bytes.Buffer
	if err := reportTemplate.Execute(&b, d); err != nil {
		return fmt.Errorf("drawing the report: %w", err)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// kinds are the tracks by what they are of.
func (r *Record) kinds() []struct {
	title string
	*tracks
} {
	return []struct {
		title string
		*tracks
	}{{"device", &r.devices}, {"pktgen", &r.generators}, {"received of pktgen's at", &r.receivers}}
}

// tracks draws every rate that was ever other than zero, and those of all network devices.
func (r *Record) tracks() (out []reportTrack) {
	length := r.span().Seconds()
	for _, kind := range r.kinds() {
		for _, k := range kind.all {
			var pps, bps []series
			busy := kind.tracks == &r.devices
			for i, name := range k.directions {
				k.pps[i].name, k.bps[i].name = name, name
				pps, bps = append(pps, k.pps[i].drawn()), append(bps, k.bps[i].drawn())
				busy = busy || k.peak[i].PPS > 0
			}
			if busy {
				out = append(out, reportTrack{kind.title + " " + Printable(k.name),
					[]*chart{timeChart("packets/s", length, pps), timeChart("bit/s", length, bps)}})
			}
		}
	}
	return out
}

// rateRows are means and peaks over the whole record.
func (r *Record) rateRows() [][]string {
	rows := [][]string{{"OF", "DIRECTION", "MEAN PPS", "PEAK PPS", "MEAN MBIT/S", "PEAK MBIT/S"}}
	for _, kind := range r.kinds() {
		for _, k := range kind.all {
			for i, name := range k.directions {
				if k.peak[i].PPS == 0 {
					continue
				}
				mean := Rate{k.pps[i].mean(), k.bps[i].mean()}
				rows = append(rows, []string{kind.title + " " + Printable(k.name), name, mean.pps(), k.peak[i].pps(), mean.mbps(), k.peak[i].mbps()})
			}
		}
	}
	return rows
}

// With is a chart and the sizes of all, for the part of the template that draws axes.
func (d reportData) With(c *chart) map[string]any { return map[string]any{"Chart": c, "Data": d} }
