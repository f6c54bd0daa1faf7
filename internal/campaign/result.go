package campaign

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/ring3dev/ring3/bus/fault"
)

// Result is what came of a slice, or of several together. Its JSON is what `ring3 fault campaign -json` prints and `ring3 fault sum` reads.
type Result struct {
	Format  int      `json:"format"` // resultFormat
	N       int      `json:"n"`      // runs of the whole campaign
	Seed    uint64   `json:"seed"`
	Backend string   `json:"backend"`
	Names   []string `json:"scenarios"`
	Slices  []string `json:"slices"`
	Runs    int      `json:"runs"`
	Seconds float64  `json:"seconds"`  // of all slices together
	Beside  int      `json:"beside"`   // rounds of the driver beside
	BadData int      `json:"bad_data"` // runs in which the driver gave as good what is not, whatever their verdict
	Again   int      `json:"again"`    // runs that were made once more, since a time limit had failed them
	// Counts are runs by scenario, kind and verdict.
	Counts map[string]map[string]map[Verdict]int `json:"counts"`
	// Classes are runs by verdict, class and kind, with one of each that can be repeated.
	Classes  map[string]*Class `json:"classes"`
	Failures []Outcome         `json:"failures,omitempty"`
	// Up is what supervisors did; nil: there were none.
	Up *upFigures `json:"supervisor,omitempty"`
	// Others are failures that belong to no single run.
	Others []Outcome `json:"others,omitempty"`
}

// resultFormat says which verdicts there are: the first had no corrupt, which was wrong.
const resultFormat = 2

// Class are runs that ended alike.
type Class struct {
	Verdict Verdict `json:"verdict"`
	Class   string  `json:"class"`
	Kind    string  `json:"kind"`
	N       int     `json:"n"`
	Example Outcome `json:"example"`
}

func newResult(o Options) *Result {
	r := &Result{Format: resultFormat, N: o.N, Seed: o.Seed, Backend: o.Backend.Name, Slices: []string{o.Slice.String()},
		Counts: map[string]map[string]map[Verdict]int{}, Classes: map[string]*Class{}}
	for _, s := range o.Scenarios {
		r.Names = append(r.Names, s.Name)
	}
	return r
}

func (r *Result) add(o Outcome) {
	r.Runs++
	if o.BadData {
		r.BadData++
	}
	if o.repeated {
		r.Again++
	}
	by := r.Counts[o.Scenario]
	if by == nil {
		by = map[string]map[Verdict]int{}
		r.Counts[o.Scenario] = by
	}
	if by[o.Kind] == nil {
		by[o.Kind] = map[Verdict]int{}
	}
	by[o.Kind][o.Verdict]++
	if o.Class != "" {
		key := fmt.Sprintf("%s/%s/%s", o.Verdict, o.Class, o.Kind)
		c := r.Classes[key]
		if c == nil {
			c = &Class{Verdict: o.Verdict, Class: o.Class, Kind: o.Kind, Example: o}
			r.Classes[key] = c
		}
		if c.N++; o.Number < c.Example.Number {
			c.Example = o
		}
	}
	if o.Verdict == Failed && len(r.Failures) < maxTold {
		r.Failures = append(r.Failures, o)
	}
}

// beside adds a failure that is no run's.
func (r *Result) beside(o Outcome) {
	if len(r.Others) < maxTold {
		r.Others = append(r.Others, o)
	}
}

// Total is how many runs had a verdict.
func (r *Result) Total(v Verdict) (n int) {
	for _, kinds := range r.Counts {
		for _, by := range kinds {
			n += by[v]
		}
	}
	return n
}

// Made is in how many runs a fault was made.
func (r *Result) Made() int { return r.Runs - r.Total(NotMade) }

// OK says whether nothing failed.
func (r *Result) OK() bool { return r.Total(Failed) == 0 && len(r.Others) == 0 }

