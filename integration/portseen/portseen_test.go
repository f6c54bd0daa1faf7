package portseen

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestScenario(t *testing.T) {
	if len(Scenario) != 30 {
		t.Errorf("len(Scenario) = %d, want 30", len(Scenario))
	}
	buttons := 0
	for _, e := range Scenario {
		for _, a := range e.Do {
			if _, ok := a.(Unplug); ok {
				buttons++
			}
			if i, ok := a.(Inject); ok {
				if _, err := i.record(); err != nil {
					t.Errorf("%s: %v", e.Name, err)
				}
			}
		}
	}
	if buttons > 6 {
		t.Errorf("%d unplugs by button, want at most 6", buttons)
	}
}

// tree is a /sys with the topology's bridges.
func tree(t *testing.T) string {
	sys := t.TempDir()
	for addr, below := range map[string]byte{"1000:00:01.0": 1, "1000:00:02.0": 2, "1000:00:03.0": 3, "1000:00:04.0": 7,
		"1000:03:00.0": 4, "1000:04:00.0": 5, "1000:04:01.0": 6} {
		config := make([]byte, 256)
		config[0x19] = below
		config[0x34], config[0x40], config[0x41], config[0x50] = 0x40, 0x05, 0x50, 0x10
		dir := filepath.Join(sys, "bus/pci/devices", addr)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "config"), config, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return sys
}

func testNames(t *testing.T) (*names, string) {
	sys := tree(t)
	n, err := newNames(Roots{Sys: sys}, func(name string) (string, error) { return "1000:00:0" + string(name[2]+1) + ".0", nil })
	if err != nil {
		t.Fatal(err)
	}
	return n, sys
}

func TestNormal(t *testing.T) {
	n, _ := testNames(t)
	for _, test := range []struct{ in, want string }{
		{"pcieport 1000:00:02.0: AER: enabled with IRQ 25", "pcieport rp1: AER: enabled with IRQ N"},
		{"e1000e 1000:05:00.0: AER: x", "e1000e eth1: AER: x"},
		{"1000:02:00", "rp1>:00"},
		{"1000:00:02.0:pcie004", "rp1:pcie004"},
		{"/devices/pci1000:00/1000:00:03.0/1000:03:00.0/1000:04:01.0/1000:06:00.0", "/devices/pci/rp2/sw0/dn1/eth3"},
		{"Timeout on hotplug command 0x01d1 (issued 2508 msec ago)", "Timeout on hotplug command 0x01d1 (issued N msec ago)"},
		{"1000:09:00.0", "1000:09:00.0"},
	} {
		if got := n.normal(test.in); got != test.want {
			t.Errorf("normal(%q) = %q, want %q", test.in, got, test.want)
		}
	}
	if got := n.expand("{rp1}:pcie004"); got != "1000:00:02.0:pcie004" {
		t.Errorf("expand({rp1}:pcie004) = %q, want 1000:00:02.0:pcie004", got)
	}
}

func TestCapability(t *testing.T) {
	n, sys := testNames(t)
	r := Recorder{Roots: Roots{Sys: sys}, names: n}
	if err := (Config{"rp1", SlotControl, slotHPIE, slotHPIE}).do(&r); err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(sys, "bus/pci/devices/1000:00:02.0/config"))
	if err != nil {
		t.Fatal(err)
	}
	if config[0x68] != slotHPIE {
		t.Errorf("Slot Control is %#x, want %#x", config[0x68], slotHPIE)
	}
	if err := (Config{"rp1", AERCorMask, 1, 1}).do(&r); err == nil {
		t.Error("a register of a capability that is not there was set")
	}
}

func TestCompare(t *testing.T) {
	const want = "== 1 a\ndo   x: ok ~1.00s\nlog  one\nlog  two ~5.00s\n== 2 b\ndo   y: EINVAL\n"
	for _, test := range []struct{ got, want string }{
		{want, ""},
		{strings.Replace(want, "~5.00s", "~5.90s", 1), ""},
		{strings.Replace(want, "~5.00s", "~6.10s", 1), "== 1 a|took 6.10s, want 5.00s: log  two ~5.00s"},
		{strings.Replace(want, " ~1.00s", "", 1), "== 1 a|took 0.00s, want 1.00s: do   x: ok ~1.00s"},
		{strings.Replace(want, "one", "one ~0.55s", 1), ""},
		{strings.Replace(want, "log  one\n", "", 1), "== 1 a|want: log  one"},
		{strings.Replace(want, "EINVAL", "ok", 1), "== 2 b|want: do   y: EINVAL|got:  do   y: ok"},
		{strings.Replace(want, "== 2 b\ndo   y: EINVAL\n", "", 1), "== 2 b|want: == 2 b|want: do   y: EINVAL"},
	} {
		if got := strings.Join(Compare(want, test.got, Tolerance{Part: 0.2}), "|"); got != test.want {
			t.Errorf("Compare(..., %q) = %q, want %q", test.got, got, test.want)
		}
	}
}

