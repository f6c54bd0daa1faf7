package host

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/fault"
)

// spinFree is a goroutine that never stops.
func spinFree(end *atomic.Bool) {
	for !end.Load() {
	}
}

// TestWatchdogSpin: it is named, while pktgen's thread and the receiver, which stop as seldom, are not meant.
func TestWatchdogSpin(t *testing.T) {
	s, suspected := watched(t, "e1000e", "", false)
	send(t, s, "eth0")
	var end atomic.Bool
	var over sync.WaitGroup
	over.Go(func() { spinFree(&end) })
	defer over.Wait()
	defer end.Store(true)
	suspected(suspectSpin, "it never stops, in host.spinFree")
}

// TestRunning reads a listing of goroutines.
func TestRunning(t *testing.T) {
	const listing = `goroutine 7 [running]:
main.me(...)
	/x.go:1

goroutine 8 [runnable]:
runtime.asyncPreempt()
	/x.s:2
example.org/drv.(*nic).loop(0xc000010000)
	/x.go:3 +0x1
created by example.org/drv.Probe in goroutine 1
	/x.go:4

goroutine 9 [running, locked to thread]:
github.com/ring3dev/ring3/drivers/e1000.(*txQueue).Burst(0x1)
	/x.go:3
github.com/ring3dev/ring3/pktgen.(*thread).round(0x1)
	/x.go:3

goroutine 10 [select, 3 minutes]:
example.org/drv.wait()
	/x.go:3

goroutine 11 [runnable]:
runtime.goexit({})
	/x.go:3

goroutine 12 [running]:
github.com/ring3dev/ring3/rionet/mport.(*listener).run(0x1)
	/x.go:3

goroutine 13 [runnable]:
github.com/ring3dev/ring3/host.beat.func1()
	/x.go:3

goroutine x [run`
	if got, want := running([]byte(listing)), map[string]string{"8": "drv.(*nic).loop"}; !maps.Equal(got, want) {
		t.Errorf("running = %v, want %v", got, want)
	}
}

// TestRunningTwice: who only woke when the watchdog did is none who runs, and nobody waits where nobody runs.
func TestRunningTwice(t *testing.T) {
	listing := func(running ...int) (s []byte) {
		for id := range 4 {
			state := "select"
			if slices.Contains(running, id) {
				state = "runnable"
			}
			s = fmt.Appendf(s, "goroutine %d [%s]:\nexample.org/drv.run%d(...)\n\t/x.go:3\n\n", id, state, id)
		}
		return s
	}
	for _, c := range []struct {
		first, second []int
		want          map[string]string
		pauses        int
	}{
		{[]int{1, 2}, []int{2, 3}, map[string]string{"2": "drv.run2"}, 1},
		{[]int{1}, []int{3}, nil, 1},
		{nil, []int{3}, nil, 0},
	} {
		looks := [][]byte{listing(c.first...), listing(c.second...)}
		pauses := 0
		got := runningTwice(func() []byte { s := looks[0]; looks = looks[1:]; return s }, func() { pauses++ })
		if !maps.Equal(got, c.want) || pauses != c.pauses {
			t.Errorf("runningTwice of %v and %v = %v, %d pauses, want %v, %d", c.first, c.second, got, pauses, c.want, c.pauses)
		}
	}
}

// FuzzRunning reads anything.
func FuzzRunning(f *testing.F) {
	f.Add([]byte("a\n\ngoroutine 8 [runnable]:\nx.y(\n\t(\n)"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for id, where := range running(b) {
			if id == "" || where == "" {
				t.Errorf("running gave %q at %q", id, where)
			}
		}
	})
}

// TestWatchdogTPM: a command in whose midst the driver hangs, which whoever waits for a TPM's answer cannot tell from one that takes long.
func TestWatchdogTPM(t *testing.T) {
	getCapability := []byte{0x80, 0x01, 0, 0, 0, 22, 0, 0, 1, 0x7a, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 0, 8}
	for _, kind := range []fault.Kind{fault.Hang, fault.Lock} {
		from := 0
		for range 2 { // the first counts, and has no fault
			plan, err := ParsePlan([]string{"tpm0=sim:tpm-tis"}, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if from > 0 {
				plan.Faults = map[string]fault.Plan{"tpm0": {Faults: []fault.Fault{{At: fault.Point{Nth: from}, Kind: kind}}}}
			}
			s, err := NewSystem(t.Context(), Config{Plan: plan, Drivers: testProgram.Drivers, Watched: true, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
			if err != nil {
				t.Fatal(err)
			}
			b := s.boundOf("tpm0")
			if from == 0 {
				from = int(b.trace.Recorded()) + 20
				if _, err := b.tpm.chip.Transmit(t.Context(), getCapability); err != nil || int(b.trace.Recorded()) <= from {
					t.Fatalf("a command: %v, %d accesses, want more than %d", err, b.trace.Recorded(), from)
				}
				_ = s.Close()
				continue
			}
			told := make(chan suspect, 100)
			w := newWatchdog(s, new(openCalls), time.Hour, func(v suspect) { told <- v })
			w.slack = 0
			w.up.Store(true)
			go func() { _, _ = b.tpm.chip.Transmit(t.Context(), getCapability) }() // it hangs for good
			end := time.Now().Add(testPatience)
			for {
				w.look()
				select {
				case v := <-told:
					if want := "tpm0: the TPM: command 0x17a: it does not end"; v.Kind != suspectCall || len(v.Text) < len(want) || v.Text[:len(want)] != want {
						t.Fatalf("%v: suspected: %+v, want %q", kind, v, want)
					}
					if v.Fatal {
						end = time.Time{}
					}
				default:
				}
				if end.IsZero() {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%v: nobody is suspected", kind)
				}
				time.Sleep(20 * time.Millisecond)
			}
			w.stop()
		}
	}
}
