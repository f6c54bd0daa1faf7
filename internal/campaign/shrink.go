package campaign

import (
	"context"
	"fmt"

	"github.com/ring3dev/ring3/bus/fault"
)

// shrink looks for fewer faults, and earlier ones, that fail too. Whatever fails only now and then is left as it was found.
func (c *campaign) shrink(ctx context.Context, s *Scenario, faults []fault.Fault, found Outcome) Outcome {
	if found.Class == "hang" || found.Class == "set-up" {
		return found // another try costs a minute
	}
	tries := 24
	fails := func(fs []fault.Fault) bool {
		for range 2 { // a race may need a second one
			if tries--; tries < 0 || ctx.Err() != nil {
				return false
			}
			if o := c.try(ctx, s, fs); o.Verdict == Failed && o.Class == found.Class {
				o.Number, o.Kind = found.Number, found.Kind
				found = o
				return true
			}
		}
		return false
	}
	for i := 0; i < len(faults) && len(faults) > 1; {
		fewer := append(append([]fault.Fault(nil), faults[:i]...), faults[i+1:]...)
		if fails(fewer) {
			faults = fewer
		} else {
			i++
		}
	}
	for i := range faults {
		for n := range faults[i].At.Nth - 1 {
			if n >= 4 || tries <= 0 {
				break
			}
			earlier := append([]fault.Fault(nil), faults...)
			earlier[i].At.Nth = n + 1
			if fails(earlier) {
				faults = earlier
				break
			}
		}
	}
	return found
}

// try makes one run, on a device of its own.
func (c *campaign) try(ctx context.Context, s *Scenario, faults []fault.Fault) Outcome {
	if c.Backend.fresh() {
		return once(ctx, s, c.Backend, nil, faults, false)
	}
	r, err := s.open(ctx, c.Backend)
	if err != nil {
		return Outcome{Verdict: NotMade}
	}
	o := once(ctx, s, c.Backend, r, faults, false)
	if err := r.close(); err != nil && o.Verdict != Failed {
		o.fail("leak", "closing the machine: %v", err)
	}
	return o
}

// Command repeats a run.
func (o Outcome) Command(b Backend) string {
	s := fmt.Sprintf("ring3 fault run %s --fault '%s'", o.Scenario, o.Faults)
	if b.Name != "sim" {
		s += " --backend " + b.String()
	}
	return s
}

func (b Backend) String() string {
	if b.Device != "" {
		return b.Name + ":" + b.Device
	}
	return b.Name
}
