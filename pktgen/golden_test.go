package pktgen

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/internal/frame"
)

// What Linux 6.1's own pktgen sends for the cases of integration/guest/testdata is kept in testdata/kernel-6.1: one capture
// for each case, in which a frame's second says which start of the case sent it. The test in a VM that compares the
// two generators live checks that the kernel still sends that, and makes the captures: make golden.

// kernelCase is one case, and what the kernel sent for it.
type kernelCase struct {
	name   string
	lines  []string
	frames [][][]byte // by start
}

// kernelCases reads a file of cases and the captures in a folder. Cases that send nothing are left out.
func kernelCases(t *testing.T, file, dir string) (cases []kernelCase) {
	t.Helper()
	text, err := os.ReadFile("../integration/guest/testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line == "" || line[0] == '#':
		case strings.HasPrefix(line, "=="):
			cases = append(cases, kernelCase{name: strings.TrimLeft(line, "= ")})
		default:
			c := &cases[len(cases)-1]
			c.lines = append(c.lines, line)
		}
	}
	cases = slices.DeleteFunc(cases, func(c kernelCase) bool { return !slices.Contains(c.lines, "start") })
	for i := range cases {
		name := strings.NewReplacer(" ", "-", ",", "", "'", "").Replace(strings.ToLower(cases[i].name))
		cases[i].frames = readStarts(t, filepath.Join(dir, name+".pcap.gz"))
	}
	return cases
}

func readStarts(t *testing.T, file string) (starts [][][]byte) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatalf("%v; make golden makes it", err)
	}
	defer f.Close()
	p, err := frame.NewPcap(f)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	for {
		b, at, err := p.NextWhole()
		if errors.Is(err, io.EOF) {
			return starts
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for len(starts) <= int(at.Unix()) {
			starts = append(starts, nil)
		}
		starts[at.Unix()] = append(starts[at.Unix()], bytes.Clone(b))
	}
}

// play does what a case says, on a new eth0 as pktgen.sh makes it, and returns the frames of each start.
func (c kernelCase) play(t *testing.T, profile string) (starts [][][]byte) {
	t.Helper()
	s := newSink("eth0")
	s.queues[0].keep = -1
	b := newBenchOf(t, Config{Profile: profile, CPUs: []int{0}}, s)
	b.ok("kpktgend_0", "add_device eth0")
	b.ok("eth0", "flag NO_TIMESTAMP", "count 3", "dst_mac 52:54:00:12:34:57")
	dev := "eth0"
	for _, line := range c.lines {
		verb, text, _ := strings.Cut(line, " ")
		switch verb {
		case "start":
			b.run()
			starts = append(starts, s.queues[0].took())
		case "show", "list": // text, which the test in the VM compares
		case "device":
			dev = text
		case "thread":
			b.echo("kpktgend_0", text+"\n")
		case "control":
			b.echo("pgctrl", text+"\n")
		case "control-raw":
			b.echo("pgctrl", escapes.Replace(text))
		case "raw":
			b.echo(dev, escapes.Replace(text))
		default:
			b.echo(dev, line+"\n")
		}
	}
	return starts
}

// escapes are those of printf that cases have.
var escapes = strings.NewReplacer(`\0`, "\x00", `\n`, "\n", `\r`, "\r")

// echo writes as a shell does: what was not taken is written again, and an error is the end of it.
func (b *bench) echo(file, text string) {
	for p := []byte(text); len(p) > 0; {
		n, err := b.file(file).Write(b.t.Context(), p)
		if err != nil || n <= 0 {
			return
		}
		p = p[n:]
	}
}

// better are the cases in which the default profile sends other frames, and why: package doc, "Where this differs".
var better = map[string]string{
	"bursts":                      "each frame of a burst is a packet of its own",
	"a burst that varies":         "each frame of a burst is a packet of its own",
	"bursts of copies":            "a run ends at count",
	"MPLS of other lengths":       "a label of few digits is what they say (6.15)",
	"two devices that take turns": "delay counts from the first packet on",
	"source addresses of Ethernet from the interface's": "the walk begins at the whole address",
}

// TestGoldenFrames: for every case without random fields the frames are the kernel's, byte by byte.
func TestGoldenFrames(t *testing.T) {
	const dir = "testdata/kernel-6.1"
	cases := kernelCases(t, "pktgen.txt", dir)
	files, err := filepath.Glob(dir + "/*.pcap.gz")
	if err != nil || len(files) != len(cases) || len(cases) < 40 {
		t.Errorf("%d captures for %d cases, want one for each of at least 40: %v", len(files), len(cases), err)
	}
	frames := 0
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, f := range c.frames {
				frames += len(f)
			}
			if text := compareStarts(c.play(t, "6.1"), c.frames); text != "" {
				t.Errorf("under profile 6.1 %s", text)
			}
			text := compareStarts(c.play(t, ""), c.frames)
			switch why := better[c.name]; {
			case why == "" && text != "":
				t.Errorf("under the default profile %s", text)
			case why != "" && text == "":
				t.Errorf("under the default profile all frames are the kernel's, though %s", why)
			}
		})
	}
	t.Logf("%d cases, %d frames", len(cases), frames)
	for name := range maps.Keys(better) {
		if !slices.ContainsFunc(cases, func(c kernelCase) bool { return c.name == name }) {
			t.Errorf("there is no case %s", name)
		}
	}
}

// compareStarts says where the first difference is; "" where there is none.
func compareStarts(got, want [][][]byte) string {
	for i := range max(len(got), len(want)) {
		var g, w [][]byte
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		for j := range min(len(g), len(w)) {
			if !bytes.Equal(g[j], w[j]) {
				return fmt.Sprintf("start %d: frame %d is\n%x\nwant\n%x", i+1, j+1, g[j], w[j])
			}
		}
		if len(g) != len(w) {
			return fmt.Sprintf("start %d: %d frames, want %d", i+1, len(g), len(w))
		}
	}
	return ""
}
