package host

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/trace/tracefile"
	"github.com/ring3dev/ring3/drivers/edu"
)

// tracePlan is an edu in this process, traced.
func tracePlan(t *testing.T, traces ...string) Plan {
	t.Helper()
	p, err := ParsePlan([]string{"edu0=sim:edu"}, nil, nil)
	if err == nil {
		err = p.addTraces(traces, "", defaultCrash)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTraceOnSim(t *testing.T) {
	bustest.NoLeaks(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "edu0.pcap")
	s, err := NewSystem(t.Context(), Config{Plan: tracePlan(t, "edu0="+file), Drivers: []*pci.Driver{edu.Driver}})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.bound()[0].inst.(*edu.Device).Factorial(t.Context(), 5); n != 120 || err != nil {
		t.Errorf("Factorial(5) = %d, %v, want 120, nil", n, err)
	}
	// The driver may see that the device is done before it hears of the interrupt.
	for end := time.Now().Add(10 * time.Second); served(s.bound()[0].inst) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no interrupt within 10s")
		}
	}
	if ds, err := s.traced([]string{"edu0"}); len(ds) != 1 || err != nil {
		t.Errorf("traced(edu0) = %d devices, %v, want 1, nil", len(ds), err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close() = %v, want nil", err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out bytes.Buffer
	filter, err := tracefile.ParseFilter(`region == 0 && reg == "FACTORIAL" || kind in ["irq", "close"]`)
	if err == nil {
		err = report(f, tracefile.NewText(&out, nil), filter)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{` write +bar0\+0x8/4 +FACTORIAL +0x5\n.* read +bar0\+0x8/4 +FACTORIAL +0x78\n.* close `, ` write .* irq +- +MSI\[0\] +0x1\n.* close `} {
		if !regexp.MustCompile("(?s)" + want).MatchString(out.String()) {
			t.Errorf("the trace is\n%swant %s", out.String(), want)
		}
	}
}

// served is how many interrupts a driver's handlers have served.
func served(inst pci.Instance) (n uint64) {
	for _, h := range inst.(pci.IRQUser).IRQHandlers() {
		for _, c := range h.Counts() {
			n += c
		}
	}
	return n
}

// A start that fails leaves the trace of what it did, and no file where it did nothing.
func TestTraceOfFailedStart(t *testing.T) {
	bustest.NoLeaks(t)
	dir := t.TempDir()
	plan := tracePlan(t, "edu0="+filepath.Join(dir, "a.txt"))
	wrong := errors.New("the driver does not like it")
	bad := &pci.Driver{Name: "bad", IDs: edu.Driver.IDs, Probe: func(_ context.Context, d bus.Device, _ pci.Env) (pci.Instance, error) {
		r, err := d.Region(0)
		if err == nil {
			r.Write32(4, 0xfeed)
			err = wrong
		}
		return nil, err
	}}
	if _, err := NewSystem(t.Context(), Config{Plan: plan, Drivers: []*pci.Driver{bad}}); !errors.Is(err, wrong) {
		t.Fatalf("NewSystem() = %v, want %v", err, wrong)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "a.txt")); err != nil || !strings.Contains(string(b), "0xfeed") {
		t.Errorf("the trace is %q, %v, want it to have the write", b, err)
	}
	plan = tracePlan(t, "edu0="+filepath.Join(dir, "b.txt"))
	plan.Devices[0].Device = "flux-capacitor"
	if _, err := NewSystem(t.Context(), Config{Plan: plan}); err == nil {
		t.Error("NewSystem() with a wrong model = nil, want an error")
	}
	if _, err := os.Stat(filepath.Join(dir, "b.txt")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the trace of nothing is left behind (%v)", err)
	}
}

// A driver that panics takes the program down, but says first what it did.
func TestPanicTellsLast(t *testing.T) {
	if os.Getenv("RING3_PANIC") != "" {
		bad := &pci.Driver{Name: "bad", IDs: edu.Driver.IDs, Registers: edu.Driver.Registers, Probe: func(_ context.Context, d bus.Device, _ pci.Env) (pci.Instance, error) {
			r, err := d.Region(0)
			if err != nil {
				return nil, err
			}
			qs, err := d.EnableIRQs(bus.INTx, 1)
			if err != nil {
				return nil, err
			}
			bus.Handle(qs[0], "bad", func(uint64) { panic("a driver's mistake") })
			r.Write32(4, 0xfeed)
			qs[0].Signal()
			select {}
		}}
		_, _ = NewSystem(t.Context(), Config{Plan: tracePlan(t), Drivers: []*pci.Driver{bad}, Stderr: os.Stderr})
		return
	}
	c := exec.Command(os.Args[0], "-test.run=^TestPanicTellsLast$", "-test.timeout=30s")
	c.Env = append(os.Environ(), "RING3_PANIC=1")
	out, err := c.CombinedOutput()
	want := regexp.MustCompile(`(?s)ring3: before the panic: .* edu0 .* write .* LIVE +0xfeed\nring3: before the panic: .* irq .*\npanic: a driver's mistake`)
	if err == nil || !want.Match(out) {
		t.Errorf("the program printed (%v)\n%s\nwant %s", err, out, want)
	}
}

func TestAddTraces(t *testing.T) {
	for _, test := range []struct {
		traces []string
		filter string
		crash  int
		want   string
	}{
		{[]string{"edu0"}, "", 0, `--trace "edu0": want NAME=FILE, such as eth0=out.pcap`},
		{[]string{"eth0=x"}, "", 0, `--trace "eth0=x": no device is named eth0`},
		{[]string{"edu0=x", "edu0=y"}, "", 0, `--trace "edu0=y": edu0 is traced to x already`},
		{nil, "value + 1", 0, `--trace-filter: filter "value + 1": `},
		{nil, "", 4097, `--crash-records 4097: want 0 to 4096`},
		{[]string{"edu0=-"}, "value > 1", 4096, ""},
	} {
		p, err := ParsePlan([]string{"edu0=sim:edu"}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = p.addTraces(test.traces, test.filter, test.crash)
		var usage *usageError
		switch {
		case test.want == "" && err != nil:
			t.Errorf("addTraces(%q, %q, %d) = %v, want nil", test.traces, test.filter, test.crash, err)
		case test.want != "" && (!errors.As(err, &usage) || !strings.HasPrefix(err.Error(), test.want)):
			t.Errorf("addTraces(%q, %q, %d) = %v, want %s", test.traces, test.filter, test.crash, err, test.want)
		}
	}
}

// A trace to a pipe that nobody reads ends, and says why.
func TestTraceNotRead(t *testing.T) {
	bustest.NoLeaks(t)
	file := filepath.Join(t.TempDir(), "edu0.txt")
	if err := unix.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var log bytes.Buffer
	s, err := NewSystem(t.Context(), Config{Plan: tracePlan(t, "edu0="+file), Drivers: []*pci.Driver{edu.Driver}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 { // more than fits into a pipe
		if _, err := s.bound()[0].inst.(*edu.Device).Factorial(t.Context(), 5); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close() = %v, want nil", err)
	}
	if want := "its reader did not read for 2s"; !strings.Contains(log.String(), want) {
		t.Errorf("the log is\n%swant %s", log.String(), want)
	}
}
