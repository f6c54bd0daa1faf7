package faulttest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/sim"
)

func openEdu(t testing.TB) bus.Device {
	t.Helper()
	m, err := sim.Start(t.Context(), sim.Config{Devices: []sim.DeviceSpec{{Name: "edu0", Model: "edu"}}, Clock: sim.Eager})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() }) // a bad driver leaves memory
	dev, err := m.Device("edu0")
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

var registers = []bus.Register{{Name: "ID", Access: bus.RO}, {Name: "LIVE", Off: 4}}

const id = 0x010000ed

// drivers are what Every has to find fault with, and the good one. Each reads ID twice.
var drivers = map[string]func(ctx context.Context, dev bus.Device, r bus.Region) error{
	"good": func(_ context.Context, dev bus.Device, r bus.Region) error {
		if v := r.Read32(0); v != id {
			return fmt.Errorf("%s bad: identification: %#x, want %#x: %w", dev.Address(), v, id, bus.ErrProtocol)
		}
		return nil
	},
	"panics": func(_ context.Context, _ bus.Device, r bus.Region) error {
		_ = make([]byte, 1)[r.Read32(0)-id]
		return nil
	},
	"hangs": func(_ context.Context, _ bus.Device, r bus.Region) error {
		for r.Read32(0) == 0 {
			select {}
		}
		return nil
	},
	"spins": func(ctx context.Context, dev bus.Device, r bus.Region) error { // until its ctx ends: it may
		for r.Read32(0) != id {
			if ctx.Err() != nil {
				return fmt.Errorf("%s bad: identification: %w", dev.Address(), ctx.Err())
			}
			time.Sleep(time.Millisecond)
		}
		return nil
	},
	"keeps memory": func(_ context.Context, dev bus.Device, r bus.Region) error {
		m, err := dev.DMA().Alloc(bus.DMARequest{Size: 4096})
		if err == nil && r.Read32(0) == id {
			m.Free()
		}
		return nil
	},
	"keeps vectors": func(_ context.Context, dev bus.Device, r bus.Region) error {
		_, _ = dev.EnableIRQs(bus.MSI, 1)
		if r.Read32(0) == id {
			_ = dev.DisableIRQs()
		}
		return nil
	},
	"keeps a goroutine": func(_ context.Context, _ bus.Device, r bus.Region) error {
		if r.Read32(0) == 0 {
			go func() { select {} }()
		}
		return nil
	},
	"has no name": func(_ context.Context, dev bus.Device, r bus.Region) error {
		if r.Read32(0) != id {
			return fmt.Errorf("%s: identification: %w", dev.Address(), bus.ErrProtocol)
		}
		return nil
	},
	"has no step": func(_ context.Context, dev bus.Device, r bus.Region) error {
		if r.Read32(0) != id {
			return fmt.Errorf("%s bad: %w", dev.Address(), errors.New(""))
		}
		return nil
	},
	"wraps nothing": func(_ context.Context, dev bus.Device, r bus.Region) error {
		if r.Read32(0) != id {
			return fmt.Errorf("%s bad: identification is wrong", dev.Address())
		}
		return nil
	},
	"believes": func(_ context.Context, _ bus.Device, r bus.Region) error {
		if v := r.Read32(0); v != id {
			return Wrong("ID = %#x, want %#x", v, id)
		}
		return nil
	},
	"fails": func(_ context.Context, dev bus.Device, _ bus.Region) error {
		return fmt.Errorf("%s bad: identification: %w", dev.Address(), bus.ErrProtocol)
	},
	"skips": func(context.Context, bus.Device, bus.Region) error { return nil },
}

// classic are enough to see that runs are judged, and made as they should be.
var classic = fault.Kinds()[:fault.Gone]

const badEnv = "RING3_TEST_BAD"

// TestBad runs one of the drivers: in a process of its own, since it is to fail.
func TestBad(t *testing.T) {
	name := os.Getenv(badEnv)
	if name == "" {
		t.Skip("run by TestEvery")
	}
	hangTime = 100 * time.Millisecond
	Every(t, Scenario{
		Name: "life", Driver: "bad", Registers: registers,
		Open: func(t testing.TB) bus.Device {
			if name == "skips" {
				t.Skip("there is no device")
			}
			return openEdu(t)
		},
		Run: func(ctx context.Context, dev bus.Device) error {
			r, err := dev.Region(0)
			if err != nil {
				return fmt.Errorf("%s bad: registers: %w", dev.Address(), err)
			}
			return drivers[name](ctx, dev, r)
		},
	}, Options{Kinds: classic, Patience: 10 * time.Millisecond, Pairs: name == "good"})
}

