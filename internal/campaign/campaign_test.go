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
