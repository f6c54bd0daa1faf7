//go:build vm

package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/internal/frame"
)

// transcript is what pktgen.sh printed, taken apart, and the frames that were sent.
type transcript struct {
	cases  []pktgenCase
	frames int
}

// pktgenCase is one case of pktgen.txt.
type pktgenCase struct {
	name  string
	steps []step
}

// step is one command and what came of it.
type step struct {
	command string // with the shell's words where it failed
	reply   []string
	frames  [][]byte
}

// figures are what differs from run to run: times, and rates, which follow from them.
var figures = []struct {
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`^     started: \d+us  stopped: \d+us idle: \d+us$`), "     started: Nus  stopped: Nus idle: Nus"},
	{regexp.MustCompile(`Result: OK: \d+\(c\d+\+d\d+\) usec, `), "Result: OK: N(cN+dN) usec, "},
	{regexp.MustCompile(`^( +)\d+pps \d+Mb/sec \(\d+bps\) errors: `), "${1}Npps NMb/sec (Nbps) errors: "},
}

var sofar = regexp.MustCompile(`^     pkts-sofar: (\d+)  errors: \d+$`)

// parsePktgen takes a transcript apart and gives each command the frames that it sent.
func parsePktgen(t *testing.T, text string, pcap []byte) *transcript {
	t.Helper()
	frames := readPcap(t, pcap)
	tr := &transcript{frames: len(frames)}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "==") {
			tr.cases = append(tr.cases, pktgenCase{name: strings.TrimLeft(line, "= ")})
			continue
		}
		if len(tr.cases) == 0 {
			t.Fatalf("the transcript begins with %q", line)
		}
		c := &tr.cases[len(tr.cases)-1]
		if told, ok := strings.CutPrefix(line, "> "); ok {
			// FUSE cannot carry the kernel's ENOTSUPP.
			told = strings.Replace(told, " = Unknown error 524", " = Operation not supported", 1)
			c.steps = append(c.steps, step{command: told})
			continue
		}
		if len(c.steps) == 0 {
			t.Fatalf("%s begins with %q", c.name, line)
		}
		s := &c.steps[len(c.steps)-1]
		if m := sofar.FindStringSubmatch(line); m != nil && s.command == "start" {
			n, err := strconv.Atoi(m[1])
			if err != nil || n > len(frames) {
				t.Errorf("%s: %q, and %d frames are left in the capture (%v)", c.name, line, len(frames), err)
				n = len(frames)
			}
			s.frames = append(s.frames, frames[:n]...)
			frames = frames[n:]
		}
		for _, f := range figures {
			line = f.re.ReplaceAllString(line, f.with)
		}
		s.reply = append(s.reply, line)
	}
	if len(frames) > 0 {
		t.Errorf("the capture has %d frames more than were sent; the first is %x", len(frames), frames[0])
	}
	return tr
}

// minWire is the length of the shortest frame on a wire, without its check sequence.
const minWire = 60

func readPcap(t *testing.T, b []byte) (frames [][]byte) {
	t.Helper()
	p, err := frame.NewPcap(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	for {
		f, _, err := p.Next()
		if errors.Is(err, io.EOF) {
			return frames
		}
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, bytes.Clone(f))
	}
}

// padded is a frame as a NIC sends it. QEMU's e1000e does not pad, and the kernel leaves it to the NIC.
func padded(f []byte) []byte { return append(bytes.Clone(f), make([]byte, max(0, minWire-len(f)))...) }

// named are the cases that another transcript has too.
func (tr *transcript) named(other *transcript) (cases []pktgenCase) {
	for _, c := range tr.cases {
		if slices.ContainsFunc(other.cases, func(o pktgenCase) bool { return o.name == c.name }) {
			cases = append(cases, c)
		}
	}
	return cases
}

// compare tells, case by case, where a transcript differs from what is right.
func (tr *transcript) compare(t *testing.T, want []pktgenCase) {
	t.Helper()
	if len(tr.cases) != len(want) {
		t.Errorf("%d cases, want %d", len(tr.cases), len(want))
	}
	for i, w := range want[:min(len(want), len(tr.cases))] {
		t.Run(w.name, func(t *testing.T) {
			for _, text := range tr.cases[i].differences(w) {
				t.Error(text)
			}
		})
	}
}

