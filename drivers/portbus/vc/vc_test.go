package vc

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
	"github.com/ring3dev/ring3/sysfs"
)

// rig is a root port with four channels.
func rig(t *testing.T) (*portbus.Port, *sysfs.Dir) {
	t.Helper()
	p := machine(t).Port("rp0")
	return p, dir(t, p)
}

func machine(t *testing.T) *porttest.Rig {
	t.Helper()
	bustest.NoLeaks(t)
	drv := Driver
	b, err := portbus.New(&drv)
	if err != nil {
		t.Fatal(err)
	}
	return porttest.New(t, sim.Config{Clock: sim.Eager, Devices: []sim.DeviceSpec{
		{Name: "rp0", Model: "root-port", Props: []string{"vc=3"}}, {Name: "e0", Model: "e1000e", Bus: "rp0"},
	}}, b)
}

func dir(t *testing.T, p *portbus.Port) *sysfs.Dir {
	t.Helper()
	d := p.Dirs()[p.Addr().String()+":pcie020"]
	if d == nil {
		t.Fatal("the port has no virtual channels")
	}
	return d
}

func file(t *testing.T, d *sysfs.Dir, name string) *sysfs.File {
	t.Helper()
	n, err := d.Walk(name)
	if err != nil {
		t.Fatal(err)
	}
	return n.(*sysfs.File)
}

func show(t *testing.T, d *sysfs.Dir, name string) string {
	t.Helper()
	b, err := file(t, d, name).ReadAll()
	if err != nil {
		t.Fatalf("reading %s = %v", name, err)
	}
	return strings.TrimSuffix(string(b), "\n")
}

// all reads every file.
func all(t *testing.T, d *sysfs.Dir) string {
	var b strings.Builder
	for _, name := range slices.Sorted(slices.Values(d.Names())) {
		switch n := d.Lookup(name).(type) {
		case *sysfs.File:
			if n.Mode&0o444 != 0 {
				fmt.Fprintf(&b, "%s=%s\n", name, show(t, d, name))
			}
		case *sysfs.Dir:
			fmt.Fprintf(&b, "%s:\n%s", name, all(t, n))
		}
	}
	return b.String()
}

// repeat is a table of n entries.
func repeat(n int, entries ...string) string {
	var s []string
	for i := range n {
		s = append(s, entries[i%len(entries)])
	}
	return strings.Join(s, " ")
}

