package campaign

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the accesses of each scenario down anew")

// TestUniverse: what is written down is about what drivers do.
func TestUniverse(t *testing.T) {
	for _, s := range Scenarios() {
		now, err := record(t.Context(), s, Backend{Name: "sim"})
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
		missing, all := 0, 0
		for _, p := range s.accesses {
			all += min(p.count, most)
			i := slices.IndexFunc(now, func(q place) bool { return q.name == p.name && q.op == p.op && q.width == p.width })
			if i < 0 {
				missing += min(p.count, most)
				t.Logf("%s: no %s any more", s.Name, p)
			} else {
				missing += max(0, min(p.count, most)-now[i].count)
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
	r, err := Run(t.Context(), Options{Scenarios: Scenarios(), Backend: Backend{Name: "sim"}, N: n, Seed: 10, Failed: func(o Outcome) {
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
	if mute, wrong := r.Total(Mute), r.Total(Wrong); mute*100 > 3*n || wrong*100 > n {
		t.Errorf("of %d runs %d were mute and %d wrong, want 3 %% and 1 %% at most", n, mute, wrong)
	}
}
