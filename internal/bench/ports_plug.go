package bench

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ring3dev/ring3/host"
)

// plugWaits is what everybody waits, kernel included, between the power that a slot gets and the first access to what stands in it: 20 ms
// before the link is looked at (Linux), and 100 ms from when it is up (PCI Express Base 5.0, 6.6.1).
const plugWaits = 20*time.Millisecond + 100*time.Millisecond

// plugSteps are the rows of a backend, in order; those at which the waits are over have them as their limit.
var plugSteps = []struct {
	name   string
	at     func(host.PlugTimes) time.Duration
	waited bool
}{
	{"noticed", func(t host.PlugTimes) time.Duration { return t.Noticed }, false},
	{"link", func(t host.PlugTimes) time.Duration { return t.Link }, false},
	{"enumerated", func(t host.PlugTimes) time.Duration { return t.Enumerated }, true},
	{"driver", func(t host.PlugTimes) time.Duration { return t.Driver }, true},
	{"first frame", func(t host.PlugTimes) time.Duration { return t.Frame }, true},
}

// plug measures, from the moment in which a card is put into a slot, how long each step takes until the card has sent a frame.
func plug(ctx context.Context, o *Options, emit func(Row) error) error {
	if o.PlugFrame == nil {
		return nil
	}
	for _, backend := range []string{"sim", "qemu"} {
		var cases []string
		for _, s := range plugSteps {
			cases = append(cases, backend+" "+s.name)
		}
		if !o.wantsAny("plug", cases) {
			continue
		}
		samples := make([][]float64, len(plugSteps))
		for range max(5, o.Pairs) {
			t, err := o.PlugFrame(ctx, backend)
			if err != nil {
				return fmt.Errorf("plug %s: %w", backend, err)
			}
			for i, s := range plugSteps {
				samples[i] = append(samples[i], float64(s.at(t).Microseconds())/1000)
			}
		}
		for i, s := range plugSteps {
			row := Row{Bench: "plug", Case: cases[i], Value: median(slices.Clone(samples[i])), Unit: "ms", Samples: samples[i]}
			if s.waited {
				row.Limit = float64(plugWaits.Milliseconds())
				row.Ratio = row.Value / row.Limit
				for j := range row.Samples {
					row.Samples[j] /= row.Limit
				}
			}
			if !o.wants(row.Bench, row.Case) {
				continue
			}
			if err := emit(row); err != nil {
				return err
			}
		}
	}
	return nil
}