func TestNear(t *testing.T) {
	for _, test := range []struct {
		want, got float64
		late      time.Duration
		near      bool
	}{
		{5, 5.9, 0, true}, {5, 6.1, 0, false}, {5, 6.1, time.Second, true}, {5, 3.9, time.Second, false},
		{0, 0.55, 0, true}, {0, 0.7, 0, false}, {0, 0.9, time.Second, true},
		{0.6, 0, 0, true}, {0.7, 0, 0, false}, {1, 0, time.Second, false},
		{0.9, 0.55, 0, false}, {0.55, 0.65, 0, true},
	} {
		if got := near(test.want, test.got, Tolerance{0.2, test.late}); got != test.near {
			t.Errorf("near(%v, %v, late %v) = %v, want %v", test.want, test.got, test.late, got, test.near)
		}
	}
}

func TestDifference(t *testing.T) {
	old := state{"d/a": "x", "d/a/f": "1", "d/b": "1", "e": "same"}
	got := strings.Join(difference(old, state{"d/b": "2", "e": "same", "f": "new"}), "|")
	if want := "-    d/a: x|-    d/b: 1|+    d/b: 2|+    f: new"; got != want {
		t.Errorf("difference() = %q, want %q", got, want)
	}
}

func TestBlocks(t *testing.T) {
	i := &inbox{}
	b := &blocks{to: i}
	for _, s := range []string{"monitor will print\n\nKERNEL[1.2] add  /devices/x (pci)\nACTION=add\nDEVP", "ATH=/devices/x\n\nACTION=bind\n", "\n"} {
		if _, err := b.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	uevents, err := i.Uevents()
	if err != nil || len(uevents) != 2 || fmt.Sprint(uevents[0].Env) != "[ACTION=add DEVPATH=/devices/x]" || uevents[1].value("ACTION") != "bind" {
		t.Errorf("Uevents() = %v, %v; want two", uevents, err)
	}
}

func TestInterest(t *testing.T) {
	for line, want := range map[string]bool{
		"e1000e eth0:    [ 6] BadTLP                ":                 true,
		"e1000e eth0:   device [8086:10d3] error status/mask=00/00":   true,
		"pci 0000:02:00.0: [8086:10d3] type 00 class 0x020000":        false,
		"pcieport 0000:00:05.0:   bridge window [io  0x1000-0x1fff]":  false,
		"pcieport 0000:04:00.0: resource 13 [io  0xc000] released":    false,
		"pci_hotplug: Illegal value specified for power":              true,
		"e1000e 0000:01:00.0 eth0: NIC Link is Up 1000 Mbps":          false,
		"pci vn0: AER: can't recover (no error_detected callback)":    true,
		"pcieport rp3: AER: device recovery failed":                   true,
		"virtio-pci 0000:07:00.0: enabling device (0000 -> 0002)":     false,
		"pcieport rp0: aer_inject: Injecting errors 00000040/0000000": true,
	} {
		if got := about.MatchString(line) && !core.MatchString(line); got != want {
			t.Errorf("of interest is %q: %v, want %v", line, got, want)
		}
	}
}

func TestCommandLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("[    1.000000] old\n")
	l, err := CommandLog("cat", file)
	if err != nil {
		t.Fatal(err)
	}
	write("[    1.000000] old\n[    2.500000] new\n[   12.000001] newer\n")
	lines, err := l.Lines()
	var got []string
	for _, l := range lines {
		got = append(got, fmt.Sprint(l.At, " ", l.Text))
	}
	if want := []string{"2.5s new", "12.000001s newer"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("Lines() = %q, %v; want %q", got, err, want)
	}
}
