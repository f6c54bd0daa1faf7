package fault

import (
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

var table = []bus.Register{
	{Region: 0, Off: 0x8, Name: "STATUS", Access: bus.RO},
	{Region: 0, Off: 0x5400, Name: "RAL", Count: 16, Stride: 8},
	{Region: 0, Off: 0x5404, Name: "RAH", Count: 16, Stride: 8},
	{Region: 2, Off: 0x10, Name: "WIDE", Width: 8},
	{Region: 0, Off: 0x20, Name: "TWICE"}, {Region: 0, Off: 0x30, Name: "TWICE"},
	{Region: 0, Off: 0x40, Name: "Reset"}, {Region: 0, Off: 0x50, Name: "no name"},
}

func TestParse(t *testing.T) {
	for _, spec := range []string{
		"17:ones", "STATUS#3:gone", "17:ones+40:gone", "1:zero", "BAR0+0x8#3:flip:0+cfg+0x4#1:lostwrite", "RAL[3]#1:stuck:63", "irq0#2:irq-lost",
		"irq1#1:irq-late", "irq1#1:irq-late:50", "irq2#9:irq-again+irq0#1:irq-storm:7", "Alloc#2:deny", "3:garbage", "3:garbage:12", "1000000000:gone",
	} {
		p, err := Parse(spec)
		if err != nil || p.String() != spec {
			t.Errorf("Parse(%q) = %q, %v, want it back", spec, p, err)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for spec, want := range map[string]string{
		"":                             "want POINT:KIND",
		"17":                           `want POINT:KIND after "17"`,
		"17:":                          `"" is no kind of fault`,
		"17:ones+":                     "want POINT:KIND after the last +",
		"17:ones+40":                   `want POINT:KIND after "40"`,
		"0:ones":                       "from 1 to",
		"017:ones":                     "from 1 to",
		"-1:ones":                      "from 1 to",
		"+1:ones":                      "from 1 to",
		"STATUS:ones":                  "want the number of an access (17) or a place and a number (STATUS#3)",
		"STATUS#:ones":                 "a place and a number",
		"#3:ones":                      "is no place",
		"A B#3:ones":                   "is no place",
		"17:one":                       `"one" is no kind of fault: want one of ones, zero, flip, stuck, lostwrite, deny, irq-lost, irq-late, irq-again, irq-storm, garbage, gone, reset, cfg-gone, stall, irq-dead, dma-flip, dma-torn, dma-lost, dma-length, panic, `,
		"17:flip":                      "flip wants a bit: flip:0 to flip:63",
		"17:flip:64":                   "want a bit from 0 to 63",
		"17:flip:07":                   "want a bit from 0 to 63",
		"17:gone:1":                    "gone takes no argument",
		"17:garbage:0":                 "want a seed from 1",
		"99999999999999999999:gone":    "from 1 to",
		strings.Repeat("1:gone+", 100): "more than 64 faults",
	} {
		p, err := Parse(spec)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "fault ") {
			t.Errorf("Parse(%q) = %v, %v, want one line with %q", spec, p, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"17:ones", "STATUS#3:gone", "BAR0+0x8#3:flip:0+cfg+0x4#1:lostwrite", "17:ones+", "a#1:irq-storm:7"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		p, err := Parse(spec)
		switch {
		case err != nil && len(p.Faults) != 0:
			t.Errorf("Parse(%q) = %v and %v", spec, p, err)
		case err != nil && strings.Contains(err.Error(), "\n"):
			t.Errorf("Parse(%q) = %q, want one line", spec, err)
		case err == nil && p.String() != spec:
			t.Errorf("Parse(%q) = %q, want the same", spec, p)
		case err == nil:
			p.Registers = table
			_ = p.Check()
		}
	})
}

func TestCheck(t *testing.T) {
	for spec, want := range map[string]string{
		"17:ones": "", "STATUS#3:ones": "", "RAL[15]#1:gone": "", "BAR0+0x8#1:lostwrite": "", "BAR5+0xfff0#1:zero": "", "cfg+0x4#1:zero": "", "irq7#1:irq-late": "", "Map#1:deny": "",
		"STATUSS#1:ones": "the device has no STATUSS", "RAL#1:ones": "has no RAL", "RAL[16]#1:ones": "has no RAL[16]", "STATUS[0]#1:ones": "has no", "RAL[03]#1:ones": "has no",
		"irq#1:irq-lost": "has no irq", "cfg+4#1:ones": "has no cfg+4", "BAR0+0x08#1:ones": "has no", "BARx+0x8#1:ones": "has no",
		"STATUS#1:deny": "deny cannot happen to STATUS", "Alloc#1:ones": "ones cannot happen to Alloc", "irq0#1:deny": "cannot happen", "cfg+0x4#1:irq-lost": "cannot happen",
	} {
		p, err := Parse(spec)
		if err != nil {
			t.Fatal(err)
		}
		p.Registers = table
		err = p.Check()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("Check of %q = %v, want %q", spec, err, want)
		}
	}
}

// Every place has a name that leads back to it.
func TestPlaces(t *testing.T) {
	p := newPlaces(table)
	for at, want := range map[place]string{
		{inRegion, 0, 0x8}:              "STATUS",
		{inRegion, 0, 0xb}:              "STATUS",
		{inRegion, 0, 0xc}:              "BAR0+0xc",
		{inRegion, 1, 0x8}:              "BAR1+0x8",
		{inRegion, 0, 0x5400}:           "RAL[0]",
		{inRegion, 0, 0x540c}:           "RAH[1]",
		{inRegion, 0, 0x5478}:           "RAL[15]",
		{inRegion, 0, 0x5480}:           "BAR0+0x5480",
		{inRegion, 2, 0x14}:             "WIDE",
		{inRegion, 0, 0x20}:             "TWICE",
		{inRegion, 0, 0x30}:             "BAR0+0x30",
		{inRegion, 0, 0x40}:             "BAR0+0x40",
		{inRegion, 0, 0x50}:             "BAR0+0x50",
		{inConfig, 0, 0x4}:              "cfg+0x4",
		{vector, 3, 0}:                  "irq3",
		{call, int(DisableIRQs), 0}:     "DisableIRQs",
		{inRegion, 0, ^bus.Off(0)}:      "BAR0+0xffffffffffffffff",
		{inRegion, 0, 0x5400 + 1<<32}:   "BAR0+0x100005400",
		{inRegion, 65536, 0}:            "BAR65536+0x0",
		{inConfig, 0, ^bus.Off(0) >> 1}: "cfg+0x7fffffffffffffff",
	} {
		c := p.canonical(at)
		if got := p.name(c); got != want {
			t.Errorf("name(%v) = %s, want %s", at, got, want)
		}
		if back, ok := p.find(want); !ok || back != c {
			t.Errorf("find(%s) = %v, %v, want %v", want, back, ok, c)
		}
	}
}

// A kind either goes with an access or it does not, and an unknown one never.
func TestApplies(t *testing.T) {
	for op := Read; op <= Interrupt; op++ {
		n := 0
		for _, k := range Kinds() {
			if k.Applies(op) {
				n++
			}
		}
		if n < 3 {
			t.Errorf("%d kinds apply to %s, want more", n, op)
		}
	}
	if k := Kind(99); k.Applies(Read) || k.NeedsBit() || k.String() != "Kind(99)" {
		t.Errorf("an unknown kind is %s and applies", k)
	}
}