// Sum adds results of other slices of the same campaign.
func Sum(parts ...*Result) (*Result, error) {
	if len(parts) == 0 {
		return nil, errors.New("adding results up: there are none")
	}
	first := parts[0]
	sum := &Result{Format: resultFormat, N: first.N, Seed: first.Seed, Backend: first.Backend, Names: first.Names,
		Counts: map[string]map[string]map[Verdict]int{}, Classes: map[string]*Class{}}
	for _, p := range parts {
		if p.N != sum.N || p.Seed != sum.Seed || p.Backend != sum.Backend || !slices.Equal(p.Names, sum.Names) {
			return nil, fmt.Errorf("adding results up: %s is of another campaign than %s", p.what(), first.what())
		}
		for _, s := range p.Slices {
			if slices.Contains(sum.Slices, s) {
				return nil, fmt.Errorf("adding results up: slice %s is there twice", s)
			}
			sum.Slices = append(sum.Slices, s)
		}
		sum.Runs += p.Runs
		sum.Seconds += p.Seconds
		sum.Beside += p.Beside
		sum.BadData += p.BadData
		sum.Again += p.Again
		if p.Up != nil {
			if sum.Up == nil {
				sum.Up = &upFigures{}
			}
			sum.Up.add(p.Up)
		}
		sum.Failures = append(sum.Failures, p.Failures...)
		sum.Others = append(sum.Others, p.Others...)
		for s, kinds := range p.Counts {
			if sum.Counts[s] == nil {
				sum.Counts[s] = map[string]map[Verdict]int{}
			}
			for k, by := range kinds {
				if sum.Counts[s][k] == nil {
					sum.Counts[s][k] = map[Verdict]int{}
				}
				for v, n := range by {
					sum.Counts[s][k][v] += n
				}
			}
		}
		for key, c := range p.Classes {
			have := sum.Classes[key]
			if have == nil {
				copied := *c
				sum.Classes[key] = &copied
				continue
			}
			if have.N += c.N; c.Example.Number < have.Example.Number {
				have.Example = c.Example
			}
		}
	}
	return sum, nil
}

// verdicts are those that the result can have.
func (r *Result) verdicts() []Verdict {
	if r.Up == nil {
		return Verdicts
	}
	return append(slices.Clone(Verdicts), Gone)
}

func (r *Result) what() string {
	return fmt.Sprintf("seed %d, n %d, %s, slices %s", r.Seed, r.N, r.Backend, strings.Join(r.Slices, " "))
}

// ReadResult reads what WriteJSON wrote; of anybody's.
func ReadResult(from io.Reader) (*Result, error) {
	d := json.NewDecoder(io.LimitReader(from, 64<<20))
	r := &Result{}
	if err := d.Decode(r); err != nil {
		return nil, err
	}
	if r.Format != resultFormat {
		return nil, fmt.Errorf("a result of format %d, want %d: made by another version of ring3, whose verdicts mean something else", r.Format, resultFormat)
	}
	if r.Runs < 0 || r.N < r.Runs || len(r.Slices) == 0 {
		return nil, fmt.Errorf("%d runs of %d in %d slices: no result of a campaign", r.Runs, r.N, len(r.Slices))
	}
	for key, c := range r.Classes {
		if c == nil {
			delete(r.Classes, key)
		}
	}
	return r, nil
}

// WriteJSON writes the result.
func (r *Result) WriteJSON(to io.Writer) error {
	e := json.NewEncoder(to)
	e.SetIndent("", " ")
	return e.Encode(r)
}

