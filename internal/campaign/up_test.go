package campaign

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/fault"
)

// TestUp is a slice of the campaign through supervisors: `ring3 fault campaign --backend up -n 60 -seed 3`.
func TestUp(t *testing.T) {
	t.Parallel() // with the next: a campaign mostly waits for what does not come
	n := 60
	if testing.Short() {
		n = 40
	}
	testUp(t, Backend{Name: upBackend}, n)
}

// TestUpQEMU is one with controllers of QEMU's.
func TestUpQEMU(t *testing.T) {
	bustest.NeedQEMU(t)
	t.Parallel()
	testUp(t, Backend{Name: upQEMU}, 20)
}

func testUp(t *testing.T, b Backend, n int) {
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
	if mute, bad := r.Total(Mute), r.BadData; mute > 2+n/20 || bad > 2+n/20 {
		t.Errorf("of %d runs %d were mute and %d gave wrong data, want 5 %% at most", n, mute, bad)
	}
}

// TestUpNotSetUp: where no instance comes up, that is told, after some tries, and the campaign ends, however many runs are to come.
func TestUpNotSetUp(t *testing.T) {
	b := Backend{Name: upBackend}
	scenarios, err := Select(Scenarios(), nil, b)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Scenarios: scenarios, Backend: b, N: 5 * upBatch, Seed: 3, Slice: Slice{1, 1}}
	c := &campaign{Options: o, choice: newChoice(o.Seed, scenarios, upKinds()), result: newResult(o)}
	groups := map[*upGroup]int{}
	var mu sync.Mutex
	u := &upCampaign{campaign: c, start: func(_ context.Context, g *upGroup, _ Backend) (*upInstance, error) {
		mu.Lock()
		defer mu.Unlock()
		groups[g]++
		return nil, errors.New("it does not come up")
	}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := u.all(ctx); err != nil {
		t.Fatalf("the campaign does not end: %v", err)
	}
	for g, n := range groups {
		if n != upTries {
			t.Errorf("%s was set up %d times, want %d", g.name, n, upTries)
		}
	}
	if r := c.result; r.OK() || len(r.Others) != len(groups) || len(r.Up.Again) != len(groups)*(upTries-1) {
		t.Errorf("of %d groups %d failed, after %d more tries: %+v", len(groups), len(r.Others), len(r.Up.Again), r.Others)
	}
}

// TestUpVerdict: what a run was, of what was seen in it.
func TestUpVerdict(t *testing.T) {
	bad, other := silent("wrong data: 3 frames"), errors.New("input/output error")
	for _, c := range []struct {
		name    string
		verdict Verdict // that is told already
		first   error
		later   error // of a use after the first; the one after it was right
		made    bool
		deaths  int
		want    Verdict
		badData bool
	}{
		{"nothing", "", nil, nil, false, 0, NotMade, false},
		{"nothing noticed", "", nil, nil, true, 0, Harmless, false},
		{"an error", "", other, nil, true, 0, Recovered, false},
		{"a death", "", other, nil, true, 1, Recovered, false},
		{"trouble without a fault", "", other, nil, false, 0, Failed, false},
		{"wrong data, then right", "", bad, nil, true, 0, Corrupt, true},
		{"wrong data, then a death", "", bad, nil, true, 1, Corrupt, true},
		{"wrong data later", "", nil, bad, true, 0, Corrupt, true},
		{"wrong data without a fault", "", nil, bad, false, 0, Failed, true},
		{"wrong data, and mute then", Mute, bad, other, true, 0, Mute, true},
		{"wrong data for good", Wrong, bad, bad, true, 0, Wrong, true},
	} {
		o := upOutcome{Outcome: Outcome{Verdict: c.verdict}}
		if o.ends(c.first) || o.ends(c.later) {
			t.Errorf("%s: the run ends", c.name)
		}
		if o.judgeUp(c.first, c.made, c.deaths, upState{}); o.Verdict != c.want || o.BadData != c.badData {
			t.Errorf("%s: %s, bad data %v, want %s, %v", c.name, o.Verdict, o.BadData, c.want, c.badData)
		}
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
