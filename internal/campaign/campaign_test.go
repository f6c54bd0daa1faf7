package campaign

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/drivers/edu"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/pciehp"
	"github.com/ring3dev/ring3/host"
	"github.com/ring3dev/ring3/tpmdd/crb"
	"github.com/ring3dev/ring3/tpmdd/tis"
)

var update = flag.Bool("update", false, "write the accesses of each scenario down anew")

// TestMain lets this binary be a `ring3 up`, and all that one starts.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 || !strings.HasPrefix(os.Args[1], "-test.") {
		(&host.Program{
			Drivers:  []*pci.Driver{e1000.Driver, edu.Driver, tis.Driver, crb.Driver},
			Services: []*portbus.ServiceDriver{pciehp.Driver(pciehp.Options{})},
		}).Main()
	}
	os.Exit(m.Run())
}

// TestUniverse: what is written down is about what drivers do.
func TestUniverse(t *testing.T) {
	for _, s := range Scenarios() {
		if _, err := exec.LookPath("qemu-system-x86_64"); err != nil && s.backends[0] == upQEMU {
			t.Logf("%s: needs QEMU: %v", s.Name, err)
			continue
		}
		now, err := record(t.Context(), s, Backend{Name: s.backends[0]})
		if err != nil {
			t.Error(err)
			continue
		}
		file := filepath.Join("universe", s.Name+".txt")
		if *update {
			var b strings.Builder
			for _, p := range now {
				fmt.Fprintln(&b, p)
			}
			if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		missing, all, bound := 0, 0, most
		if s.up != nil && s.Driver == "pcieport" { // it is asked until its slot has done something: how often is a matter of how fast everybody is
			bound = 1
		}
		for _, p := range s.accesses {
			all += min(p.count, bound)
			i := slices.IndexFunc(now, func(q place) bool { return q.name == p.name && q.op == p.op && q.width == p.width })
			if i < 0 {
				missing += min(p.count, bound)
				t.Logf("%s: no %s any more", s.Name, p)
			} else {
				missing += max(0, min(p.count, bound)-now[i].count)
			}
		}
		if missing*10 > all || all == 0 {
			t.Errorf("%s: %d of %d accesses that are written down are not made; go test ./internal/campaign -run TestUniverse -update", s.Name, missing, all)
		}
	}
}

// TestSlice is a slice of the campaign that anybody can run: `ring3 fault campaign -n 20000 -seed 10`.
func TestSlice(t *testing.T) {
	n := 20000
	if testing.Short() {
		n = 1000
	}
	scenarios, err := Select(Scenarios(), nil, Backend{Name: "sim"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Run(t.Context(), Options{Scenarios: scenarios, Backend: Backend{Name: "sim"}, N: n, Seed: 10, Failed: func(o Outcome) {
		t.Errorf("%s: %s\n%s", o.Class, o.Command(Backend{Name: "sim"}), o.Why)
	}})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	t.Log(b.String())
	if r.Runs != n || r.Made() < n*9/10 || r.Beside == 0 {
		t.Errorf("%d runs of %d, faults in %d, %d rounds beside", r.Runs, n, r.Made(), r.Beside)
	}
	scatter := 0 // the whole slice has the share that is wanted; so few runs have it give or take
	if testing.Short() {
		scatter = 5
	}
	if mute, wrong := r.Total(Mute), r.BadData; mute > n*3/100+scatter || wrong > n/100+scatter {
		t.Errorf("of %d runs %d were mute and %d gave wrong data, want 3 %% and 1 %% at most", n, mute, wrong)
	}
}

// TestFindings: what campaigns found, and what was mended for it. Each was mute, hung for minutes, or gave wrong numbers.
func TestFindings(t *testing.T) {
	for _, c := range []struct{ scenario, faults string }{
		{"e1000", "RCTL#2:lostwrite"}, {"e1000", "RDT#2:lostwrite"}, {"e1000", "cfg+0x4#2:lostwrite"}, {"e1000", "Region#1:cfg-gone"},
		{"82545em", "TDBAH#1:lostwrite"}, {"82545em", "RDBAL#1:reset"}, {"e1000e-queues", "RSSRK[2]#1:reset"}, {"e1000e-queues", "VET#1:reset"},
		{"edu", "STATUS#4:reset"}, {"tpm-tis", "STS#69:stuck:0"}, {"tpm-tis", "STS#73:reset"},
	} {
		t.Run(c.scenario+" "+c.faults, func(t *testing.T) {
			t.Parallel()
			s, err := Find(c.scenario)
			if err != nil {
				t.Fatal(err)
			}
			plan, err := fault.Parse(c.faults)
			if err != nil {
				t.Fatal(err)
			}
			o := once(t.Context(), s, Backend{Name: "sim"}, nil, plan.Faults, false)
			for range 20 { // a driver that waits reads more or less often
				if o.Verdict != NotMade {
					break
				}
				o = once(t.Context(), s, Backend{Name: "sim"}, nil, plan.Faults, false)
			}
			if o.Verdict != Recovered && o.Verdict != Harmless {
				t.Errorf("%s: %s, %s, want it recovered", c.faults, o.Verdict, o.Why)
			}
		})
	}
}

// TestChoice: a run is the same in whatever slice it is made.
func TestChoice(t *testing.T) {
	a, b := newChoice(3, Scenarios(), fault.Kinds()), newChoice(3, Scenarios(), fault.Kinds())
	other := newChoice(4, Scenarios(), fault.Kinds())
	differ := 0
	for i := range 5000 {
		s, f := a.run(i)
		plan := fault.Plan{Faults: f}
		if s2, f2 := b.run(i); s2.Name != s.Name || (fault.Plan{Faults: f2}).String() != plan.String() {
			t.Fatalf("run %d is %s %s, and then %s %v", i, s.Name, plan, s2.Name, f2)
		}
		if back, err := fault.Parse(plan.String()); err != nil || back.String() != plan.String() {
			t.Errorf("Parse(%s) = %s, %v", plan, back, err)
		}
		plan.Registers = s.Registers
		if err := plan.Check(); err != nil {
			t.Errorf("run %d: %v", i, err)
		}
		if _, f2 := other.run(i); (fault.Plan{Faults: f2}).String() != plan.String() {
			differ++
		}
	}
	if differ < 4000 {
		t.Errorf("another seed changes %d runs of 5000", differ)
	}
}

// TestSum: slices are the whole, and of each there is one.
func TestSum(t *testing.T) {
	var parts []*Result
	for i := range 3 {
		o := Options{Scenarios: Scenarios()[:1], Backend: Backend{Name: "sim"}, N: 30, Seed: 1, Slice: Slice{i + 1, 3}}
		r := newResult(o)
		for n := range 10 {
			r.add(Outcome{Scenario: "e1000", Kind: "ones", Verdict: Verdicts[n%len(Verdicts)], Class: "x", Number: 3*n + i})
		}
		var b bytes.Buffer
		if err := r.WriteJSON(&b); err != nil {
			t.Fatal(err)
		}
		back, err := ReadResult(&b)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, back)
	}
	r, err := Sum(parts...)
	if err != nil {
		t.Fatal(err)
	}
	if r.Runs != 30 || r.Total(NotMade) != 6 || r.Made() != 24 || len(r.Slices) != 3 {
		t.Errorf("Sum = %+v", r)
	}
	if c := r.Classes["harmless/x/ones"]; c == nil || c.N != 6 || c.Example.Number != 3 {
		t.Errorf("Classes = %+v", c)
	}
	if _, err := Sum(parts[0], parts[0]); err == nil {
		t.Error("a slice counts twice")
	}
	if _, err := ReadResult(strings.NewReader(`{"n":30,"seed":1,"backend":"sim","slices":["1/3"],"runs":10}`)); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("ReadResult of the format before: %v", err)
	}
	parts[1].Seed = 2
	if _, err := Sum(parts...); err == nil {
		t.Error("another seed's counts too")
	}
}

func FuzzReadResult(f *testing.F) {
	f.Add([]byte(`{"format":2,"n":30,"seed":1,"backend":"sim","slices":["1/3"],"runs":10,"counts":{"a":{"ones":{"failed":1}}},"classes":{"x":null}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := ReadResult(bytes.NewReader(text))
		if err != nil {
			return
		}
		if _, err := Sum(r); err != nil {
			return
		}
		if err := r.WriteText(io.Discard); err != nil {
			t.Error(err)
		}
	})
}
