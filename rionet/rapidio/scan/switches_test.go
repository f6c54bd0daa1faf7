package scan

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// TestSwitchOps writes, reads and clears the tables of each kind of switch.
func TestSwitchOps(t *testing.T) {
	for _, c := range []struct {
		kind  string
		table int // a table besides the global one; -1: there is none
	}{{"standard", -1}, {"tsi500", 2}} {
		t.Run(c.kind, func(t *testing.T) {
			f := newFabric(t, star(4, c.kind).String())
			host := join(t, f, "pe0", 0, quick)
			host.mustScan()
			sw := host.bus.Devices()[0]
			ops, ctx := sw.Switch.Ops, context.Background()
			if got := ops.Name(); got != c.kind {
				t.Fatalf("operations of a %s = %s", c.kind, got)
			}
			for id := rapidio.DestID(1); id < 255; id++ { // 0 is the way back to us
				if err := ops.AddEntry(ctx, sw, rapidio.GlobalTable, id, uint8(id%4)); err != nil {
					t.Fatal(err)
				}
			}
			for id := range rapidio.DestID(255) {
				if port, err := ops.GetEntry(ctx, sw, rapidio.GlobalTable, id); err != nil || port != uint8(id%4) {
					t.Errorf("GetEntry(%d) = %d, %v, want %d", id, port, err, id%4)
				}
			}
			if got, want := routes(f, "sw0"), 255; len(strings.Fields(got)) != want {
				t.Errorf("routes: %d, want %d", len(strings.Fields(got)), want)
			}
			err := ops.AddEntry(ctx, sw, 2, 7, 1)
			if c.table < 0 {
				if !errors.Is(err, rapidio.ErrRange) {
					t.Errorf("AddEntry in table 2 = %v, want %v", err, rapidio.ErrRange)
				}
			} else {
				got := ""
				for table := range 4 {
					port, err := ops.GetEntry(ctx, sw, table, 7)
					got += fmt.Sprint(port, err, " ")
				}
				if want := "3<nil> 3<nil> 1<nil> 3<nil> "; err != nil || strings.ReplaceAll(got, " <", "<") != want {
					t.Errorf("entries of the four tables = %s, %v, want %s", got, err, want)
				}
				if err := ops.AddEntry(ctx, sw, rapidio.GlobalTable, 1, 4); !errors.Is(err, rapidio.ErrRange) {
					t.Errorf("AddEntry of port 4 = %v, want %v", err, rapidio.ErrRange)
				}
				if err := ops.AddEntry(ctx, sw, rapidio.GlobalTable, 256, 1); !errors.Is(err, rapidio.ErrRange) {
					t.Errorf("AddEntry of ID 256 = %v, want %v", err, rapidio.ErrRange)
				}
				if _, err := ops.GetEntry(ctx, sw, 4, 1); !errors.Is(err, rapidio.ErrRange) {
					t.Errorf("GetEntry in table 4 = %v, want %v", err, rapidio.ErrRange)
				}
			}
			// The switch answers by the port that asks, so clearing the way back does not cut us off.
			if err := ops.ClearTable(ctx, sw, rapidio.GlobalTable); err != nil {
				t.Fatal(err)
			}
			if got := routes(f, "sw0"); got != "" {
				t.Errorf("routes after ClearTable = %s", got)
			}
		})
	}
}

// TestTsi500Word goes over where entries are: no two share bits.
func TestTsi500Word(t *testing.T) {
	seen := map[string]bool{}
	for id := range rapidio.DestID(256) {
		off, shift := tsi500Word(id)
		if want := rapidio.Off(0x10a00) + rapidio.Off(id/8*4); off != want || shift != 4*uint(id%8) {
			t.Errorf("tsi500Word(%d) = %#x, %d, want %#x, %d", id, off, shift, want, 4*(id%8))
		}
		seen[fmt.Sprint(off, shift)] = true
	}
	if len(seen) != 256 {
		t.Errorf("%d places for 256 IDs", len(seen))
	}
}
