package bench

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// written is a file of rows.
func written(t *testing.T, rows ...Row) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rows.json")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	enc := json.NewEncoder(f)
	for _, r := range rows {
		if err := enc.Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestCompare(t *testing.T) {
	tx := func(samples ...float64) Row {
		return Row{Bench: "pktgen-tx", Case: "e1000e burst=32", Unit: "pps", Value: 5e6, Limit: 6e6, Ratio: median(append([]float64(nil), samples...)), Samples: samples}
	}
	mmio := func(ns float64) Row { return Row{Bench: "mmio", Case: "read", Unit: "ns", Value: ns} }
	before := written(t, tx(0.80, 0.81, 0.82, 0.83, 0.84), mmio(100), mmio(101), mmio(102), mmio(103), Row{Bench: "mem", Case: "peak", Unit: "MiB", Value: 16})
	after := written(t, tx(0.90, 0.91, 0.92, 0.93, 0.94), mmio(100.5), mmio(101.5), mmio(102.5), mmio(99), Row{Bench: "wire", Case: "new", Unit: "pps", Value: 1})
	rows, missing, err := Compare(before, after)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 2 {
		t.Fatalf("rows %+v, want 2", rows)
	}
	if c := rows[0]; c.Unit != "ratio" || c.Old != 0.82 || c.New != 0.92 || !c.Differs || c.P > 0.05 || c.NOld != 5 || c.Delta < 0.12 || c.Delta > 0.123 {
		t.Errorf("ratios that differ: %+v", c)
	}
	if c := rows[1]; c.Unit != "ns" || c.Differs || c.NOld != 4 || c.NNew != 4 {
		t.Errorf("values that do not: %+v", c)
	}
	if len(missing) != 2 || !strings.Contains(missing[0], "mem peak: only in "+before) || !strings.Contains(missing[1], "wire new: only in "+after) {
		t.Errorf("missing: %q", missing)
	}
	var out strings.Builder
	if err := printCompared(&out, rows, missing); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"+12.2%", "~", "n=5+5", "only in"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &out)
		}
	}
}

// Bad files get one line that names them.
func TestCompareBad(t *testing.T) {
	good := written(t, Row{Bench: "mem", Case: "peak", Unit: "MiB", Value: 16})
	text := filepath.Join(t.TempDir(), "text")
	for content, want := range map[string]string{
		"":                             "no row",
		"mem   peak   16 MiB\n":        "at byte",
		"{\"bench\": \"mem\"}\n":       "without bench and case",
		"{\"bench\": \"mem\", \"cas":   "at byte",
		"{\"bench\":1,\"case\":\"x\"}": "at byte",
	} {
		if err := os.WriteFile(text, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, files := range [][2]string{{text, good}, {good, text}} {
			_, _, err := Compare(files[0], files[1])
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Compare with %q = %v, want one line with %q", content, err, want)
			}
		}
	}
	if _, _, err := Compare(good, good+".none"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("Compare with no file = %v", err)
	}
	if _, _, err := Compare(good, written(t, Row{Bench: "mem", Case: "other", Value: 1})); err == nil || !strings.Contains(err.Error(), "no row in common") {
		t.Errorf("Compare of others = %v", err)
	}
}