func TestReset(t *testing.T) {
	_, d := rig(t)
	names := slices.Sorted(slices.Values(d.Names()))
	for _, n := range []string{"low_priority_vcs", "vc_arbitration", "vc_arbitration_table", "vc0", "vc1", "vc2", "vc3"} {
		if !slices.Contains(names, n) {
			t.Errorf("there is no %s among %q", n, names)
		}
	}
	for name, want := range map[string]string{
		"low_priority_vcs": "4", "vc_arbitration": "[hardware] wrr32", "vc_arbitration_table": repeat(32, "0"),
		"vc0/id": "0", "vc0/enabled": "1", "vc0/tc_map": "0xff", "vc0/arbitration": "[hardware] wrr32", "vc0/slots": repeat(32, "0"), "vc0/max_time_slots": "32", "vc0/negotiation_pending": "0",
		"vc3/id": "3", "vc3/enabled": "0", "vc3/tc_map": "0x00",
	} {
		if got := show(t, d, name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

// A sequence of writes: what is right takes effect, what is wrong has its errno and changes nothing.
func TestStores(t *testing.T) {
	_, d := rig(t)
	for _, c := range []struct {
		file, text string
		err        error
		shows      string // afterwards
	}{
		{"vc1/tc_map", "0x80", unix.EBUSY, "0x00"}, // VC 0 has it
		{"vc0/tc_map", "0x7e", unix.EINVAL, "0xff"},
		{"vc0/tc_map", "0x3f\n", nil, "0x3f"},
		{"vc1/tc_map", "0x81", unix.EINVAL, "0x00"},
		{"vc1/tc_map", "256", unix.ERANGE, "0x00"},
		{"vc1/tc_map", "x", unix.EINVAL, "0x00"},
		{"vc1/tc_map", "0x80", nil, "0x80"},
		{"vc2/tc_map", "0xc0", unix.EBUSY, "0x00"},
		{"vc2/tc_map", "64", nil, "0x40"},
		{"vc1/id", "0", unix.EINVAL, "1"}, {"vc1/id", "8", unix.ERANGE, "1"}, {"vc0/id", "1", unix.EINVAL, "0"}, {"vc0/id", "0", nil, "0"},
		{"vc1/id", "5", nil, "5"},
		{"vc1/enabled", "2", unix.ERANGE, "0"}, {"vc1/enabled", "1", nil, "1"}, {"vc1/enabled", "1", nil, "1"},
		{"vc1/id", "6", unix.EBUSY, "5"}, {"vc1/id", "5", nil, "5"},
		{"vc2/id", "5", unix.EEXIST, "2"},
		{"vc0/enabled", "0", unix.EINVAL, "1"},
		{"vc_arbitration", "wrr32", unix.EBUSY, "[hardware] wrr32"},
		{"vc1/enabled", "0", nil, "0"},
		{"vc_arbitration", "wrr64", unix.EOPNOTSUPP, "[hardware] wrr32"}, {"vc_arbitration", "twrr128", unix.EINVAL, "[hardware] wrr32"},
		{"vc_arbitration", "wrr32\n", nil, "hardware [wrr32]"},
		{"vc_arbitration_table", repeat(31, "0"), unix.EINVAL, repeat(32, "0")}, {"vc_arbitration_table", repeat(32, "1"), unix.EINVAL, repeat(32, "0")},
		{"vc_arbitration_table", repeat(32, "9"), unix.ERANGE, repeat(32, "0")},
		{"vc_arbitration_table", repeat(32, "0", "5", "0", "2"), nil, repeat(32, "0", "5", "0", "2")},
		{"vc2/arbitration", "wrr256", unix.EOPNOTSUPP, "[hardware] wrr32"}, {"vc2/arbitration", "", unix.EINVAL, "[hardware] wrr32"},
		{"vc2/arbitration", "wrr32", nil, "hardware [wrr32]"},
		{"vc2/slots", repeat(32, "1", "15"), nil, repeat(32, "1", "15")}, {"vc2/slots", repeat(32, "16"), unix.ERANGE, repeat(32, "1", "15")},
		{"vc2/slots", repeat(32, "1", "junk"), unix.EINVAL, repeat(32, "1", "15")}, {"vc2/slots", "", unix.EINVAL, repeat(32, "1", "15")},
		{"vc3/slots", repeat(32, "3"), nil, repeat(32, "3")},
	} {
		before := all(t, d)
		_, err := file(t, d, c.file).Write(t.Context(), []byte(c.text))
		if got := show(t, d, c.file); !errors.Is(err, c.err) || got != c.shows {
			t.Errorf("writing %q to %s = %v, shows %q; want %v, %q", c.text, c.file, err, got, c.err, c.shows)
		}
		if after := all(t, d); c.err != nil && after != before {
			t.Errorf("writing %q to %s failed and changed\n%sto\n%s", c.text, c.file, before, after)
		}
	}
}

// What was set is brought back after a reset of the port.
func TestRestore(t *testing.T) {
	r := machine(t)
	p := r.Port("rp0")
	d := dir(t, p)
	f, err := r.Sim().Function("rp0")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range [][2]string{
		{"vc0/tc_map", "0x0f"}, {"vc1/tc_map", "0xf0"}, {"vc1/id", "7"}, {"vc1/arbitration", "wrr32"}, {"vc1/slots", repeat(32, "2", "3")},
		{"vc_arbitration", "wrr32"}, {"vc_arbitration_table", repeat(32, "0", "7")}, {"vc1/enabled", "1"},
	} {
		if _, err := file(t, d, w[0]).Write(t.Context(), []byte(w[1])); err != nil {
			t.Fatal(err)
		}
	}
	want := all(t, d)
	cfg, at := f.Config, p.VC()
	cfg.Write32(at+resCtl(0), 0x800000ff)
	cfg.Write32(at+resCtl(1), 0x01000000)
	cfg.Write16(at+pci.VCCtl, 0)
	if all(t, d) == want {
		t.Fatal("the reset did nothing")
	}
	if got := p.SlotReset(t.Context()); got != bus.Recovered {
		t.Errorf("SlotReset = %v", got)
	}
	if got := all(t, d); got != want {
		t.Errorf("after SlotReset:\n%swant\n%s", got, want)
	}
	if err := errors.Join(p.Suspend(t.Context()), p.Resume(t.Context())); err != nil {
		t.Errorf("Suspend, Resume = %v", err)
	}
	if got := all(t, d); got != want {
		t.Errorf("after Resume:\n%swant\n%s", got, want)
	}
}