// differences tells where a case differs from what is right.
func (c pktgenCase) differences(want pktgenCase) (texts []string) {
	say := func(format string, args ...any) { texts = append(texts, fmt.Sprintf(format, args...)) }
	if c.name != want.name || len(c.steps) != len(want.steps) {
		say("%s of %d commands, want %s of %d", c.name, len(c.steps), want.name, len(want.steps))
		return texts
	}
	for i, w := range want.steps {
		g := c.steps[i]
		if g.command != w.command {
			say("%q, want %q", g.command, w.command)
		}
		if got, want := difference(g.reply, w.reply); len(got) > 0 || len(want) > 0 {
			say("%s: it says\n%s\nwant\n%s", w.command, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if len(g.frames) != len(w.frames) {
			say("%s: %d frames, want %d", w.command, len(g.frames), len(w.frames))
		}
		for j := range min(len(g.frames), len(w.frames)) {
			if got, want := padded(g.frames[j]), padded(w.frames[j]); !bytes.Equal(got, want) {
				say("%s: frame %d is\n%s\nwant\n%s", w.command, j+1, show(got), show(want))
				break
			}
		}
	}
	return texts
}

// difference is what of the lines differs: those between the first and the last that do.
func difference(got, want []string) (g, w []string) {
	for len(got) > 0 && len(want) > 0 && got[0] == want[0] {
		got, want = got[1:], want[1:]
	}
	for len(got) > 0 && len(want) > 0 && got[len(got)-1] == want[len(want)-1] {
		got, want = got[:len(got)-1], want[:len(want)-1]
	}
	return got, want
}

// show is a frame for people.
func show(b []byte) string {
	p, err := frame.Decode(b)
	if err != nil {
		return fmt.Sprintf("%v: %d bytes %x", err, len(b), b)
	}
	return fmt.Sprintf("%v: %d bytes %x", p, len(b), b)
}

// TestPktgenDifferences checks that a difference is noticed, and times and rates are none.
func TestPktgenDifferences(t *testing.T) {
	const text = `== a case
> count 5
  Result: OK: count=5
> burst 2 = Unknown error 524
  Result: OK: count=5
> start
Params: count 5  min_pkt_size: 0  max_pkt_size: 0
     pkts-sofar: 1  errors: 0
     started: 10us  stopped: 20us idle: 3us
Result: OK: 10(c7+d3) usec, 1 (58byte,0frags)
  100000pps 46Mb/sec (46400000bps) errors: 0
`
	sent := bytes.Repeat([]byte{1}, 58)
	parse := func(text string, sent []byte) pktgenCase {
		var pcap bytes.Buffer
		p, err := frame.NewPcapWriter(&pcap)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Write(sent, time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
		return parsePktgen(t, text, pcap.Bytes()).cases[0]
	}
	want := parse(text, sent)
	if n := len(want.steps[2].frames); n != 1 {
		t.Fatalf("start has %d frames, want 1", n)
	}
	for _, c := range []struct {
		old, new string
		n        int
	}{
		{"", "", 0},
		{"started: 10us  stopped: 20us idle: 3us", "started: 11us  stopped: 12us idle: 0us", 0},
		{"10(c7+d3) usec, ", "1(c0+d1) usec, ", 0},
		{"  100000pps 46Mb/sec (46400000bps)", "  1pps 2Mb/sec (3bps)", 0},
		{"Unknown error 524", "Operation not supported", 0},
		{"Unknown error 524", "Invalid argument", 1},
		{"== a case", "== another", 1},
		{"count=5", "count=6", 1},
		{"(58byte", "(59byte", 1},
		{"(46400000bps) errors: 0", "(46400000bps) errors: 1", 1},
		{"  100000pps", " 100000pps", 1},
		{"Params: count 5 ", "Params: count 5", 1},
		{"max_pkt_size: 0\n", "max_pkt_size: 0\n\n", 1},
	} {
		if got := parse(strings.Replace(text, c.old, c.new, 1), sent).differences(want); len(got) != c.n {
			t.Errorf("%q for %q: %q, want %d differences", c.new, c.old, got, c.n)
		}
	}
	long := padded(sent)
	if got := parse(text, long).differences(want); len(got) != 0 {
		t.Errorf("a padded frame: %q, want no difference", got)
	}
	long[59] = 1
	if got := parse(text, long).differences(want); len(got) != 1 {
		t.Errorf("another frame: %q, want a difference", got)
	}
}
