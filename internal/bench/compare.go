package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"text/tabwriter"

	"golang.org/x/perf/benchmath"
)

// Compared is a row of two files, as `ring3 bench compare` prints it.
type Compared struct {
	Bench string  `json:"bench"`
	Case  string  `json:"case"`
	Unit  string  `json:"unit"` // of Old and New; "ratio" where the rows have one
	Old   float64 `json:"old"`  // medians
	New   float64 `json:"new"`
	Delta float64 `json:"delta"` // New to Old, less 1
	P     float64 `json:"p"`     // how likely chance alone makes such a difference (Mann-Whitney U-test)
	// Differs says that P is below 0.05. With fewer than four samples on each side it cannot be.
	Differs bool `json:"differs"`
	NOld    int  `json:"n_old"`
	NNew    int  `json:"n_new"`
}

// caseKey names a row in a file.
type caseKey struct{ bench, name, unit string }

// results are a file's rows.
type results struct {
	order   []caseKey
	samples map[caseKey][]float64
}

// Compare compares what `ring3 bench -json` printed, two files with one run or more each. Rows with a ratio are
// compared by that: machines are noisy, and both halves of a ratio were measured in the same seconds. Rows
// that only one file has are left out, and named in missing.
func Compare(before, after string) (rows []Compared, missing []string, err error) {
	a, err := readResults(before)
	if err != nil {
		return nil, nil, err
	}
	b, err := readResults(after)
	if err != nil {
		return nil, nil, err
	}
	for _, k := range a.order {
		if b.samples[k] == nil {
			missing = append(missing, fmt.Sprintf("%s %s: only in %s", k.bench, k.name, before))
			continue
		}
		rows = append(rows, compareCase(k, a.samples[k], b.samples[k]))
	}
	for _, k := range b.order {
		if a.samples[k] == nil {
			missing = append(missing, fmt.Sprintf("%s %s: only in %s", k.bench, k.name, after))
		}
	}
	if len(rows) == 0 {
		return nil, nil, fmt.Errorf("bench compare: %s and %s have no row in common", before, after)
	}
	return rows, missing, nil
}

func compareCase(k caseKey, before, after []float64) Compared {
	sample := func(v []float64) *benchmath.Sample {
		return benchmath.NewSample(v, &benchmath.DefaultThresholds)
	}
	a, b := sample(before), sample(after)
	const confidence = 0.95
	how := benchmath.AssumeNothing
	c := Compared{
		Bench: k.bench, Case: k.name, Unit: k.unit, NOld: len(before), NNew: len(after),
		Old: how.Summary(a, confidence).Center, New: how.Summary(b, confidence).Center,
	}
	if c.Old != 0 {
		c.Delta = c.New/c.Old - 1
	}
	t := how.Compare(a, b)
	c.P = t.P
	c.Differs = t.P < t.Alpha
	return c
}

// readResults reads a file of rows.
func readResults(path string) (results, error) {
	r := results{samples: map[caseKey][]float64{}}
	b, err := os.ReadFile(path)
	if err != nil {
		return r, fmt.Errorf("bench compare: %w", err)
	}
	for d := json.NewDecoder(bytes.NewReader(b)); ; {
		var row Row
		err := d.Decode(&row)
		if errors.Is(err, io.EOF) {
			break
		}
		switch {
		case err != nil:
			return r, fmt.Errorf("bench compare: %s: at byte %d: %w: want what 'ring3 bench -json' prints", path, d.InputOffset(), err)
		case row.Bench == "" || row.Case == "":
			return r, fmt.Errorf("bench compare: %s: at byte %d: a row without bench and case: want what 'ring3 bench -json' prints", path, d.InputOffset())
		}
		r.add(row)
	}
	if len(r.order) == 0 {
		return r, fmt.Errorf("bench compare: %s: no row: want what 'ring3 bench -json' prints", path)
	}
	return r, nil
}

func (r *results) add(row Row) {
	k := caseKey{row.Bench, row.Case, row.Unit}
	v := row.Samples
	if row.Ratio != 0 {
		k.unit = "ratio"
	}
	switch {
	case len(v) > 0:
	case row.Ratio != 0:
		v = []float64{row.Ratio}
	default:
		v = []float64{row.Value}
	}
	if r.samples[k] == nil {
		r.order = append(r.order, k)
	}
	r.samples[k] = append(r.samples[k], v...)
}

// printCompared writes rows as a table.
func printCompared(w io.Writer, rows []Compared, missing []string) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "bench\tcase\tunit\told\tnew\tdelta\t")
	for _, c := range rows {
		delta := "~"
		if c.Differs {
			delta = fmt.Sprintf("%+.1f%%", 100*c.Delta)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%.5g\t%.5g\t%s\t(p=%.3f n=%d+%d)\n", c.Bench, c.Case, c.Unit, c.Old, c.New, delta, c.P, c.NOld, c.NNew)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, m := range missing {
		if _, err := fmt.Fprintln(w, m); err != nil {
			return err
		}
	}
	if few := fewSamples(rows); few > 0 {
		_, err := fmt.Fprintf(w, "%d of %d rows have too few samples to tell a difference from chance: run 'ring3 bench -json --pairs 10', or append several runs to a file\n", few, len(rows))
		return err
	}
	return nil
}

// enough is how many samples each side wants for a p below 0.05.
const enough = 4

func fewSamples(rows []Compared) (n int) {
	for _, c := range rows {
		if min(c.NOld, c.NNew) < enough && !math.IsNaN(c.P) {
			n++
		}
	}
	return n
}
