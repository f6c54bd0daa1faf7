// Package bench is `ring3 bench`: what this system does on this machine, as ratios to what
// the device models can do, measured in the same run. Machines are noisy, so absolute
// figures are only worth comparing within one run, and nothing here passes or fails.
//
// Each measurement that has a limit is taken in pairs, limit and driver in turn on the
// same QEMU, and the median of the ratios is reported, with the medians of both.
package bench

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"slices"
	"time"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/host"
)

// Row is one line of output.
type Row struct {
	Bench string  `json:"bench"`           // "pktgen-tx"
	Case  string  `json:"case"`            // "e1000e ring=4096 burst=256"
	Value float64 `json:"value"`           // in Unit
	Unit  string  `json:"unit"`            // "pps", "ns", "us", "ms", "MiB"
	Limit float64 `json:"limit,omitempty"` // what the model alone does, in Unit
	Ratio float64 `json:"ratio,omitempty"` // Value to Limit
	// Wanted is the least ratio that is aimed at; 0: none is.
	Wanted float64 `json:"wanted,omitempty"`
	// Most is the largest ratio that is aimed at, of a row whose value is a cost; 0: none is.
	Most float64 `json:"most,omitempty"`
	// Samples are what Ratio, or Value where there is no limit, is the median of, where that is known.
	Samples []float64 `json:"samples,omitempty"`
}

// String is a row for people.
func (r Row) String() string {
	s := fmt.Sprintf("%-10s %-34s %14.6g %-4s", r.Bench, r.Case, r.Value, r.Unit)
	if r.Limit != 0 {
		s += fmt.Sprintf("  limit %12.6g  ratio %.3f", r.Limit, r.Ratio)
	}
	if r.Wanted != 0 {
		s += fmt.Sprintf("  wanted %g", r.Wanted)
	}
	if r.Most != 0 {
		s += fmt.Sprintf("  wanted at most %g", r.Most)
	}
	return s
}

// Options says what to measure.
type Options struct {
	Only    *regexp.Regexp // rows whose "BENCH CASE" matches; nil for all
	Time    time.Duration  // of one measurement; 0 means 300 ms
	Pairs   int            // measurements of each row; 0 means 3
	Drivers []*pci.Driver
	// Services are the drivers of the services of PCI Express ports.
	Services []*portbus.ServiceDriver
	Log      *slog.Logger
	Stderr   io.Writer // of child processes
	// FirstFrame brings the default devices up as `ring3 up` does and sends one frame,
	// and returns how long each took from the beginning; the tree is taken down again.
	FirstFrame func(ctx context.Context) (ready, frame time.Duration, err error)
	// PlugFrame brings a port of a backend up, puts a network device into its slot, and sends one frame.
	PlugFrame func(ctx context.Context, backend string) (host.PlugTimes, error)
}

func (o *Options) wants(bench, name string) bool {
	return o.Only == nil || o.Only.MatchString(bench+" "+name)
}

// wantsAny says whether any case of a bench could be wanted; it may err on the yes side.
func (o *Options) wantsAny(bench string, cases []string) bool {
	return slices.ContainsFunc(cases, func(c string) bool { return o.wants(bench, c) })
}

// Run measures everything that is wanted and emits the rows as they come.
func Run(ctx context.Context, o Options, emit func(Row) error) error {
	if o.Time == 0 {
		o.Time = 300 * time.Millisecond
	}
	if o.Pairs == 0 {
		o.Pairs = 3
	}
	for _, f := range []func(context.Context, *Options, func(Row) error) error{access, irq, realTime, start, mem, wire, forward, pktgenTx, pktgenUses, rates, null, accounting, iommu, vfioUser, tracing, contain, weight, moderation, polling, taps, tpms, portIRQs, plug, configSpace, enumerate, rio} {
		if err := f(ctx, &o, emit); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// median of an odd or even number of values; it sorts them.
func median(v []float64) float64 {
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// quantile q of sorted durations.
func quantile(v []time.Duration, q float64) time.Duration {
	return v[min(len(v)-1, int(q*float64(len(v))))]
}
