package host

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/internal/node"
)

// watched is a wired pair in this process, of which eth1 has a fault, with traffic from eth0, and what a watchdog that looks often says of it. The System is not closed
// where something hangs for ever.
func watched(t *testing.T, model, faults string, hangs bool) (*System, func(kind, text string)) {
	t.Helper()
	var p fault.Plan
	if faults != "" {
		var err error
		if p, err = fault.Parse(faults); err != nil {
			t.Fatal(err)
		}
	}
	return watchedPlan(t, model, p, hangs)
}

func watchedPlan(t *testing.T, model string, faults fault.Plan, hangs bool) (*System, func(kind, text string)) {
	t.Helper()
	plan, err := ParsePlan([]string{"eth0=sim:" + model, "eth1=sim:" + model}, []string{"eth0-eth1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(faults.Faults) > 0 {
		plan.Faults = map[string]fault.Plan{"eth1": faults}
	}
	s, err := NewSystem(t.Context(), Config{Plan: plan, Drivers: testProgram.Drivers, Watched: true, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var all []suspect
	w := newWatchdog(s, new(openCalls), 20*time.Millisecond, func(v suspect) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, v)
	})
	w.up.Store(true)
	t.Cleanup(func() {
		w.stop()
		if !hangs {
			_ = s.Close()
		}
	})
	return s, func(kind, text string) {
		t.Helper()
		for end := time.Now().Add(testPatience); ; time.Sleep(5 * time.Millisecond) {
			mu.Lock()
			told := false
			for _, v := range all {
				if v.Kind == kind && strings.Contains(v.Text, text) {
					told = told || !v.Fatal
					if v.Fatal && told {
						mu.Unlock()
						return
					}
				}
			}
			seen := fmt.Sprintf("%+v", all)
			mu.Unlock()
			if time.Now().After(end) {
				t.Fatalf("nobody is suspected of %s %q: %s", kind, text, seen)
			}
		}
	}
}

// send has pktgen send from one device, for as long as the test takes.
func send(t *testing.T, s *System, from string) {
	t.Helper()
	to := map[string]string{"eth0": "eth1", "eth1": "eth0"}[from]
	for _, w := range [][2]string{{"kpktgend_0", "add_device " + from}, {from, "count 0"}, {from, "delay 3000000"}, {from, "dst_mac " + s.boundOf(to).net.MAC().String()}} {
		n, err := s.Tree().Walk("/proc/net/pktgen/" + w[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.(*node.File).Write(t.Context(), []byte(w[1]+"\n")); err != nil {
			t.Fatalf("%s: %v", w, err)
		}
	}
	n, _ := s.Tree().Walk("/proc/net/pktgen/pgctrl")
	go func() { _, _ = n.(*node.File).Write(context.Background(), []byte("start\n")) }()
}

// TestWatchdogSilent: registers that all read as ones, from the moment on at which somebody wants to see them.
func TestWatchdogSilent(t *testing.T) {
	from := 0
	for range 2 { // the first counts, and has no fault
		var ones fault.Plan
		for i := range 3000 {
			if from > 0 {
				ones.Faults = append(ones.Faults, fault.Fault{At: fault.Point{Nth: from + i}, Kind: fault.Ones})
			}
		}
		s, suspected := watchedPlan(t, "e1000e", ones, false)
		if from > 0 {
			stop := askOften(s)
			suspected(suspectSilent, "all-ones")
			stop()
		}
		from = int(s.boundOf("eth1").trace.Recorded()) + 200
	}
}

// askOften has eth1 asked for its counters, again and again.
func askOften(s *System) (stop func()) {
	done := make(chan struct{})
	var over sync.WaitGroup
	over.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
				_, _ = s.ethtool(context.Background(), ethtoolArgs{Device: "eth1", Op: "S"})
			}
		}
	})
	return func() { close(done); over.Wait() }
}

// TestWatchdogStorm: a vector that fires without end, and nothing comes of it.
func TestWatchdogStorm(t *testing.T) {
	s, suspected := watched(t, "e1000e", "", false)
	q := s.irqs.rowsOf(s.boundOf("eth1"))[0].handler.IRQ()
	stop := make(chan struct{})
	var over sync.WaitGroup
	over.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				q.SignalN(1000)
			}
		}
	})
	defer over.Wait()
	defer close(stop)
	suspected(suspectStorm, "a second")
}

