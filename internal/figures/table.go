package figures

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// none stands where there is no number.
const none = "-"

// Line is a line of a snapshot as people see it.
type Line struct {
	Text   string
	Header bool // it names the columns below
}

// Lines are a snapshot for people: when it was, and a table of each kind of thing that there is.
func (s *Snapshot) Lines() []Line {
	when := Printable(s.Instance) + "  " + s.Time.Local().Format("15:04:05.000")
	if s.Interval > 0 {
		when += fmt.Sprintf("  rates of the last %.3g s", time.Duration(s.Interval).Seconds())
	}
	lines := []Line{{Text: when}}
	for _, t := range []struct {
		words int // columns of words, which come first
		rows  [][]string
	}{{3, s.deviceRows()}, {2, s.shareRows()}, {3, s.pktgenRows()}, {1, s.receiverRows()}, {1, s.latencyRows()}} {
		if len(t.rows) < 2 {
			continue
		}
		for i, l := range columns(t.rows, t.words) {
			lines = append(lines, Line{l, i == 0})
		}
	}
	return lines
}

// Text writes a snapshot as lines.
func (s *Snapshot) Text(w io.Writer) error {
	var b strings.Builder
	for _, l := range s.Lines() {
		b.WriteString(l.Text + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// columns aligns rows: the first words columns to the left, as words are, the others to the right.
func columns(rows [][]string, words int) []string {
	width := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, c := range r {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	out := make([]string, len(rows))
	for i, r := range rows {
		var b strings.Builder
		for k, c := range r {
			pad := strings.Repeat(" ", width[k]-utf8.RuneCountInString(c))
			if k > 0 {
				b.WriteString("  ")
			}
			if k < words {
				b.WriteString(c + pad)
			} else {
				b.WriteString(pad + c)
			}
		}
		out[i] = strings.TrimRight(b.String(), " ")
	}
	return out
}

// shareRows are the clients of devices that several send by.
func (s *Snapshot) shareRows() [][]string {
	rows := [][]string{{"SHARED", "CLIENT", "WEIGHT", "FRAMES", "BYTES", "WAITED", "FULL", "CREDITS"}}
	for i := range s.Devices {
		d := &s.Devices[i]
		if d.Net == nil {
			continue
		}
		for _, c := range d.Net.Share {
			rows = append(rows, []string{Printable(d.Name), Printable(c.Client), fmt.Sprint(c.Weight), fmt.Sprint(c.Frames), fmt.Sprint(c.Bytes),
				fmt.Sprint(c.Waited), fmt.Sprint(c.Full), fmt.Sprint(c.Credits)})
		}
	}
	return rows
}

func (s *Snapshot) deviceRows() [][]string {
	rows := [][]string{{"DEVICE", "DRIVER", "LINK", "RX PACKETS", "RX BYTES", "RX PPS", "RX MBIT/S", "TX PACKETS", "TX BYTES", "TX PPS", "TX MBIT/S",
		"ERRORS", "DROPPED", "IRQS", "IRQ/S"}}
	for i := range s.Devices {
		d := &s.Devices[i]
		r := []string{Printable(d.Name), Printable(d.Driver), d.linkText()}
		if n := d.Net; n == nil {
			r = append(r, none, none, none, none, none, none, none, none, none, none)
		} else {
			st := &n.Statistics
			r = append(r, whole(st.RxPackets), whole(st.RxBytes), n.Rx.pps(), n.Rx.mbps(), whole(st.TxPackets), whole(st.TxBytes), n.Tx.pps(), n.Tx.mbps(),
				whole(st.RxErrors+st.TxErrors), whole(st.RxDropped+st.RxMissedErrors+st.TxDropped))
		}
		irqs := none
		if d.Rate != nil {
			irqs = fmt.Sprintf("%.0f", *d.Rate)
		}
		rows = append(rows, append(r, whole(d.InterruptCount()), irqs))
	}
	return rows
}

// linkText is a device's link: "1000Mb/s", "down"; "gone" where the device is.
func (d *Device) linkText() string {
	switch {
	case !d.Up:
		return "gone"
	case d.Net == nil:
		return none
	case !d.Net.Link:
		return "down"
	case !d.Net.FullDuplex:
		return fmt.Sprintf("%dMb/s half", d.Net.Speed)
	}
	return fmt.Sprintf("%dMb/s", d.Net.Speed)
}

func (s *Snapshot) pktgenRows() [][]string {
	rows := [][]string{{"PKTGEN", "THREAD", "STATE", "PACKETS", "OF", "PPS", "MBIT/S", "ERRORS", "SECONDS"}}
	for i := range s.Pktgen {
		g := &s.Pktgen[i]
		of := "forever"
		if g.Count > 0 {
			of = whole(g.Count)
		}
		rows = append(rows, []string{Printable(g.Name), g.Thread, g.State(), whole(g.Packets), of, g.Rate.pps(), g.Rate.mbps(), whole(g.Errors),
			fmt.Sprintf("%.3f", time.Duration(g.Stopped-g.Started).Seconds())})
	}
	return rows
}

func (s *Snapshot) receiverRows() [][]string {
	rows := [][]string{{"RECEIVED", "PACKETS", "BYTES", "PPS", "MBIT/S", "LOST", "DUPLICATED", "REORDERED", "CORRUPTED", "OTHER"}}
	for i := range s.Receivers {
		r := &s.Receivers[i]
		if r.Started == 0 && r.Other == 0 && r.Corrupted() == 0 {
			continue
		}
		rows = append(rows, []string{Printable(r.Name), whole(r.Received), whole(r.Bytes), r.Rate.pps(), r.Rate.mbps(), whole(r.Lost), whole(r.Duplicated),
			whole(r.Reordered), whole(r.Corrupted()), whole(r.Other)})
	}
	return rows
}

func (s *Snapshot) latencyRows() [][]string {
	rows := [][]string{{"LATENCY US", "SAMPLES", "MIN", "MEAN", "P50", "P90", "P99", "P99.9", "MAX"}}
	for i := range s.Receivers {
		r := &s.Receivers[i]
		l := &r.Latency
		if l.Samples == 0 {
			continue
		}
		rows = append(rows, []string{Printable(r.Name), whole(l.Samples), micro(l.Min), micro(l.Mean()), micro(l.P50), micro(l.P90), micro(l.P99), micro(l.P999),
			micro(l.Max)})
	}
	return rows
}

func whole(n uint64) string { return fmt.Sprint(n) }

// micro is a time of so many ns in microseconds.
func micro(ns uint64) string { return fmt.Sprintf("%.1f", float64(ns)/1000) }

func (r *Rate) pps() string {
	if r == nil {
		return none
	}
	return fmt.Sprintf("%.0f", r.PPS)
}

func (r *Rate) mbps() string {
	if r == nil {
		return none
	}
	return fmt.Sprintf("%.1f", r.BPS/1e6)
}
