package figures

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/pktgen"
)

// saved is a stream as `ring3 stats -w -json` writes it.
func saved(t testing.TB, snapshots ...*Snapshot) string {
	t.Helper()
	var st Stream
	var b bytes.Buffer
	for _, s := range snapshots {
		st.Next(s)
		if err := json.NewEncoder(&b).Encode(s); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// page is what a report consists of.
type page struct {
	text      string
	lines     []string // points
	elements  map[string]int
	character string
}

// draw makes a report and checks that it is whole and needs nothing else.
func draw(t *testing.T, stream string) page {
	t.Helper()
	var r Record
	if err := r.Read(strings.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := r.Report(&b, "devel"); err != nil {
		t.Fatal(err)
	}
	p := page{text: b.String(), elements: map[string]int{}}
	for _, bad := range []string{"http:", "https:", "<script", "src=", "href=", "url(", "@import", "NaN", "Inf", "ZgotmplZ"} {
		if strings.Contains(p.text, bad) {
			t.Errorf("a report contains %q", bad)
		}
	}
	for d := xml.NewDecoder(&b); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return p
		}
		if err != nil {
			t.Fatalf("a report is not well-formed: %v", err)
		}
		switch tok := tok.(type) {
		case xml.CharData:
			p.character += string(tok)
		case xml.StartElement:
			p.elements[tok.Name.Local]++
			for _, a := range tok.Attr {
				switch {
				case tok.Name.Local == "polyline" && a.Name.Local == "points":
					p.lines = append(p.lines, a.Value)
				case strings.Contains("x y x1 x2 y1 y2", a.Name.Local):
					if v, err := strconv.ParseFloat(a.Value, 64); err != nil || v < 0 || v > chartWidth {
						t.Errorf("%s of a %s is %q", a.Name.Local, tok.Name.Local, a.Value)
					}
				}
			}
		}
	}
}

func TestReport(t *testing.T) {
	p := draw(t, saved(t, at(0, 0), at(1000, 1000), at(2000, 3000), at(3000, 3000)))
	// eth0 and eth1, each both ways, the generator and the receiver; packets and bits.
	if p.elements["svg"] != 9 || len(p.lines) != 12 || p.elements["rect"] != 3 {
		t.Errorf("%d drawings, %d lines, %d bars; want 9, 12, 3", p.elements["svg"], len(p.lines), p.elements["rect"])
	}
	// eth0 sent 1000, 2000 and 0 a second.
	x := func(s float64) float64 { return chartLeft + plotWidth*s/3 }
	want := fmt.Sprintf("%s,%s %s,%d %s,%d", coord(x(1)), coord(plotBase-plotHeight/2), coord(x(2)), chartTop, coord(x(3)), plotBase)
	if p.lines[1] != want {
		t.Errorf("the line of what eth0 sent is %q, want %q", p.lines[1], want)
	}
	for _, want := range []string{"ring3 report: r0", "From 2026-01-02 03:04:05 UTC, 3s, 4 snapshots", "device eth0", "pktgen eth0@1", "received of pktgen's at eth1", "p99.9", "1.024µs to 1.28µs: 1500"} {
		if !strings.Contains(p.character, want) {
			t.Errorf("no %q in the report", want)
		}
	}
	if !strings.Contains(p.text, "prefers-color-scheme: dark") {
		t.Error("a report is light only")
	}
}

// TestReportOf: few snapshots, many, and names that nobody expects.
func TestReportOf(t *testing.T) {
	if p := draw(t, saved(t, at(0, 5))); len(p.lines) != 0 || !strings.Contains(p.text, "One snapshot has no rates") || p.elements["rect"] != 3 {
		t.Errorf("a report of one snapshot has %d lines, %d bars", len(p.lines), p.elements["rect"])
	}
	if p := draw(t, saved(t, at(0, 5), at(10, 6))); len(strings.Fields(p.lines[1])) != 2 {
		t.Errorf("a single rate is drawn as %q, want two points", p.lines[1])
	}
	var many []*Snapshot
	for i := range int64(3 * maxPoints) {
		many = append(many, at(i*10, uint64(i)*7))
	}
	p := draw(t, saved(t, many...))
	if n := len(strings.Fields(p.lines[1])); n == 0 || n > plotWidth {
		t.Errorf("a long record has a line of %d points, want 1 to %d", n, plotWidth)
	}
	if !strings.Contains(p.character, "700") {
		t.Error("the mean of 700 packets/s is not told")
	}
	odd, end := at(0, 0), at(1000, 10)
	for _, s := range []*Snapshot{odd, end} {
		s.Instance, s.Pktgen[0].Name, s.Devices[0].Driver = "<r0>", "eth0@</svg><script>alert(1)</script>\x1b", "\"&'"
	}
	end.Receivers[0].Latency.Buckets = []pktgen.LatencyBucket{{From: 5, To: 5}, {From: 0, To: 1, N: 1}, {From: math.MaxUint64 - 1, To: math.MaxUint64, N: math.MaxUint64}}
	if p := draw(t, saved(t, odd, end)); !strings.Contains(p.character, "eth0@</svg><script>alert(1)</script>?") || !strings.Contains(p.character, "\"&'") {
		t.Errorf("names are not as they were: %s", p.text)
	}
	empty := &Snapshot{Instance: "r0", Time: begin, Mono: 1}
	later := &Snapshot{Instance: "r0", Time: begin, Mono: 2}
	if p := draw(t, saved(t, empty, later)); len(p.lines) != 0 || p.elements["table"] != 0 {
		t.Errorf("a report of nothing has %d lines", len(p.lines))
	}
}

// TestThinner: the last values are drawn, and are in the mean, though they are fewer than a point stands for.
func TestThinner(t *testing.T) {
	var k thinner
	if k.mean() != 0 || len(k.drawn().points) != 0 {
		t.Errorf("nothing has a mean of %v, points %v", k.mean(), k.drawn().points)
	}
	const n = maxPoints + 4 // of which four are points of two, and then one more
	for i := range n {
		k.add(float64(i), 1)
	}
	k.add(n, 1+2*(n+1))
	ps := k.drawn().points
	if want := (point{n, 1 + 2*(n+1)}); len(ps) != maxPoints/2+3 || ps[len(ps)-1] != want {
		t.Errorf("%d points up to %v, want %d up to %v", len(ps), ps[len(ps)-1], maxPoints/2+3, want)
	}
	if m := k.mean(); math.Abs(m-3) > 1e-9 {
		t.Errorf("mean = %v, want 3", m)
	}
	k.add(n+1, 1)
	if ps := k.drawn().points; len(ps) != maxPoints/2+3 || ps[len(ps)-1] != (point{n, 2 + n}) {
		t.Errorf("then %d points up to %v, want as many, up to %v", len(ps), ps[len(ps)-1], point{n, 2 + n})
	}
}

func TestReadRefuses(t *testing.T) {
	other := at(1000, 1)
	other.Instance = "r1"
	for _, c := range []struct{ in, want string }{
		{"{", "snapshot 1: it ends in the middle"},
		{"hello", "snapshot 1: invalid character"},
		{"{}", "no output of 'ring3 stats -json'"},
		{`[{"name":"eth0"}]`, "snapshot 1: json: cannot unmarshal array"},
		{saved(t, at(0, 0), at(1000, 0))[:2000], "ends in the middle"},
		{saved(t, at(0, 0), other), `snapshot 2: a snapshot of "r1" after one of "r0"`},
		{saved(t, at(10, 0)) + saved(t, at(0, 0)), "snapshot 2: a snapshot that is older"},
	} {
		var r Record
		if err := r.Read(strings.NewReader(c.in)); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("reading %.40q: %v, want %q", c.in, err, c.want)
		}
	}
	var r Record
	if err := r.Read(strings.NewReader("")); err != nil || r.Snapshots() != 0 {
		t.Errorf("reading nothing: %v, %d snapshots", err, r.Snapshots())
	}
	if err := r.Report(io.Discard, ""); err == nil {
		t.Error("a report of no snapshot was drawn")
	}
}

