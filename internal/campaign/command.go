package campaign

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/host"
)

// Command is `ring3 fault`.
func Command(ctx context.Context, o host.FaultOptions) error {
	switch o.Op {
	case "list":
		return list(o)
	case "sum":
		return sum(o)
	}
	b, err := ParseBackend(o.Backend)
	if err != nil {
		return host.Usage(err)
	}
	b.Log = o.Log
	if o.Op == "run" {
		return runOne(ctx, o, b)
	}
	slice, err := ParseSlice(o.Slice)
	if err != nil {
		return host.Usage(err)
	}
	scenarios, err := Select(Scenarios(), o.Only, b)
	if err != nil {
		return host.Usage(err)
	}
	r, err := Run(ctx, Options{Scenarios: scenarios, Backend: b, N: o.N, Seed: o.Seed, Slice: slice, Parallel: o.Parallel, Progress: o.Stderr,
		Failed: func(x Outcome) { fmt.Fprintf(o.Stderr, "failed, %s: %s\n", x.Class, x.Command(b)) }})
	if r == nil {
		return err
	}
	return errors.Join(err, write(o, r))
}

// write writes a result, and fails where runs did.
func write(o host.FaultOptions, r *Result) error {
	var err error
	if o.JSON {
		err = r.WriteJSON(o.Stdout)
	} else {
		err = r.WriteText(o.Stdout)
	}
	if err == nil && !r.OK() {
		err = fmt.Errorf("fault: %d of %d %w", r.Total(Failed)+len(r.Others), r.Runs, errFailed)
	}
	return err
}

func list(o host.FaultOptions) error {
	type item struct {
		Name  string `json:"name"`
		About string `json:"about"`
		// Backends are those that a scenario runs on.
		Backends []string `json:"backends,omitempty"`
	}
	var all struct {
		Scenarios []item `json:"scenarios"`
		Kinds     []item `json:"kinds"`
		Process   []item `json:"process_kinds"`
	}
	for _, s := range Scenarios() {
		all.Scenarios = append(all.Scenarios, item{s.Name, s.About, s.backends})
	}
	for _, k := range fault.Kinds() {
		all.Kinds = append(all.Kinds, item{Name: k.String(), About: k.About()})
	}
	for _, k := range fault.ProcessKinds() {
		all.Process = append(all.Process, item{Name: k.String(), About: k.About()})
	}
	if o.JSON {
		return host.PrintJSON(o.Stdout, all)
	}
	w := tabwriter.NewWriter(o.Stdout, 0, 8, 2, ' ', 0)
	for _, part := range []struct {
		title string
		items []item
	}{{"SCENARIO", all.Scenarios}, {"KIND", all.Kinds}, {"KIND, IN A WORKER", all.Process}} {
		fmt.Fprintf(w, "%s\t\n", part.title)
		for _, i := range part.items {
			fmt.Fprintf(w, "%s\t%s", i.Name, i.About)
			if len(i.Backends) > 0 {
				fmt.Fprintf(w, " (%s)", strings.Join(i.Backends, ", "))
			}
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, "\t")
	}
	return w.Flush()
}

// runOne makes one run, and tells all that the driver did.
func runOne(ctx context.Context, o host.FaultOptions, b Backend) error {
	s, err := Find(o.Scenario)
	if err != nil {
		return host.Usage(err)
	}
	if !s.On(b) {
		return host.Usage(fmt.Errorf("%s does not run on %s: it does on %s", s.Name, b, strings.Join(s.backends, ", ")))
	}
	if s.up != nil {
		return runUpOnce(ctx, o, b, s)
	}
	var plan fault.Plan
	if len(o.Faults) > 0 {
		if plan, err = fault.Parse(strings.Join(o.Faults, "+")); err != nil {
			return host.Usage(err)
		}
	}
	plan.Registers = s.Registers
	if err := plan.Check(); err != nil {
		return host.Usage(err)
	}
	out := once(ctx, s, b, nil, plan.Faults, true)
	if o.JSON {
		if err := host.PrintJSON(o.Stdout, out); err != nil {
			return err
		}
	} else {
		for _, a := range out.log {
			fmt.Fprintf(o.Stdout, "%5d %-24s %s\n", a.N, a.At(), a)
		}
		for _, x := range out.outcomes {
			fmt.Fprintln(o.Stdout, x)
		}
		out.tellVerdict(o.Stdout, s)
	}
	return out.failure(s)
}

// sum adds files up.
func sum(o host.FaultOptions) error {
	var parts []*Result
	for _, name := range o.Files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		r, err := ReadResult(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		parts = append(parts, r)
	}
	r, err := Sum(parts...)
	if err != nil {
		return err
	}
	return write(o, r)
}
