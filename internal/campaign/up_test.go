package campaign

import (
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/fault"
)

// TestUp is a slice of the campaign through supervisors: `ring3 fault campaign --backend up -n 100 -seed 3`.
func TestUp(t *testing.T) {
	n := 100
	if testing.Short() {
		n = 40
	}
	b := Backend{Name: upBackend}
	scenarios, err := Select(Scenarios(), nil, b)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Run(t.Context(), Options{Scenarios: scenarios, Backend: b, N: n, Seed: 3, Failed: func(o Outcome) {
		t.Errorf("%s: %s\n%s", o.Class, o.Command(b), o.Why)
	}})
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	t.Log(text.String())
	if r.Runs != n || r.Up.Deaths == 0 || r.Beside == 0 || r.Made() < n/2 {
		t.Errorf("%d runs of %d, faults in %d, %d deaths, %d rounds beside", r.Runs, n, r.Made(), r.Up.Deaths, r.Beside)
	}
	if mute, wrong := r.Total(Mute), r.Total(Wrong); mute > 2+n/20 || wrong > 2+n/20 {
		t.Errorf("of %d runs %d were mute and %d wrong, want 5 %% at most", n, mute, wrong)
	}
}

// TestUpRuns: a run is the same in every slice, and each kind has its turn.
func TestUpRuns(t *testing.T) {
	scenarios, err := Select(Scenarios(), nil, Backend{Name: upBackend})
	if err != nil {
		t.Fatal(err)
	}
	one, other := newChoice(7, scenarios, upKinds()), newChoice(7, scenarios, upKinds())
	seen := map[string]bool{}
	for i := range 20000 {
		s, f := one.upRun(i)
		s2, f2 := other.upRun(i)
		if s != s2 || f.String() != f2.String() {
			t.Fatalf("run %d is %s %s, and %s %s", i, s.Name, f, s2.Name, f2)
		}
		back, err := parseUp(f.String())
		if err != nil || back.String() != f.String() {
			t.Fatalf("parseUp(%q) = %q, %v", f, back, err)
		}
		plan := fault.Plan{Faults: f.faults, Registers: s.Registers}
		if err := plan.Check(); err != nil {
			t.Fatalf("run %d, %s: %v", i, s.Name, err)
		}
		seen[f.kind()] = true
	}
	for _, k := range append(fault.Kinds(), fault.ProcessKinds()...) {
		if !seen[k.String()] && k != fault.Deny { // a driver in service makes no call
			t.Errorf("no run has %s", k)
		}
	}
	if !seen[sigKill] || !seen[sigStop] {
		t.Error("no worker is killed or stopped from outside")
	}
}

// FuzzParseUp: what is read is written so that it is read again.
func FuzzParseUp(f *testing.F) {
	for _, s := range []string{"SIGKILL:3", "SIGSTOP:0+TDT#2:ones", "17:gone+BAR0+0x8#1:flip:3", "SIGKILL:+", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseUp(s)
		if err != nil {
			return
		}
		if again, err := parseUp(p.String()); err != nil || again.String() != p.String() || again.after > time.Hour {
			t.Errorf("parseUp(%q) = %q, and of that %q, %v", s, p, again, err)
		}
	})
}

// TestUpUse: what a supervisor may use more at rest, and what is a leak.
func TestUpUse(t *testing.T) {
	was := upUse{Descriptors: 30, Threads: 10, Goroutines: 40, KiB: 40 << 10, Mounts: 1, Processes: 5, Files: 8}
	for _, c := range []struct {
		change func(u *upUse)
		want   string
	}{
		{func(*upUse) {}, ""},
		{func(u *upUse) { u.Threads += upMoreThreads; u.KiB += upMoreKiB; u.Goroutines-- }, ""},
		{func(u *upUse) { u.Descriptors++ }, "31 descriptors, at first 30"},
		{func(u *upUse) { u.Mounts++; u.Files++ }, "2 mounts, at first 1, 9 files, at first 8"},
	} {
		is := was
		if c.change(&is); is.more(was) != c.want {
			t.Errorf("more = %q, want %q", is.more(was), c.want)
		}
	}
}