// WriteText writes tables for people.
func (r *Result) WriteText(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', tabwriter.AlignRight)
	line := func(name string, by map[Verdict]int) {
		runs := 0
		for _, n := range by {
			runs += n
		}
		fmt.Fprintf(w, "%s\t%d\t", name, runs)
		for _, v := range r.verdicts() {
			fmt.Fprintf(w, "%d\t", by[v])
		}
		fmt.Fprintln(w)
	}
	head := func(what string) {
		fmt.Fprintf(w, "%s\truns\t", what)
		for _, v := range r.verdicts() {
			fmt.Fprintf(w, "%s\t", v)
		}
		fmt.Fprintln(w)
	}
	all, kinds := map[Verdict]int{}, map[string]map[Verdict]int{}
	head("SCENARIO")
	for _, s := range r.Names {
		sum := map[Verdict]int{}
		for k, by := range r.Counts[s] {
			for v, n := range by {
				sum[v] += n
				all[v] += n
				if kinds[k] == nil {
					kinds[k] = map[Verdict]int{}
				}
				kinds[k][v] += n
			}
		}
		line(s, sum)
	}
	line("all", all)
	fmt.Fprintln(w, "\t")
	head("KIND")
	for _, k := range kindsInOrder(kinds) {
		line(k, kinds[k])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	made := r.Made()
	fmt.Fprintf(to, "\nseed %d, slices %s, %s: %d runs in %.0f s, faults made in %d; the driver beside made %d rounds; %d runs made again for a time limit\n"+
		"service by itself (harmless, recovered, corrupt): %s; with what somebody who waits or compares has restarted (mute, wrong, gone): %s; failed: %d\n"+
		"runs in which wrong data was given as good: %d, %s\n",
		r.Seed, strings.Join(r.Slices, " "), r.Backend, r.Runs, r.Seconds, made, r.Beside, r.Again,
		percent(made-all[Failed]-all[Mute]-all[Wrong]-all[Gone], made), percent(made-all[Failed], made), all[Failed]+len(r.Others), r.BadData, percent(r.BadData, made))
	if r.Up != nil {
		fmt.Fprintln(to, r.Up)
	}
	r.writeClasses(to)
	return nil
}

func kindsInOrder(have map[string]map[Verdict]int) []string {
	var order []string
	for _, k := range append(fault.Kinds(), fault.ProcessKinds()...) {
		order = append(order, k.String())
	}
	order = append(order, "several")
	for _, k := range slices.Sorted(maps.Keys(have)) {
		if !slices.Contains(order, k) {
			order = append(order, k)
		}
	}
	return slices.DeleteFunc(order, func(k string) bool { return have[k] == nil })
}

func percent(n, of int) string {
	if of == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3f %%", 100*float64(n)/float64(of))
}

// writeClasses explains what was not noticed by a driver, and lists what failed.
func (r *Result) writeClasses(to io.Writer) {
	backend, _ := ParseBackend(r.Backend)
	classes := slices.SortedFunc(maps.Values(r.Classes), func(a, b *Class) int {
		return cmp.Or(cmp.Compare(a.Verdict, b.Verdict), cmp.Compare(a.Class, b.Class), cmp.Compare(b.N, a.N), cmp.Compare(a.Kind, b.Kind))
	})
	title := ""
	for _, c := range classes {
		if c.Verdict != Corrupt && c.Verdict != Mute && c.Verdict != Wrong && c.Verdict != Gone {
			continue
		}
		if t := fmt.Sprintf("%s: %s", c.Verdict, explain[c.Verdict]); t != title {
			title = t
			fmt.Fprintf(to, "\n%s\n", t)
		}
		fmt.Fprintf(to, "  %6d %-10s %-15s such as %s\n", c.N, c.Kind, c.Class, c.Example.Command(backend))
	}
	for _, o := range append(slices.Clone(r.Failures), r.Others...) {
		fmt.Fprintf(to, "\nfailed, %s: %s\n  %s\n", o.Class, o.Command(backend), strings.ReplaceAll(strings.TrimSpace(o.Why), "\n", "\n  "))
	}
}

// explain is why a driver does not notice.
var explain = map[Verdict]string{
	Corrupt: "nothing that the driver sees tells the right number from the wrong one; a check from end to end does, and did; then the driver went on right by itself",
	Wrong:   "it goes on so; a check from end to end notices, and a driver anew works",
	Gone:    "the link died, and a link is not a driver's to mend; 'ring3 ls' says so, and 'ring3 reload' has the device back",
	Mute:    "what is lost is what would have told of it; who waits for progress notices, and a driver anew works",
}