// FuzzRead: what is read is drawn as a page that is well-formed, or is an error.
func FuzzRead(f *testing.F) {
	f.Add(saved(f, at(0, 0), at(1000, 10)))
	f.Add(`{"instance":"r0","time":"2026-01-01T00:00:00Z","mono_ns":-9223372036854775808}{"instance":"r0","time":"2026-01-01T00:00:00Z","mono_ns":9223372036854775807,"devices":[{"net":{"rx_rate":{"pps":-1e308,"bps":1.7e308},"tx_rate":{"pps":5e-324,"bps":1e-320}}}]}`)
	f.Add(`{"instance":"r0","time":"2026-01-01T00:00:00Z","receivers":[{"latency":{"samples":1,"buckets":[{"from_ns":9,"to_ns":1,"frames":18446744073709551615}]}}]}`)
	f.Fuzz(func(t *testing.T, in string) {
		var r Record
		if err := r.Read(strings.NewReader(in)); err != nil || r.Snapshots() == 0 {
			return
		}
		var b bytes.Buffer
		if err := r.Report(&b, "devel"); err != nil {
			t.Fatal(err)
		}
		for d := xml.NewDecoder(&b); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				return
			} else if err != nil {
				t.Fatalf("not well-formed: %v", err)
			}
		}
	})
}