// TestWatchdogMemory: a process that is about to have no memory left.
func TestWatchdogMemory(t *testing.T) {
	_, suspected := watched(t, "e1000e", "", false)
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(1 << 20))
	suspected(suspectMemory, "MB")
}

// TestWatchdogCalls: what was asked and is not answered. What changes something has longer, and as long as its device is at work; what is there to wait is not looked at.
func TestWatchdogCalls(t *testing.T) {
	s, _ := watched(t, "e1000e", "", false)
	w := &workerSide{}
	file := func(path string) *node.File {
		n, err := s.Tree().Walk(path)
		if err != nil {
			t.Fatal(err)
		}
		return n.(*node.File)
	}
	for _, c := range []struct {
		name    string
		begin   func() func()
		at      int    // looks until it is fatal; 0: never
		text    string // of the suspect
		working bool   // the device is at work meanwhile
	}{
		{"show", func() func() { return w.called("reading", file("/proc/net/dev"), nil) }, ticksFatal + 1, "reading /proc/net/dev", false},
		{"show while another device works", func() func() { return w.called("reading", file("/proc/net/dev"), nil) }, ticksFatal + 1, "reading /proc/net/dev", true},
		{"stop", func() func() { return w.called("writing", file("/proc/net/pktgen/pgctrl"), []byte("stop\n")) }, ticksSlow + ticksFatal + 1, "writing /proc/net/pktgen/pgctrl", false},
		{"start", func() func() { return w.called("writing", file("/proc/net/pktgen/pgctrl"), []byte("start\n")) }, 0, "", false},
		{"stream", func() func() { return w.called("streaming", nil, nil) }, 0, "", false},
		{"devices", func() func() { return w.controlled(opDevices, nil) }, ticksFatal + 1, opDevices, false},
		{"plug", func() func() { return w.controlled(opPlug, nil) }, ticksSlow + ticksFatal + 1, opPlug, false},
		{"plug at work", func() func() { return w.controlled(opPlug, nil) }, ticksMost + ticksFatal + 1, opPlug, true},
		{"trace", func() func() { return w.controlled(opTrace, nil) }, 0, "", false},
		{"one figure", func() func() { return w.controlled(opStats, []byte(`{"count":1}`)) }, ticksFatal + 1, opStats, false},
		{"figures", func() func() { return w.controlled(opStats, []byte(`{}`)) }, 0, "", false},
		{"identify", func() func() { return w.controlled(opEthtool, []byte(`{"op":"p"}`)) }, 0, "", false},
	} {
		var last suspect
		d := newWatchdog(s, &w.calls, time.Hour, func(v suspect) { last = v }) // it looks when the test says so
		end := c.begin()
		at := 0
		for i := 1; i <= ticksMost+2*ticksFatal && at == 0; i++ {
			if c.working {
				s.Devices()
			}
			if d.look(); last.Fatal {
				at = i
			}
		}
		end()
		if at != c.at || c.at > 0 && (last.Kind != suspectCall || !strings.HasPrefix(last.Text, c.text+": it does not return")) {
			t.Errorf("%s: fatal at look %d, %+v, want %d, %q", c.name, at, last, c.at, c.text)
		}
		d.stop()
	}
	if len(w.calls.all) != 0 {
		t.Errorf("%d calls are open", len(w.calls.all))
	}
}

// TestWatchdog comes last, since what hangs there stays.
func TestWatchdog(t *testing.T) {
	for _, c := range []struct {
		name, model, faults string
		hangs               bool
		from                string
		kind, text          string
	}{
		{"handler", "e1000", "ICR#4:hang", true, "eth0", suspectQueue, "interrupt handler"},
		{"line", "e1000", "ICR#4:hang", true, "eth0", suspectLine, "not unmasked"},
		{"access", "e1000e", "TDT#20:hang", true, "eth1", suspectQueue, "does not return"},
		{"vector", "e1000e", "irq0#4:irq-dead", false, "eth0", suspectQueue, "frames came"},
		{"driver", "e1000e", "TDT#20:cfg-gone", false, "eth1", suspectDriver, "gave up"},
		{"goroutines", "e1000e", "TDT#5:leak-goroutines:30000", false, "eth1", suspectThread, "goroutines"}, // last: they stay
	} {
		t.Run(c.name, func(t *testing.T) {
			s, suspected := watched(t, c.model, c.faults, c.hangs)
			send(t, s, c.from)
			suspected(c.kind, c.text)
		})
	}
}