// run is what TestBad says of a driver.
func run(t *testing.T, name string, env ...string) (out string, failed bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestBad$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), append([]string{badEnv + "=" + name}, env...)...)
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(b), err != nil
}

func TestEvery(t *testing.T) {
	for name, want := range map[string]string{
		"good": "", "spins": "", "skips": "",
		"panics":            `panic: runtime error: index out of range`,
		"hangs":             `hangs 100ms after its ctx ended`,
		"keeps memory":      `left behind: DMA memory of access 2, 4096 bytes \(Run = <nil>\)`,
		"keeps vectors":     `left behind: 1 interrupt vectors`,
		"keeps a goroutine": `goroutines left behind`,
		"has no name":       `want each line to begin with "1000:00:03.0 bad: "`,
		"has no step":       `and to name the step`,
		"wraps nothing":     `wraps no error of package bus`,
		"believes":          `not noticed: ID = 0xffffffff, want 0x10000ed\n *RING3_FAULT='ID#1:gone'`,
		"fails":             `without any fault: 1000:00:03.0 bad: identification`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait, in processes of their own
			out, failed := run(t, name)
			if failed != (want != "") || !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("%s: failed %v, want %q of:\n%s", name, failed, want, out)
			}
			replay := regexp.MustCompile(`RING3_FAULT='([^']*)' go test \./bus/fault/faulttest -run '\^TestBad\$/\^life\$'`).FindStringSubmatch(out)
			if want == "" || name == "fails" {
				return
			}
			if replay == nil {
				t.Fatalf("no command that repeats it:\n%s", out)
			}
			// The one run that is repeated fails as it did.
			out, failed = run(t, name, Env+"="+replay[1])
			if !failed || !regexp.MustCompile(strings.Split(want, `\n`)[0]).MatchString(out) || !strings.Contains(out, "read BAR0+0x0 (ID)") {
				t.Errorf("%s: repeating %s: failed %v:\n%s", name, replay[1], failed, out)
			}
		})
	}
}

// Without faults to be found, a good driver's runs are these.
func TestPlans(t *testing.T) {
	log := []fault.Access{
		{N: 1, Nth: 1, Place: "Region", Op: fault.OpenRegion}, {N: 2, Nth: 1, Place: "ID", Op: fault.Read, Width: 4},
		{N: 3, Nth: 1, Place: "Alloc", Op: fault.Alloc}, {N: 4, Nth: 1, Place: "LIVE", Op: fault.Write, Width: 1}, {N: 5, Nth: 1, Place: "irq0", Op: fault.Interrupt},
	}
	var got []string
	for _, p := range singles(log, classic, 1) {
		plan := fault.Plan{Faults: p}
		if back, err := fault.Parse(plan.String()); err != nil || back.String() != plan.String() {
			t.Errorf("Parse(%s) = %s, %v", plan, back, err)
		}
		got = append(got, plan.String())
	}
	want := strings.Fields(`Region#1:deny Region#1:gone ID#1:ones ID#1:zero ID#1:flip:14 ID#1:stuck:15 ID#1:gone Alloc#1:deny Alloc#1:garbage Alloc#1:gone
		LIVE#1:lostwrite LIVE#1:garbage LIVE#1:gone irq0#1:irq-lost irq0#1:irq-late irq0#1:irq-again irq0#1:irq-storm irq0#1:garbage irq0#1:gone`)
	if !slices.Equal(got, want) {
		t.Errorf("singles = %v, want %v", got, want)
	}
	bits := map[int]bool{}
	for _, f := range faultsAt(log[1], 7, fault.Flip, 99) {
		bits[f.Arg] = true
	}
	if len(bits) != 32 {
		t.Errorf("%d bits of 32 flip", len(bits))
	}
	two := pairs([]result{{
		plan: []fault.Fault{{At: log[1].At(), Kind: fault.Zero}}, log: log,
		outcomes: []fault.Outcome{{Made: true, Reached: true, Access: log[1]}},
	}}, []fault.Kind{fault.Gone, fault.Deny})
	if len(two) != 4 || (fault.Plan{Faults: two[0]}).String() != "ID#1:zero+Alloc#1:gone" {
		t.Errorf("pairs = %v, want 4 from ID#1:zero+Alloc#1:gone on", two)
	}
	if got := sample(two, 2); len(got) != 2 || got[1][1].At.Place != "LIVE" {
		t.Errorf("sample = %v", got)
	}
}
